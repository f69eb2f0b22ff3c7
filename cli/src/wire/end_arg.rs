//! The short form of an end, `KIND:KEY=VALUE,...`, as an entry of the wires file.
//!
//! It knows how a key is written, not what it means: unknown keys and wrong values are the forwarder's to judge.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::split_file::Item;
use super::{AddArgs, Full};

/// An end as written after `--end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndArg {
    kind: String,
    fields: Map<String, Value>,
}

impl FromStr for EndArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, fields) = text.split_once(':').unwrap_or((text, ""));
        if kind.is_empty() || !kind.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(
                "an end begins with its kind, as in `memif:`, `vhost-user:`, `kernel:`, `vf:` or `ethdev:`".to_owned()
            );
        }
        let mut end = Self { kind: kind.to_owned(), fields: Map::new() };
        for field in fields.split(',').filter(|field| !field.is_empty()) {
            let Some((key, value)) = field.split_once('=').filter(|(key, _)| !key.is_empty()) else {
                return Err(format!("`{field}` is not of the form KEY=VALUE (a value with a comma needs a YAML file)"));
            };
            end.set(key, value)?;
        }
        Ok(end)
    }
}

impl EndArg {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let (key, value) = match key {
            // A VF has one, and an interface may have many.
            "address" if self.kind != "vf" => return self.push("addresses", value.into()),
            "pool" => return self.push(key, value.into()),
            "route" => return self.push("routes", route(value)),
            "id" | "queues" | "ring" | "buffer" | "mtu" | "vlan" => (key, number(value)),
            _ => (key, value.into()),
        };
        match self.fields.insert(key.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(format!("`{key}` is given twice")),
        }
    }

    /// Adds to a list; its key may come several times.
    fn push(&mut self, key: &str, value: Value) -> Result<(), String> {
        match self.fields.entry(key).or_insert_with(|| json!([])) {
            Value::Array(list) => list.push(value),
            _ => return Err(format!("`{key}` is given in two forms")),
        }
        Ok(())
    }
}

/// A label as written after `--label`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelArg(String, String);

impl FromStr for LabelArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("a label is KEY=VALUE")?;
        Ok(Self(key.to_owned(), value.to_owned()))
    }
}

/// The wire of these arguments. JSON is YAML too.
pub(super) fn item(args: &AddArgs) -> Item {
    let name = args.name.as_deref().unwrap_or_default();
    let ends: Vec<_> = args.end.iter().map(|EndArg { kind, fields }| json!({ kind: fields })).collect();
    let mut wire = json!({ "name": name, "ends": ends });
    if let Some(full) = args.full {
        wire["full"] = match full {
            Full::Hold => "hold".into(),
            Full::Drop => "drop".into(),
        };
    }
    if args.trusted {
        wire["trusted"] = true.into();
    }
    if let Some(owner) = &args.owner {
        wire["owner"] = owner.as_str().into();
    }
    if !args.labels.is_empty() {
        let labels = args.labels.iter().map(|LabelArg(key, value)| (key.clone(), Value::from(value.as_str())));
        wire["labels"] = labels.collect::<Map<_, _>>().into();
    }
    Item { label: name.to_owned(), yaml: wire.to_string(), place: None }
}

fn number(text: &str) -> Value {
    text.parse::<u64>().map_or_else(|_| text.into(), Value::from)
}

/// `10.1.0.0/16`, or `10.1.0.0/16 via 10.0.0.2`.
fn route(text: &str) -> Value {
    match text.split_once(" via ") {
        Some((to, via)) => json!({ "to": to.trim(), "via": via.trim() }),
        None => json!({ "to": text }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::AdminSocket;

    #[test]
    fn a_short_wire_becomes_an_entry_of_the_wires_file() {
        let ends = [
            "memif:socket=@x,id=0,role=server,secret=0123",
            "kernel:netns=/run/netns/pod,name=nsm-1,address=10.0.0.1/30,address=fd00::1/64,route=10.1.0.0/16 via 10.0.0.2,mtu=1500",
            "vf:pool=fast,pool=spare,vlan=7,mac=02:00:00:00:00:01",
            "vf:address=0000:3b:02.1",
        ];
        let item = item(&AddArgs {
            file: None,
            name: Some("a-b".to_owned()),
            end: ends.iter().map(|end| end.parse().unwrap()).collect(),
            full: Some(Full::Drop),
            trusted: true,
            owner: Some("me".to_owned()),
            labels: vec!["app=nat".parse().unwrap(), "x=a=b".parse().unwrap()],
            persist: None,
            socket: AdminSocket { path: "/run/x.sock".into() },
        });
        assert_eq!(item.label, "a-b");
        let expected = json!({
            "name": "a-b",
            "full": "drop",
            "trusted": true,
            "owner": "me",
            "labels": { "app": "nat", "x": "a=b" },
            "ends": [
                { "memif": { "socket": "@x", "id": 0, "role": "server", "secret": "0123" } },
                { "kernel": {
                    "netns": "/run/netns/pod", "name": "nsm-1", "addresses": ["10.0.0.1/30", "fd00::1/64"],
                    "routes": [{ "to": "10.1.0.0/16", "via": "10.0.0.2" }], "mtu": 1500,
                } },
                { "vf": { "pool": ["fast", "spare"], "vlan": 7, "mac": "02:00:00:00:00:01" } },
                { "vf": { "address": "0000:3b:02.1" } },
            ],
        });
        assert_eq!(serde_json::from_str::<Value>(&item.yaml).unwrap(), expected);
    }

    #[test]
    fn an_end_that_is_no_end_says_what_one_looks_like() {
        for (text, part) in [
            ("", "begins with its kind"),
            ("/run/x.sock", "begins with its kind"),
            ("memif:socket", "KEY=VALUE"),
            ("memif:=x", "KEY=VALUE"),
            ("memif:id=1,id=2", "given twice"),
            ("kernel:addresses=x,address=y", "two forms"),
        ] {
            let error = text.parse::<EndArg>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
