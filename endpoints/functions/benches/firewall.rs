//! Cycles a frame of the firewall: a cached verdict and a new flow, with few and many rules; a live session, among few and many.
//!
//! One thread, frames in the caches, as a peer has just written them: what the code itself costs, and what it keeps. The fastest tenth
//! of the bursts begins below the figure.
//! `cargo bench -p ferrule-functions --bench firewall`
#![allow(missing_docs, reason = "a program")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot begin ends")]

mod cycles;

use std::fmt::Write as _;

use ferrule_functions::firewall::Firewall;
use ferrule_functions::firewall::file::read_text;
use ferrule_functions::packet::Link;
use ferrule_functions::{Disposition, Side};

use self::cycles::{ShortFrame, cycles};

fn main() {
    println!("| Rules | cached verdict | new flow, last rule | new flow, no rule |\n| ---: | ---: | ---: | ---: |");
    for rules in [10, 100, 1000] {
        let (known, last, none) = (of_known(rules), of_new(rules, 80), of_new(rules, 81));
        println!("| {rules} | {known:.0} | {last:.0} | {none:.0} |");
    }
    println!("\n| Sessions | a packet of one of them, in turn | the same one |\n| ---: | ---: | ---: |");
    for sessions in [1, 1000, 100_000] {
        let (turn, same) = (of_sessions(sessions, sessions), of_sessions(sessions, 1));
        println!("| {sessions} | {turn:.0} | {same:.0} |");
    }
}

/// With so many rules for single hosts, and the last one for everybody's port 80.
fn firewall(rules: usize, action: &str) -> Firewall {
    let mut text = "rules:\n".to_owned();
    for number in 0..rules - 1 {
        let (high, low, port) = (number / 250, number % 250 + 1, 1000 + number);
        writeln!(
            text,
            "- {{ name: r{number}, action: permit, protocol: tcp, source: 10.1.{high}.{low}, ports: {port} }}"
        )
        .unwrap();
    }
    writeln!(text, "- {{ name: last, action: {action}, protocol: tcp, ports: 80 }}").unwrap();
    Firewall::new(Link::Ethernet, read_text("bench", &text).unwrap(), 200_000)
}

fn of_known(rules: usize) -> f64 {
    let frames: Vec<_> = (0..64).map(|number| frame(number, 80)).collect();
    of_frames(&mut firewall(rules, "permit"), &frames, Disposition::Forward)
}

fn of_new(rules: usize, port: u16) -> f64 {
    // More than there are places for.
    let frames: Vec<_> = (0..100_000).map(|number| frame(number, port)).collect();
    let expected = if port == 80 { Disposition::Forward } else { Disposition::Drop };
    of_frames(&mut firewall(rules, "permit"), &frames, expected)
}

fn of_sessions(sessions: usize, of: usize) -> f64 {
    let mut firewall = firewall(10, "reflect");
    let frames: Vec<_> = (0..sessions).map(|number| frame(number as u32, 80)).collect();
    for frame in &frames {
        assert!(firewall.judge(Side::Client, frame, 0).passes());
    }
    of_frames(&mut firewall, &frames[..of], Disposition::Forward)
}

/// These in turn.
fn of_frames(firewall: &mut Firewall, frames: &[ShortFrame], expected: Disposition) -> f64 {
    cycles(firewall, Side::Client, BURSTS, |number| &frames[number % frames.len()], expected)
}

/// A SYN of client `number`.
fn frame(number: u32, port: u16) -> ShortFrame {
    let [a, b, c, d] = (0x0a02_0000 + number).to_be_bytes();
    let ip = [0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, a, b, c, d, 10, 9, 9, 9];
    let tcp = [&[0x9c, 0x40][..], &port.to_be_bytes(), &[0; 8], &[0x50, 2, 0, 0, 0, 0, 0, 0]].concat();
    [&[2; 12][..], &[8, 0], &ip, &tcp].concat().try_into().unwrap()
}

const BURSTS: usize = 5000;
