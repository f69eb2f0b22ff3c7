//! How far a TCP connection is, as somebody in between sees it: no window is checked.

use crate::function::Side;
use crate::packet::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// The flags that were seen from either side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpState {
    seen: [u8; 2],
}

impl TcpState {
    /// Notes a segment.
    #[inline]
    pub fn see(&mut self, side: Side, flags: u8) {
        if flags & (TCP_SYN | TCP_ACK) == TCP_SYN && self.is_ending() {
            // The same ports, once more.
            self.seen = [0; 2];
        }
        self.seen[side.index()] |= flags;
    }

    /// SYN and ACK were seen both ways, and nobody has begun to end it.
    #[inline]
    pub fn is_established(self) -> bool {
        let both = TCP_SYN | TCP_ACK;
        self.seen.iter().all(|seen| seen & both == both) && !self.is_ending()
    }

    fn is_ending(self) -> bool {
        (self.seen[0] | self.seen[1]) & (TCP_FIN | TCP_RST) != 0
    }
}
