//! How many ICMP errors a router sends (RFC 1812, section 4.3.2.8; RFC 4443, section 2.4).

/// So many in a second at most.
#[derive(Debug, Default)]
pub struct ErrorLimit {
    second: u64,
    sent: u32,
}

impl ErrorLimit {
    /// Whether one more may be sent, which it is then.
    pub fn may_send(&mut self, now_ms: u64) -> bool {
        let second = now_ms / 1000;
        if second != self.second {
            *self = Self { second, sent: 0 };
        }
        self.sent += u32::from(self.sent < ERRORS_PER_SECOND + 1);
        self.sent <= ERRORS_PER_SECOND
    }
}

const ERRORS_PER_SECOND: u32 = 100;
