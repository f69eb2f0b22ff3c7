//! The leases of wires: asked for by the name of a wire, kept over restarts of the forwarder, given back when the wire is not wanted any more.
//!
//! A lease is given back when no wire is there that wants it ([`Leases::give_back`]), and not when a device is closed: a device that is
//! lost, or whose forwarder is stopped, comes back.

mod error;
mod known;

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sriov_manager_client::{Client, SOCKET_DEFAULT, connect, v1};
use tonic::Code;
use tracing::{info, warn};

pub use self::error::LeaseError;
use self::known::Known;
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
    wanted: Mutex<Option<WantedFn>>,
}

/// The names of the leases that wires want now; none: nobody knows. It takes no longer than a look at a table.
pub type WantedFn = Arc<dyn Fn() -> Option<BTreeSet<String>> + Send + Sync>;

impl Leases {
    /// None yet.
    pub fn new(settings: LeaseSettings) -> Arc<Self> {
        let (known, changed, wanted) = (Mutex::default(), Condvar::new(), Mutex::default());
        Arc::new(Self { settings, known, changed, wanted })
    }

    /// The socket of the manager.
    pub fn manager(&self) -> &Path {
        &self.settings.manager
    }

    /// Says which leases wires want. As long as nobody says so, none is given back.
    pub fn keep_what(&self, wanted: WantedFn) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(wanted);
    }

    /// Borrows the VF that an end of a wire wants, on `vfio-pci`; or shows the one that it has. If there is none, what no wire wants any more is
    /// given back first.
    pub fn borrow(self: &Arc<Self>, name: &str, spec: &VfSpec) -> Result<(Lease, v1::Vf), LeaseError> {
        let lease = self.hold(name)?;
        let is_any_leaving = self.known().is_any_leaving();
        let vf = match self.acquire(name, spec) {
            Err(LeaseError::Refused(_)) if self.give_back_for_borrower() || is_any_leaving => self.acquire(name, spec),
            answer => answer,
        }?;
        Ok((lease, vf))
    }

    fn acquire(&self, name: &str, spec: &VfSpec) -> Result<v1::Vf, LeaseError> {
        self.ask(async |mut client| {
            let list = list(&mut client).await?;
            self.is_ours(name, &list)?;
            let request = self.request(name, spec, choose(&list.vfs, name, spec)?);
            let answer = match client.acquire(request.clone()).await.map_err(LeaseError::from) {
                // The wire wanted another VF before: the same name, and another lease.
                Err(error) if error.is_refusal(v1::RefusalKind::IdTaken) => {
                    // Somebody else may have taken the name since.
                    self.is_ours(name, &self::list(&mut client).await?)?;
                    client.release(release(name, HOLDER_WAIT_MS)).await?;
                    client.acquire(request).await?
                }
                answer => answer?,
            };
            answer.into_inner().vf.ok_or(LeaseError::NoVf)
        })
    }

    /// Gives back every lease of this forwarder that no wire wants and no device is made of, also those that the forwarder before it left. What
    /// cannot be given back now is tried again when this is called again, ever more rarely.
    pub fn give_back(&self) {
        let looked = self.look();
        let names = self.unwanted();
        let outcome = looked.and_then(|()| self.give_back_all(&names));
        // Without a manager there may be nothing that it should take.
        let problem = outcome.err().filter(|_| !names.is_empty()).map(|problem| problem.to_string());
        let mut known = self.known();
        if known.told != problem
            && let Some(problem) = &problem
        {
            warn!(problem, "VFs of wires that are gone are not given back yet");
        }
        // One that is not due now has not been mended.
        if problem.is_some() || !names.is_empty() {
            known.told = problem;
        }
    }

    /// The same before somebody is told that there is no VF: it may be about to be given back. Whether there was one.
    fn give_back_for_borrower(&self) -> bool {
        let names = self.unwanted();
        let is_any_leaving = self.known().is_any_leaving();
        if let Err(problem) = self.give_back_all(&names) {
            info!(%problem, "VFs of wires that are gone are not given back yet");
        }
        // Others may be doing so.
        drop(self.changed.wait_timeout_while(self.known(), ANSWER_MAX, |known| known.is_any_leaving()));
        is_any_leaving || !names.is_empty()
    }

    fn unwanted(&self) -> Vec<String> {
        let asked = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(wanted) = asked.and_then(|wanted| wanted()) else { return Vec::new() };
        self.known().due(&wanted, Instant::now())
    }

    /// One that somebody holds does not stop the others; a manager that does not answer does.
    fn give_back_all(&self, names: &[String]) -> Result<(), LeaseError> {
        let mut outcome = Ok(());
        for name in names {
            match self.give_back_one(name) {
                Err(error) if error.is_about_manager() => return Err(error),
                Err(error) => outcome = Err(error),
                Ok(()) => {}
            }
        }
        outcome
    }

    /// Finds what the forwarder before this one had, once.
    fn look(&self) -> Result<(), LeaseError> {
        {
            let known = self.known();
            if known.has_looked || !known.look.is_due(Instant::now()) {
                return Ok(());
            }
        }
        let answer = self.ask(async |mut client| list(&mut client).await);
        let mut known = self.known();
        match answer {
            Ok(list) => {
                let is_ours =
                    |lease: &&v1::Lease| lease.tenant == self.settings.forwarder && lease.id.starts_with(PREFIX);
                all(&list).filter(is_ours).for_each(|lease| known.note(&lease.id));
                known.has_looked = true;
                Ok(())
            }
            Err(error) => {
                known.look.fail(Instant::now());
                Err(error)
            }
        }
    }

    fn give_back_one(&self, name: &str) -> Result<(), LeaseError> {
        let Some(is_again) = self.known().begin_giving(name) else { return Ok(()) };
        // The kernel lets go of a device that was just closed. Who has not let go then may never.
        let wait = if is_again { 0 } else { HOLDER_WAIT_MS };
        let given = self.ask(async |mut client| match client.release(release(name, wait)).await {
            // It was never lent, or somebody else has given it back.
            Err(status) if status.code() == Code::NotFound => Ok(false),
            answer => Ok(answer.map(|_| true)?),
        });
        let given = match given {
            // It is given back, and the manager goes on cleaning it.
            Err(error) if error.is_refusal(v1::RefusalKind::Dirty) => {
                warn!(lease = name, %error, "the VF of a wire is given back, and is not clean");
                Ok(true)
            }
            given => given,
        };
        let mut known = self.known();
        match &given {
            Ok(was_lent) => {
                known.forget(name);
                if *was_lent {
                    info!(lease = name, "the VF of a wire is given back");
                }
            }
            Err(_) => known.put_off(name, Instant::now()),
        }
        self.changed.notify_all();
        given.map(drop)
    }

    /// Notes that a device is made of it, as soon as it is not just given back.
    fn hold(self: &Arc<Self>, name: &str) -> Result<Lease, LeaseError> {
        let (mut known, _) = self
            .changed
            .wait_timeout_while(self.known(), ANSWER_MAX, |known| known.is_leaving(name))
            .unwrap_or_else(PoisonError::into_inner);
        if !known.begin_use(name) {
            return Err(LeaseError::InUse(name.to_owned()));
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

    fn request(&self, name: &str, spec: &VfSpec, address: Option<String>) -> v1::AcquireRequest {
        let VfAttributes { mac, vlan, trust, spoof_check } = spec.attributes;
        v1::AcquireRequest {
            id: name.to_owned(),
            tenant: self.settings.forwarder.clone(),
            vf: address.unwrap_or_default(),
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
        let runtime = runtime.map_err(LeaseError::NoRuntime)?;
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

    /// Asks whether it is still of this VF, and ours: between the moment that it was lent and the moment that the VF was opened somebody may have
    /// given it back, or another forwarder may have taken its name.
    pub fn check(&self, address: &str) -> Result<(), LeaseError> {
        self.leases.ask(async |mut client| {
            let list = list(&mut client).await?;
            self.leases.is_ours(&self.name, &list)?;
            let is_of = |vf: &v1::Vf| vf.lease.as_ref().is_some_and(|lease| lease.id == self.name);
            match list.vfs.iter().find(|vf| is_of(vf)) {
                Some(vf) if vf.address == address => Ok(()),
                _ => Err(LeaseError::Changed { name: self.name.clone(), address: address.to_owned() }),
            }
        })
    }

    /// How long a device of it waits for its link, if the one before has left word.
    pub fn link_wait(&self) -> Option<Duration> {
        self.leases.known().link_wait(&self.name)
    }

    /// Leaves word for the next device.
    pub fn set_link_wait(&self, wait: Duration) {
        self.leases.known().set_link_wait(&self.name, wait);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // It may not even have been lent: whoever gives it back is told so.
        self.leases.known().end_use(&self.name);
        self.leases.changed.notify_all();
    }
}

/// Which VF is asked for; none: any of the pools. DPDK cannot poll those of Mellanox, for which the kernel's driver would have to stay: they
/// are not borrowed at all, and one of a pool that has others as well is chosen here.
fn choose(vfs: &[v1::Vf], name: &str, spec: &VfSpec) -> Result<Option<String>, LeaseError> {
    let is_wanted = |vf: &&v1::Vf| match &spec.address {
        Some(address) => vf.address == *address,
        None => vf.pools.iter().any(|pool| spec.pools.contains(pool)),
    };
    let (refused, others): (Vec<_>, Vec<_>) = vfs.iter().filter(is_wanted).partition(|vf| vf.vendor == MELLANOX);
    if let ([refused, ..], []) = (&*refused, &*others) {
        return Err(LeaseError::Mellanox(refused.address.clone()));
    }
    if spec.address.is_some() || refused.is_empty() {
        return Ok(spec.address.clone());
    }
    // The one that it has, then one that is free, by the order of the pools. If none is, the manager says why.
    let rank = |vf: &&v1::Vf| {
        let has = vf.lease.as_ref().is_some_and(|lease| lease.id == name);
        (!has, vf.state() != v1::VfState::Free, spec.pools.iter().position(|pool| vf.pools.contains(pool)))
    };
    Ok(others.into_iter().min_by_key(rank).map(|vf| vf.address.clone()))
}

async fn list(client: &mut Client) -> Result<v1::ListResponse, LeaseError> {
    Ok(client.list(v1::ListRequest::default()).await?.into_inner())
}

fn release(name: &str, wait_ms: u32) -> v1::ReleaseRequest {
    v1::ReleaseRequest { lease: name.to_owned(), wait_ms, dry_run: false, accept: false }
}

/// Every lease of a list.
fn all(list: &v1::ListResponse) -> impl Iterator<Item = &v1::Lease> {
    list.vfs.iter().filter_map(|vf| vf.lease.as_ref()).chain(&list.lost)
}

/// PCI vendor id.
const MELLANOX: u32 = 0x15b3;
const PREFIX: &str = "wire/";
/// One call into the kernel may take 15 s.
const ANSWER_MAX: Duration = Duration::from_mins(1);
/// The kernel lets go of a device that was just closed.
const HOLDER_WAIT_MS: u32 = 5000;
