//! What a router says of a packet that it does not forward.

use super::settings::NatInterface;
use crate::error_limit::ErrorLimit;
use crate::function::{Extra, Side};
use crate::packet::checksum;
use crate::packet::{Headers, ICMP, quoted};

/// Tells whoever sent `frame`, which came in on `side`, unless it may not be told.
#[expect(clippy::too_many_arguments, reason = "what is told, of which packet, by whom and where")]
pub fn send(
    limit: &mut ErrorLimit,
    interface: &NatInterface,
    side: Side,
    error: IcmpError,
    frame: &[u8],
    headers: &Headers,
    now_ms: u64,
    out: &mut Vec<Extra>,
) {
    // Not about errors, nor about parts that do not say what they are.
    if quoted(frame, headers).is_some() || !headers.has_transport() || !limit.may_send(now_ms) {
        return;
    }
    let length_max = interface.mtu.map_or(LENGTH_MAX, |mtu| LENGTH_MAX.min(mtu.into()));
    let quote = &frame[headers.ip_at..headers.end.min(headers.ip_at + length_max - 20 - 8)];
    let mut message = [&error.start()[..], quote].concat();
    let sum = checksum::full(&message, 0);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let length = (20 + message.len() as u16).to_be_bytes();
    let tos = INTERNETWORK_CONTROL | frame[headers.ip_at + 1] & TYPE_OF_SERVICE;
    let start = [0x45, tos, length[0], length[1], 0, 0, 0, 0, 64, ICMP, 0, 0];
    let (from, to) = (interface.address.addr().octets(), (headers.source as u32).to_be_bytes());
    let mut header = [&start[..], &from, &to].concat();
    let sum = checksum::full(&header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let frame = [&frame[6..12], &interface.mac.0, &[8, 0], &header, &message].concat();
    out.push(Extra { to: side, frame });
}

/// What somebody is told of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// There is no way to where it goes.
    Unreachable,
    /// It is too long, and may not be parted (RFC 1191).
    TooLong {
        /// How long it may be.
        mtu: u16,
    },
    /// There are no resources for it (RFC 5508, requirement 8).
    Prohibited,
    /// Its time to live is over.
    Expired,
}

impl IcmpError {
    /// The message, but for what it quotes and its checksum.
    fn start(self) -> [u8; 8] {
        let (kind, code, mtu) = match self {
            Self::Unreachable => (3, 0, 0),
            Self::TooLong { mtu } => (3, 4, mtu),
            Self::Prohibited => (3, 13, 0),
            Self::Expired => (11, 0, 0),
        };
        let [high, low] = mtu.to_be_bytes();
        [kind, code, 0, 0, 0, 0, high, low]
    }
}

/// As much is quoted as makes a packet of that length (RFC 1812, section 4.3.2.3).
const LENGTH_MAX: usize = 576;
/// The precedence of an error (RFC 1812, section 4.3.2.5). The rest is that of the packet that it is about.
const INTERNETWORK_CONTROL: u8 = 0xc0;
const TYPE_OF_SERVICE: u8 = 0x1e;
