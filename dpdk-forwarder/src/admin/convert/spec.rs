//! What a wire should be: messages of the admin API and of the journal, and the checked types behind them.

use std::fmt;
use std::str::FromStr;

use ferrule_dataplane::spec::{
    ByteSize, EndSpec, FieldError, FileMode, Full, KernelSpec, MemifSpec, Mode, NetNs, Prealloc, Process, Role, Route,
    Secret, SocketAccess, SocketAddress, VhostFeatures, VhostUserSpec, WireSpec,
};

use crate::admin::v1;
use crate::config::conflicts_within;
use v1::end_spec::Kind;
use v1::net_ns::Place;

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
            reader.end(end)
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
        ends: spec.ends.iter().map(|end| v1::EndSpec { kind: Some(kind_to_proto(end, secrets)) }).collect(),
        full: full.into(),
        trusted: spec.trusted,
        owner: spec.owner.clone(),
        labels: spec.labels.clone().into_iter().collect(),
    }
}

/// Whether secrets are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// They are left out.
    Hidden,
    /// They are written, for whoever has to make the wire.
    Shown,
}

/// Collects what is wrong with the fields of one message.
#[derive(Default)]
struct Reader {
    /// The end that is being read.
    path: String,
    errors: Vec<FieldError>,
}

impl Reader {
    fn wrong(&mut self, field: &str, problem: impl Into<String>) {
        let field = if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) };
        self.errors.push(FieldError { field, problem: problem.into() });
    }

    fn unknown<T>(&mut self, field: &str, number: i32, stand_in: T) -> T {
        self.wrong(field, format!("{number} is none of its values"));
        stand_in
    }

    fn parse<T: FromStr<Err: fmt::Display>>(&mut self, field: &str, text: &str) -> Option<T> {
        text.parse().map_err(|error| self.wrong(field, format!("{error}"))).ok()
    }

    /// As [`Self::parse`]; an empty text is none.
    fn optional<T: FromStr<Err: fmt::Display>>(&mut self, field: &str, text: &str) -> Option<T> {
        if text.is_empty() { None } else { self.parse(field, text) }
    }

    fn end(&mut self, end: &v1::EndSpec) -> Option<EndSpec> {
        match &end.kind {
            Some(Kind::Memif(memif)) => self.memif(memif).map(EndSpec::Memif),
            Some(Kind::VhostUser(vhost)) => self.vhost_user(vhost).map(EndSpec::VhostUser),
            Some(Kind::Kernel(kernel)) => self.kernel(kernel).map(EndSpec::Kernel),
            None => {
                self.wrong("kind", "an end is one of `memif`, `vhost_user` or `kernel`");
                None
            }
        }
    }

    fn memif(&mut self, memif: &v1::MemifEnd) -> Option<MemifSpec> {
        let socket = self.parse("memif.socket", &memif.socket);
        let role = self.role("memif.role", memif.role);
        let netns = memif.netns.as_ref().and_then(|netns| self.netns("memif.netns", netns));
        let mode = match v1::FrameMode::try_from(memif.mode) {
            Ok(v1::FrameMode::Unspecified | v1::FrameMode::Ethernet) => Mode::Ethernet,
            Ok(v1::FrameMode::Ip) => Mode::Ip,
            Err(_) => self.unknown("memif.mode", memif.mode, Mode::Ethernet),
        };
        let secret = self.optional::<Secret>("memif.secret", &memif.secret);
        let access = self.access("memif", memif.access.as_ref());
        let prealloc = match v1::Prealloc::try_from(memif.prealloc) {
            Ok(v1::Prealloc::Unspecified | v1::Prealloc::Never) => Prealloc::Never,
            Ok(v1::Prealloc::SmallPages) => Prealloc::SmallPages,
            Ok(v1::Prealloc::HugePages) => Prealloc::HugePages,
            Err(_) => self.unknown("memif.prealloc", memif.prealloc, Prealloc::Never),
        };
        let defaults = MemifSpec::new(socket?, role?);
        Some(MemifSpec {
            netns,
            id: memif.id,
            mode,
            secret,
            // Out of range for the type is out of range for the wire: the check says it best.
            queues: memif.queues.map_or(defaults.queues, |queues| u16::try_from(queues).unwrap_or(u16::MAX)),
            ring: memif.ring.unwrap_or(defaults.ring),
            buffer: memif.buffer.unwrap_or(defaults.buffer),
            prealloc,
            access,
            memory: memif.memory_bytes.map_or(defaults.memory, ByteSize::bytes),
            ..defaults
        })
    }

    fn vhost_user(&mut self, vhost: &v1::VhostUserEnd) -> Option<VhostUserSpec> {
        let socket = self.parse("vhost-user.socket", &vhost.socket);
        let role = self.role("vhost-user.role", vhost.role);
        let mac = self.optional("vhost-user.mac", &vhost.mac);
        let features = self.features(&vhost.without);
        let access = self.access("vhost-user", vhost.access.as_ref());
        let defaults = VhostUserSpec::new(socket?, role?);
        Some(VhostUserSpec {
            queues: vhost.queues.map_or(defaults.queues, |queues| u16::try_from(queues).unwrap_or(u16::MAX)),
            features,
            mtu: vhost.mtu.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX)),
            mac,
            access,
            memory: vhost.memory_bytes.map_or(defaults.memory, ByteSize::bytes),
            ..defaults
        })
    }

    fn features(&mut self, without: &[String]) -> VhostFeatures {
        let mut features = VhostFeatures::default();
        for name in without {
            match feature(&mut features, name) {
                Some(offered) => *offered = false,
                None => self.wrong("vhost-user.without", format!("`{name}`; one of {} is wanted", FEATURES.join(", "))),
            }
        }
        features
    }

    fn kernel(&mut self, kernel: &v1::KernelEnd) -> Option<KernelSpec> {
        let netns = kernel.netns.as_ref().and_then(|netns| self.netns("kernel.netns", netns));
        let mac = self.optional("kernel.mac", &kernel.mac);
        let addresses = kernel.addresses.iter().enumerate();
        let addresses = addresses
            .filter_map(|(index, address)| self.parse(&format!("kernel.addresses[{index}]"), address))
            .collect();
        let mut routes = Vec::new();
        for (index, route) in kernel.routes.iter().enumerate() {
            let to = self.parse(&format!("kernel.routes[{index}].to"), &route.to);
            let via = self.optional(&format!("kernel.routes[{index}].via"), &route.via);
            routes.extend(to.map(|to| Route { to, via }));
        }
        let name = self.parse("kernel.name", &kernel.name)?;
        Some(KernelSpec { netns, mac, mtu: kernel.mtu, addresses, routes, ..KernelSpec::new(name) })
    }

    fn role(&mut self, field: &str, role: i32) -> Option<Role> {
        match v1::Role::try_from(role) {
            Ok(v1::Role::Server) => Some(Role::Server),
            Ok(v1::Role::Client) => Some(Role::Client),
            Ok(v1::Role::Unspecified) => {
                self.wrong(field, "missing; SERVER or CLIENT is wanted");
                None
            }
            Err(_) => self.unknown(field, role, None),
        }
    }

    fn netns(&mut self, field: &str, netns: &v1::NetNs) -> Option<NetNs> {
        match &netns.place {
            Some(Place::Path(path)) if path.starts_with('/') && !path.contains('\0') => {
                return Some(NetNs::Path(path.into()));
            }
            Some(Place::Process(process)) if (1..=i32::MAX.cast_unsigned()).contains(&process.pid) => {
                return Some(NetNs::Process(Process { pid: process.pid, start_time: process.start_time }));
            }
            Some(Place::Path(path)) => self.wrong(field, format!("`{path}`; an absolute path is wanted")),
            Some(Place::Process(process)) => {
                self.wrong(field, format!("{}; the number of a process is wanted", process.pid));
            }
            None => self.wrong(field, "a path or a process is wanted; leave it out for the forwarder's own namespace"),
        }
        None
    }

    fn access(&mut self, kind: &str, access: Option<&v1::SocketAccess>) -> SocketAccess {
        let Some(access) = access else { return SocketAccess::default() };
        let mode =
            access.mode.and_then(|bits| self.parse::<FileMode>(&format!("{kind}.socket_mode"), &format!("{bits:04o}")));
        SocketAccess {
            owner: self.optional(&format!("{kind}.socket_owner"), &access.owner),
            group: self.optional(&format!("{kind}.socket_group"), &access.group),
            mode,
        }
    }
}

fn kind_to_proto(end: &EndSpec, secrets: Secrets) -> Kind {
    match end {
        EndSpec::Memif(memif) => Kind::Memif(memif_to_proto(memif, secrets)),
        EndSpec::VhostUser(vhost) => Kind::VhostUser(vhost_user_to_proto(vhost)),
        EndSpec::Kernel(kernel) => Kind::Kernel(kernel_to_proto(kernel)),
    }
}

fn memif_to_proto(memif: &MemifSpec, secrets: Secrets) -> v1::MemifEnd {
    let mode = match memif.mode {
        Mode::Ethernet => v1::FrameMode::Ethernet,
        Mode::Ip => v1::FrameMode::Ip,
    };
    let prealloc = match memif.prealloc {
        Prealloc::Never => v1::Prealloc::Never,
        Prealloc::SmallPages => v1::Prealloc::SmallPages,
        Prealloc::HugePages => v1::Prealloc::HugePages,
    };
    let secret = memif.secret.as_ref().filter(|_| secrets == Secrets::Shown);
    v1::MemifEnd {
        socket: memif.socket.to_string(),
        netns: memif.netns.as_ref().map(netns_to_proto),
        id: memif.id,
        role: role_to_proto(memif.role).into(),
        mode: mode.into(),
        secret: secret.map(|secret| secret.text().into_owned()).unwrap_or_default(),
        queues: Some(memif.queues.into()),
        ring: Some(memif.ring),
        buffer: Some(memif.buffer),
        access: access_to_proto(&memif.access),
        memory_bytes: Some(memif.memory.as_bytes()),
        prealloc: prealloc.into(),
    }
}

fn vhost_user_to_proto(vhost: &VhostUserSpec) -> v1::VhostUserEnd {
    let mut features = vhost.features;
    let without = FEATURES.iter().filter(|name| feature(&mut features, name).is_some_and(|offered| !*offered));
    v1::VhostUserEnd {
        socket: vhost.socket.to_string(),
        role: role_to_proto(vhost.role).into(),
        queues: Some(vhost.queues.into()),
        mtu: vhost.mtu.map(Into::into),
        mac: vhost.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        without: without.map(|name| (*name).to_owned()).collect(),
        access: access_to_proto(&vhost.access),
        memory_bytes: Some(vhost.memory.as_bytes()),
    }
}

fn kernel_to_proto(kernel: &KernelSpec) -> v1::KernelEnd {
    let route = |route: &Route| v1::Route {
        to: route.to.to_string(),
        via: route.via.map(|via| via.to_string()).unwrap_or_default(),
    };
    v1::KernelEnd {
        netns: kernel.netns.as_ref().map(netns_to_proto),
        name: kernel.name.to_string(),
        mac: kernel.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: kernel.mtu,
        addresses: kernel.addresses.iter().map(ToString::to_string).collect(),
        routes: kernel.routes.iter().map(route).collect(),
    }
}

fn role_to_proto(role: Role) -> v1::Role {
    match role {
        Role::Server => v1::Role::Server,
        Role::Client => v1::Role::Client,
    }
}

fn netns_to_proto(netns: &NetNs) -> v1::NetNs {
    let place = match netns {
        NetNs::Process(Process { pid, start_time }) => {
            Place::Process(v1::Process { pid: *pid, start_time: *start_time })
        }
        // An open descriptor means something in this process only.
        NetNs::Path(_) | NetNs::Open(_) => Place::Path(netns.path().to_string_lossy().into_owned()),
    };
    v1::NetNs { place: Some(place) }
}

fn access_to_proto(access: &SocketAccess) -> Option<v1::SocketAccess> {
    let SocketAccess { owner, group, mode } = access;
    (*access != SocketAccess::default()).then(|| v1::SocketAccess {
        owner: owner.as_ref().map(ToString::to_string).unwrap_or_default(),
        group: group.as_ref().map(ToString::to_string).unwrap_or_default(),
        mode: mode.map(FileMode::bits),
    })
}

fn feature<'a>(features: &'a mut VhostFeatures, name: &str) -> Option<&'a mut bool> {
    match name {
        "packed" => Some(&mut features.packed),
        "in_order" => Some(&mut features.in_order),
        "mrg_rxbuf" => Some(&mut features.mrg_rxbuf),
        "indirect" => Some(&mut features.indirect),
        "event_idx" => Some(&mut features.event_idx),
        "offloads" => Some(&mut features.offloads),
        _ => None,
    }
}

const FEATURES: [&str; 6] = ["packed", "in_order", "mrg_rxbuf", "indirect", "event_idx", "offloads"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, parse_wire};

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
