//! Chains of functions that a mesh composes: the service with its matches, a process for each function, and what a client at one end sees.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferrule_functions::webserver::Webserver;
use ferrule_nsm::proto::registry::{Destination, Match, NetworkService};
use ferrule_nsm::registry::RegistryClient;
use ferrule_nsm::transport::{DialOptions, KeptConnection};

use super::caller::Caller;
use super::mesh::{INTERFACE, Mesh};
use super::pod::MeshPod;
use super::programs::ours;
use crate::TIMEOUT;
use crate::process::Process;

/// A chain: what its service is called, and its functions in their order. The last one is the end.
pub struct ChainPlan {
    /// The service.
    pub service: &'static str,
    /// The value of the label `app` of each, the client's end first. The first is asked for without labels, if `client` says none.
    pub apps: &'static [&'static str],
    /// What the client's own `app` is.
    pub client: Option<&'static str>,
    /// What its frames begin with: `ETHERNET` or `IP`.
    pub payload: &'static str,
}

/// A function of a chain that runs, in a namespace of its own.
pub struct ChainFunction {
    process: Process,
    socket: PathBuf,
    _pod: MeshPod,
}

impl ChainPlan {
    /// Registers the service: each function is chosen by who asks.
    pub fn register(&self, mesh: &mut Mesh) -> Result<()> {
        let route = |from: Option<&str>, to: &str| Match {
            source_selector: from.map(app).unwrap_or_default(),
            routes: vec![Destination { destination_selector: app(to), weight: 0 }],
            ..Match::default()
        };
        let pairs = self.apps.windows(2).map(|pair| route(Some(pair[0]), pair[1]));
        // Without a source it fits all: it comes last.
        let first = route(self.client, self.apps[0]);
        let matches = pairs.chain([first]).collect();
        let service = NetworkService {
            name: self.service.to_owned(),
            payload: self.payload.to_owned(),
            matches,
            ..NetworkService::default()
        };
        register(mesh, &service)
    }

    /// Starts a function, and waits until it is registered. Those of one `app` have one identity, and names of their own. The first
    /// of the chain is on the clients' node, and the others are where its end is.
    pub fn start(&self, mesh: &mut Mesh, app: &str, name: &str, settings: &str) -> Result<ChainFunction> {
        let path = mesh.path(&format!("{name}.yaml"));
        let socket = mesh.path(&format!("{name}.api"));
        fs::write(&path, format!("name: {name}\nsocket: {}\n{settings}\n", socket.display()))
            .with_context(|| format!("write {}", path.display()))?;
        let pod = MeshPod::new();
        let mut command = pod.command(&ours("network-function")?);
        command.arg("--nsm").arg("--config").arg(&path).args(mesh.common.relays());
        self.endpoint(mesh, &mut command, app, name);
        let process = Process::start(&mut command);
        process.wait_for(": registered");
        Ok(ChainFunction { process, socket, _pod: pod })
    }

    /// Starts an end of the chain, in a namespace, with addresses out of this prefix.
    pub fn start_end(&self, mesh: &mut Mesh, name: &str, pod: &MeshPod, prefix: &str) -> Result<Process> {
        let app = self.apps.last().context("a chain has an end")?;
        let mut command = pod.command(&ours("ferrule")?);
        command.args(["nsm", "endpoint"]).args(mesh.common.relays());
        // Without Ethernet headers a frame goes to its own kind only, and the functions have memif.
        command.args(["--mechanism", if self.payload == "IP" { "memif" } else { "kernel" }]);
        self.endpoint(mesh, &mut command, app, name);
        command.env("NSM_CIDR_PREFIX", prefix).env("NSM_REGISTER_SERVICE", "false");
        let process = Process::start(&mut command);
        process.wait_for(": registered");
        Ok(process)
    }

    /// Starts a client of the chain: its interface is [`INTERFACE`], or with payload IP it has a memif.
    pub fn start_client(&self, mesh: &mut Mesh, pod: &MeshPod, number: usize) -> Result<Process> {
        let labels = self.client.map(|app| format!("?app={app}")).unwrap_or_default();
        let end = if self.payload == "IP" { String::new() } else { format!("/{INTERFACE}") };
        let scheme = if self.payload == "IP" { "memif" } else { "kernel" };
        mesh.near().start_client_of(pod, number, &format!("{scheme}://{}{end}{labels}", self.service))
    }

    fn endpoint(&self, mesh: &mut Mesh, command: &mut Command, app: &str, name: &str) {
        mesh.common.set(command, app);
        command.env("NSM_NAME", name).env("NSM_SERVICE_NAMES", self.service).env("NSM_LABELS", format!("app:{app}"));
        let node = if self.apps.first() == Some(&app) { mesh.near() } else { mesh.far() };
        command.env("NSM_CONNECT_TO", node.manager_url());
        command.arg("--listen-on").arg(mesh.path(&format!("{name}.sock")));
    }
}

impl ChainFunction {
    /// Kills it.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Where it is traced.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// Registers a service, as whoever applies its document.
pub fn register(mesh: &mut Mesh, service: &NetworkService) -> Result<()> {
    let caller = Caller::at(mesh.path("identity/stranger.sock"))?;
    let manager = mesh.near().manager_url().parse()?;
    let options = DialOptions { timeout: TIMEOUT, ..DialOptions::default() };
    let registry = RegistryClient::new(KeptConnection::new(manager, caller.identity().clone(), options), TIMEOUT);
    caller.runtime().block_on(registry.register_service(service))?;
    Ok(())
}

/// `ferrule trace` at a socket.
pub fn trace(socket: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(ours("ferrule")?);
    command.arg("trace").arg("--socket").arg(socket).args(arguments);
    Ok(command)
}

/// Begins a trace, and waits until it runs.
pub fn start_trace(socket: &Path, arguments: &[&str]) -> Result<Process> {
    let process = Process::start(&mut trace(socket, arguments)?);
    process.wait_for("; Ctrl-C ends it");
    Ok(process)
}

/// Serves the page in a namespace, on all of its IPv4 addresses that there are now and later.
pub fn serve_page(pod: &MeshPod, port: u16) -> Result<Webserver> {
    serve_page_at(pod, Ipv4Addr::UNSPECIFIED.into(), port)
}

/// Serves the page in a namespace, at an address.
pub fn serve_page_at(pod: &MeshPod, address: IpAddr, port: u16) -> Result<Webserver> {
    let listener = pod.netns().run(|| TcpListener::bind((address, port)))?;
    Ok(Webserver::start(listener, [("/".to_owned(), PAGE.to_owned())])?)
}

/// The way of a client's connection, by the names of the processes.
pub fn way(mesh: &mut Mesh, client: &str) -> Result<Vec<String>> {
    let json: serde_json::Value = serde_json::from_str(&mesh.near().shown(&["--json"])?)?;
    let all = json["connections"].as_array().context("no connections are shown")?;
    let hops = all.iter().filter_map(|connection| connection["hops"].as_array());
    let names = hops.map(|hops| hops.iter().filter_map(|hop| Some(hop["name"].as_str()?.to_owned())).collect());
    let of_client = names.filter(|way: &Vec<String>| way.first().is_some_and(|first| first == client));
    // The manager has one for each hop of it.
    of_client.max_by_key(Vec::len).with_context(|| format!("no connection of {client} in {json}"))
}

/// GET over the kernel's TCP from inside a namespace: the body, or why there is none.
pub fn get(pod: &MeshPod, server: impl Into<IpAddr>, port: u16, limit: Duration) -> std::io::Result<String> {
    use std::io::{Read as _, Write as _};
    let server = SocketAddr::new(server.into(), port);
    let mut stream = pod.netns().run(|| std::net::TcpStream::connect_timeout(&server, limit))?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).ok_or_else(|| std::io::Error::other(answer.clone()))
}

/// Waits until something comes that is wanted; how long that took.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<T>) -> Result<(T, Duration)> {
    let began = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok((found, began.elapsed())),
            Err(error) => ensure!(began.elapsed() < TIMEOUT, "not within {TIMEOUT:?}: {what}: {error:#}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn app(value: &str) -> BTreeMap<String, String> {
    [("app".to_owned(), value.to_owned())].into()
}

/// What the web servers say.
pub const PAGE: &str = "<!DOCTYPE html><html><body>reached</body></html>";
