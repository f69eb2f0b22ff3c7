//! Any frames through a NAT44.

use ferrule_daemon::settings::FileSettings as _;
use ferrule_functions::Function;
use ferrule_functions::config::{Config, FunctionSettings};
use ferrule_functions::nat44::Nat44;
use ferrule_functions::packet::{Family, Headers, Link, Packet, checksum, parse};

use super::frames;

/// Has it translate all frames.
pub fn run(data: &[u8]) {
    let config = Config::from_bytes("seed".as_ref(), SETTINGS.as_bytes()).expect("they are good");
    let FunctionSettings::Nat44(settings) = config.function else { panic!("it is a NAT44") };
    let mut nat = Nat44::new(settings);
    frames::each(data, |side, now_ms, mut frame| {
        // Most are for us.
        if let Some(to) = frame.first_chunk_mut::<6>()
            && to[0] == 2
        {
            *to = if side.index() == 0 { [2, 0xfe, 10, 0, 0, 2] } else { [2, 0xfe, 10, 9, 0, 2] };
        }
        // What comes with a wrong one is dropped at once: nothing would be tried.
        if let Ok(Packet::Ip(Headers { family: Family::V4, ip_at, .. })) = parse(Link::Ethernet, &frame) {
            let end = ip_at + 4 * usize::from(frame[ip_at] & 0xf);
            frame[ip_at + 10..ip_at + 12].fill(0);
            let checksum = checksum::full(&frame[ip_at..end], 0);
            frame[ip_at + 10..ip_at + 12].copy_from_slice(&checksum.to_be_bytes());
        }
        let (length, mut out) = (frame.len(), Vec::new());
        nat.frame(side, &mut frame, now_ms, &mut out);
        assert_eq!(frame.len(), length);
        assert!(nat.sessions() <= 3);
        nat.tick(now_ms);
    });
}

const SETTINGS: &str = "
name: seed
client: { memif: { socket: \"@c\", role: client } }
network: { memif: { socket: \"@n\", role: client } }
nat44:
  inside: { address: 10.0.0.2/24 }
  outside: { address: 10.9.0.2/24 }
  gateway: 10.9.0.1
  pool: [10.9.0.3]
  ports: 1024-1025
  sessions: 3
  forwards: [{ protocol: udp, outside: \"10.9.0.2:53\", inside: \"10.0.0.1:53\" }]
";
