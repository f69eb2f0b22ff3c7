//! The two wires of a test in a process of their own, so that the test can kill it.
//!
//! `wire-host NAME`: wire *i* joins id *i* of the abstract socket `NAME`, as its client, with id *i* of
//! `NAME-end`, as its server. `connected` is printed when both servers were reached; it ends with its standard input.

use std::io::{Read, stdin};
use std::thread;
use std::time::Duration;

use ferrule_dataplane::spec::{EndSpec, MemifSpec, Role, WireSpec};
use ferrule_dataplane::{Engine, Settings};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).ok_or("usage: wire-host NAME")?;
    let engine = Engine::start(&Settings::new(vec![0]))?;
    for id in 0..2 {
        let near = MemifSpec { id, ..MemifSpec::new(format!("@{name}-end").parse()?, Role::Server) };
        let far = MemifSpec { id, ..MemifSpec::new(format!("@{name}").parse()?, Role::Client) };
        let ends = [EndSpec::Memif(near), EndSpec::Memif(far)];
        engine.add(WireSpec::new(format!("{name}-{id}"), ends))?;
    }
    while engine.wires().iter().any(|wire| wire.ends[1].word() != "connected") {
        thread::sleep(Duration::from_millis(1));
    }
    println!("connected");
    stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
