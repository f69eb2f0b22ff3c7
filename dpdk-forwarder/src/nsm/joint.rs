//! What joins the two ends of a connection: a wire, and what its interfaces have. Planned, then applied.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferrule_dataplane::engine::Applied;
use ferrule_dataplane::spec::{EndSpec, WireSpec};
use ferrule_dataplane::status::Traffic;
use ferrule_nsm::proto::connection::Connection;
use tonic::Status;

use super::context::{Side, interface_state};
use super::end::{IP, MeshEnd, Port, mac};
use super::interface::{InterfacePlace, InterfaceState};
use super::tunnel::TunnelInterface;
use crate::wires::Wires;

/// What is made for a connection.
#[derive(Clone, Debug)]
pub(super) struct Joint {
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
}

impl Joint {
    /// Of a connection as the endpoint has answered it, whose id is ours. Pure.
    pub(super) fn plan(connection: &Connection, client: &MeshEnd, endpoint: &MeshEnd) -> Result<Self, Status> {
        let carrier = Carrier::plan(connection, [client, endpoint])?;
        let context = connection.context.clone().unwrap_or_default();
        let mut interfaces = Vec::new();
        for (side, other, end) in [(Side::Client, Side::Endpoint, client), (Side::Endpoint, Side::Client, endpoint)] {
            let Some(place) = &end.place else { continue };
            let peer = (connection.payload == IP).then(|| mac(other, connection)).transpose()?;
            let state = interface_state(&context, side, peer);
            let state = state.map_err(|error| Status::invalid_argument(error.to_string()))?;
            interfaces.push((place.clone(), state));
        }
        Ok(Self { carrier, interfaces })
    }

    /// Makes it, where `before` was made. When that fails, a new one leaves nothing behind, and an old one stays as it was. Blocks.
    pub(super) fn make(&self, before: Option<&Self>, wires: &Wires) -> Result<(), Status> {
        let is_new = match self.carrier.make(before.map(|before| &before.carrier), wires) {
            Ok(is_new) => is_new,
            Err(status) => {
                if before.is_none() {
                    // It may be made still, and would be of nobody. The first failure says more.
                    let _ = self.carrier.remove(wires);
                }
                // The wire of before may have been made anew meanwhile.
                for (place, state) in before.iter().flat_map(|before| &before.interfaces) {
                    let _ = place.set_up(state);
                }
                return Err(status);
            }
        };
        let mut done = Vec::new();
        for (at, (place, should)) in self.interfaces.iter().enumerate() {
            let is = before.and_then(|before| before.interfaces.get(at)).filter(|(known, _)| !is_new && known == place);
            let made = match is {
                Some((_, is)) => place.change(is, should),
                None => place.set_up(should),
            };
            if let Err(error) = made {
                self.take_back(before.filter(|_| !is_new), &done, wires);
                return Err(Status::failed_precondition(error.to_string()));
            }
            done.push(at);
        }
        Ok(())
    }

    /// Goes back to `before`, from what was done.
    fn take_back(&self, before: Option<&Self>, done: &[usize], wires: &Wires) {
        let Some(before) = before else {
            if let Err(status) = self.remove(wires) {
                tracing::warn!(%status, "what could not be made is not removed either");
            }
            return;
        };
        for at in done {
            if let (Some((place, is)), Some((_, should))) = (self.interfaces.get(*at), before.interfaces.get(*at)) {
                // The first failure says more.
                let _ = place.change(is, should);
            }
        }
    }

    /// Removes all of it. What is not there any more is no error. Blocks.
    pub(super) fn remove(&self, wires: &Wires) -> Result<(), Status> {
        for (place, state) in &self.interfaces {
            if let Err(error) = place.tear_down(state) {
                tracing::debug!(%error, "its namespace has gone, most likely");
            }
        }
        self.carrier.remove(wires)
    }

    /// What has crossed, as the metrics of a path say it.
    pub(super) fn metrics(&self, [client, endpoint]: [&MeshEnd; 2], wires: &Wires) -> BTreeMap<String, String> {
        let mut metrics: BTreeMap<_, _> =
            [("server_interface", client.label()), ("client_interface", endpoint.label())]
                .map(|(key, value)| (key.to_owned(), value))
                .into();
        if let Some(directions) = self.carrier.directions(wires) {
            metrics.extend(counters(&directions));
        }
        metrics
    }
}

impl Carrier {
    fn plan(connection: &Connection, [client, endpoint]: [&MeshEnd; 2]) -> Result<Self, Status> {
        let (kernel, side, vxlan) = match (&client.port, &endpoint.port) {
            (Port::Local(a), Port::Local(b)) => {
                let wire = WireSpec::new(wire_name(&connection.id)?, [a.clone(), b.clone()]);
                let wire = WireSpec { owner: OWNER.to_owned(), labels: labels(connection), ..wire };
                return Ok(Self::Wire(Box::new(wire)));
            }
            (Port::Local(EndSpec::Kernel(kernel)), Port::Tunnel(vxlan)) => (kernel, Side::Client, *vxlan),
            (Port::Tunnel(vxlan), Port::Local(EndSpec::Kernel(kernel))) => (kernel, Side::Endpoint, *vxlan),
            _ => {
                return Err(Status::unimplemented(
                    "a tunnel ends in a kernel interface: other ends are for endpoints of this node",
                ));
            }
        };
        let place = if side == Side::Client { &client.place } else { &endpoint.place };
        let place = place.clone().ok_or_else(|| Status::internal("a kernel end without a place"))?;
        Ok(Self::Tunnel(TunnelInterface { place, vxlan, mac: mac(side, connection)?, mtu: kernel.mtu }))
    }

    /// Whether its interfaces are new.
    fn make(&self, before: Option<&Self>, wires: &Wires) -> Result<bool, Status> {
        let failed = |error: String| Status::failed_precondition(error);
        match self {
            Self::Wire(wire) => {
                let put = wires.put_of_mesh(WireSpec::clone(wire)).map_err(|error| failed(error.to_string()))?;
                Ok(!matches!(put.applied, Applied::Unchanged | Applied::Updated))
            }
            Self::Tunnel(tunnel) => {
                if let Some(Self::Tunnel(before)) = before
                    && before.place != tunnel.place
                {
                    // Its number may be wanted again.
                    before.remove().map_err(|error| failed(error.to_string()))?;
                }
                tunnel.make().map_err(|error| failed(error.to_string()))
            }
        }
    }

    fn remove(&self, wires: &Wires) -> Result<(), Status> {
        match self {
            Self::Wire(wire) => wires.remove_of_mesh(&wire.name).map_err(|error| Status::internal(error.to_string())),
            Self::Tunnel(tunnel) => tunnel.remove().map_err(|error| Status::internal(error.to_string())),
        }
    }

    /// What has crossed from the client to the endpoint, and back.
    fn directions(&self, wires: &Wires) -> Option<[Traffic; 2]> {
        match self {
            Self::Wire(wire) => wires.status(&wire.name).map(|status| status.directions),
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

/// What is shared with whoever makes and removes.
pub(super) type SharedWires = Arc<Wires>;

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
