//! A DPDK device as a message.

use dpdk_forwarder_client::v1;
use ferrule_ethdev::EthdevSpec;

use super::reader::Reader;

pub(super) fn from_proto(reader: &mut Reader, ethdev: &v1::EthdevEnd) -> Option<EthdevSpec> {
    if ethdev.device.is_empty() {
        reader.wrong("ethdev.device", "missing; devargs as in `net_af_packet0,iface=eth1` are wanted");
        return None;
    }
    Some(EthdevSpec { queues: ethdev.queues.unwrap_or(1), mtu: ethdev.mtu, ..EthdevSpec::new(&*ethdev.device) })
}

pub(super) fn to_proto(ethdev: &EthdevSpec) -> v1::EthdevEnd {
    v1::EthdevEnd { device: ethdev.device.clone(), queues: Some(ethdev.queues), mtu: ethdev.mtu }
}
