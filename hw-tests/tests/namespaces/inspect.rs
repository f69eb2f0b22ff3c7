//! What leaves a kernel end towards a memif end is finished: checksums are there, and no frame is longer than the MTU.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use ferrule_dataplane::spec::Full;
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::frames::{Server, receive, send};
use ferrule_hw_tests::netns::lacks_namespaces;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv6Packet, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpPacket, UdpPacket,
};

use crate::testbed::{ADDRESSES, Pair, Shape};

#[test]
fn frames_towards_memif_have_their_checksums_and_keep_to_the_mtu() {
    if lacks_namespaces("frames_towards_memif_have_their_checksums_and_keep_to_the_mtu") {
        return;
    }
    for (mtu, ring) in [(1500, 1024), (1500, 32), (9000, 1024)] {
        let (pair, ends) = Pair::inspected(Shape { mtu, ring, full: Full::Hold });
        let seen = Arc::new(Seen::default());
        let inspector = inspector(ends, mtu as usize, Arc::clone(&seen));
        let [a, b] = &pair.sides;
        for family in ADDRESSES {
            a.ping_all(family[1], 3, mtu - 48);
            let far: IpAddr = family[1].parse().unwrap();
            let [mut near, mut other] = a.connect(b, far);
            thread::scope(|scope| {
                scope.spawn(move || near.write_all(&vec![7; TCP_BYTES]).unwrap());
                scope.spawn(move || other.read_exact(&mut vec![0; TCP_BYTES]).unwrap());
            });
            let ((from, _), (to, address)) = (a.udp(family[0].parse().unwrap()), b.udp(far));
            setsockopt(&from, UdpGsoSegment, &1200).unwrap();
            from.send_to(&vec![9; 40 * 1200], address).unwrap();
            (0..40).for_each(|_| assert_eq!(to.recv(&mut [0; 1500]).unwrap(), 1200));
        }
        drop(inspector);
        assert_eq!(pair.dropped(), 0);
        // Most of them full: the far end would have taken longer ones, had we not cut them.
        let full = 2 * TCP_BYTES as u64 / u64::from(mtu);
        let (tcp, udp) = (seen.tcp.load(Relaxed), seen.udp.load(Relaxed));
        assert!(tcp > full && udp >= 80 && seen.full.load(Relaxed) > full / 2, "{seen:?}");
    }
}

/// How many frames were seen of each kind.
#[derive(Debug, Default)]
struct Seen {
    tcp: AtomicU64,
    udp: AtomicU64,
    /// As long as the MTU allows.
    full: AtomicU64,
}

/// Carries frames from each end to the other, and looks at all of them.
fn inspector(mut ends: [Endpoint; 2], mtu: usize, seen: Arc<Seen>) -> Server {
    let mut waiting = [None, None];
    Server::start(move || {
        let mut moved = false;
        for from in 0..2 {
            if waiting[from].is_none() {
                waiting[from] = receive(&mut ends[from]).inspect(|frame| inspect(frame, mtu, &seen));
            }
            if let Some(frame) = &waiting[from]
                && send(&mut ends[1 - from], frame)
            {
                waiting[from] = None;
                moved = true;
            }
        }
        moved
    })
}

fn inspect(bytes: &[u8], mtu: usize, seen: &Seen) {
    assert!(bytes.len() <= mtu + 14, "a frame of {} bytes", bytes.len());
    if bytes.len() >= mtu {
        seen.full.fetch_add(1, Relaxed);
    }
    let frame = EthernetFrame::new_checked(bytes).unwrap();
    match frame.ethertype() {
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
            assert!(packet.verify_checksum(), "IPv4 header of {bytes:02x?}");
            assert_eq!(usize::from(packet.total_len()), frame.payload().len());
            assert!(!packet.more_frags() && packet.frag_offset() == 0, "nobody sends fragments here");
            let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
            inspect_inner(packet.next_header(), packet.payload(), from, to, seen);
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
            assert_eq!(packet.total_len(), frame.payload().len());
            let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
            inspect_inner(packet.next_header(), packet.payload(), from, to, seen);
        }
        other => assert_eq!(other, EthernetProtocol::Arp),
    }
}

fn inspect_inner(protocol: IpProtocol, payload: &[u8], from: IpAddress, to: IpAddress, seen: &Seen) {
    let good = match (protocol, from, to) {
        (IpProtocol::Tcp, ..) => {
            seen.tcp.fetch_add(1, Relaxed);
            TcpPacket::new_checked(payload).unwrap().verify_checksum(&from, &to)
        }
        (IpProtocol::Udp, ..) => {
            seen.udp.fetch_add(1, Relaxed);
            let packet = UdpPacket::new_checked(payload).unwrap();
            // Zero means that there is none, which would be as good as unfinished.
            packet.checksum() != 0 && packet.verify_checksum(&from, &to)
        }
        (IpProtocol::Icmp, ..) => Icmpv4Packet::new_checked(payload).unwrap().verify_checksum(),
        (IpProtocol::Icmpv6, IpAddress::Ipv6(from), IpAddress::Ipv6(to)) => {
            Icmpv6Packet::new_checked(payload).unwrap().verify_checksum(&from, &to)
        }
        // Multicast listener reports come behind a hop-by-hop header.
        (IpProtocol::HopByHop, ..) => true,
        other => panic!("nobody sends {other:?} here"),
    };
    assert!(good, "checksum of {protocol} from {from} to {to}: {payload:02x?}");
}

const TCP_BYTES: usize = 4 << 20;
