//! `NetworkService` documents of Network Service Mesh, as they are applied to a cluster.
//!
//! Both versions are read, and in either the names of both: `source_selector` and `routes` of `v1`, `sourceSelector` and `route` of
//! `v1alpha1`. Files of `v1alpha1` have keys `match` and `destination` that hold nothing, beside what looks as if it belonged to them.
//! The schemas of a cluster check nothing; here an unknown key is named.

use ferrule_daemon::settings::{ConfigErrors, Field, Table, parse_documents};
use ferrule_nsm::proto::registry::{Destination, Match, Metadata, NetworkService};
use ferrule_nsm::registry::labels::Labels;

use crate::config::wire::read_labels;

/// What a file holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Documents {
    pub(super) services: Vec<NetworkService>,
    /// What is no error, and probably not meant.
    pub(super) warnings: Vec<String>,
}

/// Reads the documents of a text; `file` is what its errors call it.
pub(super) fn read(file: &str, text: &str) -> Result<Documents, ConfigErrors> {
    parse_documents(file, text, |documents, _| {
        let mut read = Documents::default();
        for document in documents.iter().filter(|document| !document.is_null()) {
            read.services.extend(read_service(document));
            read.warnings.extend(warning(document).map(|warning| format!("{file}:{warning}")));
        }
        read
    })
}

fn read_service(document: &Field<'_>) -> Option<NetworkService> {
    let table = document.table(&["apiVersion", "kind", "metadata", "spec", "status"])?;
    let version = table.required("apiVersion", "`networkservicemesh.io/v1`");
    version.and_then(|field| field.choice(&VERSIONS.map(|version| (version, ()))));
    table.required("kind", "`NetworkService`").and_then(|field| field.choice(&[("NetworkService", ())]));
    // What else Kubernetes has there is its own.
    let metadata = table.required("metadata", "a mapping with the service's `name`");
    let name = metadata.and_then(|field| {
        let name = field.peek("name");
        if name.is_none() {
            field.wrong_below("name", "missing; the service's name is wanted");
        }
        name?.text().map(ToOwned::to_owned)
    });
    let spec = table.required("spec", "a mapping with `payload` and `matches`")?;
    let spec = spec.table(&["name", "payload", "matches"])?;
    let payload = spec.optional("payload").map_or(Some("IP"), |field| field.choice(&PAYLOADS));
    let matches = spec.optional("matches").and_then(|field| field.items()).unwrap_or_default();
    let matches: Vec<_> = matches.iter().map(read_match).collect();
    Some(NetworkService {
        name: name?,
        payload: payload?.to_owned(),
        matches: matches.into_iter().collect::<Option<_>>()?,
        path_ids: Vec::new(),
    })
}

fn read_match(field: &Field<'_>) -> Option<Match> {
    let table =
        field.table(&["match", "source_selector", "sourceSelector", "routes", "route", "fallthrough", "metadata"])?;
    holds_nothing(&table, "match");
    let source = either(&table, SOURCE).map(|field| read_labels(&field)).unwrap_or_default();
    let routes = either(&table, ["routes", "route"]).and_then(|field| field.items()).unwrap_or_default();
    let routes: Vec<_> = routes.iter().map(read_destination).collect();
    let switch = [("true", true), ("false", false)];
    let fallthrough = table.optional("fallthrough").map_or(Some(false), |field| field.choice(&switch));
    let metadata = table.optional("metadata").map(|field| {
        let labels = field.table(&["labels"]).and_then(|table| table.optional("labels"));
        Metadata { labels: labels.map(|field| read_labels(&field)).unwrap_or_default() }
    });
    let routes = routes.into_iter().collect::<Option<_>>()?;
    Some(Match { source_selector: source, routes, fallthrough: fallthrough?, metadata })
}

fn read_destination(field: &Field<'_>) -> Option<Destination> {
    let table = field.table(&["destination", "destination_selector", "destinationSelector", "weight"])?;
    holds_nothing(&table, "destination");
    let selector = either(&table, ["destination_selector", "destinationSelector"]);
    let selector: Labels = selector.map(|field| read_labels(&field)).unwrap_or_default();
    // It means nothing there either.
    let weight = table.optional("weight").map_or(Some(0), |field| field.number(0..=u64::from(u32::MAX)));
    Some(Destination { destination_selector: selector, weight: weight? })
}

/// The value of a key by one of its two names.
fn either<'a>(table: &Table<'a>, [name, other]: [&str; 2]) -> Option<Field<'a>> {
    let (first, second) = (table.optional(name), table.optional(other));
    if let (Some(_), Some(second)) = (&first, &second) {
        second.wrong(format!("`{name}` says it already; remove one of them"));
    }
    first.or(second)
}

/// A key that stands beside its contents.
fn holds_nothing(table: &Table<'_>, key: &str) {
    if let Some(field) = table.optional(key)
        && !field.is_empty()
    {
        field.wrong("it holds nothing in these documents; move what is in it one level up");
    }
}

/// A match for every client in front of others, which are never looked at then.
fn warning(document: &Field<'_>) -> Option<String> {
    let matches = document.peek("spec")?.peek("matches")?;
    let items = if matches.is_list() { matches.items()? } else { return None };
    let (_, in_front) = items.split_last()?;
    let is_for_all = |item: &&Field<'_>| {
        let falls = item.peek("fallthrough").is_some_and(|field| field.is_text() && field.text() == Some("true"));
        !falls && SOURCE.iter().all(|key| item.peek(key).is_none_or(|field| field.is_empty()))
    };
    let first = in_front.iter().find(is_for_all)?;
    Some(first.error("it has no source_selector, so it is for every client, and those behind it for none; move it to the end").to_string())
}

const VERSIONS: [&str; 2] = ["networkservicemesh.io/v1", "networkservicemesh.io/v1alpha1"];
const PAYLOADS: [(&str, &str); 2] = [("IP", "IP"), ("ETHERNET", "ETHERNET")];
const SOURCE: [&str; 2] = ["source_selector", "sourceSelector"];

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "---
apiVersion: networkservicemesh.io/v1alpha1
kind: NetworkService
metadata: { name: secure, namespace: default, labels: { any: thing } }
spec:
  payload: IP
  matches:
    - match:
      sourceSelector: { app: firewall }
      route:
        - destination:
          destinationSelector: { app: passthrough-1 }
          weight: 1
    - match:
      route:
        - destination:
          destinationSelector: { app: firewall }
";
    const NEW: &str = "---
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata:
  name: secure
spec:
  payload: IP
  matches:
    - source_selector: { app: firewall }
      routes: [{ destination_selector: { app: passthrough-1 }, weight: 1 }]
    - routes: [{ destination_selector: { app: firewall } }]
---
";

    #[test]
    fn both_forms_of_a_document_say_the_same() {
        let (old, new) = (read("old.yaml", OLD).unwrap(), read("new.yaml", NEW).unwrap());
        assert_eq!(old, new);
        let [service] = &new.services[..] else { panic!("{new:?}") };
        assert_eq!((service.name.as_str(), service.payload.as_str(), service.matches.len()), ("secure", "IP", 2));
        assert_eq!(service.matches[0].source_selector["app"], "firewall");
        assert_eq!(service.matches[0].routes[0].destination_selector["app"], "passthrough-1");
        assert!(service.matches[1].source_selector.is_empty() && new.warnings.is_empty());
        assert_eq!(read("both.yaml", &[OLD, NEW].concat()).unwrap().services.len(), 2);
    }

    #[test]
    fn what_a_cluster_would_let_vanish_is_named() {
        for (old, new, problem) in [
            (
                "sourceSelector",
                "sourceSelektor",
                "spec.matches[0].sourceSelektor: unknown key; did you mean `sourceSelector`?",
            ),
            (
                "      sourceSelector: { app: firewall }",
                "        sourceSelector: { app: firewall }",
                "spec.matches[0].match: it holds nothing",
            ),
            ("          weight: 1", "          wait: 1", "spec.matches[0].route[0].wait: unknown key"),
            (
                "    - match:\n      route:",
                "    - source_selector: { a: b }\n      sourceSelector: { a: b }\n      route:",
                "spec.matches[1].sourceSelector: `source_selector` says it already",
            ),
            ("payload: IP", "payload: ip", "spec.payload: `ip`; `IP` or `ETHERNET` is wanted"),
            ("kind: NetworkService", "kind: Service", "kind: `Service`; `NetworkService` is wanted"),
            ("io/v1alpha1", "io/v2", "apiVersion: `networkservicemesh.io/v2`"),
            ("name: secure, ", "", "metadata.name: missing"),
            ("      sourceSelector: { app: firewall }", "      fallthrough: yes", "spec.matches[0].fallthrough: `yes`"),
        ] {
            assert!(OLD.contains(old), "{old}");
            let lines: Vec<_> = read("old.yaml", &OLD.replacen(old, new, 1)).unwrap_err().lines().collect();
            assert!(
                lines.iter().any(|line| line.starts_with("old.yaml:") && line.contains(problem)),
                "{new}: {lines:#?}"
            );
        }
    }

    #[test]
    fn a_match_for_all_in_front_of_others_is_warned_of() {
        let warnings = |text: &str| read("f.yaml", text).unwrap().warnings;
        let in_front = OLD.replace("      sourceSelector: { app: firewall }\n", "");
        assert_eq!(warnings(&in_front).len(), 1);
        assert!(
            warnings(&in_front)[0].starts_with("f.yaml:8:7: spec.matches[0]: it has no source_selector"),
            "{:?}",
            warnings(&in_front)
        );
        assert!(warnings(&OLD.replace("sourceSelector: { app: firewall }", "fallthrough: true")).is_empty());
    }
}
