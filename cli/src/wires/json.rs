//! Wires for programs. `docs/cli.md` promises this shape: keys may be added, none is renamed or removed.

use std::collections::BTreeMap;

use serde::Serialize;

use super::State;
use crate::admin::proto;

/// The wires as one JSON document with a line feed.
pub(super) fn render(list: &proto::ListWiresResponse) -> String {
    let document = Document { wires: list.wires.iter().map(Wire::from).collect(), file_problems: &list.file_problems };
    let text = serde_json::to_string_pretty(&document).expect("texts, numbers and maps with text keys are JSON");
    text + "\n"
}

#[derive(Serialize)]
struct Document<'a> {
    wires: Vec<Wire<'a>>,
    file_problems: &'a [String],
}

#[derive(Serialize)]
struct Wire<'a> {
    name: &'a str,
    state: &'static str,
    origin: Option<&'static str>,
    owner: Option<&'a str>,
    labels: BTreeMap<&'a str, &'a str>,
    generation: u64,
    persistent: bool,
    problem: Option<&'a str>,
    full: &'a str,
    crossing: &'a str,
    copied_because: Option<&'a str>,
    queues: u32,
    ends: Vec<End<'a>>,
    directions: Vec<Direction<'a>>,
}

#[derive(Serialize)]
struct End<'a> {
    kind: &'a str,
    description: &'a str,
    state: &'a str,
    detail: Option<&'a str>,
}

#[derive(Serialize)]
struct Direction<'a> {
    from: usize,
    to: usize,
    frames: u64,
    bytes: u64,
    stalls: u64,
    drops: BTreeMap<&'a str, u64>,
}

impl<'a> From<&'a proto::Wire> for Wire<'a> {
    fn from(wire: &'a proto::Wire) -> Self {
        Self {
            name: &wire.name,
            state: State::of(wire).word(),
            origin: match wire.origin() {
                proto::Origin::Unspecified => None,
                proto::Origin::File => Some("file"),
                proto::Origin::Admin => Some("admin"),
                proto::Origin::Mesh => Some("mesh"),
            },
            owner: wire.spec.as_ref().and_then(|spec| some(&spec.owner)),
            labels: wire.spec.iter().flat_map(|spec| &spec.labels).map(|(key, value)| (&**key, &**value)).collect(),
            generation: wire.generation,
            persistent: wire.persistent,
            problem: some(&wire.problem),
            full: &wire.full,
            crossing: &wire.crossing,
            copied_because: some(&wire.copied_because),
            queues: wire.queues,
            ends: wire.ends.iter().map(End::from).collect(),
            directions: wire.directions.iter().enumerate().map(Direction::from).collect(),
        }
    }
}

impl<'a> From<&'a proto::End> for End<'a> {
    fn from(end: &'a proto::End) -> Self {
        Self { kind: &end.kind, description: &end.description, state: &end.state, detail: some(&end.detail) }
    }
}

impl<'a> From<(usize, &'a proto::Traffic)> for Direction<'a> {
    fn from((from, traffic): (usize, &'a proto::Traffic)) -> Self {
        let drops = traffic.drops.iter().map(|drop| (drop.reason.as_str(), drop.frames)).collect();
        Self { from, to: 1 - from.min(1), frames: traffic.frames, bytes: traffic.bytes, stalls: traffic.stalls, drops }
    }
}

/// A text, if there is one.
fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::wires::fixtures;

    #[test]
    fn the_shape_is_what_the_documentation_promises() {
        let list = proto::ListWiresResponse {
            wires: fixtures::wires()[..1].to_vec(),
            file_problems: vec!["w.yaml:1:1: wrong".to_owned()],
            ..proto::ListWiresResponse::default()
        };
        let document: Value = serde_json::from_str(&render(&list)).unwrap();
        let expected = json!({ "file_problems": ["w.yaml:1:1: wrong"], "wires": [{
            "name": "a-b",
            "state": "up",
            "origin": "file",
            "owner": "cni",
            "labels": { "pod": "shop/web-0", "zone": "" },
            "generation": 3,
            "persistent": false,
            "problem": null,
            "full": "hold",
            "crossing": "copied",
            "copied_because": null,
            "queues": 2,
            "ends": [
                { "kind": "memif", "description": "memif /run/ferrule/m.sock id 0 server",
                  "state": "connected", "detail": "testpmd" },
                { "kind": "kernel", "description": "kernel nsm-1 in /run/netns/pod", "state": "up", "detail": null },
            ],
            "directions": [
                { "from": 0, "to": 1, "frames": 1_234_567, "bytes": 79_012_288, "stalls": 0,
                  "drops": { "full": 12, "too_long": 0 } },
                { "from": 1, "to": 0, "frames": 42, "bytes": 2688, "stalls": 0, "drops": { "full": 0, "too_long": 0 } },
            ],
        }] });
        assert_eq!(document, expected);
    }

    #[test]
    fn what_keeps_a_wire_from_being_served_is_told() {
        let mut wires = fixtures::wires();
        (wires[1].problem, wires[1].persistent) = ("no worker has room".to_owned(), true);
        let list = proto::ListWiresResponse { wires, ..proto::ListWiresResponse::default() };
        let document: Value = serde_json::from_str(&render(&list)).unwrap();
        let wire = &document["wires"][1];
        assert_eq!((&wire["problem"], &wire["persistent"]), (&json!("no worker has room"), &json!(true)));
        assert_eq!((&wire["owner"], &wire["labels"]), (&Value::Null, &json!({})));
    }

    #[test]
    fn no_wires_are_an_empty_list() {
        let none = render(&proto::ListWiresResponse::default());
        assert_eq!(none, "{\n  \"wires\": [],\n  \"file_problems\": []\n}\n");
    }
}
