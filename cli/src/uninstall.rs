//! `ferrule uninstall`: VFs are given back, and what our daemons keep on a node is removed. The daemons themselves are gone already.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sriov_manager_client::{Client, connect, v1};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tonic::Status;

use crate::CliError;
use crate::cni::{CniCliError, CniFolders};
use crate::vf::manager_program;

/// Options of `ferrule uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// The node's root directory, as a container sees it
    #[arg(long, value_name = "DIR", default_value = "/")]
    host: PathBuf,
    /// Remove the VFs of every PF too: those that were there before Ferrule are not told apart
    #[arg(long)]
    remove_vfs: bool,
    /// Print what would be given back and removed, and change nothing
    #[arg(long, conflicts_with = "stay")]
    dry_run: bool,
    /// How long to wait for a process that has a VF open
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Then wait for SIGTERM, as a container of a DaemonSet has to
    #[arg(long)]
    stay: bool,
}

/// Gives back, then removes. Whatever cannot be given back stays, with the journal that knows of it.
pub async fn run(args: &UninstallArgs) -> Result<(), CliError> {
    let place = Place { host: &args.host };
    place.is_free()?;
    // Who stays is a container, which sees nothing of the node.
    if place.is_empty() && !args.stay {
        println!("nothing of Ferrule is on this node");
    } else if args.dry_run {
        print!("{}", place.plan(args.remove_vfs));
        return Ok(());
    }
    if place.journal().exists() {
        print!("{}", give_all_back(&place, args.remove_vfs, args.wait).await?);
    }
    print!("{}", place.remove()?);
    if args.stay {
        // The first process of a container ends by no signal that it does not listen for.
        let mut terminate = signal(SignalKind::terminate())?;
        println!("done; waiting to be ended");
        terminate.recv().await;
    }
    Ok(())
}

/// Why something of Ferrule is still on the node.
#[derive(Debug, Error)]
pub enum UninstallError {
    /// A daemon runs.
    #[error("{0} still runs on this node; end it first (delete its DaemonSet), then try again")]
    Runs(&'static str),
    /// The manager that gives back cannot be started.
    #[error("start {}: {error}", program.display())]
    Start {
        /// Its file.
        program: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It ended, or did not answer in time.
    #[error("the manager that was started for this does not answer; what it said stands above")]
    Silent,
    /// It was lost on the way.
    #[error("ask the manager: {}", .0.message())]
    Asked(#[from] Status),
    /// Some VFs have to stay.
    #[error("not everything could be given back, and nothing was removed:\n{0}")]
    Left(String),
    /// The CNI plugin cannot be taken away.
    #[error(transparent)]
    Cni(#[from] CniCliError),
    /// A file cannot be removed.
    #[error("remove {}: {error}", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// Gives back every VF, lets go of every claim, and removes VFs if that is wanted; says what it did.
pub async fn give_back(client: &mut Client, remove_vfs: bool, wait: Duration) -> Result<String, UninstallError> {
    let list = client.list(v1::ListRequest::default()).await?.into_inner();
    let (mut done, mut left) = (String::new(), String::new());
    let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    for lease in list.vfs.iter().filter_map(|vf| vf.lease.as_ref()).chain(&list.lost) {
        let request = v1::ReleaseRequest { lease: lease.id.clone(), wait_ms, ..Default::default() };
        let _ = match client.release(request).await {
            Ok(_) => writeln!(done, "{}: given back, of {}", lease.vf, lease.tenant),
            Err(status) => writeln!(left, "- {}, of {}: {}", lease.vf, lease.tenant, status.message()),
        };
    }
    for owner in list.node.map(|node| node.owners).unwrap_or_default() {
        client.unclaim(v1::UnclaimRequest { owner: owner.name.clone() }).await?;
        let _ = writeln!(done, "{}: claims nothing any more", owner.name);
    }
    if remove_vfs && left.is_empty() {
        let pfs = list.pfs.iter().filter(|pf| pf.num_vfs > 0);
        let counts: Vec<_> = pfs.map(|pf| v1::Count { pf: pf.address.clone(), count: 0 }).collect();
        if !counts.is_empty() {
            let request = v1::CreateRequest { counts, ..Default::default() };
            for created in client.create(request).await?.into_inner().created {
                let _ = if created.error.is_empty() {
                    writeln!(done, "{}: no VFs, {} before", created.pf, created.from)
                } else {
                    writeln!(left, "- {}: {}", created.pf, created.error)
                };
            }
        }
    }
    if left.is_empty() { Ok(done) } else { Err(UninstallError::Left(left.trim_end().to_owned())) }
}

/// By a manager of our own, which knows from the journal what is to be restored.
async fn give_all_back(place: &Place<'_>, remove_vfs: bool, wait: Duration) -> Result<String, UninstallError> {
    let mut manager = OwnManager::start(place)?;
    let mut client = manager.answers().await?;
    give_back(&mut client, remove_vfs, wait).await
}

/// Where things are on the node.
struct Place<'a> {
    host: &'a Path,
}

impl Place<'_> {
    fn path(&self, path: &str) -> PathBuf {
        self.host.join(path.trim_start_matches('/'))
    }

    fn journal(&self) -> PathBuf {
        self.path(STATE).join("vf")
    }

    /// By their locks, since a socket says nothing of one that is just starting, and by their sockets, since a state directory may be
    /// another one.
    fn is_free(&self) -> Result<(), UninstallError> {
        for (daemon, lock) in [("device-plugin", "device-plugin/lock"), ("sriov-manager", "vf/lock")] {
            if let Ok(lock) = File::open(self.path(STATE).join(lock))
                && let Err((_, Errno::EWOULDBLOCK)) = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            {
                return Err(UninstallError::Runs(daemon));
            }
        }
        for (daemon, socket) in [("dpdk-forwarder", "admin.sock"), ("sriov-manager", "vf.sock")] {
            if UnixStream::connect(self.path(RUN).join(socket)).is_ok() {
                return Err(UninstallError::Runs(daemon));
            }
        }
        Ok(())
    }

    /// Everything that daemons keep on the node, whether it is there or not.
    fn files(&self) -> Vec<PathBuf> {
        let plugins = fs::read_dir(self.path(PLUGINS)).into_iter().flatten().flatten();
        let is_ours = |name: &OsString| name.to_str().is_some_and(|name| name.starts_with(PLUGIN_SOCKET));
        let sockets = plugins.filter(|entry| is_ours(&entry.file_name())).map(|entry| entry.path());
        [RUN, STATE, CNI_STATE].map(|path| self.path(path)).into_iter().chain(sockets).collect()
    }

    fn is_empty(&self) -> bool {
        !self.files().iter().any(|path| path.exists()) && CniFolders::usual(self.host).is_empty()
    }

    /// What an uninstall would do, in words. It reads no journal: only the manager that it starts knows what is lent.
    fn plan(&self, remove_vfs: bool) -> String {
        let mut plan = String::new();
        if self.journal().exists() {
            plan.push_str("every lease in the journal would be given back, and every claim ended\n");
            if remove_vfs {
                plan.push_str("all VFs of every PF would be removed\n");
            }
        }
        if !CniFolders::usual(self.host).is_empty() {
            plan.push_str("the CNI plugin would be taken out of every network and removed\n");
        }
        for path in self.files().iter().filter(|path| path.exists()) {
            let _ = writeln!(plan, "{}: would be removed", path.display());
        }
        plan
    }

    fn remove(&self) -> Result<String, UninstallError> {
        // Whoever makes or ends a pod asks it no more then.
        let mut done = CniFolders::usual(self.host).remove()?;
        for path in self.files() {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Ok(()) => {
                    let _ = writeln!(done, "{}: removed", path.display());
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(UninstallError::Remove { path, error }),
            }
        }
        Ok(done)
    }
}

/// A manager without policies, for as long as this value.
struct OwnManager {
    child: Child,
    socket: PathBuf,
}

impl OwnManager {
    fn start(place: &Place<'_>) -> Result<Self, UninstallError> {
        let program = manager_program();
        // Where no other one answers.
        let socket = place.path(RUN).join("uninstall.sock");
        let mut command = Command::new(&program);
        command.arg("--log-level=warn").arg("--state").arg(place.journal()).arg("--socket").arg(&socket);
        let child = fs::create_dir_all(place.path(RUN)).and_then(|()| command.spawn());
        child.map(|child| Self { child, socket }).map_err(|error| UninstallError::Start { program, error })
    }

    /// Waits until every lease is in a known state.
    async fn answers(&mut self) -> Result<Client, UninstallError> {
        let deadline = Instant::now() + START_TIME;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            if let Ok(mut client) = connect(&self.socket).await {
                let node = client.list(v1::ListRequest::default()).await?.into_inner().node.unwrap_or_default();
                if node.recovery() == v1::Recovery::Done {
                    return Ok(client);
                }
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Err(UninstallError::Silent)
    }
}

impl Drop for OwnManager {
    fn drop(&mut self) {
        let id = i32::try_from(self.child.id()).expect("the kernel's numbers of processes are small");
        // Gone already is as good.
        let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

const RUN: &str = "/run/ferrule";
const STATE: &str = "/var/lib/ferrule";
/// What the CNI plugin has to know later.
const CNI_STATE: &str = "/var/lib/cni/ferrule";
const PLUGINS: &str = "/var/lib/kubelet/device-plugins";
/// What names of device-plugin's sockets there begin with.
const PLUGIN_SOCKET: &str = "ferrule-";
/// A manager may have to bring back leases first.
const START_TIME: Duration = Duration::from_mins(2);
const ASK_AGAIN: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_what_is_ours_is_removed_and_nothing_while_a_daemon_runs() {
        let host = tempfile::tempdir().unwrap();
        let place = Place { host: host.path() };
        let networks = place.path("/etc/cni/net.d");
        for directory in
            [RUN, PLUGINS, CNI_STATE, "/etc/cni/net.d", "/var/lib/ferrule/device-plugin", "/var/lib/ferrule/vf"]
        {
            fs::create_dir_all(place.path(directory)).unwrap();
        }
        let (ours, others) = (place.path(PLUGINS).join("ferrule-a-1.sock"), place.path(PLUGINS).join("kubelet.sock"));
        for file in [&ours, &others] {
            fs::write(file, "").unwrap();
        }
        for (daemon, lock) in [("device-plugin", "device-plugin/lock"), ("sriov-manager", "vf/lock")] {
            let lock = File::create(place.path(STATE).join(lock)).unwrap();
            let _held = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
            assert!(matches!(place.is_free(), Err(UninstallError::Runs(runs)) if runs == daemon));
        }
        for (daemon, socket) in [("dpdk-forwarder", "admin.sock"), ("sriov-manager", "vf.sock")] {
            let _listener = UnixListener::bind(place.path(RUN).join(socket)).unwrap();
            assert!(matches!(place.is_free(), Err(UninstallError::Runs(runs)) if runs == daemon));
        }
        place.is_free().unwrap();
        let list = r#"{"name": "k8s", "plugins": [{"type": "ptp"}, {"type": "ferrule-cni"}]}"#;
        fs::write(networks.join("10-k8s.conflist"), list).unwrap();
        let plan = place.plan(true);
        assert_eq!(plan.lines().count(), 7, "{plan}");
        assert!(plan.contains("all VFs of every PF would be removed") && ours.exists() && !place.is_empty(), "{plan}");
        let done = place.remove().unwrap();
        assert_eq!(done.lines().count(), 5, "{done}");
        assert!(!fs::read_to_string(networks.join("10-k8s.conflist")).unwrap().contains("ferrule"));
        assert!(others.exists() && !ours.exists());
        assert!(!place.path(RUN).exists() && !place.path(STATE).exists());
        assert_eq!(place.remove().unwrap(), "", "again changes nothing");
        assert!(place.is_empty());
    }
}
