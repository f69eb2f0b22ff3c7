//! The programs that a chain is made of.

use std::fmt;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use ferrule_daemon::settings::FileSettings as _;
use ferrule_functions::any::AnyFunction;
use ferrule_functions::config::Config;
use ferrule_functions::hop::Hop;
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::testpmd::{Testpmd, TestpmdOptions};

use crate::links::{HOPS, LinkEnd, Links, word};
use crate::placement::Placement;

/// Which programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of ours, a process for each hop.
    Functions,
    /// The same, and wires of a forwarder between them.
    WithForwarder,
    /// Of ours, in this process.
    Hops,
    /// A testpmd for each hop.
    Testpmds,
    /// One testpmd with a pair of ports for each hop.
    OneTestpmd,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Functions, Self::WithForwarder, Self::Hops, Self::Testpmds, Self::OneTestpmd];

    /// Whether it is not testpmd.
    pub fn is_ours(self) -> bool {
        !matches!(self, Self::Testpmds | Self::OneTestpmd)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Functions => "functions",
            Self::WithForwarder => "functions, forwarder between",
            Self::Hops => "functions, one process",
            Self::Testpmds => "testpmd, five processes",
            Self::OneTestpmd => "testpmd, one process",
        })
    }
}

/// Programs that run, and end with this value.
pub enum Programs {
    /// Processes of ours.
    Processes(Vec<Process>),
    /// Threads of this process, which sleep when nothing comes.
    Hops(Vec<Hop<AnyFunction>>),
    /// Processes of DPDK.
    Testpmd(Vec<Testpmd>),
}

impl Programs {
    /// Starts them; they find each other by themselves.
    pub fn start(kind: Kind, links: &Links, placement: &Placement, forwarder: &Path) -> Result<Self> {
        Ok(match kind {
            Kind::Functions => Self::Processes(functions(links, forwarder)?),
            Kind::WithForwarder => {
                let file = links.path("wires.yaml");
                fs::write(&file, wires(links, placement))?;
                let process = Process::start(Command::new(forwarder).arg("--config").arg(&file));
                process.wait_for("ready:");
                let mut processes = functions(links, forwarder)?;
                processes.push(process);
                Self::Processes(processes)
            }
            Kind::Hops => Self::Hops((0..HOPS).map(|hop| start_hop(links, hop)).collect::<Result<_>>()?),
            // A client connects once, when it starts: whoever listens is there before.
            Kind::Testpmds => Self::Testpmd((0..HOPS).map(|hop| testpmd(links, &[hop], placement)).collect()),
            Kind::OneTestpmd => Self::Testpmd(vec![testpmd(links, &(0..HOPS).collect::<Vec<_>>(), placement)]),
        })
    }

    /// They stand still.
    pub fn pause(&mut self) {
        match self {
            Self::Processes(processes) => processes.iter().for_each(Process::pause),
            Self::Hops(_) => {}
            Self::Testpmd(processes) => processes.iter_mut().for_each(Testpmd::pause),
        }
    }

    /// They go on.
    pub fn resume(&mut self) {
        match self {
            Self::Processes(processes) => processes.iter().for_each(Process::resume),
            Self::Hops(hops) => assert!(hops.iter().all(Hop::is_alive), "a hop has ended"),
            Self::Testpmd(processes) => processes.iter_mut().for_each(Testpmd::resume),
        }
    }
}

fn functions(links: &Links, forwarder: &Path) -> Result<Vec<Process>> {
    let start = |hop| {
        let file = links.path(&format!("{hop}.yaml"));
        fs::write(&file, settings(links, hop))?;
        let process =
            Process::start(Command::new(forwarder.with_file_name("network-function")).arg("--config").arg(file));
        process.wait_for("ready:");
        Ok(process)
    };
    (0..HOPS).map(start).collect()
}

fn start_hop(links: &Links, hop: usize) -> Result<Hop<AnyFunction>> {
    let config = Config::from_bytes(&links.path("here.yaml"), settings(links, hop).as_bytes())?;
    let ends = config.ends.as_ref().context("the settings name both ends")?;
    let ends = ends.each_ref().map(ferrule_functions::config::HopEnd::spec);
    Ok(Hop::start(AnyFunction::new(config.link(), &config.function), ends, |_, _| {})?)
}

/// The settings of a hop.
fn settings(links: &Links, hop: usize) -> String {
    let memif = |LinkEnd { socket, role }: LinkEnd| {
        format!("{{ memif: {{ socket: {}, role: {} }} }}", socket.display(), word(role))
    };
    let [client, network] = links.of_hop(hop).map(memif);
    let function = match hop {
        0 => "firewall: { rules: [{ name: udp, action: reflect, protocol: udp }] }",
        _ => "passthrough: {}",
    };
    format!("name: hop-{hop}\nclient: {client}\nnetwork: {network}\n{function}\n")
}

/// The wires file of the forwarder between them.
fn wires(links: &Links, placement: &Placement) -> String {
    let mut text =
        format!("workers: [{}]\nadmin: {}\nwires:\n", placement.chain[0], links.path("admin.sock").display());
    for link in 0..=HOPS {
        let [near, far] =
            links.sockets(link).map(|socket| format!("{{ memif: {{ socket: {}, role: server }} }}", socket.display()));
        let _ = writeln!(text, "  - {{ name: link-{link}, ends: [{near}, {far}] }}");
    }
    text
}

fn testpmd(links: &Links, hops: &[usize], placement: &Placement) -> Testpmd {
    let ends = hops.iter().flat_map(|&hop| links.of_hop(hop));
    let device = |(number, LinkEnd { socket, role }): (usize, LinkEnd)| {
        format!("net_memif{number},role={},id=0,socket={},socket-abstract=no", word(role), socket.display())
    };
    let devices = ends.enumerate().map(device).collect();
    let cpus = placement.chain.clone();
    Testpmd::start(&TestpmdOptions { devices, mbuf: MBUF, cpus, pausable: true, ..TestpmdOptions::default() })
}

/// DPDK's usual buffer of 2048 bytes, and its headroom.
const MBUF: u32 = 2176;
