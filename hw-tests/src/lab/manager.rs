//! A running `sriov-manager` and a client of it, for scenarios.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use sriov_manager_client::cache::apply;
use sriov_manager_client::v1::{
    AcquireRequest, Attributes, Count, CreateRequest, Created, Driver, ExplainRequest, HandOverRequest, ListRequest,
    ListResponse, ReleaseRequest, Vf, WatchRequest, WatchResponse,
};
use sriov_manager_client::{Client, connect};
use tokio::runtime::{self, Runtime};
use tonic::{Response, Status, Streaming};

use super::pci::Function;
use super::scenario::Lab;
use crate::eventually;
use crate::process::Process;

/// The daemon as a process, killed with this value, and a connection to it.
pub struct Manager {
    process: Process,
    runtime: Runtime,
    client: Client,
    socket: PathBuf,
}

/// What became of a start.
pub enum Start {
    /// It serves.
    Ready(Box<Manager>),
    /// It ended, and this is what it had logged.
    Ended(String),
}

/// How to start one.
#[derive(Clone, Debug, Default)]
pub struct ManagerOptions {
    /// The policies file's text; none: no file.
    pub policies: Option<String>,
    /// How long one call into the kernel may take.
    pub call_timeout: Option<Duration>,
    /// It dies at the point of this number. Such a one is `crash-manager`, without policies.
    pub die_at: Option<u64>,
    /// It makes this file when it is about to unbind a VF, and goes on when the file is gone. It is a `crash-manager` too.
    pub pause_before_unbind: Option<PathBuf>,
    /// It does not log each step of its work, which takes time.
    pub quiet: bool,
    /// It sees no process but its own, as in a container with a process namespace of its own.
    pub alone: bool,
    /// Its state directory and its socket are not those of the others of this scenario.
    pub elsewhere: bool,
}

impl Manager {
    /// Starts one that knows what the ones before it in this scenario have journalled.
    pub fn start(lab: &Lab, options: &ManagerOptions) -> Result<Self> {
        match Self::start_crashing(lab, options)? {
            Start::Ready(manager) => Ok(*manager),
            Start::Ended(log) => bail!("the manager ended before it was ready:\n{log}"),
        }
    }

    /// Starts one that may end before it is ready.
    pub fn start_crashing(lab: &Lab, options: &ManagerOptions) -> Result<Start> {
        let socket = options.socket(lab);
        let mut process = Self::spawn(lab, options)?;
        let deadline = Instant::now() + START_MAX;
        while !process.output().contains("ready: ") && process.ended().is_none() {
            ensure!(Instant::now() < deadline, "the manager is not ready after {START_MAX:?}:\n{}", process.output());
            thread::sleep(Duration::from_millis(1));
        }
        let runtime = runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
        match runtime.block_on(connect(&socket)) {
            Ok(client) => Ok(Start::Ready(Box::new(Self { process, runtime, client, socket }))),
            // It may have ended after it was ready.
            Err(error) => {
                eventually(&format!("whoever does not answer has ended: {error}"), || process.ended().is_some());
                Ok(Start::Ended(process.wait().1))
            }
        }
    }

    /// Starts one that need not get ready.
    pub fn spawn(lab: &Lab, options: &ManagerOptions) -> Result<Process> {
        Ok(Process::start(&mut options.command(lab, &options.socket(lab))?))
    }

    /// Every PF and VF.
    pub fn list(&self) -> Result<ListResponse, Status> {
        self.call(async |mut client: Client| client.list(ListRequest::default()).await)
    }

    /// One VF of the list.
    pub fn vf(&self, vf: &Function) -> Result<Vf, Status> {
        let found = self.list()?.vfs.into_iter().find(|listed| listed.address == vf.address);
        found.ok_or_else(|| Status::not_found(format!("{} is not listed", vf.address)))
    }

    /// Sets the number of VFs of PFs.
    pub fn create(&self, pfs: &[Function], count: usize) -> Result<Vec<Created>, Status> {
        let counts = pfs.iter().map(|pf| Count { pf: pf.address.clone(), count: count as u32 }).collect();
        let request = CreateRequest { counts, dry_run: false, force: false };
        Ok(self.call(async |mut client: Client| client.create(request).await)?.created)
    }

    /// Borrows a VF on a driver; returns the steps that were needed.
    pub fn acquire(
        &self,
        id: &str,
        vf: &Function,
        driver: &str,
        attributes: Option<Attributes>,
    ) -> Result<Vec<String>, Status> {
        let request = AcquireRequest {
            id: id.to_owned(),
            tenant: "the lab".to_owned(),
            vf: vf.address.clone(),
            driver: driver.parse::<Driver>().map_err(Status::invalid_argument)?.into(),
            attributes,
            ..AcquireRequest::default()
        };
        Ok(self.call(async |mut client: Client| client.acquire(request).await)?.steps)
    }

    /// Borrows a VF in the name of an owner.
    pub fn acquire_of(&self, owner: &str, id: &str, vf: &Function, driver: &str) -> Result<(), Status> {
        let request = AcquireRequest {
            id: id.to_owned(),
            tenant: "the lab".to_owned(),
            vf: vf.address.clone(),
            driver: driver.parse::<Driver>().map_err(Status::invalid_argument)?.into(),
            owner: owner.to_owned(),
            ..AcquireRequest::default()
        };
        self.call(async |mut client: Client| client.acquire(request).await).map(drop)
    }

    /// Gives a VF back, and waits so long for who holds it.
    pub fn release(&self, id: &str, wait: Duration) -> Result<(), Status> {
        let request =
            ReleaseRequest { lease: id.to_owned(), wait_ms: wait.as_millis() as u32, dry_run: false, accept: false };
        self.call(async |mut client: Client| client.release(request).await).map(drop)
    }

    /// Why a VF is not to be had.
    pub fn explain(&self, vf: &Function) -> Result<Vec<String>, Status> {
        let request = ExplainRequest { vf: vf.address.clone(), ..ExplainRequest::default() };
        let reasons = self.call(async |mut client: Client| client.explain(request).await)?.reasons;
        Ok(reasons.into_iter().map(|reason| reason.text).collect())
    }

    /// Asks that so many times at the same time; returns everything that was told.
    pub fn explain_at_once(&self, vf: &Function, times: usize) -> Result<Vec<String>, Status> {
        let request = ExplainRequest { vf: vf.address.clone(), ..ExplainRequest::default() };
        let ask = |()| {
            let (mut client, request) = (self.client.clone(), request.clone());
            self.runtime.spawn(async move { client.explain(request).await })
        };
        let asked: Vec<_> = std::iter::repeat_n((), times).map(ask).collect();
        let mut told = Vec::new();
        for one in asked {
            let answer = self.within(async { one.await.map_err(|error| Status::internal(error.to_string()))? })?;
            told.extend(answer.into_inner().reasons.into_iter().map(|reason| reason.text));
        }
        Ok(told)
    }

    /// Gives the VF of a lease to another lease on `vfio-pci`.
    pub fn hand_over(&self, from: &str, to: &str) -> Result<Vec<String>, Status> {
        let driver = Driver::VfioPci.into();
        let to =
            AcquireRequest { id: to.to_owned(), tenant: "the lab".to_owned(), driver, ..AcquireRequest::default() };
        let request = HandOverRequest { from: from.to_owned(), to: Some(to), wait_ms: 0 };
        Ok(self.call(async |mut client: Client| client.hand_over(request).await)?.steps)
    }

    /// The list now, and again whenever something has changed.
    pub fn watch(&self) -> Result<Watch<'_>, Status> {
        let changes = self.call(async |mut client: Client| client.watch(WatchRequest::default()).await)?;
        Ok(Watch { manager: self, changes, list: ListResponse::default() })
    }

    /// Runs `ferrule vf` with these arguments; returns what it printed.
    pub fn ferrule(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("ferrule").arg("vf").args(arguments).arg("--manager").arg(&self.socket).output();
        let output = output.context("run ferrule")?;
        let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
        ensure!(output.status.success(), "ferrule vf {}: {text}", arguments.join(" "));
        Ok(text)
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal, and does not wait for what comes of it.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Kills it without a chance to tidy up.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Waits until it has ended; returns what it had logged.
    pub fn wait(self) -> String {
        self.process.wait().1
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.process.output()
    }

    fn call<T, F>(&self, call: impl FnOnce(Client) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.within(call(self.client.clone())).map(Response::into_inner)
    }

    fn within<T>(&self, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        self.runtime.block_on(async {
            let late = |_| Status::deadline_exceeded(format!("no answer within {ANSWER_MAX:?}"));
            tokio::time::timeout(ANSWER_MAX, answer).await.map_err(late)?
        })
    }
}

/// Lists as they come.
pub struct Watch<'a> {
    manager: &'a Manager,
    changes: Streaming<WatchResponse>,
    list: ListResponse,
}

impl Watch<'_> {
    /// Waits for a list of which something holds.
    pub fn until(&mut self, holds: impl Fn(&ListResponse) -> bool) -> Result<(), Status> {
        let deadline = Instant::now() + ANSWER_MAX;
        while Instant::now() < deadline {
            let next = async { self.changes.message().await };
            let change = self.manager.within(next)?.ok_or_else(|| Status::unavailable("the stream has ended"))?;
            apply(&mut self.list, change);
            if holds(&self.list) {
                return Ok(());
            }
        }
        Err(Status::deadline_exceeded("no list shows it"))
    }
}

impl ManagerOptions {
    /// Where its API is.
    pub fn socket(&self, lab: &Lab) -> PathBuf {
        lab.state().join(if self.elsewhere { "other.sock" } else { "vf.sock" })
    }

    /// Where its journal is.
    pub fn state(&self, lab: &Lab) -> PathBuf {
        lab.state().join(if self.elsewhere { "other" } else { "manager" })
    }

    fn command(&self, lab: &Lab, socket: &Path) -> Result<Command> {
        let state = self.state(lab);
        if self.die_at.is_some() || self.pause_before_unbind.is_some() {
            let mut command = Command::new("crash-manager");
            command.arg("--socket").arg(socket).arg("--state").arg(state).args(self.call_timeout());
            command.args(self.die_at.iter().flat_map(|point| ["--die-at".to_owned(), point.to_string()]));
            if let Some(file) = &self.pause_before_unbind {
                command.arg("--pause-before-unbind").arg(file);
            }
            return Ok(command);
        }
        let mut command = if self.alone {
            let mut command = Command::new("unshare");
            command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sriov-manager"]);
            command
        } else {
            Command::new("sriov-manager")
        };
        command
            .args(["--log-level", if self.quiet { "info" } else { "debug" }])
            .arg("--socket")
            .arg(socket)
            .arg("--state")
            .arg(state);
        if let Some(policies) = &self.policies {
            let file = lab.state().join("policies.yaml");
            fs::write(&file, policies).context("write the policies")?;
            command.arg("--config").arg(file);
        }
        command.args(self.call_timeout());
        Ok(command)
    }

    fn call_timeout(&self) -> Vec<String> {
        let timeout = self.call_timeout.iter();
        timeout.flat_map(|timeout| ["--call-timeout".to_owned(), format!("{}ms", timeout.as_millis())]).collect()
    }
}

/// How long a start may take: it makes the VFs that the policies want, and brings leases back.
const START_MAX: Duration = Duration::from_secs(30);

/// How long an answer may take: changing the number of VFs of a PF is 2 s of the kernel's own.
const ANSWER_MAX: Duration = Duration::from_mins(1);
