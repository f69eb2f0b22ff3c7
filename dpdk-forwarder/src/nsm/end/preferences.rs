//! What endpoints of this node, and other nodes, are asked for.

use std::collections::BTreeMap;

use ferrule_nsm::proto::connection::Mechanism;

use super::super::vxlan::{REMOTE, VXLAN};
use super::super::wireguard::WIREGUARD;
use super::{EndKind, IP};

/// What we can have at an endpoint of this node, beside a client of this kind, best first.
pub(in crate::nsm) fn preferences(client: EndKind, payload: &str, priority: &[String]) -> Vec<Mechanism> {
    if client == EndKind::Noop {
        return vec![mechanism(LOCAL, client)];
    }
    if client.is_vf() {
        // What has no VF is reached by the NIC's network, which is not ours.
        return [EndKind::Noop, EndKind::Kernel, EndKind::Vfio].map(|kind| mechanism(LOCAL, kind)).into();
    }
    // Without Ethernet headers a frame goes to its own kind only.
    ranked(EndKind::JOINED.into_iter().filter(|kind| payload != IP || *kind == client), priority)
}

/// What we can have at an endpoint of this node, beside a tunnel, best first: a device of the kernel is one already. A tunnel of packets has
/// no Ethernet header for VHOST_USER.
pub(in crate::nsm) fn beside_tunnel(payload: &str, priority: &[String]) -> Vec<Mechanism> {
    let kernel = std::iter::once(EndKind::Kernel.name().to_owned());
    let priority: Vec<_> = priority.iter().cloned().chain(kernel).collect();
    let can_have = |kind: &EndKind| payload != IP || *kind != EndKind::VhostUser;
    ranked(EndKind::JOINED.into_iter().filter(can_have), &priority)
}

/// Whether a mechanism is a tunnel that carries such a payload.
pub(in crate::nsm) fn is_tunnel_of(mechanism: &Mechanism, payload: &str) -> bool {
    mechanism.r#type == if payload == IP { WIREGUARD } else { VXLAN }
}

/// What another node is asked for where nothing has to be made.
pub(in crate::nsm) fn noop_of_another_node() -> Vec<Mechanism> {
    vec![mechanism(REMOTE, EndKind::Noop)]
}

/// Those that somebody wants first, first.
fn ranked(kinds: impl Iterator<Item = EndKind>, priority: &[String]) -> Vec<Mechanism> {
    let mut kinds: Vec<_> = kinds.collect();
    kinds.sort_by_key(|kind| priority.iter().position(|name| name == kind.name()).unwrap_or(usize::MAX));
    kinds.into_iter().map(|kind| mechanism(LOCAL, kind)).collect()
}

fn mechanism(class: &str, kind: EndKind) -> Mechanism {
    Mechanism { cls: class.to_owned(), r#type: kind.name().to_owned(), parameters: BTreeMap::new() }
}

const LOCAL: &str = "LOCAL";

#[cfg(test)]
mod tests {
    use ferrule_nsm::proto::connection::Connection;

    use super::super::super::context::Side;
    use super::super::{MeshEnd, Port};
    use super::*;

    fn connection(id: &str) -> Connection {
        Connection { id: id.to_owned(), network_service: "icmp-responder".to_owned(), ..Connection::default() }
    }

    #[test]
    fn an_endpoint_is_asked_for_what_fits_beside_the_client() {
        let names = |client, payload, priority: &[&str]| {
            let priority: Vec<_> = priority.iter().map(|name| (*name).to_owned()).collect();
            let asked = preferences(client, payload, &priority).into_iter();
            asked.map(|mechanism| mechanism.r#type).collect::<Vec<_>>()
        };
        assert_eq!(names(EndKind::Kernel, "ETHERNET", &[]), ["MEMIF", "KERNEL", "VHOST_USER"]);
        assert_eq!(names(EndKind::Kernel, "ETHERNET", &["KERNEL"]), ["KERNEL", "MEMIF", "VHOST_USER"]);
        assert_eq!(names(EndKind::Kernel, "IP", &[]), ["KERNEL"]);
    }

    #[test]
    fn an_endpoint_beside_a_tunnel_is_asked_for_what_is_one_already_unless_told_otherwise() {
        let names = |payload, priority: &[&str]| {
            let priority: Vec<_> = priority.iter().map(|name| (*name).to_owned()).collect();
            beside_tunnel(payload, &priority).into_iter().map(|mechanism| mechanism.r#type).collect::<Vec<_>>()
        };
        assert_eq!(names("ETHERNET", &[]), ["KERNEL", "MEMIF", "VHOST_USER"]);
        assert_eq!(names("ETHERNET", &["VHOST_USER"]), ["VHOST_USER", "KERNEL", "MEMIF"]);
        assert_eq!(names("IP", &[]), ["KERNEL", "MEMIF"]);
    }

    #[test]
    fn where_nothing_is_made_the_other_end_is_asked_for_nothing_either() {
        let asked = preferences(EndKind::Noop, "ETHERNET", &["KERNEL".to_owned()]);
        assert_eq!(asked, [Mechanism { cls: LOCAL.to_owned(), r#type: "NOOP".to_owned(), ..Mechanism::default() }]);
        let end = MeshEnd::local(Side::Client, &connection("a"), &asked[0], None).unwrap();
        assert!(matches!(end.port, Port::Outside));
        assert_eq!(end.label(), "NOOP/");
    }
}
