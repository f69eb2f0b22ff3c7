//! The ends of a connection: what a mechanism's parameters say, and what the forwarder makes of them.
//!
//! - [`kernel`]: interfaces, also those of VFs; [`socket`]: ends at a socket; [`namespace`]: where they are
//! - [`preferences`](mod@preferences): what endpoints and other nodes are asked for

mod kernel;
mod namespace;
mod preferences;
mod socket;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferrule_dataplane::spec::EndSpec;
use ferrule_nsm::proto::connection::{Connection, Mechanism};
use tonic::Status;

pub(in crate::nsm) use kernel::{mac, port_name};
pub(in crate::nsm) use namespace::open_namespace;
pub(in crate::nsm) use preferences::{beside_tunnel, is_tunnel_of, noop_of_another_node, preferences};

use super::breakout::{VLAN, VlanPlace};
use super::context::Side;
use super::interface::InterfacePlace;
use super::nat::{ROUTE_LOCALNET, TEMPLATE};
use super::vf::{PCI_ADDRESS, VfEnd};
use super::vxlan::{TunnelSite, VXLAN, Vxlan};
use super::wireguard::{WIREGUARD, WireGuardPeer};

/// How an end on this node is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nsm) enum EndKind {
    Memif,
    Kernel,
    /// KERNEL too, by a token: the VF of that is the interface.
    KernelVf,
    /// A VF, by a token.
    Vfio,
    /// Of our own: the mesh has no word for it.
    VhostUser,
    /// Both ends have arranged it without us.
    Noop,
}

impl EndKind {
    const ALL: [Self; 5] = [Self::Memif, Self::Kernel, Self::Vfio, Self::VhostUser, Self::Noop];
    /// Those that one can have beside another, those that are asked for first in front.
    const JOINED: [Self; 3] = [Self::Memif, Self::Kernel, Self::VhostUser];

    /// What the mesh calls it.
    pub(in crate::nsm) fn name(self) -> &'static str {
        match self {
            Self::Memif => "MEMIF",
            Self::Kernel | Self::KernelVf => "KERNEL",
            Self::Vfio => "VFIO",
            Self::VhostUser => "VHOST_USER",
            Self::Noop => "NOOP",
        }
    }

    /// The one that a mechanism asks for, if we can do all that it asks for.
    pub(in crate::nsm) fn of(mechanism: &Mechanism) -> Option<Self> {
        let asks = |key: &str| mechanism.parameters.get(key).is_some_and(|value| !NOTHING.contains(&value.as_str()));
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == mechanism.r#type)?;
        match kind {
            Self::Kernel | Self::KernelVf if asks(TRUNK_VLAN) => None,
            Self::Kernel if asks(TOKEN) => Some(Self::KernelVf),
            Self::Vfio if !asks(TOKEN) => None,
            kind => Some(kind),
        }
    }

    /// The same for a client: what only an endpoint may want in its namespace is refused.
    pub(in crate::nsm) fn of_client(mechanism: &Mechanism) -> Option<Self> {
        let asks = |key: &str| mechanism.parameters.get(key).is_some_and(|value| !NOTHING.contains(&value.as_str()));
        Self::of(mechanism).filter(|_| ![TEMPLATE, ROUTE_LOCALNET].into_iter().any(asks))
    }

    /// Whether it is a VF, which reaches the other end by its NIC.
    pub(in crate::nsm) fn is_vf(self) -> bool {
        matches!(self, Self::KernelVf | Self::Vfio)
    }
}

/// One end of a connection.
#[derive(Clone, Debug)]
pub(in crate::nsm) struct MeshEnd {
    /// What its mechanism is called.
    kind: &'static str,
    /// As whoever is there is told.
    pub(in crate::nsm) mechanism: Mechanism,
    pub(in crate::nsm) port: Port,
    /// Where its interface is, if it has one.
    pub(in crate::nsm) place: Option<InterfacePlace>,
}

/// What is made at an end.
#[derive(Clone, Debug)]
pub(in crate::nsm) enum Port {
    /// By the engine.
    Local(EndSpec),
    /// By the kernel, as the end of this tunnel.
    Tunnel(Vxlan),
    /// By us, as the end of a tunnel of packets to this other side.
    Secure(WireGuardPeer),
    /// Of the VF that the pod has.
    Vf(VfEnd),
    /// By nobody: it is behind a device of the node.
    Vlan(VlanPlace),
    /// By nobody here.
    Outside,
}

impl MeshEnd {
    /// The end at `side` of a connection that is on another node.
    pub(in crate::nsm) fn remote(side: Side, mechanism: Mechanism, site: &TunnelSite) -> Result<Self, Status> {
        let (kind, port) = match (mechanism.r#type.as_str(), side) {
            (WIREGUARD, Side::Client) => (WIREGUARD, Port::Secure(WireGuardPeer::answered(&mechanism, site)?)),
            (WIREGUARD, Side::Endpoint) => (WIREGUARD, Port::Secure(WireGuardPeer::asked(&mechanism, site)?)),
            (_, Side::Client) => (VXLAN, Port::Tunnel(Vxlan::answered(&mechanism, site)?)),
            (_, Side::Endpoint) => (VXLAN, Port::Tunnel(Vxlan::asked(&mechanism, site)?)),
        };
        Ok(Self { kind, mechanism, port, place: None })
    }

    /// The endpoint's end of a connection that leaves the mesh there.
    pub(in crate::nsm) fn outside(mechanism: Mechanism, place: VlanPlace) -> Self {
        Self { kind: VLAN, mechanism, port: Port::Vlan(place), place: None }
    }

    /// The end at `side` of a connection, whose id is ours, by a mechanism of this node with the file that it names. Blocks for a moment.
    pub(in crate::nsm) fn local(
        side: Side,
        connection: &Connection,
        mechanism: &Mechanism,
        file: Option<&Arc<OwnedFd>>,
    ) -> Result<Self, Status> {
        let kind = EndKind::of(mechanism).ok_or_else(unsupported)?;
        if kind == EndKind::Noop {
            return Ok(Self { kind: kind.name(), mechanism: mechanism.clone(), port: Port::Outside, place: None });
        }
        if kind == EndKind::Vfio {
            return kernel::vfio(side, connection, mechanism);
        }
        let file = file.ok_or_else(|| {
            Status::invalid_argument(format!("{} without inodeURL: the file of that end is wanted", kind.name()))
        })?;
        match kind {
            EndKind::Kernel => kernel::kernel(side, connection, mechanism, file),
            EndKind::KernelVf => kernel::kernel_vf(side, connection, mechanism, file),
            EndKind::Memif => socket::memif(side, connection, mechanism, file),
            EndKind::VhostUser => socket::vhost_user(side, connection, mechanism, file),
            EndKind::Noop | EndKind::Vfio => Err(unsupported()),
        }
    }

    /// What metrics call it.
    pub(in crate::nsm) fn label(&self) -> String {
        let place = self.place.as_ref().map(|place| place.name.to_string());
        let place = match &self.port {
            Port::Tunnel(tunnel) => Some(tunnel.vni.to_string()),
            Port::Secure(peer) => Some(peer.address.to_string()),
            Port::Vlan(vlan) => Some(format!("{}.{}", vlan.device, vlan.vlan)),
            Port::Local(_) | Port::Outside => place.or_else(|| self.mechanism.parameters.get(SOCKET_FILE).cloned()),
            Port::Vf(_) => place.or_else(|| self.mechanism.parameters.get(PCI_ADDRESS).cloned()),
        };
        format!("{}/{}", self.kind, place.unwrap_or_default())
    }
}

/// Nobody can have what is asked for.
pub(in crate::nsm) fn unsupported() -> Status {
    let kinds: Vec<_> = EndKind::ALL.iter().map(|kind| kind.name()).collect();
    let kinds = kinds.join(", ");
    Status::unimplemented(format!("cannot support any of the requested mechanism: this forwarder has {kinds}"))
}

/// The payload that has no Ethernet header.
pub(in crate::nsm) const IP: &str = "IP";
/// The parameter that says what an interface is called.
pub(in crate::nsm) const NAME: &str = "name";
/// The parameter of KERNEL that wants an interface with VLANs in it, as cmd-forwarder-ovs has them. Whoever has that one is to find it.
const TRUNK_VLAN: &str = "vlan";
/// The parameter that says by which of its VFs a pod wants its end.
pub(in crate::nsm) const TOKEN: &str = "tokenID";
/// Values of parameters that ask for nothing.
const NOTHING: [&str; 3] = ["", "0", "false"];
const SOCKET_FILE: &str = "socketfile";

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(id: &str) -> Connection {
        Connection { id: id.to_owned(), network_service: "icmp-responder".to_owned(), ..Connection::default() }
    }

    #[test]
    fn what_a_mechanism_asks_for_beyond_us_is_not_passed_over() {
        let with = |key: &str, value: &str| {
            let parameters = [(key.to_owned(), value.to_owned())].into();
            let mechanism = Mechanism { r#type: "KERNEL".to_owned(), parameters, ..Mechanism::default() };
            [EndKind::of(&mechanism), EndKind::of_client(&mechanism)]
        };
        let both = |kind| [Some(kind); 2];
        for (key, value) in [("vlan", "0"), ("tokenID", ""), (ROUTE_LOCALNET, "false"), ("name", "nsm-1")] {
            assert_eq!(with(key, value), both(EndKind::Kernel), "{key} {value}");
        }
        assert_eq!(with("vlan", "7"), [None; 2]);
        for (key, value) in [(ROUTE_LOCALNET, "true"), (TEMPLATE, "-N A")] {
            assert_eq!(with(key, value), [Some(EndKind::Kernel), None], "of the endpoint: {key} {value}");
        }
        assert_eq!(with(TOKEN, "sriov-1"), both(EndKind::KernelVf));
    }

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let mechanism = Mechanism { r#type: "KERNEL".to_owned(), ..Mechanism::default() };
        let refused = MeshEnd::local(Side::Client, &connection("a"), &mechanism, Some(&file)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(MeshEnd::local(Side::Client, &connection("a"), &mechanism, None).is_err());
        let other = Mechanism { r#type: "VFIO".to_owned(), ..Mechanism::default() };
        let refused = MeshEnd::local(Side::Client, &connection("a"), &other, Some(&file)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unimplemented);
    }

    #[test]
    fn the_namespace_of_the_node_is_refused_and_so_is_a_path_in_it() {
        let file = Arc::new(OwnedFd::from(std::fs::File::open("/proc/self/ns/net").unwrap()));
        let of = |side, kind: &str, socket: &str| {
            let parameters = [(SOCKET_FILE.to_owned(), socket.to_owned())].into();
            let mechanism = Mechanism { r#type: kind.to_owned(), parameters, ..Mechanism::default() };
            MeshEnd::local(side, &connection("a"), &mechanism, Some(&file)).unwrap_err().code()
        };
        for side in [Side::Client, Side::Endpoint] {
            assert_eq!(of(side, "KERNEL", ""), tonic::Code::PermissionDenied);
            assert_eq!(of(side, "MEMIF", "@name"), tonic::Code::PermissionDenied);
        }
        assert_eq!(of(Side::Endpoint, "MEMIF", "/run/memif.sock"), tonic::Code::InvalidArgument);
    }
}
