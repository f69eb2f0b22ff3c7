//! An end of a hop, as its settings say it.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;

use ferrule_daemon::settings::{Field, Table};
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::spec::{KernelSpec, MemifSpec, Mode, NetNs, QUEUES_MAX, Role, Route, SocketAddress};
use ferrule_endpoints::end::EndSpec;
use ferrule_endpoints::vhost_user::FrontendSpec;
use ipnet::IpNet;

use crate::port::PortSpec;

/// An end, in a form that can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HopEnd {
    /// A memif interface.
    Memif(MemifSpec),
    /// A vhost-user frontend.
    Vhost(FrontendSpec),
    /// An interface of the kernel.
    Kernel(KernelSpec),
}

impl HopEnd {
    /// As it is opened.
    pub fn spec(&self) -> PortSpec {
        match self {
            Self::Memif(memif) => EndSpec::Memif(memif.clone()).into(),
            Self::Vhost(vhost) => EndSpec::Vhost(vhost.clone()).into(),
            Self::Kernel(kernel) => PortSpec::Kernel(kernel.clone()),
        }
    }

    /// What its frames begin with.
    pub(super) fn mode(&self) -> Mode {
        match self {
            Self::Memif(memif) => memif.mode,
            Self::Vhost(_) | Self::Kernel(_) => Mode::Ethernet,
        }
    }
}

pub(super) fn read_end(field: &Field<'_>) -> Option<HopEnd> {
    let table = field.table(&["memif", "vhost-user", "kernel"])?;
    match table.only() {
        Some(("memif", memif)) => read_memif(&memif).map(HopEnd::Memif),
        Some(("vhost-user", vhost)) => read_vhost_user(&vhost).map(HopEnd::Vhost),
        Some(("kernel", kernel)) => read_kernel(&kernel).map(HopEnd::Kernel),
        Some(_) => None,
        None => {
            field.wrong("an end is one of `memif: {..}`, `vhost-user: {..}` and `kernel: {..}`");
            None
        }
    }
}

fn read_memif(field: &Field<'_>) -> Option<MemifSpec> {
    let table = field.table(&["socket", "role", "id", "secret", "mode", "queues", "ring", "buffer"])?;
    let (socket, role) = read_socket(&table)?;
    let mut memif = MemifSpec::new(socket, role);
    let number = |key, max: u64| table.optional(key).map(|field: Field<'_>| field.number::<u32>(0..=max));
    if let Some(id) = number("id", u64::from(u32::MAX)) {
        memif.id = id?;
    }
    if let Some(secret) = table.optional("secret") {
        memif.secret = Some(secret.parse()?);
    }
    if let Some(mode) = table.optional("mode") {
        memif.mode = mode.choice(&[("ethernet", Mode::Ethernet), ("ip", Mode::Ip)])?;
    }
    if let Some(queues) = table.optional("queues") {
        memif.queues = queues.number(1..=u64::from(QUEUES_MAX))?;
    }
    if let Some(ring) = number("ring", u64::from(u32::MAX)) {
        memif.ring = ring?;
    }
    if let Some(buffer) = number("buffer", u64::from(u32::MAX)) {
        memif.buffer = buffer?;
    }
    Some(memif)
}

fn read_vhost_user(field: &Field<'_>) -> Option<FrontendSpec> {
    let table = field.table(&["socket", "role", "queues"])?;
    let (socket, role) = read_socket(&table)?;
    let plain = FrontendSpec::new(socket);
    // A frame may be longer than a buffer.
    let features = plain.features | Features::MRG_RXBUF;
    let mut frontend = FrontendSpec { listens: role == Role::Server, features, ..plain };
    if let Some(queues) = table.optional("queues") {
        frontend.queues = queues.number(1..=u64::from(QUEUES_MAX))?;
    }
    Some(frontend)
}

/// The keys and their meanings are those of a wires file.
pub(super) fn read_kernel(field: &Field<'_>) -> Option<KernelSpec> {
    let table = field.table(&["netns", "name", "mac", "mtu", "addresses", "routes"])?;
    let name = table.required("name", "the name of the interface").and_then(|field| field.parse());
    let netns = table.optional("netns").map_or(Some(None), |field| read_netns(&field).map(Some));
    let mac = table.optional("mac").map_or(Some(None), |field| field.parse().map(Some));
    let mtu = table.optional("mtu").map_or(Some(None), |field| field.number(MTU).map(Some));
    let list = |key| table.optional(key).and_then(|field| field.items()).unwrap_or_default();
    let addresses: Vec<_> = list("addresses").iter().map(|field| field.parse_as(ADDRESS)).collect();
    let routes: Vec<_> = list("routes").iter().map(read_route).collect();
    Some(KernelSpec {
        netns: netns?,
        mac: mac?,
        mtu: mtu?,
        addresses: addresses.into_iter().collect::<Option<_>>()?,
        routes: routes.into_iter().collect::<Option<_>>()?,
        ..KernelSpec::new(name?)
    })
}

fn read_netns(field: &Field<'_>) -> Option<NetNs> {
    let text = field.text()?;
    if !Path::new(text).is_absolute() {
        field.wrong(format!("`{text}`; an absolute path as in `/run/netns/pod` is wanted"));
        return None;
    }
    Some(NetNs::Path(text.into()))
}

fn read_route(field: &Field<'_>) -> Option<Route> {
    let table = field.table(&["to", "via"])?;
    let to: IpNet = table.required("to", ADDRESS).and_then(|field| field.parse_as(ADDRESS))?;
    let Some(via) = table.optional("via") else { return Some(Route { to, via: None }) };
    let next: IpAddr = via.parse_as("an address as in `10.0.0.1` or `fd00::1`")?;
    if next.is_ipv4() != to.addr().is_ipv4() {
        via.wrong(format!("{next} is no next hop for {to}: they are of different families"));
        return None;
    }
    Some(Route { to, via: Some(next) })
}

fn read_socket(table: &Table<'_>) -> Option<(SocketAddress, Role)> {
    let socket =
        table.required("socket", "a path or an abstract name as in `\"@name\"`").and_then(|field| field.parse());
    let role = table
        .required("role", "`server` (we listen) or `client` (we connect)")
        .and_then(|field| field.choice(&[("server", Role::Server), ("client", Role::Client)]));
    Some((socket?, role?))
}

/// From what IPv4 wants to what a frame holds.
const MTU: RangeInclusive<u64> = 68..=65_521;
const ADDRESS: &str = "an address with its prefix as in `10.0.0.1/30` or `fd00::1/64`";
