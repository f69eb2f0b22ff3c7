//! A kernel end as a message.

use ferrule_dataplane::spec::{KernelSpec, Route};

use super::reader::{Reader, netns_to_proto};
use dpdk_forwarder_client::v1;

pub(super) fn from_proto(reader: &mut Reader, kernel: &v1::KernelEnd) -> Option<KernelSpec> {
    let netns = kernel.netns.as_ref().and_then(|netns| reader.netns("kernel.netns", netns));
    let mac = reader.optional("kernel.mac", &kernel.mac);
    let addresses = kernel.addresses.iter().enumerate();
    let addresses =
        addresses.filter_map(|(index, address)| reader.parse(&format!("kernel.addresses[{index}]"), address)).collect();
    let mut routes = Vec::new();
    for (index, route) in kernel.routes.iter().enumerate() {
        let to = reader.parse(&format!("kernel.routes[{index}].to"), &route.to);
        let via = reader.optional(&format!("kernel.routes[{index}].via"), &route.via);
        routes.extend(to.map(|to| Route { to, via }));
    }
    let name = reader.parse("kernel.name", &kernel.name)?;
    Some(KernelSpec { netns, mac, mtu: kernel.mtu, addresses, routes, ..KernelSpec::new(name) })
}

pub(super) fn to_proto(kernel: &KernelSpec) -> v1::KernelEnd {
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
