//! A VF as a message.

use dpdk_forwarder_client::v1;
use ferrule_ethdev::{VfAttributes, VfSpec};

use super::reader::Reader;

pub(super) fn from_proto(reader: &mut Reader, vf: &v1::VfEnd) -> VfSpec {
    let mac = reader.optional("vf.mac", &vf.mac);
    let vlan = vf.vlan.map(|vlan| u16::try_from(vlan).unwrap_or(u16::MAX));
    VfSpec {
        address: Some(vf.address.clone()).filter(|address| !address.is_empty()),
        pools: vf.pools.clone(),
        queues: vf.queues.unwrap_or(1),
        mtu: vf.mtu,
        attributes: VfAttributes { mac, vlan, trust: vf.trust, spoof_check: vf.spoof_check },
    }
}

pub(super) fn to_proto(vf: &VfSpec) -> v1::VfEnd {
    let VfAttributes { mac, vlan, trust, spoof_check } = vf.attributes;
    v1::VfEnd {
        address: vf.address.clone().unwrap_or_default(),
        pools: vf.pools.clone(),
        queues: Some(vf.queues),
        mtu: vf.mtu,
        mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
        vlan: vlan.map(Into::into),
        trust,
        spoof_check,
    }
}
