//! The processes of one node.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::pod::MeshPod;
use super::programs::{Cast, Maker, go, ours};
use crate::lab::scenario::Figure;
use crate::process::Process;

/// A node: identities, a manager with its registry, and our forwarder. All of it ends with this value.
pub struct MeshNode {
    directory: tempfile::TempDir,
    cast: Cast,
    options: NodeOptions,
    processes: BTreeMap<&'static str, Process>,
    /// What was measured.
    pub figures: Vec<Figure>,
}

/// How a node is.
#[derive(Clone, Copy, Debug)]
pub struct NodeOptions {
    /// How long certificates live.
    pub certificates: Duration,
    /// How long tokens live.
    pub tokens: Duration,
    /// How long a request may take.
    pub request: Duration,
    /// How many clients have an identity.
    pub clients: usize,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            certificates: Duration::from_hours(1),
            tokens: Duration::from_mins(10),
            request: Duration::from_secs(15),
            clients: 1,
        }
    }
}

impl MeshNode {
    /// Starts all of it, and waits until the forwarder is registered.
    pub fn start(cast: Cast, options: NodeOptions) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("nsm-").tempdir().context("make a directory")?;
        let mut node = Self { directory, cast, options, processes: BTreeMap::new(), figures: Vec::new() };
        node.start_identities()?;
        node.start_manager()?;
        node.start_forwarder()?;
        Ok(node)
    }

    fn start_identities(&mut self) -> Result<()> {
        let mut command = Command::new(ours("ferrule")?);
        command.args(["nsm", "identities", "--lifetime"]).arg(format!("{}s", self.options.certificates.as_secs()));
        command.arg("--directory").arg(self.path("identity")).args(["registry", "nsmgr", "fwd", "nse", "ferrule"]);
        // One more for whoever comes later.
        command.args((0..=self.options.clients).map(client_name));
        let process = Process::start(&mut command);
        process.wait_for("identities of");
        self.processes.insert("identities", process);
        Ok(())
    }

    /// Starts the manager, with its registry if that is a process of its own.
    pub fn start_manager(&mut self) -> Result<()> {
        if self.cast.manager == Maker::Go && !self.processes.contains_key("registry") {
            self.start_registry()?;
        }
        let mut command = match self.cast.manager {
            Maker::Ours => {
                let mut command = Command::new(ours("ferrule")?);
                command.args(["nsm", "manager", "--observer", "spiffe://ferrule.local/ferrule"]);
                command.args(["--relay", "spiffe://ferrule.local/fwd"]);
                command
            }
            Maker::Go => {
                let mut command = Command::new(go("nsmgr")?);
                command.env("NSM_REGISTRY_URL", format!("unix://{}", self.path("registry.sock").display()));
                command
            }
        };
        self.set_common(&mut command, "nsmgr");
        command.env("NSM_LISTEN_ON", self.manager_url());
        let process = Process::start(&mut command);
        process.wait_for(if self.cast.manager == Maker::Ours { "manager nsmgr on" } else { "Startup completed" });
        self.processes.insert("manager", process);
        Ok(())
    }

    /// Starts the registry of a manager in Go.
    pub fn start_registry(&mut self) -> Result<()> {
        let mut command = Command::new(go("registry-memory")?);
        self.set_common(&mut command, "registry");
        command.env("NSM_LISTEN_ON", format!("unix://{}", self.path("registry.sock").display()));
        let process = Process::start(&mut command);
        process.wait_for("Startup completed");
        self.processes.insert("registry", process);
        Ok(())
    }

    /// Starts our forwarder, and waits until it serves. It is registered soon afterwards.
    pub fn start_forwarder(&mut self) -> Result<()> {
        let mut command = Command::new(ours("dpdk-forwarder")?);
        command.arg("--socket").arg(self.path("admin.sock"));
        self.set_common(&mut command, "fwd");
        command.env("NSM_LISTEN_ON", format!("unix://{}", self.path("fwd.sock").display()));
        command.env("NSM_CONNECT_TO", self.manager_url());
        let process = Process::start(&mut command);
        process.wait_for("a forwarder of the mesh");
        self.processes.insert("forwarder", process);
        Ok(())
    }

    /// Starts an endpoint of the service in a namespace.
    pub fn start_endpoint(&mut self, pod: &MeshPod, prefixes: &str, payload: &str) -> Result<()> {
        let mut command = match self.cast.endpoint {
            Maker::Ours => {
                let mut command = pod.command(&ours("ferrule")?);
                command.args(["nsm", "endpoint", "--relay", "spiffe://ferrule.local/fwd"]);
                command.arg("--listen-on").arg(self.path("nse.sock"));
                command
            }
            Maker::Go => pod.command(&go("nse-icmp-responder")?),
        };
        self.set_common(&mut command, "nse");
        command.env("NSM_SERVICE_NAMES", SERVICE).env("NSM_CIDR_PREFIX", prefixes).env("NSM_PAYLOAD", payload);
        command.env("NSM_CONNECT_TO", self.manager_url());
        let process = Process::start(&mut command);
        process.wait_for(if self.cast.endpoint == Maker::Ours { ": registered" } else { "startup completed" });
        self.processes.insert("endpoint", process);
        Ok(())
    }

    /// Starts a client in a namespace. Its interface is `nsm-1`.
    pub fn start_client(&self, pod: &MeshPod, number: usize) -> Result<Process> {
        self.start_client_of(pod, number, &format!("kernel://{SERVICE}/{INTERFACE}"))
    }

    /// Starts a client beside the first one.
    pub fn start_other_client(&self, pod: &MeshPod) -> Result<Process> {
        self.start_client(pod, self.options.clients)
    }

    /// Starts a client of this url.
    pub fn start_client_of(&self, pod: &MeshPod, number: usize, url: &str) -> Result<Process> {
        let mut command = match self.cast.client {
            Maker::Ours => {
                let mut command = pod.command(&ours("ferrule")?);
                command.args(["nsm", "client"]);
                command
            }
            Maker::Go => {
                let mut command = pod.command(&go("nsc")?);
                command.env("NSM_LOCAL_DNS_SERVER_ENABLED", "false");
                command
            }
        };
        self.set_common(&mut command, &client_name(number));
        command.env("NSM_NETWORK_SERVICES", url).env("NSM_CONNECT_TO", self.manager_url());
        Ok(Process::start(&mut command))
    }

    /// Waits until a client is connected.
    pub fn wait_connected(&self, client: &Process) {
        client.wait_for(if self.cast.client == Maker::Ours { "connected: " } else { "successfully connected to" });
    }

    /// Kills a process: `forwarder`, `manager`, `registry` or `endpoint`.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let mut process = self.processes.remove(name).with_context(|| format!("there is no {name}"))?;
        process.kill();
        Ok(())
    }

    /// A process that runs.
    pub fn process(&self, name: &str) -> Result<&Process> {
        self.processes.get(name).with_context(|| format!("there is no {name}"))
    }

    /// How many files a process has open.
    pub fn open_files(&self, name: &str) -> Result<usize> {
        let directory = format!("/proc/{}/fd", self.process(name)?.id());
        Ok(fs::read_dir(&directory).with_context(|| format!("read {directory}"))?.count())
    }

    /// Kilobytes of memory that a process has.
    pub fn resident(&self, name: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.process(name)?.id());
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
    }

    /// What `ferrule nsm` shows.
    pub fn shown(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(ours("ferrule")?);
        command.arg("nsm").args(arguments);
        self.set_common(&mut command, "ferrule");
        command.env("NSM_CONNECT_TO", self.manager_url());
        run(&mut command)
    }

    /// The wires that the forwarder has.
    pub fn wires(&self) -> Result<String> {
        run(Command::new(ours("ferrule")?).args(["wires", "--json", "--socket"]).arg(self.path("admin.sock")))
    }

    /// Puts a figure into the report.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        self.figures.push(Figure { name: name.to_owned(), value, unit: unit.to_owned() });
    }

    /// Prints what the node's processes have printed.
    pub fn show_logs(&self, case: &str) {
        for (name, process) in &self.processes {
            eprintln!("--- {case}: {name} has printed:\n{}\n---", process.output());
        }
    }

    fn set_common(&self, command: &mut Command, name: &str) {
        let identity = self.path("identity").join(format!("{name}.sock"));
        command.env("NSM_NAME", name).env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", identity.display()));
        command.env("NSM_MAX_TOKEN_LIFETIME", format!("{}s", self.options.tokens.as_secs()));
        command.env("NSM_REQUEST_TIMEOUT", format!("{}s", self.options.request.as_secs()));
        command.env("TMPDIR", self.directory.path()).env("NSM_LOG_LEVEL", "INFO");
    }

    /// A path in the node's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn manager_url(&self) -> String {
        format!("unix://{}", self.path("nsm.io.sock").display())
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

/// The name of a client, and of its identity.
pub fn client_name(number: usize) -> String {
    format!("nsc-{number}")
}

/// What clients ask for.
pub const SERVICE: &str = "icmp-responder";
/// Their interface.
pub const INTERFACE: &str = "nsm-1";
