//! Cycles a frame of the NAT44: a live session among few and many, either way, of TCP and of UDP; and a new one beside those.
//!
//! One thread, frames in the caches, as a peer has just written them: what the code itself costs, and what it keeps. The fastest tenth
//! of the bursts begins below the figure.
//! `cargo bench -p ferrule-functions --bench nat44`
#![allow(missing_docs, reason = "a program")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot begin ends")]

mod cycles;

use std::net::Ipv4Addr;

use ferrule_dataplane::port::BURST;
use ferrule_functions::nat44::Nat44;
use ferrule_functions::nat44::settings::{NatInterface, NatSettings};
use ferrule_functions::packet::{TCP, TCP_ACK, TCP_SYN, UDP, checksum};
use ferrule_functions::{Disposition, Function, Side};

use self::cycles::{ShortFrame, cycles};

fn main() {
    println!("| Protocol | sessions | out, in turn | the same one | back, in turn | the same one | a new one |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (name, protocol) in [("TCP", TCP), ("UDP", UDP)] {
        for sessions in [1, 1000, 100_000] {
            let mut bed = Testbed::new(protocol, sessions);
            let [out, out_same] = bed.of_sessions(Side::Client);
            let [back, back_same] = bed.of_sessions(Side::Network);
            let new = bed.of_new();
            println!("| {name} | {sessions} | {out:.0} | {out_same:.0} | {back:.0} | {back_same:.0} | {new:.0} |");
        }
    }
}

/// A NAT44 with sessions.
struct Testbed {
    nat: Nat44,
    /// The next frame of each session, by the side that it comes in on.
    live: [Vec<ShortFrame>; 2],
    /// The first frames of others.
    new: Vec<ShortFrame>,
}

impl Testbed {
    fn new(protocol: u8, sessions: usize) -> Self {
        let new = (sessions..sessions + NEW_BURSTS * BURST).map(|number| request(protocol, number, TCP_SYN));
        let mut bed = Self { nat: Nat44::new(settings()), live: Default::default(), new: new.collect() };
        bed.meet(Side::Network, GATEWAY, OUTSIDE);
        for number in 0..CLIENTS {
            bed.meet(Side::Client, client(number), INSIDE);
        }
        for number in 0..sessions {
            let translated = bed.forward(Side::Client, request(protocol, number, TCP_SYN));
            bed.forward(Side::Network, answer(&translated, TCP_SYN | TCP_ACK));
            bed.live[0].push(request(protocol, number, TCP_ACK));
            bed.live[1].push(answer(&translated, TCP_ACK));
        }
        bed
    }

    /// All in turn, and the same one.
    fn of_sessions(&mut self, side: Side) -> [f64; 2] {
        let Self { nat, live, .. } = self;
        let frames = &live[side.index()];
        [frames.len(), 1].map(|count| of_frames(nat, side, &frames[..count], BURSTS))
    }

    fn of_new(&mut self) -> f64 {
        let before = self.nat.sessions();
        let cycles = of_frames(&mut self.nat, Side::Client, &self.new, NEW_BURSTS);
        assert_eq!(self.nat.sessions(), before + self.new.len());
        cycles
    }

    /// Somebody asks for us by ARP, and so is known.
    fn meet(&mut self, side: Side, who: u32, us: u32) {
        let (from, us, mac) = (who.to_be_bytes(), us.to_be_bytes(), mac(who));
        let head = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
        let mut asked = [&[0xff; 6][..], &mac, &head, &mac, &from, &[0; 6], &us].concat();
        let mut out = Vec::new();
        self.nat.frame(side, &mut asked, 0, &mut out);
        assert_eq!(out.len(), 1, "it is answered");
    }

    fn forward(&mut self, side: Side, mut frame: ShortFrame) -> ShortFrame {
        assert_eq!(self.nat.frame(side, &mut frame, 0, &mut Vec::new()), Disposition::Forward);
        frame
    }
}

/// These in turn.
fn of_frames(nat: &mut Nat44, side: Side, frames: &[ShortFrame], bursts: usize) -> f64 {
    cycles(nat, side, bursts, |number| &frames[number % frames.len()], Disposition::Forward)
}

fn settings() -> NatSettings {
    let interface = |address: u32| NatInterface::at(format!("{}/16", Ipv4Addr::from(address)).parse().unwrap());
    NatSettings {
        gateway: Some(GATEWAY.into()),
        pool: vec![OUTSIDE + 0x100..=OUTSIDE + 0x163],
        ..NatSettings::new(interface(INSIDE), interface(OUTSIDE))
    }
}

/// From a client to the server.
fn request(protocol: u8, session: usize, flags: u8) -> ShortFrame {
    // Hardly ever do two clients want the same port.
    let (client, port) = (session % CLIENTS, 2000 + 60 * (session % CLIENTS) + session / CLIENTS);
    let ports = [port as u16, 80].map(u16::to_be_bytes).concat();
    let transport = if protocol == TCP {
        [&ports[..], &[0; 8], &[0x50, flags, 0xff, 0xff, 0x12, 0x34, 0, 0]].concat()
    } else {
        [&ports[..], &[0, 20, 0x12, 0x34], &[0; 12]].concat()
    };
    let start = [0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0];
    let mut ip = [&start[..], &self::client(client).to_be_bytes(), &SERVER.to_be_bytes()].concat();
    let sum = checksum::full(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&settings().inside.mac.0[..], &[2; 6], &[8, 0], &ip, &transport].concat().try_into().unwrap()
}

/// From the server, to a request as it left.
fn answer(request: &ShortFrame, flags: u8) -> ShortFrame {
    let mut answer = *request;
    answer[..6].copy_from_slice(&settings().outside.mac.0);
    answer[26..34].rotate_left(4);
    answer[34..38].rotate_left(2);
    if answer[23] == TCP {
        answer[47] = flags;
    }
    answer
}

fn client(number: usize) -> u32 {
    INSIDE + 0x100 + number as u32
}

fn mac(address: u32) -> [u8; 6] {
    let [a, b, c, d] = address.to_be_bytes();
    [2, 1, a, b, c, d]
}

const INSIDE: u32 = 0x0a01_0001;
const OUTSIDE: u32 = 0x0a02_0001;
const GATEWAY: u32 = 0x0a02_0002;
const SERVER: u32 = 0x0a09_0909;
const CLIENTS: usize = 1000;
const BURSTS: usize = 5000;
/// So that many sessions do not become a multiple of what they were.
const NEW_BURSTS: usize = 200;
