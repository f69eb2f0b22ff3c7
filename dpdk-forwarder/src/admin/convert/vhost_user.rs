//! A vhost-user end as a message.

use ferrule_dataplane::spec::{ByteSize, VhostFeatures, VhostUserSpec};

use super::reader::{Reader, access_to_proto, role_to_proto};
use dpdk_forwarder_client::v1;

pub(super) fn from_proto(reader: &mut Reader, vhost: &v1::VhostUserEnd) -> Option<VhostUserSpec> {
    let socket = reader.parse("vhost-user.socket", &vhost.socket);
    let role = reader.role("vhost-user.role", vhost.role);
    let mac = reader.optional("vhost-user.mac", &vhost.mac);
    let features = read_features(reader, &vhost.without);
    let access = reader.access("vhost-user", vhost.access.as_ref());
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

pub(super) fn to_proto(vhost: &VhostUserSpec) -> v1::VhostUserEnd {
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

fn read_features(reader: &mut Reader, without: &[String]) -> VhostFeatures {
    let mut features = VhostFeatures::default();
    for name in without {
        match feature(&mut features, name) {
            Some(offered) => *offered = false,
            None => reader.wrong("vhost-user.without", format!("`{name}`; one of {} is wanted", FEATURES.join(", "))),
        }
    }
    features
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

/// Features that can be switched off.
pub(super) const FEATURES: [&str; 6] = ["packed", "in_order", "mrg_rxbuf", "indirect", "event_idx", "offloads"];
