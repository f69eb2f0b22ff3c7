//! Reads one entry of `wires:`.
//!
//! What cannot be read is replaced by a stand-in that collides with nothing, so that the rest of
//! the wire is still judged, alone ([`WireSpec::check`]) and beside the others.

use std::collections::BTreeMap;

use ferrule_daemon::settings::{Diagnostics, Field, Table};
use ferrule_dataplane::spec::{
    ByteSize, EndSpec, Full, Group, KernelSpec, MemifSpec, Mode, NetNs, Prealloc, Process, Role, Route, SocketAccess,
    SocketAddress, VhostFeatures, VhostUserSpec, WireSpec,
};
use ferrule_ethdev::{EthdevSpec, VfAttributes, VfSpec};

/// Reads and judges one wire.
pub(super) fn read(field: &Field<'_>, diagnostics: &Diagnostics) -> WireSpec {
    let table = field.table(&["name", "full", "trusted", "owner", "labels", "ends"]);
    let name = table.as_ref().and_then(|table| table.required("name", "a name that no other wire has"));
    let full = table.as_ref().and_then(|table| table.optional("full"));
    let trusted = table.as_ref().and_then(|table| table.optional("trusted"));
    let owner = table.as_ref().and_then(|table| table.optional("owner")).and_then(|field| field.text());
    let labels = table.as_ref().and_then(|table| table.optional("labels"));
    let ends = table.as_ref().and_then(|table| table.required("ends", "a list of two ends"));
    let wire = WireSpec {
        name: name.and_then(|field| field.text()).map_or_else(|| stand_in(diagnostics), ToOwned::to_owned),
        full: full.and_then(|field| field.choice(&[("hold", Full::Hold), ("drop", Full::Drop)])).unwrap_or_default(),
        trusted: trusted.and_then(|field| field.choice(&[("true", true), ("false", false)])).unwrap_or_default(),
        owner: owner.unwrap_or_default().to_owned(),
        labels: labels.map(|field| read_labels(&field)).unwrap_or_default(),
        ends: read_ends(ends.as_ref(), diagnostics),
    };
    for error in wire.check() {
        field.wrong_below(&error.field, error.problem);
    }
    wire
}

/// Keys and values.
pub(super) fn read_labels(field: &Field<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (key, value) in field.entries().into_iter().flatten() {
        let text = value.text().unwrap_or_default().to_owned();
        if labels.insert(key.to_owned(), text).is_some() {
            value.wrong("the key is given twice");
        }
    }
    labels
}

fn read_ends(field: Option<&Field<'_>>, diagnostics: &Diagnostics) -> [EndSpec; 2] {
    let items = field.and_then(Field::items);
    if let (Some(field), Some(items)) = (field, &items)
        && items.len() != 2
    {
        field.wrong(format!("a wire has exactly two ends, not {}", items.len()));
    }
    let mut ends = items.into_iter().flatten().map(|item| read_end(&item, diagnostics));
    let mut next = || ends.next().unwrap_or_else(|| End::unknown(diagnostics));
    let (mut first, mut second) = (next(), next());
    // An end whose mode cannot be read must not be called different from the other.
    first.assume(second.spec.mode());
    second.assume(first.spec.mode());
    [first.spec, second.spec]
}

/// An end, and whether what its frames begin with could be read.
struct End {
    spec: EndSpec,
    mode_known: bool,
}

impl End {
    fn unknown(diagnostics: &Diagnostics) -> Self {
        let memif = MemifSpec::new(SocketAddress::Abstract(stand_in(diagnostics)), Role::Client);
        Self { spec: EndSpec::Memif(memif), mode_known: false }
    }

    fn assume(&mut self, mode: Mode) {
        if let (false, EndSpec::Memif(memif)) = (self.mode_known, &mut self.spec) {
            memif.mode = mode;
        }
    }
}

/// Reads an end that has no other one yet.
#[cfg(feature = "nsm")]
pub(super) fn read_alone(field: &Field<'_>, diagnostics: &Diagnostics) -> EndSpec {
    read_end(field, diagnostics).spec
}

fn read_end(field: &Field<'_>, diagnostics: &Diagnostics) -> End {
    let table = field.table(&["memif", "vhost-user", "kernel", "ethdev", "vf"]);
    match table.as_ref().and_then(Table::only) {
        Some(("memif", memif)) => read_memif(&memif, diagnostics),
        Some(("kernel", kernel)) => read_kernel(&kernel, diagnostics),
        Some(("vhost-user", vhost)) => read_vhost_user(&vhost, diagnostics),
        Some(("ethdev", ethdev)) => read_ethdev(&ethdev, diagnostics),
        Some(("vf", vf)) => read_vf(&vf, diagnostics),
        // An unknown kind is reported already.
        Some(_) => End::unknown(diagnostics),
        None => {
            if table.is_some() {
                field.wrong(
                    "an end is one of `memif: {..}`, `vhost-user: {..}`, `kernel: {..}`, `ethdev: {..}` or `vf: {..}`",
                );
            }
            End::unknown(diagnostics)
        }
    }
}

fn read_memif(field: &Field<'_>, diagnostics: &Diagnostics) -> End {
    let Some(table) = field.table(&[
        "socket",
        "netns",
        "id",
        "role",
        "mode",
        "secret",
        "queues",
        "ring",
        "buffer",
        "socket_owner",
        "prealloc",
        "socket_group",
        "group",
        "socket_mode",
        "memory",
    ]) else {
        return End::unknown(diagnostics);
    };
    let socket = table.required("socket", "a path or an abstract name as in `\"@name\"`");
    let role = table.required("role", "`server` or `client`");
    // What decides whom the end meets: with one of them unknown, it is taken to meet nobody.
    let socket = socket.and_then(|field| field.parse());
    let role = role.and_then(|field| read_role(&field));
    let id = table.optional("id").map_or(Some(0), |field| field.number(0..=u64::from(u32::MAX)));
    let netns = table.optional("netns").map_or(Some(None), |field| read_netns(&field).map(Some));
    let mut memif = match (socket, role, id, netns) {
        (Some(socket), Some(role), Some(id), Some(netns)) => MemifSpec { id, netns, ..MemifSpec::new(socket, role) },
        _ => MemifSpec::new(SocketAddress::Abstract(stand_in(diagnostics)), Role::Client),
    };
    let mode = table.optional("mode");
    let mode =
        mode.map_or(Some(Mode::Ethernet), |field| field.choice(&[("ethernet", Mode::Ethernet), ("ip", Mode::Ip)]));
    memif.mode = mode.unwrap_or_default();
    memif.secret = table.optional("secret").and_then(|field| field.parse());
    let number = |key, default: u32| {
        table.optional(key).and_then(|field| field.number(0..=u64::from(u32::MAX))).unwrap_or(default)
    };
    memif.ring = number("ring", memif.ring);
    memif.buffer = number("buffer", memif.buffer);
    let prealloc = table.optional("prealloc");
    memif.prealloc = prealloc
        .and_then(|field| field.choice(&Prealloc::ALL.map(|prealloc| (prealloc.word(), prealloc))))
        .unwrap_or_default();
    // Out of range for the type is out of range for the wire: the check says it best.
    memif.queues = u16::try_from(number("queues", u32::from(memif.queues))).unwrap_or(u16::MAX);
    memif.access = read_access(&table);
    memif.memory = read_memory(&table, memif.memory);
    End { spec: EndSpec::Memif(memif), mode_known: mode.is_some() }
}

fn read_vhost_user(field: &Field<'_>, diagnostics: &Diagnostics) -> End {
    let unknown = || SocketAddress::Abstract(stand_in(diagnostics));
    let Some(table) = field.table(&[
        "socket",
        "role",
        "mode",
        "queues",
        "socket_owner",
        "socket_group",
        "group",
        "socket_mode",
        "memory",
        "mtu",
        "mac",
        "packed",
        "in_order",
        "mrg_rxbuf",
        "indirect",
        "event_idx",
        "offloads",
    ]) else {
        return End { mode_known: true, ..End::unknown(diagnostics) };
    };
    let socket = table.required("socket", "a path or an abstract name as in `\"@name\"`");
    // `mode` is what releases before called the role.
    let role = match (table.optional("role"), table.optional("mode")) {
        (Some(_), Some(mode)) => {
            mode.wrong("`role` says it already; `mode` is its old name: remove it");
            None
        }
        (None, Some(mode)) => read_role(&mode),
        _ => table.required("role", "`server` or `client`").and_then(|field| read_role(&field)),
    };
    let socket = socket.and_then(|field| field.parse());
    // Who listens decides what else may be said: what cannot be read is taken to fit.
    let (listens, access) = (role.unwrap_or(Role::Client), read_access(&table));
    let mut vhost = VhostUserSpec::new(socket.unwrap_or_else(unknown), listens);
    vhost.access = if role.is_some() { access } else { SocketAccess::default() };
    vhost.memory = read_memory(&table, vhost.memory);
    let number = |key| table.optional(key).and_then(|field| field.number(0..=u64::from(u16::MAX)));
    vhost.queues = number("queues").unwrap_or(vhost.queues);
    vhost.mtu = number("mtu");
    vhost.mac = table.optional("mac").and_then(|field| field.parse());
    let switch = |key, default| {
        let choice = table.optional(key).and_then(|field| field.choice(&[("true", true), ("false", false)]));
        choice.unwrap_or(default)
    };
    let all = vhost.features;
    vhost.features = VhostFeatures {
        packed: switch("packed", all.packed),
        in_order: switch("in_order", all.in_order),
        mrg_rxbuf: switch("mrg_rxbuf", all.mrg_rxbuf),
        indirect: switch("indirect", all.indirect),
        event_idx: switch("event_idx", all.event_idx),
        offloads: switch("offloads", all.offloads),
    };
    End { spec: EndSpec::VhostUser(vhost), mode_known: true }
}

/// `master` and `slave` are what VPP and older texts of memif say.
fn read_role(field: &Field<'_>) -> Option<Role> {
    match field.is_text().then(|| field.text()).flatten() {
        Some("master") => field.wrong("`master` is `server` here"),
        Some("slave") => field.wrong("`slave` is `client` here"),
        _ => return field.choice(&[("server", Role::Server), ("client", Role::Client)]),
    }
    None
}

fn read_access(table: &Table<'_>) -> SocketAccess {
    SocketAccess {
        owner: table.optional("socket_owner").and_then(|field| field.parse()),
        group: read_group(table),
        mode: table.optional("socket_mode").and_then(|field| field.parse()),
    }
}

/// `group` is the old name of the key.
fn read_group(table: &Table<'_>) -> Option<Group> {
    let old = table.optional("group");
    let Some(field) = table.optional("socket_group") else { return old?.parse() };
    if let Some(old) = old {
        old.wrong("`socket_group` says it already; `group` is its old name: remove it");
    }
    field.parse()
}

fn read_memory(table: &Table<'_>, default: ByteSize) -> ByteSize {
    table.optional("memory").and_then(|field| field.parse()).unwrap_or(default)
}

fn read_kernel(field: &Field<'_>, diagnostics: &Diagnostics) -> End {
    let Some(table) = field.table(&["netns", "name", "mac", "mtu", "addresses", "routes"]) else {
        return End { mode_known: true, ..End::unknown(diagnostics) };
    };
    let name = table.required("name", "the name of the interface").and_then(|field| field.parse());
    let netns = table.optional("netns").map_or(Some(None), |field| read_netns(&field).map(Some));
    // A name that collides with nothing, where either half of the interface's identity is unknown.
    let (name, netns) = match (name, netns) {
        (Some(name), Some(netns)) => (name, netns),
        _ => match stand_in(diagnostics).parse() {
            Ok(name) => (name, None),
            Err(_) => return End { mode_known: true, ..End::unknown(diagnostics) },
        },
    };
    let list = |key| table.optional(key).and_then(|field| field.items()).unwrap_or_default();
    let kernel = KernelSpec {
        netns,
        name,
        mac: table.optional("mac").and_then(|field| field.parse()),
        mtu: table.optional("mtu").and_then(|field| field.number(0..=u64::from(u32::MAX))),
        addresses: list("addresses").iter().filter_map(|field| field.parse_as(ADDRESS)).collect(),
        routes: list("routes").iter().filter_map(read_route).collect(),
    };
    End { spec: EndSpec::Kernel(kernel), mode_known: true }
}

fn read_ethdev(field: &Field<'_>, diagnostics: &Diagnostics) -> End {
    let Some(table) = field.table(&["device", "queues", "mtu"]) else {
        return End { mode_known: true, ..End::unknown(diagnostics) };
    };
    let device =
        table.required("device", "a text of devargs as in `net_af_packet0,iface=eth1`").and_then(|field| field.text());
    let number = |key| table.optional(key).and_then(|field: Field<'_>| field.number(0..=u64::from(u32::MAX)));
    // A name that nobody gives, and that is one: a device that is missing is told once.
    let nameless = || format!("net_null-not-given-{}", diagnostics.unique());
    let ethdev = EthdevSpec {
        queues: number("queues").unwrap_or(1),
        mtu: number("mtu"),
        ..EthdevSpec::new(device.map_or_else(nameless, ToOwned::to_owned))
    };
    End { spec: EndSpec::External(ethdev.into()), mode_known: true }
}

fn read_vf(field: &Field<'_>, diagnostics: &Diagnostics) -> End {
    let Some(table) = field.table(&["address", "pool", "queues", "mtu", "mac", "vlan", "trust", "spoof_check"]) else {
        return End { mode_known: true, ..End::unknown(diagnostics) };
    };
    let number = |key| table.optional(key).and_then(|field: Field<'_>| field.number(0..=u64::from(u32::MAX)));
    let switch = |key| table.optional(key).and_then(|field| field.choice(&[("true", true), ("false", false)]));
    let pool = table.optional("pool");
    let pools = pool.iter().flat_map(|field| {
        let items = if field.is_text() { vec![field.clone()] } else { field.items().unwrap_or_default() };
        items.into_iter().filter_map(|item| item.text().map(ToOwned::to_owned)).collect::<Vec<_>>()
    });
    let vf = VfSpec {
        address: table.optional("address").and_then(|field| field.text()).map(ToOwned::to_owned),
        pools: pools.collect(),
        queues: number("queues").unwrap_or(1),
        mtu: number("mtu"),
        attributes: VfAttributes {
            mac: table.optional("mac").and_then(|field| field.parse()),
            vlan: table.optional("vlan").and_then(|field| field.number(0..=u64::from(u16::MAX))),
            trust: switch("trust"),
            spoof_check: switch("spoof_check"),
        },
    };
    End { spec: EndSpec::External(vf.into()), mode_known: true }
}

fn read_route(field: &Field<'_>) -> Option<Route> {
    let table = field.table(&["to", "via"])?;
    let to = table.required("to", ADDRESS).and_then(|field| field.parse_as(ADDRESS));
    let via = table
        .optional("via")
        .map_or(Some(None), |field| field.parse_as("an address as in `10.0.0.1` or `fd00::1`").map(Some));
    Some(Route { to: to?, via: via? })
}

/// `/run/netns/pod`, `pid:42` or `{ pid: 42, start_time: 1234 }`.
fn read_netns(field: &Field<'_>) -> Option<NetNs> {
    let pids = 1..=u64::from(i32::MAX.unsigned_abs());
    if field.is_table() {
        let table = field.table(&["pid", "start_time"])?;
        let pid = table.required("pid", "the number of a process")?.number(pids)?;
        let start_time =
            table.optional("start_time").map_or(Some(None), |field| field.number(0..=u64::MAX).map(Some))?;
        return Some(NetNs::Process(Process { pid, start_time }));
    }
    let text = field.text()?;
    if let Some(pid) = text.strip_prefix("pid:") {
        let pid = pid.trim().parse().ok().filter(|&pid| pids.contains(&u64::from(pid)));
        if pid.is_none() {
            field.wrong(format!("`{text}`; the number of a process is wanted, as in `pid:42`"));
        }
        return pid.map(|pid| NetNs::Process(Process { pid, start_time: None }));
    }
    if !text.starts_with('/') || text.contains('\0') {
        field.wrong(format!("`{text}`; an absolute path as in `/run/netns/pod`, or `pid:42`, is wanted"));
        return None;
    }
    Some(NetNs::Path(text.into()))
}

/// A name that no text can contain twice: it is numbered, and begins with a character nobody uses.
fn stand_in(diagnostics: &Diagnostics) -> String {
    format!("\u{fffd}{}", diagnostics.unique())
}

const ADDRESS: &str = "an address with its prefix as in `10.0.0.1/30` or `fd00::1/64`";
