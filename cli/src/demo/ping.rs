//! Pings, by the program that everybody knows.

use std::io;
use std::net::IpAddr;
use std::process::Command;

use ferrule_ffi::netns::NetNs;
use serde::Serialize;
use thiserror::Error;

/// What came of the pings of one address.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Pinged {
    /// Requests.
    pub(super) sent: u32,
    /// Replies.
    pub(super) received: u32,
    /// The average round trip; none if nothing came back.
    pub(super) rtt_ms: Option<f64>,
}

impl Pinged {
    /// Replies that did not come, in percent.
    pub(super) fn loss(&self) -> f64 {
        f64::from(self.sent.saturating_sub(self.received)) * 100.0 / f64::from(self.sent.max(1))
    }
}

/// Pings `address` from inside the namespace.
pub(super) fn ping(from: &NetNs, address: IpAddr) -> Result<Pinged, PingError> {
    let (count, family) = (COUNT.to_string(), if address.is_ipv4() { "-4" } else { "-6" });
    let mut command = Command::new("ping");
    command.args([family, "-n", "-c", &count, "-i", INTERVAL_S, "-W", "2", "-w", DEADLINE_S]);
    command.arg(address.to_string()).env("LC_ALL", "C");
    let output = from.run(move || command.output()).and_then(|output| output).map_err(PingError::Start)?;
    let said = String::from_utf8_lossy(&output.stdout);
    parse(&said).ok_or_else(|| {
        let complaint = String::from_utf8_lossy(&output.stderr);
        PingError::Said { address, said: [complaint.trim(), said.trim()].join(" ").trim().to_owned() }
    })
}

/// Why there is no result at all.
#[derive(Debug, Error)]
pub(super) enum PingError {
    /// It did not run.
    #[error("run `ping` in the namespace: {0}")]
    Start(#[source] io::Error),
    /// It spoke, but not of packets.
    #[error("`ping {address}` said: {said}")]
    Said {
        /// What was pinged.
        address: IpAddr,
        /// Its words.
        said: String,
    },
}

/// Reads what `ping` says of each reply, and at the end:
/// ```text
/// 64 bytes from 10.99.2.2: icmp_seq=1 ttl=64 time=0.041 ms
/// 5 packets transmitted, 5 received, 0% packet loss, time 802ms
/// rtt min/avg/max/mdev = 0.026/0.041/0.090/0.024 ms
/// ```
/// With a deadline it sends until it has `COUNT` replies. When a reply is late, one request more is under way at the
/// end: that one is not lost, so only the first `COUNT` are looked at.
fn parse(text: &str) -> Option<Pinged> {
    let summary = text.lines().find(|line| line.contains(" packets transmitted"))?;
    let sent: u32 = summary.split(' ').next()?.parse().ok()?;
    let replies = text.lines().filter(|line| line.contains("bytes from") && !line.contains("DUP!"));
    let numbers = replies.filter_map(|line| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse::<u32>().ok());
    let received = numbers.filter(|number| *number <= COUNT).count() as u32;
    let times = text.lines().find_map(|line| line.split_once("min/avg/max")?.1.split_once("= "));
    let rtt_ms = times.and_then(|(_, times)| times.split('/').nth(1)?.parse().ok());
    Some(Pinged { sent: sent.min(COUNT), received, rtt_ms })
}

/// Requests of one ping.
pub(super) const COUNT: u32 = 5;
const INTERVAL_S: &str = "0.2";
/// Enough for a reply that is late on a busy machine.
const DEADLINE_S: &str = "5";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_counted_and_timed() {
        let text = said(&[1, 2, 3, 4, 5], 5);
        assert_eq!(parse(&text), Some(Pinged { sent: 5, received: 5, rtt_ms: Some(0.041) }));
    }

    #[test]
    fn a_request_under_way_at_the_end_is_not_lost_but_one_before_is() {
        assert_eq!(parse(&said(&[1, 2, 3, 4, 5], 6)).unwrap().received, 5);
        assert_eq!(parse(&said(&[1, 2, 4, 5, 6], 6)).unwrap().received, 4);
    }

    fn said(replies: &[u32], sent: u32) -> String {
        let reply = |number| format!("64 bytes from 10.99.2.2: icmp_seq={number} ttl=64 time=0.041 ms");
        let summary = format!("{sent} packets transmitted, {} received, 0% packet loss, time 802ms", replies.len());
        let times = "rtt min/avg/max/mdev = 0.026/0.041/0.090/0.024 ms".to_owned();
        replies.iter().map(reply).chain([summary, times]).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn silence_has_no_time() {
        let text = "5 packets transmitted, 0 received, +3 errors, 100% packet loss, time 4093ms\npipe 3\n";
        let pinged = parse(text).unwrap();
        assert_eq!(pinged, Pinged { sent: 5, received: 0, rtt_ms: None });
        assert!((pinged.loss() - 100.0).abs() < f64::EPSILON);
    }

    #[test]
    fn other_words_are_no_result() {
        for text in ["", "ping: connect: Network is unreachable\n", "many packets transmitted\n"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
