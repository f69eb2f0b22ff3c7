//! The daemons of a chain: one forwarder with a wire for each hop, and a process for each function.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::admin::Admin;
use crate::admin::proto::Wire;
use crate::demo::daemon::{Daemon, Launch, beside_us};
use crate::demo::steps::running_interfaces;
use crate::demo::testbed::Testbed;
use crate::demo::{DemoError, Progress, Stop, needs, plan, rate};
use crate::wires::State;

/// Which programs to start; none: those beside us.
#[derive(Clone, Debug)]
pub(super) struct ChainPrograms {
    pub(super) forwarder: Option<PathBuf>,
    pub(super) function: Option<PathBuf>,
}

/// Where a chain is to be: two namespaces, and what starts it.
pub(super) struct ChainBed<'a> {
    pub(super) testbed: Testbed,
    pub(super) progress: Progress,
    pub(super) stop: &'a Stop,
    handle: &'a Handle,
    forwarder: PathBuf,
    function: PathBuf,
    cpu: usize,
}

/// An interface at an end of the chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interface {
    pub(super) name: &'static str,
    /// With its prefix.
    pub(super) address: &'static str,
    /// As in a wires file, between brackets.
    pub(super) routes: &'static str,
}

/// A function of the chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChainHop {
    pub(super) name: &'static str,
    /// Its settings beside its ends.
    pub(super) settings: &'static str,
}

/// A chain that runs. Dropping it kills its daemons.
pub(super) struct Chain {
    // What is declared earlier is dropped earlier: functions go before the forwarder.
    functions: Vec<Daemon>,
    forwarder: Daemon,
}

impl<'a> ChainBed<'a> {
    pub(super) fn make(
        programs: ChainPrograms,
        handle: &'a Handle,
        stop: &'a Stop,
        progress: Progress,
    ) -> Result<Self, DemoError> {
        needs::check()?;
        let (cpu, _) = rate::cpus()?;
        let ChainPrograms { forwarder, function } = programs;
        let forwarder = forwarder.map_or_else(|| beside_us("forwarder", "dpdk-forwarder", "--forwarder"), Ok)?;
        let beside = || beside_us("function", "network-function", "--function");
        let function = function.map_or_else(beside, Ok)?;
        let testbed = Testbed::make(progress)?;
        progress.say(format_args!("made namespaces {0}-a and {0}-b", testbed.name()));
        Ok(Self { testbed, progress, stop, handle, forwarder, function, cpu })
    }

    /// Starts the chain: from an interface in namespace a through all functions to an interface in namespace b.
    pub(super) fn start(&self, ends: [Interface; 2], hops: &[ChainHop]) -> Result<Chain, DemoError> {
        let file = self.wires_file(ends, hops);
        let launch = plan::forwarder(&self.testbed, "forwarder", self.forwarder.clone(), &file)?;
        let mut forwarder = Daemon::start(launch, &self.testbed, self.stop, |mut command| command.spawn())?;
        let mut functions = Vec::new();
        for hop in hops {
            functions.push(self.start_function(hop)?);
        }
        let names: Vec<_> = hops.iter().map(|hop| hop.name).collect();
        self.progress.say(format_args!("started dpdk-forwarder and {}", names.join(", ")));
        let wires = self.wait_until_up(&mut forwarder, ends.map(|end| end.name))?;
        self.progress.say(format_args!("{wires} wires are up, one for each hop"));
        Ok(Chain { functions, forwarder })
    }

    /// Whoever is in this namespace can reach its own addresses from now on.
    pub(super) fn loopback(&self, side: usize) -> Result<(), DemoError> {
        let up = || Command::new("ip").args(["link", "set", "lo", "up"]).status();
        let status = self.testbed.namespace(side).run(up).and_then(|status| status);
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(DemoError::testbed("ip link set lo up", status)),
            Err(error) => Err(DemoError::testbed("ip link set lo up", error)),
        }
    }

    fn start_function(&self, hop: &ChainHop) -> Result<Daemon, DemoError> {
        let path = self.testbed.directory().join(format!("{}.yaml", hop.name));
        let end = |side| format!("{{ memif: {{ socket: {}, role: client }} }}", self.socket(hop, side));
        let (client, network) = (end("client"), end("network"));
        let text = format!("name: {}\nclient: {client}\nnetwork: {network}\n{}\n", hop.name, hop.settings);
        fs::write(&path, text).map_err(|error| DemoError::testbed(format!("write {}", path.display()), error))?;
        let arguments = ["--config".into(), path.into_os_string()].into();
        let launch = Launch { name: hop.name, program: self.function.clone(), arguments };
        Daemon::start(launch, &self.testbed, self.stop, |mut command| command.spawn())
    }

    fn wires_file(&self, ends: [Interface; 2], hops: &[ChainHop]) -> String {
        let interface = |side: usize| {
            let Interface { name, address, routes } = ends[side];
            let netns = self.testbed.namespace_path(side);
            format!(
                "kernel: {{ netns: {}, name: {name}, addresses: [{address}], routes: [{routes}] }}",
                netns.display()
            )
        };
        let memif = |hop, side| format!("memif: {{ socket: {}, role: server }}", self.socket(hop, side));
        let mut text =
            format!("workers: [{}]\nadmin: {}\nwires:\n", self.cpu, plan::admin_socket(&self.testbed).display());
        let mut before = interface(0);
        for (number, hop) in hops.iter().enumerate() {
            let _ =
                write!(text, "  - name: hop-{number}\n    ends:\n      - {before}\n      - {}\n", memif(hop, "client"));
            before = memif(hop, "network");
        }
        let _ = write!(text, "  - name: hop-{}\n    ends:\n      - {before}\n      - {}\n", hops.len(), interface(1));
        text
    }

    fn socket(&self, hop: &ChainHop, side: &str) -> String {
        self.testbed.directory().join(format!("{}-{side}.sock", hop.name)).display().to_string()
    }

    /// Every wire up, and both interfaces sending. How many wires.
    fn wait_until_up(&self, forwarder: &mut Daemon, interfaces: [&str; 2]) -> Result<usize, DemoError> {
        let admin = self.handle.block_on(Admin::connect(&plan::admin_socket(&self.testbed)));
        let mut admin = admin.map_err(|error| forwarder.error(&error.to_string()))?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.stop.check()?;
            let listed = self.handle.block_on(admin.list()).map_err(|error| forwarder.error(&error.to_string()))?;
            let is_down = |wire: &&Wire| State::of(wire) != State::Up;
            let down: Vec<_> = listed.wires.iter().filter(is_down).map(|wire| wire.name.as_str()).collect();
            let run = interfaces.iter().enumerate().all(|(side, name)| {
                let running = self.testbed.namespace(side).run(running_interfaces).unwrap_or_default();
                running.iter().any(|running| running == name)
            });
            if down.is_empty() && run {
                return Ok(listed.wires.len());
            }
            if Instant::now() > deadline {
                let problem = format!("after {TIMEOUT:?} these wires are not up: {}", down.join(", "));
                return Err(forwarder.error(&problem));
            }
            thread::sleep(TICK);
        }
    }
}

impl Chain {
    /// Ends all of it as an administrator would.
    pub(super) fn stop(self) -> Result<(), DemoError> {
        for function in self.functions {
            function.stop()?;
        }
        self.forwarder.stop()
    }
}

/// How long wires may take to come up.
const TIMEOUT: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(10);
