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
    command.args([family, "-n", "-q", "-c", &count, "-i", INTERVAL_S, "-W", "2", "-w", DEADLINE_S]);
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

/// Reads the last lines of `ping`:
/// ```text
/// 5 packets transmitted, 5 received, 0% packet loss, time 802ms
/// rtt min/avg/max/mdev = 0.026/0.041/0.090/0.024 ms
/// ```
fn parse(text: &str) -> Option<Pinged> {
    let summary = text.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = summary.split(", ").map(|part| part.split(' ').next().and_then(|word| word.parse().ok()));
    let (sent, received) = (numbers.next()??, numbers.next()??);
    let times = text.lines().find_map(|line| line.split_once("min/avg/max")?.1.split_once("= "));
    let rtt_ms = times.and_then(|(_, times)| times.split('/').nth(1)?.parse().ok());
    Some(Pinged { sent, received, rtt_ms })
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
        let text = "PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data.\n\n--- 10.0.0.2 ping statistics ---\n\
            5 packets transmitted, 5 received, 0% packet loss, time 802ms\n\
            rtt min/avg/max/mdev = 0.026/0.041/0.090/0.024 ms\n";
        assert_eq!(parse(text), Some(Pinged { sent: 5, received: 5, rtt_ms: Some(0.041) }));
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
