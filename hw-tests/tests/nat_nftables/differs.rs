//! What our NAT44 does otherwise than the kernel's, and why.

use ferrule_functions::Side::{Client, Network};

use super::packets::{ACK, FIN, Ipv4, SYN, TCP, error, query, sender, tcp, tcp_with, transport_checksum, udp};
use super::pair::{CLIENT, ETHERNET, Left, POOL, Pair, SERVER, SERVER_INSIDE};

const HERE: (u32, u16) = (CLIENT, 5000);
const OUTSIDE: (u32, u16) = (POOL, 5000);
const DNS: (u32, u16) = (SERVER, 53);

/// An error whose quoted IP header was spoilt on the way says of nobody what has become of their packet: RFC 5508, requirement 3 b.
#[test]
fn an_error_that_quotes_a_spoilt_header_is_dropped() {
    let Some(mut pair) = Pair::new("an_error_that_quotes_a_spoilt_header_is_dropped") else { return };
    let mut seen = pair.forwarded("a packet", Client, &udp(HERE, DNS, b"").bytes());
    seen[10] ^= 1;
    let [ours, kernels] = pair.both(Network, &error((3, 3), SERVER, POOL, &seen, 8).bytes());
    assert_eq!((ours.len(), kernels.len()), (0, 1));
}

/// An option that stands at an odd place has half of its value in one word and half in the next. The kernel mends the checksum as if it were one
/// word: whoever receives that drops the SYN.
#[test]
fn a_checksum_is_right_wherever_the_mss_stands() {
    let Some(mut pair) = Pair::with_mtu("a_checksum_is_right_wherever_the_mss_stands", [1500, 1000]) else { return };
    let call = tcp_with(HERE, (SERVER, 80), SYN, &[1, 2, 4, 5, 0xb4, 1, 1, 0], b"");
    let are_right = pair.both(Client, &call.bytes()).map(|left: Vec<Left>| {
        let segment = left[0].1[ETHERNET + 20..].to_vec();
        assert_eq!(segment[20..25], [1, 2, 4, 0x03, 0xc0]);
        transport_checksum(&Ipv4::new(TCP, POOL, SERVER, segment)) == 0
    });
    assert_eq!(are_right, [true, false]);
}

/// Frames that a line has made longer stay so: who receives them looks at the length of the packet.
#[test]
fn padding_stays() {
    let Some(mut pair) = Pair::new("padding_stays") else { return };
    let packet = udp(HERE, DNS, b"").bytes();
    let [ours, kernels] = pair.both(Client, &[&packet[..], &[0; 18]].concat());
    let ([(_, ours)], [(_, kernels)]) = (&ours[..], &kernels[..]) else { panic!("{ours:?} {kernels:?}") };
    assert_eq!((ours.len(), kernels.len()), (60, ETHERNET + packet.len()));
    assert_eq!(&ours[..kernels.len()], kernels);
}

/// Flags that no connection has are the receivers' to judge, as windows are: RFC 9293, section 3.10.7.
#[test]
fn flags_of_an_open_connection_are_not_judged() {
    let Some(mut pair) = Pair::new("flags_of_an_open_connection_are_not_judged") else { return };
    let web = (SERVER, 80);
    pair.forwarded("a call", Client, &tcp(HERE, web, SYN, b"").bytes());
    pair.forwarded("its answer", Network, &tcp(web, OUTSIDE, SYN | ACK, b"").bytes());
    for flags in [0, FIN, SYN | FIN] {
        let [ours, kernels] = pair.both(Client, &tcp(HERE, web, flags, b"").bytes());
        assert_eq!((ours.len(), kernels.len()), (1, 0), "{flags:#x}");
    }
}

/// A server behind a forward is known by that, whoever speaks first. Of the kernel's rules, those for one direction say nothing of the other.
#[test]
fn a_server_behind_a_forward_has_one_name() {
    let Some(mut pair) = Pair::new("a_server_behind_a_forward_has_one_name") else { return };
    let call = tcp((SERVER_INSIDE, 8080), (SERVER, 9000), SYN, b"");
    let senders = pair.both(Client, &call.bytes()).map(|left: Vec<Left>| sender(&left[0].1[ETHERNET..]));
    assert_eq!(senders, [(POOL, 80), (POOL, 8080)]);
}

/// Identifiers are of the range of ports, of which a user may leave out any. The kernel's rule has a range for TCP and UDP only.
#[test]
fn an_identifier_is_of_the_range_of_ports() {
    let Some(mut pair) = Pair::new("an_identifier_is_of_the_range_of_ports") else { return };
    let identifiers = pair.both(Client, &query(8, CLIENT, SERVER, 77, b"").bytes()).map(|left: Vec<Left>| {
        let message = &left[0].1[ETHERNET + 20..];
        u16::from_be_bytes([message[4], message[5]])
    });
    assert!(identifiers[0] > 1023 && identifiers[1] == 77, "{identifiers:?}");
}

/// This network is no destination: RFC 1812, section 5.3.7, and RFC 6890. The kernel has hosts there.
#[test]
fn nothing_is_sent_to_this_network() {
    let Some(mut pair) = Pair::new("nothing_is_sent_to_this_network") else { return };
    let [ours, kernels] = pair.both(Client, &udp(HERE, (1, 53), b"").bytes());
    assert_eq!((ours.len(), kernels.len()), (0, 1));
}

/// Options that ask routers for something are carried as they are: RFC 1812, section 5.3.13.4, allows that of a recorded route. The kernel writes
/// its address, behind which the one of the client would be seen outside all the same.
#[test]
fn a_route_is_not_recorded() {
    let Some(mut pair) = Pair::new("a_route_is_not_recorded") else { return };
    let options = vec![7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let sent = Ipv4 { options: options.clone(), ..udp(HERE, DNS, b"") };
    let [ours, kernels] = pair.both(Client, &sent.bytes()).map(|left| left[0].1[ETHERNET + 20..ETHERNET + 32].to_vec());
    assert_eq!(ours, options);
    assert_eq!(kernels, [7, 11, 8, 80, 80, 80, 100, 0, 0, 0, 0, 0]);
}
