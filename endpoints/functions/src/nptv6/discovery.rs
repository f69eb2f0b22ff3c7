//! Neighbour discovery, as far as a router asks for its neighbours and hears of them (RFC 4861).

use std::net::Ipv6Addr;

use super::settings::NptInterface;
use crate::neighbours::Told;
use crate::packet::checksum;
use crate::packet::{Headers, ICMP_V6};

/// Which address a solicitation is for, or whose an advertisement is; none: it is neither, or broken.
pub fn target(frame: &[u8], headers: &Headers) -> Option<Ipv6Addr> {
    let message = frame.get(headers.transport_at..headers.end)?;
    let address: [u8; 16] = *message.get(8..)?.first_chunk()?;
    let pseudo = checksum::pseudo_v6(headers.source, headers.destination, ICMP_V6, message.len() as u32);
    checksum::is_right(message, pseudo).then_some(address.into())
}

/// What it says of whoever sent it: an advertisement of its target, a solicitation of its source.
pub fn told(interface: &NptInterface, frame: &[u8], headers: &Headers) -> Option<Told<Ipv6Addr>> {
    let target = target(frame, headers)?;
    let own = interface.address.addr();
    let is_solicitation = headers.ports[0] == SOLICITATION;
    let (address, option) =
        if is_solicitation { (Ipv6Addr::from(headers.source), SOURCE_ADDRESS) } else { (target, TARGET_ADDRESS) };
    let is_here = interface.address.contains(&address) && address != own;
    let mac = link_address(frame.get(headers.transport_at + 24..headers.end)?, option)?;
    is_here.then_some(Told { address, mac, asks_us: is_solicitation && target == own })
}

/// Who has this address?
pub fn solicitation(interface: &NptInterface, address: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = address.octets();
    let to = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let (mac, from) = (interface.mac.0, interface.address.addr());
    let start = [SOLICITATION as u8, 0, 0, 0, 0, 0, 0, 0];
    let mut message = [&start[..], &address.octets(), &[SOURCE_ADDRESS, 1], &mac].concat();
    let pseudo = checksum::pseudo_v6(from.into(), to.into(), ICMP_V6, message.len() as u32);
    let sum = checksum::full(&message, pseudo);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let ip = [0x60, 0, 0, 0, 0, message.len() as u8, ICMP_V6, LINK_ONLY];
    [&[0x33, 0x33, 0xff, a, b, c][..], &mac, &[0x86, 0xdd], &ip, &from.octets(), &to.octets(), &message].concat()
}

/// The link-layer address among the options of a message (section 4.6).
fn link_address(mut options: &[u8], kind: u8) -> Option<[u8; 6]> {
    loop {
        let &[is, words, ..] = options else { return None };
        let option = options.get(..usize::from(words) * 8).filter(|option| !option.is_empty())?;
        if is == kind {
            return option[2..].first_chunk().copied();
        }
        options = &options[option.len()..];
    }
}

const SOLICITATION: u16 = 135;
const SOURCE_ADDRESS: u8 = 1;
const TARGET_ADDRESS: u8 = 2;
/// That no router forwarded it (section 7.1).
const LINK_ONLY: u8 = 255;
