//! Limits how many lines a peer can cause in the log.

use std::time::{Duration, Instant};

/// Lets a few lines through in a time, and counts the rest: peers that come and go without end must
/// not fill a disk.
#[derive(Debug, Default)]
pub struct LogLimit {
    since: Option<Instant>,
    said: u32,
    suppressed: u64,
}

impl LogLimit {
    /// Whether another line may be said now. If so: how many were not said since the last one.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= WINDOW) {
            self.since = Some(now);
            self.said = 0;
        }
        if self.said == LINES {
            self.suppressed += 1;
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// The count as a field of a log line, which does without it if there is nothing to tell.
pub fn if_any(suppressed: u64) -> Option<u64> {
    (suppressed > 0).then_some(suppressed)
}

/// Lines said in each window: a peer that restarts is three of them.
const LINES: u32 = 12;
const WINDOW: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_lines_are_said_and_the_others_are_counted() {
        let (mut log_limit, begun) = (LogLimit::default(), Instant::now());
        let said = (0..1000).filter(|_| log_limit.allow(begun).is_some()).count();
        assert_eq!(said, 12);
        assert_eq!(log_limit.allow(begun + WINDOW), Some(988));
        assert_eq!(log_limit.allow(begun + WINDOW), Some(0));
    }
}
