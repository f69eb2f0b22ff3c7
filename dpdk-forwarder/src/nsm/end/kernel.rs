//! Ends that are interfaces of the kernel, and those that are VFs of a pod.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferrule_dataplane::spec::{EndSpec, InterfaceName, KernelSpec, MacAddress, NetNs};
use ferrule_nsm::proto::connection::{Connection, Mechanism};
use ferrule_nsm::proto::connectioncontext::EthernetContext;
use tonic::Status;

use super::super::context::Side;
use super::super::interface::InterfacePlace;
use super::super::vf::{VfEnd, VfForm};
use super::namespace::open_namespace;
use super::{EndKind, IP, MeshEnd, NAME, Port, TOKEN};

pub(super) fn kernel(
    side: Side,
    connection: &Connection,
    mechanism: &Mechanism,
    file: &Arc<OwnedFd>,
) -> Result<MeshEnd, Status> {
    let netns = open_namespace(file)?;
    let name = match mechanism.parameters.get(NAME).map(String::as_str) {
        None | Some("") => interface_name(connection, side),
        Some(name) => name.to_owned(),
    };
    let name: InterfaceName = name.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
    let mut mechanism = mechanism.clone();
    mechanism.parameters.insert(NAME.to_owned(), name.to_string());
    let context = connection.context.as_ref();
    let spec = KernelSpec {
        netns: Some(NetNs::Open(netns.clone())),
        mac: Some(mac(side, connection)?),
        mtu: context.map(|context| context.mtu).filter(|mtu| *mtu > 0),
        ..KernelSpec::new(name.clone())
    };
    let place = Some(InterfacePlace { netns, name });
    Ok(MeshEnd { kind: EndKind::Kernel.name(), mechanism, port: Port::Local(EndSpec::Kernel(spec)), place })
}

/// The same by the VF of a token.
pub(super) fn kernel_vf(
    side: Side,
    connection: &Connection,
    mechanism: &Mechanism,
    file: &Arc<OwnedFd>,
) -> Result<MeshEnd, Status> {
    let end = kernel(side, connection, mechanism, file)?;
    let place = end.place.clone().ok_or_else(|| Status::internal("a kernel end without a place"))?;
    let mtu = connection.context.as_ref().map(|context| context.mtu).filter(|mtu| *mtu > 0);
    let vf = vf_end(side, connection, mechanism, VfForm::Kernel { place, mtu })?;
    Ok(MeshEnd { port: Port::Vf(vf), ..end })
}

pub(super) fn vfio(side: Side, connection: &Connection, mechanism: &Mechanism) -> Result<MeshEnd, Status> {
    if connection.payload == IP {
        return Err(Status::unimplemented("VFIO carries Ethernet frames, and the payload of this service is IP"));
    }
    let vf = vf_end(side, connection, mechanism, VfForm::Vfio)?;
    Ok(MeshEnd { kind: EndKind::Vfio.name(), mechanism: mechanism.clone(), port: Port::Vf(vf), place: None })
}

fn vf_end(side: Side, connection: &Connection, mechanism: &Mechanism, form: VfForm) -> Result<VfEnd, Status> {
    let ethernet = connection.context.as_ref().and_then(|context| context.ethernet_context.as_ref());
    let vlan = ethernet.map_or(0, |ethernet| ethernet.vlan_tag);
    let vlan = u32::try_from(vlan).ok().filter(|vlan| *vlan <= VLAN_MAX);
    Ok(VfEnd {
        token: mechanism.parameters.get(TOKEN).cloned().unwrap_or_default(),
        form,
        mac: mac(side, connection)?,
        vlan: vlan.ok_or_else(|| Status::invalid_argument(format!("vlan_tag: 0 to {VLAN_MAX} are possible")))?,
    })
}

/// The MAC address of an interface at an end: the one that the context wants, or one that is always the same for the connection, so
/// that the other end can be told of it, and a forwarder that starts again makes the same interface.
pub(in crate::nsm) fn mac(side: Side, connection: &Connection) -> Result<MacAddress, Status> {
    let none = EthernetContext::default();
    let context = connection.context.as_ref().and_then(|context| context.ethernet_context.as_ref()).unwrap_or(&none);
    let wanted = match side {
        Side::Client => &context.src_mac,
        Side::Endpoint => &context.dst_mac,
    };
    if !wanted.is_empty() {
        return wanted.parse().map_err(|error| Status::invalid_argument(format!("{error}")));
    }
    let hash = fnv(connection.id.bytes().chain([side as u8]));
    let [a, b, c, d, e, ..] = hash.to_le_bytes();
    Ok(MacAddress([0x02, a, b, c, d, e]))
}

/// Some of the service's name, and letters that no other connection has.
fn interface_name(connection: &Connection, side: Side) -> String {
    let is_plain = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '-' || *letter == '_';
    let mut name: String = connection.network_service.chars().filter(is_plain).take(INTERFACE_SERVICE_MAX).collect();
    name.push('-');
    // Out of all of the number: its first digits hardly differ for ids that end differently.
    let mut rest = fnv(connection.id.bytes().chain([side as u8]));
    while name.len() < INTERFACE_MAX {
        name.extend(char::from_digit((rest % 36) as u32, 36));
        rest /= 36;
    }
    name
}

/// What the end of a connection's wire is called that is in a room of ours, where the connections of a VLAN meet.
pub(in crate::nsm) fn port_name(id: &str) -> InterfaceName {
    let name = format!("p{:014x}", fnv(id.bytes()) >> 8);
    name.parse().expect("15 letters and digits are a name")
}

/// FNV-1a.
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

const VLAN_MAX: u32 = 4094;
/// IFNAMSIZ, less the zero at its end.
const INTERFACE_MAX: usize = 15;
const INTERFACE_SERVICE_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::super::preferences;
    use super::*;

    fn connection(id: &str) -> Connection {
        Connection { id: id.to_owned(), network_service: "icmp-responder".to_owned(), ..Connection::default() }
    }

    #[test]
    fn names_and_macs_are_those_of_a_connection_and_its_end() {
        let [a, b] = [connection("a"), connection("b")];
        let names =
            [interface_name(&a, Side::Client), interface_name(&a, Side::Endpoint), interface_name(&b, Side::Client)];
        assert!(names[0].starts_with("icmp-respo-") && names[0].len() == INTERFACE_MAX, "{}", names[0]);
        assert!(names[0] != names[1] && names[0] != names[2]);
        assert_eq!(names[0], interface_name(&a, Side::Client));
        let macs = [mac(Side::Client, &a), mac(Side::Endpoint, &a), mac(Side::Client, &b)].map(Result::unwrap);
        assert!(macs[0] != macs[1] && macs[0] != macs[2]);
        macs[0].to_string().parse::<MacAddress>().unwrap();
        assert!(port_name("a") != port_name("b") && port_name("a").as_str().len() == INTERFACE_MAX);
    }

    #[test]
    fn an_end_by_a_token_is_a_vf_and_vfio_is_none_without_one() {
        let with = |token: &str| {
            let parameters = [(TOKEN.to_owned(), token.to_owned())].into();
            Mechanism { r#type: "VFIO".to_owned(), parameters, ..Mechanism::default() }
        };
        assert_eq!((EndKind::of(&with("")), EndKind::of(&with("sriov-1"))), (None, Some(EndKind::Vfio)));
        let mut connection = connection("a");
        let ethernet = EthernetContext { src_mac: "02:00:00:00:00:01".to_owned(), vlan_tag: 7, ..<_>::default() };
        connection.context.get_or_insert_default().ethernet_context = Some(ethernet);
        let Port::Vf(end) = MeshEnd::local(Side::Client, &connection, &with("sriov-1"), None).unwrap().port else {
            panic!("it is no VF")
        };
        assert_eq!((end.token.as_str(), end.vlan, end.form), ("sriov-1", 7, VfForm::Vfio));
        assert_eq!(end.mac.to_string(), "02:00:00:00:00:01");
        connection.context.get_or_insert_default().ethernet_context.get_or_insert_default().vlan_tag = 4095;
        let refused = MeshEnd::local(Side::Client, &connection, &with("sriov-1"), None).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        let asked = preferences(EndKind::Vfio, "ETHERNET", &[]);
        let asked: Vec<_> = asked.iter().map(|mechanism| mechanism.r#type.as_str()).collect();
        assert_eq!(asked, ["NOOP", "KERNEL", "VFIO"]);
    }
}
