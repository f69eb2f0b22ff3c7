//! The leases of wires: asked for by the name of a wire, kept over restarts of the forwarder, given back when the wire is not wanted any more.
//!
//! A lease is given back by whoever knows which wires there should be ([`Leases::give_back`]), and not when a device is closed: a device that is
//! lost, or whose forwarder is stopped, comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::unistd::geteuid;
use sriov_manager_client::{Client, ConnectError, SOCKET_DEFAULT, connect, refusal, v1};
use thiserror::Error;
use tonic::{Code, Status};
use tracing::{info, warn};

use super::spec::{VfAttributes, VfSpec};

/// Where VFs come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseSettings {
    /// The socket of the manager.
    pub manager: PathBuf,
    /// Who asks: what tells this forwarder's leases from those of another one, and stays the same over its restarts.
    pub forwarder: String,
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self { manager: SOCKET_DEFAULT.into(), forwarder: "dpdk-forwarder".to_owned() }
    }
}

/// What a lease is called: after the wire, and the end of it that the VF is.
pub fn lease_name(wire: &str, end: usize) -> String {
    format!("{PREFIX}{wire}/{}", ["A", "B"][end.min(1)])
}

/// Says where VFs come from. What is said first holds.
pub fn configure_leases(settings: LeaseSettings) {
    // Whoever comes later is told what holds by nobody: a process has one forwarder.
    let _ = LEASES.set(Leases::new(settings));
}

/// Those of this process.
pub fn leases() -> &'static Arc<Leases> {
    LEASES.get_or_init(|| Leases::new(LeaseSettings::default()))
}

static LEASES: OnceLock<Arc<Leases>> = OnceLock::new();

/// What this forwarder has borrowed. Each call waits for the manager.
pub struct Leases {
    settings: LeaseSettings,
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Default)]
struct Known {
    /// The leases that there may be, by name.
    leases: BTreeMap<String, State>,
    /// The manager was asked for those of the forwarder before this one.
    has_looked: bool,
    /// Why a lease could not be given back last, so that the same is not told again and again.
    told: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unused,
    /// A device is made of its VF.
    Used,
    GivenBack,
}

impl Leases {
    /// None yet.
    pub fn new(settings: LeaseSettings) -> Arc<Self> {
        Arc::new(Self { settings, known: Mutex::default(), changed: Condvar::new() })
    }

    /// Borrows the VF that an end of a wire wants, on `vfio-pci`; or shows the one that it has.
    pub fn borrow(self: &Arc<Self>, name: &str, spec: &VfSpec) -> Result<(Lease, v1::Vf), LeaseError> {
        let lease = self.hold(name)?;
        let vf = self.ask(async |mut client| {
            let list = client.list(v1::ListRequest::default()).await?.into_inner();
            self.is_ours(name, &list)?;
            let request = self.request(name, spec);
            let answer = match client.acquire(request.clone()).await {
                // The wire wanted another VF before: the same name, and another lease.
                Err(status) if is_of_kind(&status, v1::RefusalKind::IdTaken) => {
                    client.release(release(name)).await?;
                    client.acquire(request).await?
                }
                answer => answer?,
            };
            answer.into_inner().vf.ok_or_else(|| LeaseError::Refused("the manager names no VF".to_owned()))
        })?;
        Ok((lease, vf))
    }

    /// Gives back every lease of this forwarder that no wire wants and no device is made of, also those that the forwarder before it left. What
    /// cannot be given back now is tried again when this is called again.
    pub fn give_back(&self, wanted: impl FnOnce() -> BTreeSet<String>) {
        let looked = self.look();
        let wanted = wanted();
        let names: Vec<_> = self.known().leases.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        let outcome = looked.and_then(|()| {
            // One that somebody holds does not stop the others.
            let given: Vec<_> = names.iter().map(|name| self.give_back_one(name)).collect();
            given.into_iter().collect::<Result<(), _>>()
        });
        // Without a manager there may be nothing that it should take.
        let problem = outcome.err().filter(|_| !names.is_empty()).map(|problem| problem.to_string());
        let mut known = self.known();
        if known.told != problem
            && let Some(problem) = &problem
        {
            warn!(problem, "VFs of wires that are gone are not given back yet");
        }
        known.told = problem;
    }

    /// Finds what the forwarder before this one had, once.
    fn look(&self) -> Result<(), LeaseError> {
        if self.known().has_looked {
            return Ok(());
        }
        let list = self.ask(async |mut client| Ok(client.list(v1::ListRequest::default()).await?.into_inner()))?;
        let uid = geteuid().as_raw();
        let ours = all(&list).filter(|lease| {
            lease.uid == uid && lease.tenant == self.settings.forwarder && lease.id.starts_with(PREFIX)
        });
        let mut known = self.known();
        for lease in ours {
            known.leases.entry(lease.id.clone()).or_insert(State::Unused);
        }
        known.has_looked = true;
        Ok(())
    }

    fn give_back_one(&self, name: &str) -> Result<(), LeaseError> {
        {
            let mut known = self.known();
            match known.leases.get_mut(name) {
                Some(state @ State::Unused) => *state = State::GivenBack,
                _ => return Ok(()),
            }
        }
        let given = self.ask(async |mut client| match client.release(release(name)).await {
            // It was never lent, or somebody else has given it back.
            Err(status) if status.code() == Code::NotFound => Ok(false),
            answer => Ok(answer.map(|_| true)?),
        });
        let mut known = self.known();
        match &given {
            Ok(was_lent) => {
                known.leases.remove(name);
                if *was_lent {
                    info!(lease = name, "the VF of a wire is given back");
                }
            }
            Err(_) => {
                known.leases.insert(name.to_owned(), State::Unused);
            }
        }
        self.changed.notify_all();
        given.map(drop)
    }

    /// Notes that a device is made of it, as soon as it is not just given back.
    fn hold(self: &Arc<Self>, name: &str) -> Result<Lease, LeaseError> {
        let is_leaving = |known: &mut Known| known.leases.get(name) == Some(&State::GivenBack);
        let (mut known, _) = self
            .changed
            .wait_timeout_while(self.known(), ANSWER_MAX, is_leaving)
            .unwrap_or_else(PoisonError::into_inner);
        match known.leases.insert(name.to_owned(), State::Used) {
            None | Some(State::Unused) => {}
            Some(state) => {
                known.leases.insert(name.to_owned(), state);
                return Err(LeaseError::InUse(name.to_owned()));
            }
        }
        Ok(Lease { leases: Arc::clone(self), name: name.to_owned() })
    }

    /// Another forwarder, or somebody else, may have a lease of that name.
    fn is_ours(&self, name: &str, list: &v1::ListResponse) -> Result<(), LeaseError> {
        match all(list).find(|lease| lease.id == name) {
            Some(lease) if lease.tenant != self.settings.forwarder => {
                Err(LeaseError::OfAnother { name: name.to_owned(), tenant: lease.tenant.clone() })
            }
            _ => Ok(()),
        }
    }

    fn request(&self, name: &str, spec: &VfSpec) -> v1::AcquireRequest {
        let VfAttributes { mac, vlan, trust, spoof_check } = spec.attributes;
        v1::AcquireRequest {
            id: name.to_owned(),
            tenant: self.settings.forwarder.clone(),
            vf: spec.address.clone().unwrap_or_default(),
            pools: spec.pools.clone(),
            driver: v1::Driver::VfioPci.into(),
            attributes: Some(v1::Attributes {
                mac: mac.map(|mac| mac.to_string()),
                vlan: vlan.map(|id| v1::Vlan { id: id.into(), ..v1::Vlan::default() }),
                trust,
                spoof_check,
                ..v1::Attributes::default()
            }),
            ..v1::AcquireRequest::default()
        }
    }

    /// Asks the manager, on this thread.
    fn ask<T, F>(&self, question: impl FnOnce(Client) -> F) -> Result<T, LeaseError>
    where
        F: Future<Output = Result<T, LeaseError>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| LeaseError::Refused(format!("no runtime ({error})")))?;
        let answer = async {
            let client = connect(&self.settings.manager).await?;
            question(client).await
        };
        // The timer is the runtime's, so it is made in it.
        runtime.block_on(async { tokio::time::timeout(ANSWER_MAX, answer).await.map_err(|_| LeaseError::Late)? })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lease whose VF is used as a device, until this is dropped. The lease stays then.
pub struct Lease {
    leases: Arc<Leases>,
    name: String,
}

impl Lease {
    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // It may not even have been lent: whoever gives it back is told so.
        self.leases.known().leases.insert(std::mem::take(&mut self.name), State::Unused);
        self.leases.changed.notify_all();
    }
}

/// Why a VF is not to be had.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// There is no manager.
    #[error(transparent)]
    NoManager(#[from] ConnectError),
    /// It does not answer.
    #[error("sriov-manager has not answered for {ANSWER_MAX:?}")]
    Late,
    /// It says no.
    #[error("{0}")]
    Refused(String),
    /// Another forwarder has a wire of that name.
    #[error("the lease `{name}` is of {tenant}")]
    OfAnother {
        /// What it is called.
        name: String,
        /// Whose it is.
        tenant: String,
    },
    /// The device before it is not closed yet.
    #[error("the lease `{0}` is still in use by the device before")]
    InUse(String),
}

impl LeaseError {
    /// What to do.
    pub fn cure(&self) -> &'static str {
        match self {
            Self::NoManager(_) => {
                "a wire of the file or the journal is then made by itself, any other has to be added again"
            }
            Self::Late => {
                "see its log; a wire of the file or the journal is tried again, any other has to be added again"
            }
            Self::Refused(_) => "`ferrule vf list` shows who has which VF",
            Self::OfAnother { .. } => "rename one of the wires, or give it back with `ferrule vf release`",
            Self::InUse(_) => "the wire is tried again",
        }
    }
}

impl From<Status> for LeaseError {
    fn from(status: Status) -> Self {
        Self::Refused(status.message().to_owned())
    }
}

fn release(name: &str) -> v1::ReleaseRequest {
    v1::ReleaseRequest { lease: name.to_owned(), wait_ms: HOLDER_WAIT_MS, dry_run: false, accept: false }
}

fn is_of_kind(status: &Status, kind: v1::RefusalKind) -> bool {
    refusal(status).is_some_and(|refusal| refusal.kind() == kind)
}

/// Every lease of a list.
fn all(list: &v1::ListResponse) -> impl Iterator<Item = &v1::Lease> {
    list.vfs.iter().filter_map(|vf| vf.lease.as_ref()).chain(&list.lost)
}

const PREFIX: &str = "wire/";
/// One call into the kernel may take 15 s.
const ANSWER_MAX: Duration = Duration::from_mins(1);
/// The kernel lets go of a device that was just closed.
const HOLDER_WAIT_MS: u32 = 5000;
