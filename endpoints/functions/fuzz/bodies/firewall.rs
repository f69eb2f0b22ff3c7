//! Any frames through a firewall.

use ferrule_functions::firewall::Firewall;
use ferrule_functions::firewall::file::read_text;
use ferrule_functions::packet::Link;
use ferrule_functions::{Disposition, Function};

use super::frames;

/// Has it judge all frames.
pub fn run(data: &[u8]) {
    let policy = read_text("seed", RULES).expect("they are good");
    let mut firewall = Firewall::new(Link::Ethernet, policy, SESSIONS_MAX);
    frames::each(data, |side, now_ms, frame| {
        let (mut judged, mut out) = (frame.clone(), Vec::new());
        let disposition = firewall.frame(side, &mut judged, now_ms, &mut out);
        assert_eq!(judged, frame, "no byte is changed");
        assert!(firewall.sessions() <= SESSIONS_MAX);
        // What was held came before, on the same side.
        assert!(out.iter().all(|extra| extra.to == side.other() && disposition == Disposition::Forward));
        firewall.expire(now_ms);
    });
}

const RULES: &str = "rules:
- { name: web, action: reflect, from: either, protocol: tcp, ports: 80, tcp_flags: \"syn,!ack\" }
- { name: ping, action: reflect, protocol: icmp, icmp_type: 8 }
- { name: dns, action: reflect, protocol: udp, ports: 53 }
- { name: no, action: deny, source: 10.0.0.0/30 }
- { name: rest, action: permit, from: network }
";
const SESSIONS_MAX: usize = 3;
