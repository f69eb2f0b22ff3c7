//! ARP, as far as a router asks for its neighbours and hears of them.

use std::net::Ipv4Addr;

use super::settings::NatInterface;
use crate::neighbours::Told;

/// What an ARP packet says of whoever sent it; none: nothing that concerns this interface.
pub fn told(interface: &NatInterface, frame: &[u8]) -> Option<Told<u32>> {
    let arp = frame.get(ETHERNET..ETHERNET + ARP_LEN)?;
    let address_at = |at: usize| u32::from_be_bytes([arp[at], arp[at + 1], arp[at + 2], arp[at + 3]]);
    let (address, own) = (address_at(14), u32::from(interface.address.addr()));
    let is_here = interface.address.contains(&Ipv4Addr::from(address)) && address != own;
    let mac = [arp[8], arp[9], arp[10], arp[11], arp[12], arp[13]];
    (arp[..6] == [0, 1, 8, 0, 6, 4] && is_here).then_some(Told { address, mac, asks_us: address_at(24) == own })
}

/// Who has this address?
pub fn request(interface: &NatInterface, address: u32) -> Vec<u8> {
    let (mac, own) = (interface.mac.0, interface.address.addr().octets());
    let header = [0, 1, 8, 0, 6, 4, 0, 1];
    [&[0xff; 6][..], &mac, &[8, 6], &header, &mac, &own, &[0; 6], &address.to_be_bytes()].concat()
}

const ETHERNET: usize = 14;
const ARP_LEN: usize = 28;
