//! The API: gRPC on a Unix socket. `vf.proto` of the crate `sriov-manager-client` says what it promises.
//!
//! In reading order: `limits` (what one user may have at once), `lists` (what is told, and what of it changed), `convert` (what
//! others see as messages), `refusals` (errors as statuses).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ferrule_daemon::grpc::{self, ServeError, blocking};
use ferrule_daemon::{Phase, ServiceSocket};
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout_at};
use tokio_stream::Stream;
use tonic::service::Routes;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Extensions, Request, Response, Status};

use sriov_manager_client::v1::{self, vfs_server::VfsServer};

use crate::address::PciAddress;
use crate::lease::{Claim, Cordon, Lease};
use crate::policy::PeerCredentials;
use crate::vfs::{
    Acquired, Applied, Caller, Created, HostVfs, Reason, Recovery, Remains, VfError, Vfs, WhenBusy,
    pause_before_next_look,
};

mod convert;
mod limits;
mod lists;
mod refusals;

pub use convert::{reason, response};

use convert::{Peer, some};
use limits::{CHANGES, CHANGES_MAX, Limits, QUESTIONS, QUESTIONS_MAX, Queues};
use lists::{ListFilter, Lists};
use refusals::{refusal, wrong};

/// Serves the API, health and reflection until the daemon has stopped.
pub async fn serve(socket: ServiceSocket, vfs: Vfs, phase: watch::Receiver<Phase>) -> Result<(), ServeError> {
    let api = VfsServer::new(Service {
        lists: Arc::new(Lists::new(vfs.clone())),
        vfs,
        phase: phase.clone(),
        changes: Limits::new(CHANGES, CHANGES_MAX),
        questions: Limits::new(QUESTIONS, QUESTIONS_MAX),
        releases: Queues::default(),
        busy: Queues::default(),
    });
    let names = ["", v1::vfs_server::SERVICE_NAME];
    grpc::serve(socket, Routes::new(api), v1::DESCRIPTORS, &names, phase).await
}

struct Service {
    vfs: Vfs,
    phase: watch::Receiver<Phase>,
    lists: Arc<Lists>,
    changes: Limits,
    questions: Limits,
    /// Who waits for the holders of leases.
    releases: Queues,
    /// Who waits for other operations on the same VFs.
    busy: Queues,
}

impl Service {
    /// Does what changes something: on a thread while it works, and without one while it waits for its turn or for somebody who
    /// works on the same VF.
    async fn change<T: Send + 'static>(
        &self,
        peer: Peer,
        work: impl Fn(&Vfs, Caller<'_>) -> Result<T, VfError> + Send + Sync + 'static,
    ) -> Result<T, Status> {
        let call = self.changes.enter(peer.credentials.uid)?;
        self.may_change().await?;
        let deadline = Instant::now() + self.vfs.busy_timeout();
        let left = Arc::new(AtomicBool::new(false));
        let _waiting = Waiting(Arc::clone(&left));
        let work = Arc::new(work);
        let mut turn = None;
        loop {
            // Before the try, so that no news between the two is missed.
            let mut unlocked = self.vfs.watch_unlocked();
            let permits = call.permits().await?;
            let (vfs, work, left) = (self.vfs.clone(), Arc::clone(&work), Arc::clone(&left));
            let done = blocking(move || {
                let _permits = permits;
                let has_left = || left.load(Ordering::Relaxed);
                work(&vfs, Caller { has_left: &has_left, when_busy: WhenBusy::Refuse })
            })
            .await?;
            match done {
                Err(VfError::Busy { what }) if Instant::now() < deadline => {
                    // Of those that wait for the same VF one tries again, so that it costs as much as there are of them. At the
                    // deadline everybody does, once.
                    if turn.is_some() {
                        self.while_serving(deadline, unlocked.changed()).await?;
                    } else {
                        turn = self.while_serving(deadline, self.busy.turn(&what)).await?;
                    }
                }
                other => return other.map_err(|error| refusal(&error)),
            }
        }
    }

    /// Asks something that may have to wait for the kernel.
    async fn ask<T: Send + 'static>(
        &self,
        peer: Peer,
        work: impl FnOnce(&Vfs) -> Result<T, VfError> + Send + 'static,
    ) -> Result<T, Status> {
        let permits = self.questions.enter(peer.credentials.uid)?.permits().await?;
        let vfs = self.vfs.clone();
        let answer = blocking(move || {
            let _permits = permits;
            work(&vfs)
        });
        answer.await?.map_err(|error| refusal(&error))
    }

    /// Tries what fails while somebody holds a VF again and again, for so long. Of those that wait for the same lease one looks.
    async fn until_let_go<T: Send + 'static>(
        &self,
        peer: Peer,
        lease: &str,
        wait_ms: u32,
        work: impl Fn(&Vfs, Caller<'_>) -> Result<T, VfError> + Send + Sync + 'static,
    ) -> Result<T, Status> {
        if wait_ms > WAIT_MS_MAX {
            return Err(wrong(format!("wait_ms {wait_ms}; at most {WAIT_MS_MAX} is wanted")));
        }
        let deadline = Instant::now() + Duration::from_millis(wait_ms.into());
        let work = Arc::new(work);
        let attempt = async || {
            let work = Arc::clone(&work);
            let tried = self.change(peer, move |vfs, caller| match work(vfs, caller) {
                Err(error @ VfError::Held { .. }) => Ok(Err(error)),
                other => other.map(Ok),
            });
            tried.await
        };
        let mut began = Instant::now();
        let mut held = match attempt().await? {
            Ok(done) => return Ok(done),
            Err(held) => held,
        };
        let mut next = Instant::now() + pause_before_next_look(began.elapsed());
        let Some(_turn) = self.while_serving(deadline, self.releases.turn(lease)).await? else {
            return Err(refusal(&held));
        };
        while Instant::now() < deadline {
            self.while_serving(deadline, sleep_until(next.min(deadline).into())).await?;
            began = Instant::now();
            held = match attempt().await? {
                Ok(done) => return Ok(done),
                Err(held) => held,
            };
            next = Instant::now() + pause_before_next_look(began.elapsed());
        }
        Err(refusal(&held))
    }

    /// Waits for something until a deadline, unless the daemon stops. None: it did not come.
    async fn while_serving<T>(&self, deadline: Instant, wanted: impl Future<Output = T>) -> Result<Option<T>, Status> {
        let mut phase = self.phase.clone();
        let came = tokio::select! {
            came = timeout_at(deadline.into(), wanted) => came.ok(),
            _ = phase.wait_for(|phase| matches!(phase, Phase::Draining | Phase::Stopped)) => None,
        };
        self.is_serving().map(|()| came)
    }

    fn is_serving(&self) -> Result<(), Status> {
        match *self.phase.borrow() {
            Phase::Starting | Phase::Serving => Ok(()),
            Phase::Draining | Phase::Stopped => {
                Err(refusal(&VfError::Stopping { tried: "take a call that changes something".to_owned() }))
            }
        }
    }

    /// Waits until VFs no longer come and go because of the start.
    async fn may_change(&self) -> Result<(), Status> {
        self.is_serving()?;
        let (mut recovery, mut phase) = (self.vfs.watch_recovery(), self.phase.clone());
        tokio::select! {
            _ = recovery.wait_for(|recovery| *recovery >= Recovery::Leases) => {}
            _ = phase.wait_for(|phase| matches!(phase, Phase::Draining | Phase::Stopped)) => {}
        }
        self.is_serving()
    }

    async fn requests(
        &self,
        messages: Vec<v1::AcquireRequest>,
        peer: Peer,
    ) -> Result<Vec<crate::vfs::Request>, Status> {
        let read = move |vfs: &Vfs| -> Result<Vec<_>, VfError> {
            let read = |message| convert::request(message, peer, vfs).map_err(VfError::Wrong);
            messages.into_iter().map(read).collect()
        };
        self.ask(peer, read).await
    }

    async fn acquire_all_of(
        &self,
        messages: Vec<v1::AcquireRequest>,
        same_pf: bool,
        dry_run: bool,
        peer: Peer,
    ) -> Result<Vec<v1::AcquireResponse>, Status> {
        self.may_change().await?;
        let requests = self.requests(messages, peer).await?;
        let acquired = self.change(peer, move |vfs, caller| {
            let acquired = if dry_run {
                vfs.plan_acquire_all(&requests, same_pf, caller)?
            } else {
                vfs.acquire_all(&requests, same_pf, caller)?
            };
            Ok(acquired.iter().map(|acquired| response_to_acquire(vfs, acquired)).collect())
        });
        acquired.await
    }
}

#[tonic::async_trait]
impl v1::vfs_server::Vfs for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let message = request.into_inner();
        let driver = convert::optional_driver(message.driver).map_err(wrong)?;
        let wanted = ListFilter { driver, pools: message.pools };
        let lists = Arc::clone(&self.lists);
        let list = blocking(move || lists.now(&wanted)).await?;
        Ok(Response::new(Arc::unwrap_or_clone(list)))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let message = request.into_inner();
        let driver = convert::optional_driver(message.driver).map_err(wrong)?;
        let wanted = ListFilter { driver, pools: message.pools };
        Ok(Response::new(Box::pin(lists::watch(Arc::clone(&self.lists), wanted, self.phase.clone()))))
    }

    async fn create(&self, request: Request<v1::CreateRequest>) -> Result<Response<v1::CreateResponse>, Status> {
        let peer = root(request.extensions(), "change numbers of VFs")?;
        let v1::CreateRequest { counts, dry_run, force } = request.into_inner();
        if counts.is_empty() {
            return Err(wrong("counts: at least one PF is wanted".to_owned()));
        }
        let host = if force { HostVfs::Taken } else { HostVfs::Kept };
        let created = self.change(peer, move |vfs, _| Ok(create(vfs, &counts, dry_run, host))).await?;
        Ok(Response::new(v1::CreateResponse { created }))
    }

    async fn acquire(&self, request: Request<v1::AcquireRequest>) -> Result<Response<v1::AcquireResponse>, Status> {
        let peer = peer(request.extensions());
        let message = request.into_inner();
        let dry_run = message.dry_run;
        let mut acquired = self.acquire_all_of(vec![message], false, dry_run, peer).await?;
        Ok(Response::new(acquired.remove(0)))
    }

    async fn acquire_all(
        &self,
        request: Request<v1::AcquireAllRequest>,
    ) -> Result<Response<v1::AcquireAllResponse>, Status> {
        let peer = peer(request.extensions());
        let v1::AcquireAllRequest { leases, same_pf, dry_run } = request.into_inner();
        let leases = self.acquire_all_of(leases, same_pf, dry_run, peer).await?;
        Ok(Response::new(v1::AcquireAllResponse { leases }))
    }

    async fn hand_over(&self, request: Request<v1::HandOverRequest>) -> Result<Response<v1::AcquireResponse>, Status> {
        let peer = peer(request.extensions());
        let v1::HandOverRequest { from, to, wait_ms } = request.into_inner();
        let mut to = to.ok_or_else(|| wrong("to: the lease that begins is wanted".to_owned()))?;
        // It gets the VF of the one that ends, from the same pool.
        (to.vf, to.pools) = (PciAddress::new(0, 0, 0, 0).to_string(), Vec::new());
        self.may_change().await?;
        let to = self.requests(vec![to], peer).await?.remove(0);
        let lease = from.clone();
        let handed = self.until_let_go(peer, &lease, wait_ms, move |vfs, caller| {
            Ok(response_to_acquire(vfs, &vfs.hand_over(&from, &to, caller)?))
        });
        Ok(Response::new(handed.await?))
    }

    async fn update(&self, request: Request<v1::UpdateRequest>) -> Result<Response<v1::UpdateResponse>, Status> {
        let peer = peer(request.extensions());
        let v1::UpdateRequest { lease, holder, until, until_released } = request.into_inner();
        if until.is_some() && until_released {
            return Err(wrong("until, until_released: one of both is wanted".to_owned()));
        }
        let updated = self.change(peer, move |vfs, caller| {
            let until =
                until.clone().map(|until| convert::until(until, peer, vfs)).transpose().map_err(VfError::Wrong)?;
            let until = if until_released { Some(None) } else { until.map(Some) };
            let lease = vfs.update(&lease, some(holder.clone()), until, peer.credentials, caller)?;
            Ok(convert::lease(&lease, None))
        });
        Ok(Response::new(v1::UpdateResponse { lease: Some(updated.await?) }))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        let peer = peer(request.extensions());
        let v1::ReleaseRequest { lease, wait_ms, dry_run, accept } = request.into_inner();
        if dry_run {
            let steps =
                self.change(peer, move |vfs, caller| vfs.plan_release(&lease, peer.credentials, caller)).await?;
            let steps = steps.iter().map(ToString::to_string).collect();
            return Ok(Response::new(v1::ReleaseResponse { vf: String::new(), steps }));
        }
        let remains = if accept { Remains::Accepted } else { Remains::Refused };
        let name = lease.clone();
        let released = self.until_let_go(peer, &name, wait_ms, move |vfs, caller| {
            vfs.release_once(&lease, remains, peer.credentials, caller)
        });
        let vf = released.await?.vf.to_string();
        Ok(Response::new(v1::ReleaseResponse { vf, steps: Vec::new() }))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let peer = peer(request.extensions());
        let message = request.into_inner();
        let driver = convert::optional_driver(message.driver).map_err(wrong)?.unwrap_or_default();
        let v1::ExplainRequest { vf, owner, .. } = message;
        let explain = move |vfs: &Vfs| vfs.explain_to(vfs.find_vf(&vf)?, driver, some(owner).as_deref());
        let reasons = self.ask(peer, explain).await?;
        Ok(Response::new(v1::ExplainResponse { reasons: reasons.iter().map(reason).collect() }))
    }

    async fn claim(&self, request: Request<v1::ClaimRequest>) -> Result<Response<v1::ClaimResponse>, Status> {
        let peer = peer(request.extensions());
        let v1::ClaimRequest { owner, pools, vfs } = request.into_inner();
        let parse = |vf: String| vf.parse().map_err(|error| wrong(format!("vfs: {error}")));
        let vfs = vfs.into_iter().map(parse).collect::<Result<_, _>>()?;
        let claim = Claim { pools, vfs, ..Claim::default() };
        let claimed = self.change(peer, move |vfs, _| {
            let claimed = vfs.claim(&owner, claim.clone(), peer.credentials)?;
            let vf = |vf: &PciAddress| Some(convert::vf(&vfs.vf_view(*vf)?, None));
            Ok(v1::ClaimResponse {
                vfs: claimed.vfs.iter().map(ToString::to_string).collect(),
                lent_to_others: claimed.lent_to_others.iter().filter_map(|(lent, _)| vf(lent)).collect(),
            })
        });
        Ok(Response::new(claimed.await?))
    }

    async fn unclaim(&self, request: Request<v1::UnclaimRequest>) -> Result<Response<v1::UnclaimResponse>, Status> {
        let peer = peer(request.extensions());
        let v1::UnclaimRequest { owner } = request.into_inner();
        self.change(peer, move |vfs, _| vfs.unclaim(&owner, peer.credentials)).await?;
        Ok(Response::new(v1::UnclaimResponse {}))
    }

    async fn cordon(&self, request: Request<v1::CordonRequest>) -> Result<Response<v1::CordonResponse>, Status> {
        let peer = root(request.extensions(), "cordon PFs")?;
        let v1::CordonRequest { pf, why } = request.into_inner();
        let cordon = some(why).map(|why| Cordon { uid: peer.credentials.uid, why });
        self.change(peer, move |vfs, _| vfs.cordon(vfs.find_pf(&pf)?, cordon.clone())).await?;
        Ok(Response::new(v1::CordonResponse {}))
    }

    async fn blockers(&self, request: Request<v1::BlockersRequest>) -> Result<Response<v1::BlockersResponse>, Status> {
        let peer = peer(request.extensions());
        let v1::BlockersRequest { pf } = request.into_inner();
        let found = self.ask(peer, move |vfs| vfs.blockers(vfs.find_pf(&pf)?)).await?;
        Ok(Response::new(v1::BlockersResponse { blockers: blockers(&found) }))
    }

    async fn apply_policies(
        &self,
        request: Request<v1::ApplyPoliciesRequest>,
    ) -> Result<Response<v1::ApplyPoliciesResponse>, Status> {
        let peer = root(request.extensions(), "apply policies")?;
        let v1::ApplyPoliciesRequest { document, dry_run } = request.into_inner();
        let applied =
            self.change(
                peer,
                move |vfs, _| {
                    if dry_run { vfs.plan_policies(&document) } else { vfs.apply_policies(&document) }
                },
            );
        Ok(Response::new(response_to_policies(&applied.await?)))
    }
}

/// Held by the answer that somebody waits for: it is dropped when he goes.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn response_to_acquire(vfs: &Vfs, acquired: &Acquired) -> v1::AcquireResponse {
    let steps = acquired.steps.iter().map(ToString::to_string).collect();
    v1::AcquireResponse { vf: vfs.vf_view(acquired.vf).map(|view| convert::vf(&view, None)), steps }
}

fn response_to_policies(applied: &Applied) -> v1::ApplyPoliciesResponse {
    let change = |change: &crate::vfs::PolicyChange| v1::PolicyChange {
        pf: change.pf.to_string(),
        from: change.from,
        to: change.to,
        error: change.error.clone().unwrap_or_default(),
        blockers: blockers(&change.blockers),
    };
    v1::ApplyPoliciesResponse {
        generation: applied.generation,
        changes: applied.changes.iter().map(change).collect(),
        forbidden: applied.forbidden.iter().map(|lease: &Lease| convert::lease(lease, None)).collect(),
        warnings: applied.warnings.clone(),
    }
}

fn blockers(found: &[(PciAddress, Reason)]) -> Vec<v1::Blocker> {
    let blocker = |(vf, why): &(PciAddress, Reason)| v1::Blocker { vf: vf.to_string(), reason: Some(reason(why)) };
    found.iter().map(blocker).collect()
}

fn create(vfs: &Vfs, counts: &[v1::Count], dry_run: bool, host: HostVfs) -> Vec<v1::Created> {
    let found: Vec<_> = counts.iter().map(|count| vfs.find_pf(&count.pf)).collect();
    let good: Vec<_> =
        counts.iter().zip(&found).filter_map(|(count, pf)| Some((*pf.as_ref().ok()?, count.count))).collect();
    let mut results = if dry_run {
        good.iter().map(|&(pf, count)| (pf, vfs.plan_create(pf, count, host))).collect()
    } else {
        vfs.create_all(&good, host)
    }
    .into_iter();
    let answer = |(count, found): (&v1::Count, Result<PciAddress, VfError>)| {
        let result = found.and_then(|pf| match results.next() {
            Some((_, result)) => result,
            None => Err(VfError::NoSuchPf { pf: pf.to_string() }),
        });
        let answer = v1::Created { pf: count.pf.clone(), to: count.count, ..Default::default() };
        match result {
            Ok(Created { from, to, steps, .. }) => {
                v1::Created { from, to, steps: steps.iter().map(ToString::to_string).collect(), ..answer }
            }
            Err(error) => v1::Created { error: error.to_string(), refusal: Some(refusals::details(&error)), ..answer },
        }
    };
    counts.iter().zip(found).map(answer).collect()
}

/// Who is at the other end of the socket.
fn peer(extensions: &Extensions) -> Peer {
    let peer = extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    // Without credentials somebody has no right but that of having reached the socket.
    let nobody = PeerCredentials { uid: u32::MAX, gid: u32::MAX };
    let credentials = peer.map_or(nobody, |peer| PeerCredentials { uid: peer.uid(), gid: peer.gid() });
    let pid = peer.and_then(|peer| u32::try_from(peer.pid()?).ok()).filter(|pid| *pid != 0);
    Peer { credentials, pid }
}

/// Others may borrow, but some things are everybody's.
fn root(extensions: &Extensions, tried: &str) -> Result<Peer, Status> {
    let peer = peer(extensions);
    let uid = peer.credentials.uid;
    if uid != PeerCredentials::myself().uid && uid != 0 {
        return Err(refusal(&VfError::OnlyRoot { uid, tried: tried.to_owned() }));
    }
    Ok(peer)
}

/// Ten minutes: whoever waits longer had better ask again.
const WAIT_MS_MAX: u32 = 600_000;
