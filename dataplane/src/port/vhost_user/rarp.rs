//! The frame that tells switches where a guest is after it has moved (RFC 903, as QEMU and DPDK fill it).

/// A reverse ARP request from an address for itself, to everybody.
pub fn announcement(mac: [u8; 6]) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&[0xff; 6]);
    frame[6..12].copy_from_slice(&mac);
    frame[12..22].copy_from_slice(&REQUEST);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}

/// The shortest Ethernet frame, without FCS.
const FRAME_LEN: usize = 60;
/// Ethertype RARP; Ethernet and IPv4, addresses of 6 and 4 bytes; "request reverse".
const REQUEST: [u8; 10] = [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_hears_who_is_where() {
        let mac = [2, 3, 4, 5, 6, 7];
        let head = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 3, 4, 5, 6, 7, 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3, 2, 3, 4, 5, 6, 7,
            0, 0, 0, 0, 2, 3, 4, 5, 6, 7,
        ];
        let frame = announcement(mac);
        assert_eq!(frame[..38], head);
        assert_eq!(frame[38..], [0; 22]);
    }
}
