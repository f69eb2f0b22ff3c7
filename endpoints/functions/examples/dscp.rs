//! A network function of one's own: `dscp CLIENT_SOCKET NETWORK_SOCKET DSCP` marks what a client sends.

use std::error::Error;
use std::{env, thread, time::Duration};

use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_endpoints::end::EndSpec;
use ferrule_functions::function::{Disposition, Extra, Function, Side};
use ferrule_functions::hop::Hop;
use ferrule_functions::packet::{Family, Link, Packet, checksum::Change, parse};

struct Marker {
    dscp: u8,
}

impl Function for Marker {
    fn frame(&mut self, side: Side, frame: &mut [u8], _now_ms: u64, _out: &mut Vec<Extra>) -> Disposition {
        let Ok(packet) = parse(Link::Ethernet, frame) else { return Disposition::Drop };
        if let (Side::Client, Packet::Ip(headers)) = (side, packet)
            && headers.family == Family::V4
        {
            let ip = &mut frame[headers.ip_at..headers.transport_at];
            let word = |ip: &[u8], at| u16::from_be_bytes([ip[at], ip[at + 1]]);
            let before = word(ip, 0);
            ip[1] = self.dscp << 2 | ip[1] & 0b11;
            let checksum = Change::default().word(before, word(ip, 0)).apply(word(ip, 10));
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        Disposition::Forward
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let [_, client, network, dscp] = &env::args().collect::<Vec<_>>()[..] else { return Err("three arguments".into()) };
    let end = |socket: &str| socket.parse().map(|socket| EndSpec::Memif(MemifSpec::new(socket, Role::Client)));
    let say = |side: Side, event| eprintln!("{}: {event:?}", side.word());
    let hop = Hop::start(Marker { dscp: dscp.parse()? }, [end(client)?, end(network)?], say)?;
    while hop.is_alive() {
        thread::sleep(Duration::from_secs(1));
    }
    Err("a thread of the function has ended".into())
}
