//! `ferrule nsm up`: a whole mesh on this machine, and with `--demo` a connection through it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ferrule_nsm::client::{Client, Ping};
use ferrule_nsm::identity::WorkloadSocket;
use ferrule_nsm::process::{OfferArgs, ProcessArgs, Trusted};
use ferrule_nsm::transport::{Address, DialOptions, KeptConnection};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::endpoint::{EndpointArgs, MechanismFlag};
use super::{NsmError, StopSignal, client, endpoint, identities, manager, open_namespace, stopped};

/// Options of `ferrule nsm up`.
#[derive(Debug, Args)]
pub(super) struct UpArgs {
    /// Where its sockets are
    #[arg(long, value_name = "DIR", default_value = "/run/ferrule/nsm")]
    directory: PathBuf,
    /// Identities for further processes, by name: `identity/NAME.sock` in the directory
    #[arg(long = "identity", value_name = "NAME")]
    identities: Vec<String>,
    /// The forwarder's program; by default the one beside this program
    #[arg(long, value_name = "PATH")]
    forwarder: Option<PathBuf>,
    /// Make two namespaces, a client in one and an endpoint in the other, and ping through; then end
    #[arg(long)]
    demo: bool,
    /// With --demo: go on until Ctrl-C
    #[arg(long, requires = "demo")]
    stay: bool,
}

pub(super) async fn run(args: UpArgs) -> Result<(), NsmError> {
    let stop = stopped()?;
    let mut mesh = Box::pin(MeshOnOneMachine::start(&args, &stop)).await?;
    if !args.demo {
        println!("the mesh is up; `ferrule nsm` shows it, Ctrl-C ends it");
        return mesh.until(stop.future()).await;
    }
    let demo = Box::pin(demo(&args.directory, stop.clone(), args.stay));
    tokio::select! {
        done = demo => done,
        ended = mesh.until(std::future::pending()) => ended,
    }
}

/// Its processes. All of them end when this is dropped.
struct MeshOnOneMachine {
    tasks: JoinSet<Result<(), NsmError>>,
    forwarder: ForwarderProcess,
}

impl MeshOnOneMachine {
    async fn start(args: &UpArgs, stop: &StopSignal) -> Result<Self, NsmError> {
        let identity = args.directory.join("identity");
        let names: Vec<_> = NAMES.into_iter().chain(args.identities.iter().map(String::as_str)).collect();
        let mut tasks = identities::serve(&identity, "ferrule.local", LIFETIME, &names, stop)?;
        let manager_socket = manager_socket(&args.directory);
        let source = WorkloadSocket::at(identity.join("nsmgr.sock"));
        let source = Box::pin(source.identity()).await?;
        let (at, stop) = (manager_socket.clone(), stop.clone());
        tasks.spawn(async move {
            let trusted = Trusted { relays: vec![FORWARDER.to_owned()], observers: vec![PERSON.to_owned()] };
            let of = manager::Managing { name: "nsmgr", addresses: &[at], trusted: &trusted, registry: None };
            Box::pin(manager::serve(of, source, DialOptions::default(), &stop)).await
        });
        let forwarder = ForwarderProcess::start(args, &identity, &manager_socket)?;
        println!("forwarder {}", forwarder.program.display());
        Ok(Self { tasks, forwarder })
    }

    /// Goes on until `stop`, or until one of its processes ends.
    async fn until(&mut self, stop: impl Future<Output = ()>) -> Result<(), NsmError> {
        tokio::select! {
            () = stop => Ok(()),
            Some(ended) = self.tasks.join_next() => ended.map_err(std::io::Error::other)?,
            ended = self.forwarder.ended() => Err(ended),
        }
    }
}

/// The forwarder, a program of its own.
struct ForwarderProcess {
    program: PathBuf,
    child: std::process::Child,
}

impl ForwarderProcess {
    fn start(args: &UpArgs, identity: &Path, manager: &Address) -> Result<Self, NsmError> {
        let beside = std::env::current_exe()?.with_file_name("dpdk-forwarder");
        let program = args.forwarder.clone().unwrap_or(beside);
        let directory = &args.directory;
        let mut command = Command::new(&program);
        command.arg("--socket").arg(directory.join("admin.sock")).stdin(Stdio::null());
        command.env("NSM_NAME", "forwarder").env("NSM_CONNECT_TO", manager.to_string());
        command.env("NSM_LISTEN_ON", format!("unix://{}", directory.join("forwarder.sock").display()));
        let socket = format!("unix://{}", identity.join("forwarder.sock").display());
        command.env("SPIFFE_ENDPOINT_SOCKET", socket).env_remove("NOTIFY_SOCKET");
        // Ctrl-C is for us: we stop it in our own time.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().map_err(NsmError::file("start the forwarder", &program))?;
        Ok(Self { program, child })
    }

    /// Returns when it has ended.
    async fn ended(&mut self) -> NsmError {
        loop {
            let problem = match self.child.try_wait() {
                Ok(None) => {
                    sleep(CHILD_POLL).await;
                    continue;
                }
                Ok(Some(status)) => format!("it ended: {status}"),
                Err(error) => error.to_string(),
            };
            return NsmError::Program { program: self.program.display().to_string(), problem };
        }
    }
}

impl Drop for ForwarderProcess {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        if let Ok(None) = self.child.try_wait() {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

/// A client and an endpoint, each in a namespace, and pings from one to the other.
async fn demo(directory: &Path, stop: StopSignal, stay: bool) -> Result<(), NsmError> {
    let pair = [Namespace::make("client")?, Namespace::make("endpoint")?];
    let manager = manager_socket(directory);
    let process = |name: &str| ProcessArgs {
        spiffe_socket: format!("unix://{}", directory.join("identity").join(format!("{name}.sock")).display()),
        token_lifetime: TOKEN_LIFETIME,
        dial_timeout: DialOptions::default().timeout,
    };
    let offered = EndpointArgs {
        offer: OfferArgs {
            name: Some("endpoint".to_owned()),
            services: vec!["demo".to_owned()],
            labels: Vec::new(),
            payload: "ETHERNET".to_owned(),
            register_service: None,
            connect_to: manager.to_string(),
            listen_on: Some(directory.join("endpoint.sock")),
        },
        prefixes: PREFIXES.iter().filter_map(|prefix| prefix.parse().ok()).collect(),
        mechanisms: vec![MechanismFlag::Kernel],
        netns: pair[1].path(),
        trusted: Trusted { relays: vec![FORWARDER.to_owned()], observers: Vec::new() },
        process: process("endpoint"),
    };
    let (sender, ending) = tokio::sync::watch::channel(false);
    let ending = StopSignal(ending);
    let serving = tokio::spawn(endpoint::run(offered, ending.clone()));
    let netns = open_namespace(&pair[0].path())?;
    let wanted = client::wanted(&"kernel://demo/nsm-1".parse()?, Arc::clone(&netns))?;
    let of_client = process("client");
    let kept: KeptConnection = of_client.kept(&manager.to_string(), of_client.identity().await?)?;
    let client = Client::new("client", kept, wanted, REQUEST_TIMEOUT);
    let client = Arc::new(client.checked_by(Ping::new(netns, client::PING_MAX)));
    let mut connection = client.connection();
    let keeping = tokio::spawn({
        let (client, ending) = (Arc::clone(&client), ending.clone());
        async move { Box::pin(client.run(ending.future())).await }
    });
    let shown = async {
        let connected = timeout(CONNECT_MAX, connection.wait_for(Option::is_some)).await;
        let connected = connected.ok().and_then(Result::ok).and_then(|connection| connection.clone());
        let connected = connected.ok_or_else(|| NsmError::Program {
            program: "client".to_owned(),
            problem: format!("it has no connection after {CONNECT_MAX:?}; the lines above say why"),
        })?;
        println!("{}", client::in_words(&connected));
        let ip = connected.context.as_ref().and_then(|context| context.ip_context.clone()).unwrap_or_default();
        for address in &ip.dst_ip_addrs {
            let (from, to) = (pair[0].name.clone(), address.split('/').next().unwrap_or_default().to_owned());
            let said = spawn_blocking(move || ping(&from, &to)).await.map_err(std::io::Error::other)??;
            println!("{said}");
        }
        if stay {
            println!("look with `ferrule nsm`, or from inside: ip netns exec {} ping ...", pair[0].name);
            stop.wait().await;
        }
        Ok::<(), NsmError>(())
    };
    let shown = shown.await;
    sender.send_replace(true);
    // The client closes, the endpoint is unregistered.
    let _ = timeout(REQUEST_TIMEOUT, keeping).await;
    let _ = timeout(REQUEST_TIMEOUT, serving).await;
    shown
}

/// A namespace that `ip netns` knows, deleted with this value.
struct Namespace {
    name: String,
}

impl Namespace {
    fn make(role: &str) -> Result<Self, NsmError> {
        let name = format!("ferrule-nsm-{role}");
        // One that a killed demo has left.
        let _ = Command::new("ip").args(["netns", "del", &name]).output();
        output(Command::new("ip").args(["netns", "add", &name]))?;
        let made = Self { name };
        output(Command::new("ip").args(["-n", &made.name, "link", "set", "lo", "up"]))?;
        Ok(made)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

fn ping(from: &str, to: &str) -> Result<String, NsmError> {
    let mut command = Command::new("ip");
    let said = output(command.args(["netns", "exec", from, "ping", "-n", "-c", "5", "-i", "0.2", "-W", "2", to]))?;
    let summary = said.lines().filter(|line| line.contains("packet loss") || line.starts_with("rtt"));
    Ok(format!("ping {to}: {}", summary.collect::<Vec<_>>().join("; ")))
}

fn output(command: &mut Command) -> Result<String, NsmError> {
    let program = format!("{command:?}");
    let done =
        command.output().map_err(|error| NsmError::Program { program: program.clone(), problem: error.to_string() })?;
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    if done.status.success() { Ok(said) } else { Err(NsmError::Program { program, problem: said.trim().to_owned() }) }
}

fn manager_socket(directory: &Path) -> Address {
    Address::Unix(directory.join("nsm.io.sock"))
}

/// Who there is always.
const NAMES: [&str; 5] = ["nsmgr", "forwarder", "client", "endpoint", "ferrule"];
const FORWARDER: &str = "spiffe://ferrule.local/forwarder";
/// Whoever types `ferrule nsm`.
const PERSON: &str = "spiffe://ferrule.local/ferrule";
const PREFIXES: [&str; 2] = ["172.16.1.0/24", "2001:db8:1::/116"];
const LIFETIME: Duration = Duration::from_hours(1);
const TOKEN_LIFETIME: Duration = Duration::from_mins(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// A forwarder may take its time to start.
const CONNECT_MAX: Duration = Duration::from_secs(30);
const CHILD_POLL: Duration = Duration::from_millis(100);
