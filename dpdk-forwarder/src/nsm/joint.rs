//! What joins the two ends of a connection: a wire, and what its interfaces have. Planned, then applied.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferrule_dataplane::engine::Applied;
use ferrule_dataplane::spec::{EndSpec, WireSpec};
use ferrule_dataplane::status::Traffic;
use ferrule_nsm::proto::connection::Connection;
use tonic::Status;

use super::breakout::{Breakout, Breakouts, VlanPlace};
use super::bridge::{BridgeRoom, TunnelBridge};
use super::context::{Side, interface_state};
use super::end::{IP, MeshEnd, Port, mac, port_name};
use super::interface::{InterfacePlace, InterfaceState};
use super::nat::AddressTranslation;
use super::reservation::{Holders, Reservation};
use super::secure_interface::SecureInterface;
use super::secure_port::{SecurePort, SecureWire};
use super::tunnel::{TunnelInterface, TunnelMark};
use super::vf::{VfEnd, VfLender, VfLink};
use super::vxlan::{Vnis, Vxlan};
use super::wireguard::WireGuardPeer;
use super::wireguard_ends::{NoKeyError, WireGuardEnds};
use crate::wires::Wires;

/// What is made for a connection.
#[derive(Clone, Debug)]
pub(super) struct Joint {
    /// The id of the connection.
    id: String,
    carrier: Carrier,
    /// Those of its ends that the kernel has: where, and what they have.
    interfaces: Vec<(InterfacePlace, InterfaceState)>,
}

/// What carries the frames.
#[derive(Clone, Debug)]
enum Carrier {
    /// A wire of the engine.
    Wire(Box<WireSpec>),
    /// A device of the kernel, since the other end is on another node.
    Tunnel(TunnelInterface),
    /// An interface of ours, of packets to an end on another node.
    Secure(SecureInterface),
    /// A wire of packets to an end on another node.
    SecureWire(Box<SecureWire>),
    /// A wire into a VLAN of a device of the node.
    Breakout(Box<Breakout>),
    /// Such a device of the kernel, and a wire to an end that is none.
    Bridge(Box<TunnelBridge>),
    /// The network of a NIC: those of its ends that are VFs, the client's first.
    Nic([Option<Box<VfLink>>; 2]),
    /// What both ends have arranged without us.
    Outside,
}

/// What joints are made by.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) wires: Arc<Wires>,
    pub(super) vnis: Arc<Vnis>,
    pub(super) wireguards: Arc<WireGuardEnds>,
    pub(super) holders: Holders,
    pub(super) vfs: Arc<VfLender>,
    pub(super) breakouts: Arc<Breakouts>,
}

impl Means {
    /// What the tunnel of a connection has of us is kept as long as what this returns, and what is cloned of it.
    pub(super) fn reserve(&self, id: &str) -> Reservation {
        Reservation::new(id, &self.holders, &self.vnis, &self.wireguards)
    }
}

impl Joint {
    /// Of a connection as the endpoint has answered it, whose id is ours, in the place of `before`.
    pub(super) fn plan(
        connection: &Connection,
        [client, endpoint]: [&MeshEnd; 2],
        before: Option<&Self>,
        means: &Means,
    ) -> Result<Self, Status> {
        let owner = means.wires.interface_owner().word();
        let before = before.map(|before| &before.carrier);
        let carrier = Carrier::plan(connection, [client, endpoint], before, &owner, means)?;
        let context = connection.context.clone().unwrap_or_default();
        let mut interfaces = Vec::new();
        for (side, other, end) in [(Side::Client, Side::Endpoint, client), (Side::Endpoint, Side::Client, endpoint)] {
            let Some(place) = &end.place else { continue };
            let has_ethernet = !matches!(carrier, Carrier::Secure(_));
            // In a VLAN it is somebody else's to say.
            let is_peer_ours = has_ethernet && !matches!(carrier, Carrier::Breakout(_));
            let peer = (connection.payload == IP && is_peer_ours).then(|| mac(other, connection)).transpose()?;
            let state = interface_state(&context, side, peer);
            let mut state = state.map_err(|error| Status::invalid_argument(error.to_string()))?;
            if !has_ethernet {
                state.neighbours.clear();
            }
            if side == Side::Endpoint {
                let asked = AddressTranslation::of(&end.mechanism, &place.name, &context);
                let asked = asked.map_err(|error| Status::invalid_argument(error.to_string()))?;
                (state.nat, state.route_localnet) = (asked.rules, asked.route_localnet);
            }
            interfaces.push((place.clone(), state));
        }
        Ok(Self { id: connection.id.clone(), carrier, interfaces })
    }

    /// Makes it in the place of `before`. When that fails, a new one leaves nothing behind, and an old one is as it was. Blocks.
    pub(super) fn make(&self, before: Option<&Self>, means: &Means) -> Result<(), Status> {
        let made = self.make_from(before, means);
        if made.is_err() {
            self.undo(before, means);
        }
        made
    }

    /// Goes back to `before`. Blocks. What fails of it is told in the log: whoever asked was told of the first failure.
    pub(super) fn undo(&self, before: Option<&Self>, means: &Means) {
        let undone = match before {
            Some(before) => {
                let restored = before.restore(self, means);
                before.settle(means);
                restored
            }
            // It may be made still, and would be of nobody.
            None => self.remove(means),
        };
        if let Err(status) = undone {
            tracing::warn!(%status, "what could not be made is not undone either");
        }
    }

    fn make_from(&self, before: Option<&Self>, means: &Means) -> Result<(), Status> {
        if let Some(before) = before.filter(|before| !self.carrier.changes(&before.carrier)) {
            // Its names are wanted again.
            before.remove(means)?;
        }
        let is_new = self.carrier.make(means)?;
        // What a forwarder that was killed has left may be one of these, and a VF's interface brings along what its driver says.
        let is_bare = is_new
            && before.is_none()
            && !means.wires.interface_owner().may_have_leftovers()
            && !matches!(self.carrier, Carrier::Nic(_));
        let known = before.map_or(&[][..], |before| &before.interfaces);
        for (place, should) in &self.interfaces {
            let is = known.iter().find(|(known, _)| !is_new && known == place);
            let made = match is {
                Some((_, is)) => place.change(is, should),
                None => place.set_up(should, is_bare),
            };
            made.map_err(|error| Status::failed_precondition(error.to_string()))?;
        }
        // Rules are of the namespace, and do not go with an interface.
        let is_gone = |place: &InterfacePlace| self.interfaces.iter().all(|(wanted, _)| wanted != place);
        tear_down(known.iter().filter(|(place, _)| is_gone(place)));
        Ok(())
    }

    /// Takes the place of `other`, which could not be made, or not as a whole, again.
    fn restore(&self, other: &Self, means: &Means) -> Result<(), Status> {
        tear_down(&other.interfaces);
        if !self.carrier.changes(&other.carrier) {
            other.carrier.remove(means)?;
        }
        self.carrier.make(means)?;
        self.interfaces.iter().try_for_each(|(place, state)| {
            place.set_up(state, false).map_err(|error| Status::failed_precondition(error.to_string()))
        })
    }

    /// What was there in its place has gone for good: a number that it had is free.
    pub(super) fn settle(&self, means: &Means) {
        let vni = match &self.carrier {
            Carrier::Tunnel(tunnel) => Some(tunnel.vxlan.vni),
            Carrier::Bridge(bridge) => Some(bridge.tunnel.vxlan.vni),
            Carrier::Wire(_)
            | Carrier::Breakout(_)
            | Carrier::Secure(_)
            | Carrier::SecureWire(_)
            | Carrier::Nic(_)
            | Carrier::Outside => None,
        };
        means.vnis.settle(&self.id, vni);
    }

    /// Removes all of it. What is not there any more is no error. Blocks.
    pub(super) fn remove(&self, means: &Means) -> Result<(), Status> {
        tear_down(&self.interfaces);
        self.carrier.remove(means)
    }

    /// What the client is told of its end beside what it has asked for.
    pub(super) fn told_to_client(&self, means: &Means) -> BTreeMap<String, String> {
        match &self.carrier {
            Carrier::Nic([Some(client), _]) => client.parameters(&means.vfs),
            _ => BTreeMap::new(),
        }
    }

    /// What has crossed, as the metrics of a path say it.
    pub(super) fn metrics(&self, [client, endpoint]: [&MeshEnd; 2], means: &Means) -> BTreeMap<String, String> {
        let mut metrics: BTreeMap<_, _> =
            [("server_interface", client.label()), ("client_interface", endpoint.label())]
                .map(|(key, value)| (key.to_owned(), value))
                .into();
        if let Some(directions) = self.carrier.directions(means) {
            metrics.extend(counters(&directions));
        }
        metrics
    }
}

/// Takes back what does not go with interfaces.
fn tear_down<'a>(interfaces: impl IntoIterator<Item = &'a (InterfacePlace, InterfaceState)>) {
    for (place, state) in interfaces {
        if let Err(error) = place.tear_down(state) {
            tracing::debug!(%error, "its namespace has gone, most likely");
        }
    }
}

impl Carrier {
    fn plan(
        connection: &Connection,
        [client, endpoint]: [&MeshEnd; 2],
        before: Option<&Self>,
        owner: &str,
        means: &Means,
    ) -> Result<Self, Status> {
        let wire = |ends| {
            let wire = WireSpec::new(wire_name(&connection.id)?, ends);
            Ok::<_, Status>(WireSpec { owner: OWNER.to_owned(), labels: labels(connection), ..wire })
        };
        let bridge = |vxlan: Vxlan, ends: &dyn Fn(EndSpec) -> [EndSpec; 2]| {
            let room = match before {
                Some(Self::Bridge(before)) => before.room(),
                _ => BridgeRoom::new()
                    .map_err(|error| Status::internal(format!("make a namespace in which a tunnel begins: {error}")))?,
            };
            let mtu = mtu(connection).or(Some(vxlan.mtu).filter(|mtu| *mtu > 0));
            let mark = TunnelMark::new(owner, &connection.id);
            let tunnel = TunnelInterface { place: room.tunnel(), vxlan, mark, mac: None, mtu };
            Ok::<_, Status>(Self::Bridge(Box::new(TunnelBridge {
                wire: wire(ends(EndSpec::Kernel(room.tap(mtu))))?,
                tunnel,
            })))
        };
        let tunnel = |side, end: &MeshEnd, vxlan: Vxlan| {
            let place = end.place.clone().ok_or_else(|| Status::internal("a kernel end without a place"))?;
            let (mac, mark) = (Some(mac(side, connection)?), TunnelMark::new(owner, &connection.id));
            Ok::<_, Status>(Self::Tunnel(TunnelInterface { place, vxlan, mark, mac, mtu: mtu(connection) }))
        };
        let secure_mtu = || mtu(connection).ok_or_else(|| Status::invalid_argument("a tunnel without an MTU"));
        let secure = |end: &MeshEnd, peer: WireGuardPeer| {
            let place = end.place.clone().ok_or_else(|| Status::internal("a kernel end without a place"))?;
            let (connection, mtu) = (connection.id.clone(), secure_mtu()?);
            Ok::<_, Status>(Self::Secure(SecureInterface { connection, place, peer, mtu }))
        };
        let secure_wire = |peer: WireGuardPeer, ends: &dyn Fn(EndSpec) -> [EndSpec; 2]| {
            let end = means.wireguards.get(&connection.id).ok_or_else(|| Status::aborted(NoKeyError.to_string()))?;
            let port = SecurePort { connection: connection.id.clone(), end, mtu: secure_mtu()? };
            let wire = wire(ends(EndSpec::External(port.into())))?;
            Ok::<_, Status>(Self::SecureWire(Box::new(SecureWire { wire, connection: connection.id.clone(), peer })))
        };
        let vf = |side: Side, end: &VfEnd| {
            let before = match before {
                Some(Self::Nic(before)) => before[side as usize].as_deref(),
                _ => None,
            };
            VfLink::plan(&connection.id, end, before, &means.vfs).map(|link| Some(Box::new(link)))
        };
        let breakout = |end: &EndSpec, place: &VlanPlace| {
            let (port, room) = (port_name(&connection.id), means.breakouts.open(place)?);
            let wire = wire([end.clone(), EndSpec::Kernel(room.port(&port, mtu(connection)))])?;
            let mac = if let EndSpec::Kernel(kernel) = end { kernel.mac } else { None };
            Ok::<_, Status>(Self::Breakout(Box::new(Breakout { wire, port, mac, room })))
        };
        match (&client.port, &endpoint.port) {
            (Port::Vf(a), Port::Vf(b)) => Ok(Self::Nic([vf(Side::Client, a)?, vf(Side::Endpoint, b)?])),
            (Port::Vf(end), Port::Outside) => Ok(Self::Nic([vf(Side::Client, end)?, None])),
            (Port::Outside, Port::Vf(end)) => Ok(Self::Nic([None, vf(Side::Endpoint, end)?])),
            (Port::Vf(_), _) | (_, Port::Vf(_)) => Err(Status::unimplemented(
                "one end is a VF, by its tokenID, and the other one is not: what is not at the network of the NIC by a VF of its own is NOOP",
            )),
            (Port::Local(a), Port::Local(b)) => Ok(Self::Wire(Box::new(wire([a.clone(), b.clone()])?))),
            (Port::Local(EndSpec::Kernel(_)), Port::Tunnel(vxlan)) => tunnel(Side::Client, client, *vxlan),
            (Port::Tunnel(vxlan), Port::Local(EndSpec::Kernel(_))) => tunnel(Side::Endpoint, endpoint, *vxlan),
            (Port::Local(end), Port::Tunnel(vxlan)) => bridge(*vxlan, &|tap| [end.clone(), tap]),
            (Port::Tunnel(vxlan), Port::Local(end)) => bridge(*vxlan, &|tap| [tap, end.clone()]),
            (Port::Local(EndSpec::Kernel(_)), Port::Secure(peer)) => secure(client, *peer),
            (Port::Secure(peer), Port::Local(EndSpec::Kernel(_))) => secure(endpoint, *peer),
            (Port::Local(end @ EndSpec::Memif(_)), Port::Secure(peer)) => {
                secure_wire(*peer, &|port| [end.clone(), port])
            }
            (Port::Secure(peer), Port::Local(end @ EndSpec::Memif(_))) => {
                secure_wire(*peer, &|port| [port, end.clone()])
            }
            (Port::Secure(_), Port::Local(_)) | (Port::Local(_), Port::Secure(_)) => {
                Err(Status::unimplemented("between nodes packets without Ethernet are for KERNEL and MEMIF only"))
            }
            (Port::Local(end), Port::Vlan(place)) => breakout(end, place),
            (_, Port::Vlan(_)) | (Port::Vlan(_), _) => {
                Err(Status::unimplemented("a VLAN is for clients of this node by KERNEL, MEMIF or VHOST_USER"))
            }
            (Port::Outside, Port::Outside) => Ok(Self::Outside),
            (Port::Tunnel(_) | Port::Secure(_), Port::Tunnel(_) | Port::Secure(_)) => {
                Err(Status::unimplemented("a tunnel does not lead into another tunnel"))
            }
            (Port::Outside, _) | (_, Port::Outside) => {
                Err(Status::unimplemented("what is arranged without us at one end is so at the other"))
            }
        }
    }

    /// Whether making it changes the other one into it. If not, that must go first.
    fn changes(&self, before: &Self) -> bool {
        match (self, before) {
            (Self::Wire(_), Self::Wire(_))
            | (Self::Bridge(_), Self::Bridge(_))
            | (Self::SecureWire(_), Self::SecureWire(_))
            | (Self::Outside, Self::Outside) => true,
            (Self::Breakout(breakout), Self::Breakout(before)) => Arc::ptr_eq(&breakout.room, &before.room),
            (Self::Tunnel(tunnel), Self::Tunnel(before)) => tunnel.place == before.place,
            (Self::Secure(tunnel), Self::Secure(before)) => tunnel.place == before.place,
            (Self::Nic(links), Self::Nic(before)) => links == before,
            _ => false,
        }
    }

    /// Whether its interfaces are new.
    fn make(&self, means: &Means) -> Result<bool, Status> {
        let failed = |error: String| Status::failed_precondition(error);
        let put = |wire: &WireSpec| {
            let put = means.wires.put_of_mesh(wire.clone()).map_err(|error| failed(error.to_string()))?;
            Ok(!matches!(put.applied, Applied::Unchanged | Applied::Updated))
        };
        let tunnel = |tunnel: &TunnelInterface| {
            let taken = || {
                Status::already_exists(format!(
                    "the number of the tunnel, {}, is that of another one",
                    tunnel.vxlan.vni
                ))
            };
            if !means.vnis.claim(tunnel.mark.connection(), tunnel.vxlan.vni) {
                return Err(taken());
            }
            let made = tunnel.make(|id| means.vnis.has(id));
            made.map_err(|error| {
                if error.is_number_taken() {
                    means.vnis.forget(tunnel.vxlan.vni);
                    return taken();
                }
                failed(error.to_string())
            })
        };
        match self {
            Self::Wire(wire) => put(wire),
            Self::Tunnel(own) => tunnel(own),
            Self::Secure(own) => own.make(&means.wireguards).map_err(|error| failed(error.to_string())),
            Self::SecureWire(secure) => {
                secure.tell(&means.wireguards).map_err(|error| failed(error.to_string()))?;
                put(&secure.wire)
            }
            Self::Bridge(bridge) => {
                let is_new = put(&bridge.wire)?;
                tunnel(&bridge.tunnel)?;
                bridge.join().map_err(|error| failed(format!("join a wire with its tunnel: {error}")))?;
                Ok(is_new)
            }
            Self::Breakout(breakout) => {
                let is_new = put(&breakout.wire)?;
                breakout.join().map_err(|error| failed(format!("join a wire with its VLAN: {error}")))?;
                Ok(is_new)
            }
            Self::Nic(links) => {
                let mut is_new = false;
                for link in links.iter().flatten() {
                    is_new |= link.make(&means.vfs)?;
                }
                Ok(is_new)
            }
            Self::Outside => Ok(false),
        }
    }

    fn remove(&self, means: &Means) -> Result<(), Status> {
        let internal = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
        let wire = |wire: &WireSpec| means.wires.remove_of_mesh(&wire.name).map_err(|error| internal(&error));
        match self {
            Self::Wire(own) => wire(own),
            Self::Breakout(breakout) => wire(&breakout.wire),
            Self::SecureWire(secure) => wire(&secure.wire),
            Self::Tunnel(tunnel) => tunnel.remove().map_err(|error| internal(&error)),
            Self::Secure(tunnel) => {
                tunnel.remove(&means.wireguards);
                Ok(())
            }
            Self::Bridge(bridge) => {
                let tunnel = bridge.tunnel.remove().map_err(|error| internal(&error));
                let parted = bridge.part().map_err(|error| internal(&error));
                wire(&bridge.wire).and(tunnel).and(parted)
            }
            Self::Nic(links) => {
                let [client, endpoint] =
                    links.each_ref().map(|link| link.as_ref().map_or(Ok(()), |link| link.remove(&means.vfs)));
                client.and(endpoint)
            }
            Self::Outside => Ok(()),
        }
    }

    /// What has crossed from the client to the endpoint, and back.
    fn directions(&self, Means { wires, wireguards, .. }: &Means) -> Option<[Traffic; 2]> {
        match self {
            Self::Wire(wire) => wires.status(&wire.name).map(|status| status.directions),
            Self::Bridge(bridge) => wires.status(&bridge.wire.name).map(|status| status.directions),
            Self::Breakout(breakout) => wires.status(&breakout.wire.name).map(|status| status.directions),
            Self::SecureWire(secure) => wires.status(&secure.wire.name).map(|status| status.directions),
            // Its frames are the NIC's.
            Self::Nic(_) | Self::Outside => None,
            Self::Secure(tunnel) => tunnel.traffic(wireguards),
            // Whichever side it is on: what it sends goes to the other one.
            Self::Tunnel(tunnel) => tunnel.stats().map(|stats| {
                let sent = Traffic { frames: stats.tx_packets, bytes: stats.tx_bytes, ..Traffic::default() };
                let received = Traffic { frames: stats.rx_packets, bytes: stats.rx_bytes, ..Traffic::default() };
                [sent, received]
            }),
        }
    }
}

/// "server" is the end of whoever asked, "client" that of who serves.
fn counters([there, back]: &[Traffic; 2]) -> impl Iterator<Item = (String, String)> + use<> {
    let of = |name: &str, received: &Traffic, sent: &Traffic| {
        [
            (format!("{name}_rx_bytes"), received.bytes),
            (format!("{name}_rx_packets"), received.frames),
            (format!("{name}_tx_bytes"), sent.bytes),
            (format!("{name}_tx_packets"), sent.frames),
            (format!("{name}_drops"), sent.dropped()),
        ]
    };
    let all = [of("server", there, back), of("client", back, there)];
    all.into_iter().flatten().map(|(key, value)| (key, value.to_string()))
}

/// What its frames may be as long as, if somebody has said it.
fn mtu(connection: &Connection) -> Option<u32> {
    connection.context.as_ref().map(|context| context.mtu).filter(|mtu| *mtu > 0)
}

/// The name of a connection's wire.
pub(super) fn wire_name(id: &str) -> Result<String, Status> {
    let is_ours = id.len() == ID_LEN && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if !is_ours {
        let shown: String = id.chars().take(ID_LEN).collect();
        return Err(Status::invalid_argument(format!("the connection's id {shown:?} is none that a forwarder makes")));
    }
    Ok(format!("{WIRE_PREFIX}{id}"))
}

/// The connection that a wire is made for, if it is one of the mesh.
pub(super) fn connection_of(wire: &str) -> Option<&str> {
    wire.strip_prefix(WIRE_PREFIX).filter(|id| id.len() == ID_LEN)
}

/// By which a person finds a wire.
fn labels(connection: &Connection) -> BTreeMap<String, String> {
    let client = connection.path.as_ref().and_then(|path| path.path_segments.first());
    let client = client.map_or("", |segment| &segment.name);
    let labels = [
        ("nsm/service", connection.network_service.as_str()),
        ("nsm/client", client),
        ("nsm/endpoint", &connection.network_service_endpoint_name),
    ];
    let plain = |text: &str| {
        let letters = text.chars().filter(|letter| !letter.is_control());
        let mut plain = String::new();
        for letter in letters {
            if plain.len() + letter.len_utf8() > LABEL_MAX {
                break;
            }
            plain.push(letter);
        }
        plain
    };
    labels.map(|(key, value)| (key.to_owned(), plain(value))).into()
}

/// Whose the wires are.
const OWNER: &str = "nsm";
const WIRE_PREFIX: &str = "nsm-";
/// Of a UUID.
const ID_LEN: usize = 36;
/// Of a wire's label.
const LABEL_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wire_is_named_after_its_connection_and_nothing_else_passes_for_one() {
        let id = "12407061-cf50-4a35-acae-142428c6536f";
        assert_eq!(connection_of(&wire_name(id).unwrap()), Some(id));
        assert_eq!(connection_of("nsm-mine"), None);
        for wrong in ["", "nsc-1-0", "12407061-cf50-4a35-acae-142428c6536g"] {
            assert!(wire_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_label_that_is_too_long_is_cut_between_letters() {
        let service = format!("{}\n{}", "a".repeat(255), "ü");
        let labels = labels(&Connection { network_service: service, ..Connection::default() });
        assert_eq!(labels["nsm/service"], "a".repeat(255));
    }
}
