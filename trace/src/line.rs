//! A frame as one line.

use std::fmt;

use crate::decode::Decoded;
use crate::v1::TracedFrame;

/// A frame, to be shown: when, where, what, and what became of it.
pub struct Line<'a> {
    /// The frame.
    pub frame: &'a TracedFrame,
    /// What its interface is called.
    pub interface: &'a str,
    /// Whether it begins with an IP header.
    pub is_ip: bool,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frame, interface, is_ip } = self;
        let (seconds, micros) = (frame.time_ns / 1_000_000_000, frame.time_ns / 1000 % 1_000_000);
        let [hours, minutes, seconds] = [seconds / 3600 % 24, seconds / 60 % 60, seconds % 60];
        let direction = if frame.outbound { "out" } else { "in" };
        let decoded = Decoded::of(&frame.bytes, *is_ip);
        write!(
            f,
            "{hours:02}:{minutes:02}:{seconds:02}.{micros:06} {interface} {direction:<3} {decoded} len {}",
            frame.length
        )?;
        let comment = comment(frame);
        if comment.is_empty() { Ok(()) } else { write!(f, "  [{comment}]") }
    }
}

/// What became of a frame, in a few words; empty: nothing is known.
pub fn comment(frame: &TracedFrame) -> String {
    let TracedFrame { dropped, word, rule, .. } = frame;
    let verdict = match (dropped, word.is_empty()) {
        (true, _) => "dropped: ",
        (false, false) => "passed: ",
        (false, true) => return String::new(),
    };
    let rule = if rule.is_empty() { String::new() } else { format!(" `{rule}`") };
    format!("{verdict}{word}{rule}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_when_where_what_and_why() {
        let arp = [0, 1, 8, 0, 6, 4, 0, 2, 2, 2, 2, 2, 2, 2, 10, 0, 0, 1, 2, 2, 2, 2, 2, 4, 10, 0, 0, 2];
        let frame = TracedFrame {
            time_ns: 1_700_000_000_123_456_789,
            length: 60,
            bytes: [&[2; 12][..], &[8, 6], &arp].concat(),
            dropped: true,
            word: "rule".to_owned(),
            rule: "web".to_owned(),
            ..TracedFrame::default()
        };
        let line = Line { frame: &frame, interface: "client", is_ip: false }.to_string();
        assert_eq!(
            line,
            "22:13:20.123456 client in  ARP 10.0.0.1 is at 02:02:02:02:02:02, told to 10.0.0.2 len 60  [dropped: rule `web`]"
        );
        let plain = TracedFrame { dropped: false, word: String::new(), outbound: true, ..frame };
        let line = Line { frame: &plain, interface: "B", is_ip: false }.to_string();
        assert!(line.ends_with("B out ARP 10.0.0.1 is at 02:02:02:02:02:02, told to 10.0.0.2 len 60"), "{line}");
    }
}
