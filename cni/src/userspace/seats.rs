//! Which end of which wire a pod has. Pods of a network are joined two by two, in the order in which they come: each wire is made whole for
//! its first pod, so that the second one finds its end there and parts nobody.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dpdk_forwarder_client::v1;
use serde::{Deserialize, Serialize};

use super::SocketConfig;
use crate::forwarder::OWNER;
use crate::socket_kind::Kind;
use crate::store;

/// What a pod has of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatRecord {
    /// The number of the wire in its network.
    pub pair: u32,
    /// Which of its ends: 0 or 1.
    pub seat: u8,
    /// The directory of the sockets.
    pub shared: PathBuf,
    /// What speaks over it.
    pub kind: Kind,
    /// Whether the forwarder listens.
    pub forwarder_listens: bool,
    /// The group of the socket; empty: everybody may connect.
    pub group: String,
    /// What the pod calls its socket.
    pub file: String,
}

/// The record of an attachment with a socket.
pub type SocketAttachment = store::Record<SeatRecord>;

/// Of the records' folder.
pub const KIND: &str = "socket";

/// A seat that nobody has: beside a pod that waits for another one if there is such, and not beside itself.
pub fn free_seat(taken: &[SocketAttachment], container: &str) -> (u32, u8) {
    let mut pairs: BTreeMap<u32, Vec<&SocketAttachment>> = BTreeMap::new();
    for record in taken {
        pairs.entry(record.what.pair).or_default().push(record);
    }
    let waits = pairs.iter().find(|(_, at)| matches!(at[..], [one] if one.container != container));
    if let Some((pair, at)) = waits {
        return (*pair, 1 - at[0].what.seat.min(1));
    }
    let taken = pairs.keys().zip(0..).take_while(|(pair, number)| *pair == number).count();
    (u32::try_from(taken).unwrap_or(u32::MAX), 0)
}

/// What the wires of a network are called.
pub fn wire_name(network: &str, pair: u32) -> String {
    format!("{}{pair}", wires_of(network))
}

/// What they begin with.
pub fn wires_of(network: &str) -> String {
    format!("cni/{network}/")
}

/// Who sits at an end, as the labels of its wire say.
pub fn seat_label(container: &str, interface: &str) -> String {
    format!("{}/{interface}", short(container))
}

/// The socket of an end, as the forwarder knows it.
pub fn seat_path(shared: &Path, network: &str, pair: u32, seat: u8) -> PathBuf {
    shared.join(SEATS).join(format!("{network}-{pair}-{seat}"))
}

/// The wire of a pod and of whoever sits at its other end, as it is to be. An end that nobody has is as the pod's own.
pub fn wire(own: &SocketAttachment, others: &[SocketAttachment]) -> v1::WireSpec {
    let pair = own.what.pair;
    let at = |seat: u8| {
        let other = others.iter().find(|other| other.what.pair == pair && other.what.seat == seat);
        other.or((own.what.seat == seat).then_some(own))
    };
    let path = |seat| seat_path(&own.what.shared, &own.network, pair, seat);
    let ends = [0, 1].map(|seat| end(&at(seat).unwrap_or(own).what, &path(seat)));
    let who = |seat: u8| Some((format!("end-{seat}"), at(seat)?));
    let labels = [0, 1].into_iter().filter_map(who);
    let labels = labels.map(|(key, record)| (key, seat_label(&record.container, &record.interface)));
    v1::WireSpec {
        name: wire_name(&own.network, pair),
        ends: ends.into(),
        owner: OWNER.to_owned(),
        labels: labels.collect(),
        ..Default::default()
    }
}

/// A container as people call it, and as userspace-cni's files do.
pub fn short(container: &str) -> &str {
    container.get(..12).unwrap_or(container)
}

impl SeatRecord {
    /// What the network says of a seat.
    pub fn new(config: &SocketConfig, (pair, seat): (u32, u8), file: String) -> Self {
        Self {
            pair,
            seat,
            shared: config.shared.clone(),
            kind: config.kind,
            forwarder_listens: config.forwarder_listens,
            group: config.group.clone(),
            file,
        }
    }
}

fn end(seat: &SeatRecord, path: &Path) -> v1::EndSpec {
    let socket = path.to_string_lossy().into_owned();
    let role = if seat.forwarder_listens { v1::Role::Server } else { v1::Role::Client };
    let mode = if seat.group.is_empty() { 0o666 } else { 0o660 };
    let access = v1::SocketAccess { group: seat.group.clone(), mode: Some(mode), owner: String::new() };
    let access = seat.forwarder_listens.then_some(access);
    let kind = match seat.kind {
        Kind::VhostUser => {
            v1::end_spec::Kind::VhostUser(v1::VhostUserEnd { socket, role: role.into(), access, ..Default::default() })
        }
        Kind::Memif | Kind::MemifIp => {
            let mode = if seat.kind == Kind::MemifIp { v1::FrameMode::Ip } else { v1::FrameMode::Ethernet };
            v1::end_spec::Kind::Memif(v1::MemifEnd {
                socket,
                role: role.into(),
                mode: mode.into(),
                access,
                ..Default::default()
            })
        }
    };
    v1::EndSpec { kind: Some(kind) }
}

/// Below the shared directory.
pub(super) const SEATS: &str = ".ferrule";

#[cfg(test)]
mod tests {
    use super::*;

    fn record(container: &str, pair: u32, seat: u8) -> SocketAttachment {
        let what = SeatRecord {
            pair,
            seat,
            shared: "/run/shared".into(),
            kind: Kind::Memif,
            forwarder_listens: true,
            group: String::new(),
            file: "memif.sock".into(),
        };
        SocketAttachment {
            network: "net".into(),
            chain: None,
            container: container.into(),
            interface: "net1".into(),
            netns: PathBuf::new(),
            boot: String::new(),
            what,
        }
    }

    #[test]
    fn pods_are_joined_two_by_two_and_none_with_itself() {
        let mut taken = Vec::new();
        let mut sit = |container: &str| {
            let (pair, seat) = free_seat(&taken, container);
            taken.push(record(container, pair, seat));
            (pair, seat)
        };
        assert_eq!([sit("a"), sit("a"), sit("b"), sit("c"), sit("d")], [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0)]);
        taken.retain(|record| record.container != "b" && record.container != "d");
        assert_eq!(free_seat(&taken, "e"), (0, 1));
        taken.retain(|record| record.what.pair != 0);
        assert_eq!(free_seat(&taken, "e"), (0, 0));
    }

    #[test]
    fn the_second_pod_changes_nothing_but_the_labels_of_its_wire() {
        let (one, two) = (record("a", 0, 0), record("b", 0, 1));
        let (first, second) = (wire(&one, &[]), wire(&two, std::slice::from_ref(&one)));
        assert_eq!((&first.name, &first.ends), (&second.name, &second.ends));
        assert_eq!((first.labels.len(), second.labels.len()), (1, 2));
        let back = wire(&two, &[]);
        assert_eq!(back.labels.keys().collect::<Vec<_>>(), ["end-1"]);
    }
}
