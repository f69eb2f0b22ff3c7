//! `responder`: a memif far end that answers ARP, neighbour solicitations and pings.

use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use clap::{Parser, ValueEnum};
use ferrule_dataplane::spec::{MacAddress, MemifSpec, Mode, QUEUES_MAX, Role, Secret, SocketAddress};
use ferrule_endpoints::Responder;
use ferrule_endpoints::memif_responder::MemifResponder;
use nix::sys::signal::{SigSet, Signal};

/// A memif peer that answers ARP, neighbour solicitations and pings until SIGTERM or SIGINT.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// Control socket: a path, or an abstract name such as @name
    #[arg(long, value_name = "PATH|@NAME")]
    socket: SocketAddress,
    /// Interface id
    #[arg(long, default_value_t = 0)]
    id: u32,
    /// Listen, or connect and make the shared memory
    #[arg(long, value_enum, default_value = "client")]
    role: RoleFlag,
    /// What the server demands; both sides must name the same
    #[arg(long, value_name = "TEXT", env = "FERRULE_MEMIF_SECRET", hide_env_values = true)]
    secret: Option<Secret>,
    /// What frames begin with
    #[arg(long, value_enum, default_value = "ethernet")]
    mode: ModeFlag,
    /// Queue pairs that we make as client
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(QUEUES_MAX)))]
    queues: u16,
    /// Our MAC address
    #[arg(long, default_value = "02:00:00:00:fe:01")]
    mac: MacAddress,
    /// An address to answer for, once for each; without any, every address is answered for
    #[arg(long, value_name = "IP")]
    address: Vec<IpAddr>,
}

#[derive(Clone, Copy, ValueEnum)]
enum RoleFlag {
    Server,
    Client,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeFlag {
    Ethernet,
    Ip,
}

impl Flags {
    fn spec(&self) -> MemifSpec {
        let role = match self.role {
            RoleFlag::Server => Role::Server,
            RoleFlag::Client => Role::Client,
        };
        let spec = MemifSpec::new(self.socket.clone(), role);
        MemifSpec { id: self.id, secret: self.secret.clone(), mode: self.mode(), queues: self.queues, ..spec }
    }

    fn mode(&self) -> Mode {
        match self.mode {
            ModeFlag::Ethernet => Mode::Ethernet,
            ModeFlag::Ip => Mode::Ip,
        }
    }
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let responder = Responder::new(flags.mac, flags.address.clone()).in_mode(flags.mode());
    let responder = MemifResponder::new(responder);
    let stop = match stop_at_signal() {
        Ok(stop) => stop,
        Err(error) => {
            eprintln!("responder: listen for signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = responder.run(&flags.spec(), &stop, |event| eprintln!("responder: {event}")) {
        eprintln!("responder: {error}");
        return ExitCode::FAILURE;
    }
    eprintln!("responder: stopped: {}", responder.tally());
    ExitCode::SUCCESS
}

/// Becomes true at SIGTERM or SIGINT. Before any other thread is made: it inherits what is blocked here.
fn stop_at_signal() -> std::io::Result<Arc<AtomicBool>> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()?;
    let stop = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&stop);
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let _ = signals.wait();
        heard.store(true, Relaxed);
    })?;
    Ok(stop)
}
