//! A wire between two namespaces in a process of its own, so that a test can kill it and take its descriptors away.
//!
//! `pair-host ID-FILE NAMESPACE-A NAMESPACE-B ADDRESS-A ADDRESS-B`: joins `nsm-1` of both and prints `made`, or why not.
//! Then it does what its standard input says, a word a line, and ends with it: `exhaust` (no descriptor can be opened any
//! more), `recover`, `status` (printed as the word of each end and the frames from A to B), `remove`.

use std::io::stdin;
use std::path::Path;
use std::process::ExitCode;

use ferrule_dataplane::port::kernel::InterfaceOwner;
use ferrule_dataplane::spec::{EndSpec, KernelSpec, NetNs, WireSpec};
use ferrule_dataplane::{Engine, Settings};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [id_file, netns_a, netns_b, address_a, address_b] = arguments.as_slice() else {
        return Err("usage: pair-host ID-FILE NAMESPACE-A NAMESPACE-B ADDRESS-A ADDRESS-B".into());
    };
    let end = |netns: &str, address: &str| -> Result<EndSpec, Box<dyn std::error::Error>> {
        let (netns, addresses) = (Some(NetNs::Path(netns.into())), vec![address.parse()?]);
        Ok(EndSpec::Kernel(KernelSpec { netns, addresses, ..KernelSpec::new("nsm-1".parse()?) }))
    };
    let ends = [end(netns_a, address_a)?, end(netns_b, address_b)?];
    let engine = Engine::start_as(&Settings::new(vec![0]), InterfaceOwner::open(Path::new(id_file))?)?;
    engine.add(WireSpec::new(WIRE, ends))?;
    println!("made");
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    for line in stdin().lines() {
        match line?.as_str() {
            "exhaust" => setrlimit(Resource::RLIMIT_NOFILE, 1, hard)?,
            "recover" => setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?,
            "status" => {
                let wire = engine.wire(WIRE).ok_or("the wire is gone")?;
                let [a, b] = wire.ends.each_ref().map(ferrule_dataplane::status::EndState::word);
                println!("status: {a} {b} {}", wire.directions[0].frames);
            }
            "remove" => {
                engine.remove(WIRE)?;
                println!("removed");
            }
            other => return Err(format!("unknown: {other}").into()),
        }
    }
    Ok(())
}

const WIRE: &str = "pair";
