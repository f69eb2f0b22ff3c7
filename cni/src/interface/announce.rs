//! What the neighbours of an interface are told: gratuitous ARP (RFC 5227) and unsolicited neighbour advertisements (RFC 4861, 7.2.6).
//! Somebody else may have had its addresses a moment ago.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage, sendto, socket};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv6Packet,
    Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
};
use sriov_manager_client::mac::Mac;

use super::Namespace;
use crate::protocol::IpAddress;

/// Tells the neighbours of an interface who has its addresses.
pub(super) fn announce(pod: &Namespace, interface: &str, mac: Mac, ips: &[IpAddress]) -> io::Result<()> {
    if ips.is_empty() {
        return Ok(());
    }
    pod.run(|| {
        let to = link_address(interface)?;
        // It receives nothing: it is of no protocol.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        for ip in ips {
            let frame = frame_of(mac, ip.address.addr());
            sendto(std::os::fd::AsRawFd::as_raw_fd(&socket), &frame, &to, MsgFlags::empty())?;
        }
        Ok(())
    })?
}

/// Where the kernel sends a frame to that is for this interface.
fn link_address(interface: &str) -> io::Result<SockaddrStorage> {
    let is_of_link = |address: &SockaddrStorage| address.family() == Some(AddressFamily::Packet);
    let mut addresses = getifaddrs()?.filter(|one| one.interface_name == interface).filter_map(|one| one.address);
    addresses
        .find(is_of_link)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the interface has no link address"))
}

fn frame_of(mac: Mac, address: IpAddr) -> Vec<u8> {
    let source = EthernetAddress(mac.0);
    match address {
        IpAddr::V4(address) => {
            let arp = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_hardware_addr: source,
                source_protocol_addr: address,
                target_hardware_addr: EthernetAddress([0; 6]),
                target_protocol_addr: address,
            };
            framed(source, EthernetAddress::BROADCAST, EthernetProtocol::Arp, arp.buffer_len(), |payload| {
                arp.emit(&mut ArpPacket::new_unchecked(payload));
            })
        }
        IpAddr::V6(address) => {
            let advertisement = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
                flags: NdiscNeighborFlags::OVERRIDE,
                target_addr: address,
                lladdr: Some(source.into()),
            });
            let ip = Ipv6Repr {
                src_addr: address,
                dst_addr: ALL_NODES,
                next_header: IpProtocol::Icmpv6,
                payload_len: advertisement.buffer_len(),
                // Neighbours drop one that a router has passed on.
                hop_limit: 255,
            };
            let length = ip.buffer_len() + advertisement.buffer_len();
            framed(source, ALL_NODES_ETHERNET, EthernetProtocol::Ipv6, length, |payload| {
                let mut packet = Ipv6Packet::new_unchecked(payload);
                ip.emit(&mut packet);
                let mut icmp = Icmpv6Packet::new_unchecked(packet.payload_mut());
                advertisement.emit(&address, &ALL_NODES, &mut icmp, &ChecksumCapabilities::default());
            })
        }
    }
}

fn framed(
    src_addr: EthernetAddress,
    dst_addr: EthernetAddress,
    ethertype: EthernetProtocol,
    length: usize,
    payload: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let ethernet = EthernetRepr { src_addr, dst_addr, ethertype };
    let mut bytes = vec![0; ethernet.buffer_len() + length];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.emit(&mut frame);
    payload(frame.payload_mut());
    bytes
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// RFC 2464, 7.
const ALL_NODES_ETHERNET: EthernetAddress = EthernetAddress([0x33, 0x33, 0, 0, 0, 1]);

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    #[test]
    fn gratuitous_arp_is_as_rfc_5227_has_it() {
        let frame = frame_of(MAC, "10.0.0.5".parse().unwrap());
        let mut wanted = vec![0xff; 6];
        wanted.extend([2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 0, 5]);
        wanted.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 5]);
        assert_eq!(frame, wanted);
    }

    #[test]
    fn a_neighbour_takes_the_advertisement() {
        let address: Ipv6Addr = "2001:db8::5".parse().unwrap();
        let frame = frame_of(MAC, address.into());
        assert_eq!(frame[..12], [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9]);
        let packet = Ipv6Packet::new_checked(&frame[14..]).unwrap();
        assert_eq!((packet.hop_limit(), packet.src_addr(), packet.dst_addr()), (255, address, ALL_NODES));
        let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
        let read = Icmpv6Repr::parse(&address, &ALL_NODES, &icmp, &ChecksumCapabilities::default()).unwrap();
        let Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { flags, target_addr, lladdr }) = read else {
            panic!("{read:?}")
        };
        assert_eq!((flags, target_addr), (NdiscNeighborFlags::OVERRIDE, address));
        assert_eq!(lladdr, Some(EthernetAddress(MAC.0).into()));
    }
}
