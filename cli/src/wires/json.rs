//! Wires for programs. `docs/cli.md` promises this shape: keys may be added, none is renamed or removed.

use std::collections::BTreeMap;

use serde::Serialize;

use super::State;
use crate::admin::proto;

/// The wires as one JSON document with a line feed.
pub(super) fn render(wires: &[proto::Wire]) -> String {
    let document = Document { wires: wires.iter().map(Wire::from).collect() };
    let text = serde_json::to_string_pretty(&document).expect("texts, numbers and maps with text keys are JSON");
    text + "\n"
}

#[derive(Serialize)]
struct Document<'a> {
    wires: Vec<Wire<'a>>,
}

#[derive(Serialize)]
struct Wire<'a> {
    name: &'a str,
    state: &'static str,
    origin: Option<&'static str>,
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
            },
            full: &wire.full,
            crossing: &wire.crossing,
            copied_because: Some(wire.copied_because.as_str()).filter(|reason| !reason.is_empty()),
            queues: wire.queues,
            ends: wire.ends.iter().map(End::from).collect(),
            directions: wire.directions.iter().enumerate().map(Direction::from).collect(),
        }
    }
}

impl<'a> From<&'a proto::End> for End<'a> {
    fn from(end: &'a proto::End) -> Self {
        let detail = Some(end.detail.as_str()).filter(|detail| !detail.is_empty());
        Self { kind: &end.kind, description: &end.description, state: &end.state, detail }
    }
}

impl<'a> From<(usize, &'a proto::Traffic)> for Direction<'a> {
    fn from((from, traffic): (usize, &'a proto::Traffic)) -> Self {
        let drops = traffic.drops.iter().map(|drop| (drop.reason.as_str(), drop.frames)).collect();
        Self { from, to: 1 - from.min(1), frames: traffic.frames, bytes: traffic.bytes, drops }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::wires::fixtures;

    #[test]
    fn the_shape_is_what_the_documentation_promises() {
        let document: Value = serde_json::from_str(&render(&fixtures::wires()[..1])).unwrap();
        let expected = json!({ "wires": [{
            "name": "a-b",
            "state": "up",
            "origin": "file",
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
                { "from": 0, "to": 1, "frames": 1_234_567, "bytes": 79_012_288, "drops": { "full": 12, "too_long": 0 } },
                { "from": 1, "to": 0, "frames": 42, "bytes": 2688, "drops": { "full": 0, "too_long": 0 } },
            ],
        }] });
        assert_eq!(document, expected);
    }

    #[test]
    fn no_wires_are_an_empty_list() {
        assert_eq!(render(&[]), "{\n  \"wires\": []\n}\n");
    }
}
