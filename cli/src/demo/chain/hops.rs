//! The daemons of chains: one forwarder with a wire for each hop, and a process for each function.

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

/// Where chains are to be: namespaces, and what starts them.
pub(super) struct ChainBed<'a> {
    pub(super) testbed: Testbed,
    pub(super) progress: Progress,
    pub(super) stop: &'a Stop,
    handle: &'a Handle,
    forwarder: PathBuf,
    function: PathBuf,
    cpu: usize,
}

/// A chain that is to be: from an interface in one namespace through all functions to an interface in another one.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChainPlan<'a> {
    /// What the names of its wires begin with.
    pub(super) name: &'a str,
    pub(super) client: Interface,
    pub(super) hops: &'a [ChainHop],
    pub(super) end: ChainEnd,
}

/// What is at the end of a chain.
#[derive(Clone, Copy, Debug)]
pub(super) enum ChainEnd {
    /// An interface that the forwarder makes: the last wire ends there.
    Wire(Interface),
    /// A function `gateway` of this name, which has the interface.
    Gateway(&'static str, Interface),
}

impl ChainEnd {
    pub(super) fn interface(self) -> Interface {
        match self {
            Self::Wire(interface) | Self::Gateway(_, interface) => interface,
        }
    }
}

/// An interface at an end of a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interface {
    /// The number of its namespace.
    pub(super) side: usize,
    pub(super) name: &'static str,
    /// With its prefix.
    pub(super) address: &'static str,
    /// As in a wires file, between brackets.
    pub(super) routes: &'static str,
}

/// A function of a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChainHop {
    pub(super) name: &'static str,
    /// Its settings beside its ends.
    pub(super) settings: &'static str,
}

/// Chains that run. Dropping them kills their daemons.
pub(super) struct Chains {
    // What is declared earlier is dropped earlier: functions go before the forwarder.
    functions: Vec<Daemon>,
    forwarder: Daemon,
}

impl<'a> ChainBed<'a> {
    pub(super) fn make(
        programs: ChainPrograms,
        sides: usize,
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
        let testbed = Testbed::make(sides, progress)?;
        progress.say(format_args!("made {sides} namespaces: {}", testbed.namespace_names().join(", ")));
        Ok(Self { testbed, progress, stop, handle, forwarder, function, cpu })
    }

    /// Starts chains, which have one forwarder.
    pub(super) fn start(&self, plans: &[ChainPlan<'_>]) -> Result<Chains, DemoError> {
        let file = self.wires_file(plans);
        let launch = plan::forwarder(&self.testbed, "forwarder", self.forwarder.clone(), &file)?;
        let mut forwarder = Daemon::start(launch, &self.testbed, self.stop, |mut command| command.spawn())?;
        let mut functions = Vec::new();
        let mut names = Vec::new();
        for plan in plans {
            for ChainHop { name, settings } in plan.hops {
                let network = self.memif(name, "network", "client");
                functions.push(self.start_function(name, &format!("network: {{ {network} }}\n{settings}"))?);
                names.push(*name);
            }
            if let ChainEnd::Gateway(name, interface) = plan.end {
                functions.push(self.start_function(name, &format!("gateway: {{ {} }}", self.interface(interface)))?);
                names.push(name);
            }
        }
        self.progress.say(format_args!("started dpdk-forwarder and {}", names.join(", ")));
        let interfaces: Vec<_> = plans.iter().flat_map(|plan| [plan.client, plan.end.interface()]).collect();
        let wires = self.wait_until_up(&mut forwarder, &interfaces)?;
        self.progress.say(format_args!("{wires} wires are up, one for each hop"));
        Ok(Chains { functions, forwarder })
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

    /// Starts a function with a memif end for its client, and other settings.
    fn start_function(&self, name: &'static str, settings: &str) -> Result<Daemon, DemoError> {
        let path = self.testbed.directory().join(format!("{name}.yaml"));
        let client = self.memif(name, "client", "client");
        let text = format!("name: {name}\nclient: {{ {client} }}\n{settings}\n");
        fs::write(&path, text).map_err(|error| DemoError::testbed(format!("write {}", path.display()), error))?;
        let arguments = ["--config".into(), path.into_os_string()].into();
        let launch = Launch { name, program: self.function.clone(), arguments };
        Daemon::start(launch, &self.testbed, self.stop, |mut command| command.spawn())
    }

    fn wires_file(&self, plans: &[ChainPlan<'_>]) -> String {
        let mut text =
            format!("workers: [{}]\nadmin: {}\nwires:\n", self.cpu, plan::admin_socket(&self.testbed).display());
        for plan in plans {
            for (number, [near, far]) in self.wires(plan).into_iter().enumerate() {
                let name = plan.name;
                let _ = write!(text, "  - name: {name}-{number}\n    ends:\n      - {near}\n      - {far}\n");
            }
        }
        text
    }

    /// The ends of each wire of a chain, as in a wires file.
    fn wires(&self, plan: &ChainPlan<'_>) -> Vec<[String; 2]> {
        let kernel = |interface| format!("kernel: {{ {} }}", self.interface(interface));
        let mut wires = Vec::new();
        let mut near = kernel(plan.client);
        for hop in plan.hops {
            wires.push([near, self.memif(hop.name, "client", "server")]);
            near = self.memif(hop.name, "network", "server");
        }
        let end = match plan.end {
            ChainEnd::Wire(interface) => kernel(interface),
            ChainEnd::Gateway(name, _) => self.memif(name, "client", "server"),
        };
        wires.push([near, end]);
        wires
    }

    /// A side of a function, as whoever has this role says it.
    fn memif(&self, function: &str, side: &str, role: &str) -> String {
        let socket = self.testbed.directory().join(format!("{function}-{side}.sock"));
        format!("memif: {{ socket: {}, role: {role} }}", socket.display())
    }

    /// What the settings of an interface say of it.
    fn interface(&self, Interface { side, name, address, routes }: Interface) -> String {
        let netns = self.testbed.namespace_path(side);
        format!("netns: {}, name: {name}, addresses: [{address}], routes: [{routes}]", netns.display())
    }

    /// Every wire up, and the interfaces sending. How many wires.
    fn wait_until_up(&self, forwarder: &mut Daemon, interfaces: &[Interface]) -> Result<usize, DemoError> {
        let admin = self.handle.block_on(Admin::connect(&plan::admin_socket(&self.testbed)));
        let mut admin = admin.map_err(|error| forwarder.error(&error.to_string()))?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.stop.check()?;
            let listed = self.handle.block_on(admin.list()).map_err(|error| forwarder.error(&error.to_string()))?;
            let is_down = |wire: &&Wire| State::of(wire) != State::Up;
            let down: Vec<_> = listed.wires.iter().filter(is_down).map(|wire| wire.name.as_str()).collect();
            let run = interfaces.iter().all(|interface| {
                let running = self.testbed.namespace(interface.side).run(running_interfaces).unwrap_or_default();
                running.iter().any(|running| running == interface.name)
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

impl Chains {
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
