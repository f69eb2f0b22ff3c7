//! What a wire should be: messages of the admin API and of the journal, and the checked types behind them.

use std::fmt;

use ferrule_dataplane::spec::{EndSpec, FieldError, Full, MemifSpec, Role, SocketAddress, WireSpec};

use super::end;
use super::reader::Reader;
use super::secrets::Secrets;
use super::vhost_user::FEATURES;
use crate::config::conflicts_within;
use dpdk_forwarder_client::v1;

/// Everything that is wrong with a message of a wire, each with the field it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldErrors(Vec<FieldError>);

impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for FieldErrors {}

/// Reads and checks a wire. What is wrong with it comes back in one go.
pub fn spec_from_proto(wire: &v1::WireSpec) -> Result<WireSpec, FieldErrors> {
    let mut reader = Reader::default();
    let ends: Vec<_> = wire
        .ends
        .iter()
        .enumerate()
        .filter_map(|(index, end)| {
            reader.path = format!("ends[{index}]");
            end::from_proto(&mut reader, end)
        })
        .collect();
    reader.path.clear();
    if wire.ends.len() != 2 {
        reader.wrong("ends", format!("a wire has exactly two ends, not {}", wire.ends.len()));
    }
    let full = match v1::Full::try_from(wire.full) {
        Ok(v1::Full::Unspecified | v1::Full::Hold) => Full::Hold,
        Ok(v1::Full::Drop) => Full::Drop,
        Err(_) => reader.unknown("full", wire.full, Full::Hold),
    };
    let ends = <[EndSpec; 2]>::try_from(ends);
    let are_known = ends.is_ok();
    let spec = WireSpec {
        full,
        trusted: wire.trusted,
        owner: wire.owner.clone(),
        labels: wire.labels.clone().into_iter().collect(),
        ..WireSpec::new(wire.name.clone(), ends.unwrap_or_else(|_| stand_ins()))
    };
    // What is wrong with the rest of the message is told also when an end cannot be read.
    let found = spec.check().into_iter().chain(conflicts_within(&spec));
    reader.errors.extend(found.filter(|error| are_known || !error.field.starts_with("ends")));
    for error in &mut reader.errors {
        error.field = field_of_message(&error.field);
    }
    if reader.errors.is_empty() { Ok(spec) } else { Err(FieldErrors(reader.errors)) }
}

/// Ends that are in the way of nothing that is said of a wire.
fn stand_ins() -> [EndSpec; 2] {
    let end = |role| EndSpec::Memif(MemifSpec::new(SocketAddress::Abstract(format!("\u{fffd}{role:?}")), role));
    [end(Role::Client), end(Role::Server)]
}

/// What the message calls a field of the wires file.
fn field_of_message(field: &str) -> String {
    let field = field.replace("vhost-user", "vhost_user");
    let (path, name) = field.rsplit_once('.').map_or(("", &*field), |(path, name)| (path, name));
    let name = match name {
        "socket_owner" => "access.owner",
        "socket_group" => "access.group",
        "socket_mode" => "access.mode",
        "memory" => "memory_bytes",
        feature if path.ends_with("vhost_user") && FEATURES.contains(&feature) => "without",
        name => name,
    };
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Writes a wire, with its secrets if asked for.
pub fn spec_to_proto(spec: &WireSpec, secrets: Secrets) -> v1::WireSpec {
    let full = match spec.full {
        Full::Hold => v1::Full::Hold,
        Full::Drop => v1::Full::Drop,
    };
    v1::WireSpec {
        name: spec.name.clone(),
        ends: spec.ends.iter().map(|end| end::to_proto(end, secrets)).collect(),
        full: full.into(),
        trusted: spec.trusted,
        owner: spec.owner.clone(),
        labels: spec.labels.clone().into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, parse_wire};
    use v1::end_spec::Kind;
    use v1::net_ns::Place;

    #[test]
    fn every_wire_of_the_sample_file_survives_the_way_there_and_back() {
        let config = Config::parse("wires.yaml", include_str!("../../../../docs/wires.yaml")).unwrap();
        assert!(config.wires.len() >= 5);
        for wire in config.wires {
            assert_eq!(spec_from_proto(&spec_to_proto(&wire, Secrets::Shown)), Ok(wire));
        }
    }

    #[test]
    fn a_secret_is_written_only_for_who_has_to_make_the_wire() {
        let text = "{name: w, ends: [{memif: {socket: /m, role: server, secret: hunter2}}, {kernel: {name: a}}]}";
        let spec = parse_wire(text).unwrap();
        let hidden = spec_to_proto(&spec, Secrets::Hidden);
        assert!(!format!("{hidden:?}").contains("hunter2"));
        assert_eq!(spec_from_proto(&spec_to_proto(&spec, Secrets::Shown)), Ok(spec));
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let memif = v1::MemifEnd { socket: "/m".into(), role: v1::Role::Server.into(), ..v1::MemifEnd::default() };
        let kernel = v1::KernelEnd { name: "a".into(), ..v1::KernelEnd::default() };
        let ends = [Kind::Memif(memif), Kind::Kernel(kernel)].map(|kind| v1::EndSpec { kind: Some(kind) });
        let wire = v1::WireSpec { name: "w".into(), ends: ends.into(), ..v1::WireSpec::default() };
        let expected = parse_wire("{name: w, ends: [{memif: {socket: /m, role: server}}, {kernel: {name: a}}]}");
        assert_eq!(spec_from_proto(&wire), Ok(expected.unwrap()));
    }

    #[test]
    fn a_wire_that_would_connect_to_itself_is_refused() {
        let memif = |role: v1::Role, id| v1::MemifEnd { socket: "/m".into(), role: role.into(), id, ..<_>::default() };
        let ends = [memif(v1::Role::Server, 0), memif(v1::Role::Client, 1)];
        let ends = ends.map(|memif| v1::EndSpec { kind: Some(Kind::Memif(memif)) });
        let wire = v1::WireSpec { name: "w".into(), ends: ends.into(), ..v1::WireSpec::default() };
        let text = spec_from_proto(&wire).unwrap_err().to_string();
        assert!(text.starts_with("ends[1].memif.role: ") && text.contains("one role"), "{text}");
    }

    #[test]
    fn everything_that_is_wrong_is_told_with_its_field() {
        let access = Some(v1::SocketAccess { owner: "a b".into(), group: "-".into(), mode: Some(0o7777) });
        let memif = v1::MemifEnd { socket: "m".into(), queues: Some(70_000), access, ..v1::MemifEnd::default() };
        let netns = v1::NetNs { place: Some(Place::Path("pod".into())) };
        let routes = vec![v1::Route { to: "x".into(), via: "y".into() }];
        let kernel = v1::KernelEnd { name: "all".into(), netns: Some(netns), routes, ..v1::KernelEnd::default() };
        let ends = vec![
            v1::EndSpec { kind: Some(Kind::Memif(memif)) },
            v1::EndSpec { kind: Some(Kind::Kernel(kernel)) },
            v1::EndSpec { kind: None },
        ];
        let wire = v1::WireSpec { ends, full: 9, ..v1::WireSpec::default() };
        let text = spec_from_proto(&wire).unwrap_err().to_string();
        let fields: Vec<_> = text.lines().filter_map(|line| line.split(": ").next()).collect();
        assert_eq!(
            fields,
            [
                "ends[0].memif.socket",
                "ends[0].memif.role",
                "ends[0].memif.access.mode",
                "ends[0].memif.access.owner",
                "ends[0].memif.access.group",
                "ends[1].kernel.netns",
                "ends[1].kernel.routes[0].to",
                "ends[1].kernel.routes[0].via",
                "ends[1].kernel.name",
                "ends[2].kind",
                "ends",
                "full",
                "name"
            ]
        );
    }
}
