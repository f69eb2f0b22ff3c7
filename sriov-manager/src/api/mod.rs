//! The API: gRPC on a Unix socket. `vf.proto` of the crate `sriov-manager-client` says what it promises.
//!
//! In reading order: `calls` (how they are made) with `limits` (what one user may have at once) and `sizes` (how large requests may
//! be), `answers` (until they were read), `memory` (what is half done), `lists` (what is told, and what of it changed), `convert` (what others see as
//! messages), `refusals` (errors as statuses).

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use ferrule_daemon::grpc::{self, ServeError};
use ferrule_daemon::{Phase, ServiceSocket};
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::service::Routes;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Extensions, Request, Response, Status};

use sriov_manager_client::v1;

use crate::address::PciAddress;
use crate::lease::{Claim, Cordon, Lease};
use crate::policy::PeerCredentials;
use crate::vfs::{Acquired, Applied, Created, HostVfs, Reason, Remains, VfError, Vfs, check_name};

mod answers;
mod calls;
mod convert;
mod limits;
mod lists;
mod memory;
mod refusals;
mod sizes;

pub use convert::{reason, response};

use answers::{HoldingAnswers, answer};
use calls::{Service, read_once, read_request};
use convert::{Peer, some};
use limits::Places;
use lists::{ListFilter, POOLS_MAX};
use refusals::{refusal, wrong};
use sizes::BySize;

/// Serves the API, health and reflection until the daemon has stopped.
pub async fn serve(socket: ServiceSocket, vfs: Vfs, phase: watch::Receiver<Phase>) -> Result<(), ServeError> {
    let service = Service::new(vfs, phase.clone(), Places::default());
    let api = BySize::new(service);
    let names = ["", v1::vfs_server::SERVICE_NAME];
    grpc::serve(socket, Routes::new(HoldingAnswers(api)), &[v1::DESCRIPTORS], &names, phase).await
}

#[tonic::async_trait]
impl v1::vfs_server::Vfs for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let peer = peer(request.extensions());
        let call = self.begin_list(peer)?;
        let v1::ListRequest { pools, driver, details } = request.into_inner();
        let wanted = ListFilter::new(pools.clone(), driver).map_err(wrong)?;
        self.vfs.check_pools(&pools).map_err(|error| refusal(&error))?;
        let wanted = Arc::new(wanted);
        let (mut list, room) = self.list_of(peer, &call, &wanted).await?;
        if !details {
            return Ok(answer(list, (call, room)));
        }
        let detailed = self.ask(peer, move |vfs| {
            let pfs: Vec<_> = list.pfs.iter().filter_map(|pf| pf.address.parse().ok()).collect();
            convert::add_details(&mut list, &vfs.details(&pfs), &vfs.altnames());
            Ok(list)
        });
        let (list, question) = detailed.await?;
        Ok(answer(list, (call, room, question)))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let peer = peer(request.extensions());
        let call = self.begin_watch(peer)?;
        let v1::WatchRequest { pools, driver } = request.into_inner();
        let wanted = Arc::new(ListFilter::new(pools, driver).map_err(wrong)?);
        // At any moment what is sent to him is a list, or a part of one.
        let (_, room) = self.list_of(peer, &call, &wanted).await?;
        let changes = lists::watch(Arc::clone(&self.lists), wanted, self.phase.clone(), (call, room));
        Ok(Response::new(Box::pin(changes)))
    }

    async fn create(&self, request: Request<v1::CreateRequest>) -> Result<Response<v1::CreateResponse>, Status> {
        let call = self.begin_change(root(request.extensions(), "change numbers of VFs")?)?;
        let v1::CreateRequest { counts, dry_run, force } = request.into_inner();
        if counts.is_empty() {
            return Err(wrong("counts: at least one PF is wanted".to_owned()));
        }
        let host = if force { HostVfs::Taken } else { HostVfs::Kept };
        let created = self.change(&call, move |vfs, _| Ok(create(vfs, &counts, dry_run, host))).await?;
        Ok(answer(v1::CreateResponse { created }, call))
    }

    async fn acquire(&self, request: Request<v1::AcquireRequest>) -> Result<Response<v1::AcquireResponse>, Status> {
        let call = self.begin_change(peer(request.extensions()))?;
        let message = request.into_inner();
        let dry_run = message.dry_run;
        let mut acquired = self.acquire_all_of(&call, vec![message], false, dry_run).await?;
        Ok(answer(acquired.remove(0), call))
    }

    async fn acquire_all(
        &self,
        request: Request<v1::AcquireAllRequest>,
    ) -> Result<Response<v1::AcquireAllResponse>, Status> {
        let call = self.begin_change(peer(request.extensions()))?;
        let v1::AcquireAllRequest { leases, same_pf, dry_run } = request.into_inner();
        let room = self.room_for_leases(&call, leases.len()).await?;
        let leases = self.acquire_all_of(&call, leases, same_pf, dry_run).await?;
        Ok(answer(v1::AcquireAllResponse { leases }, (call, room)))
    }

    async fn hand_over(&self, request: Request<v1::HandOverRequest>) -> Result<Response<v1::AcquireResponse>, Status> {
        let call = self.begin_change(peer(request.extensions()))?;
        let v1::HandOverRequest { from, to, wait_ms } = request.into_inner();
        check_word("from", &from)?;
        let mut to = to.ok_or_else(|| wrong("to: the lease that begins is wanted".to_owned()))?;
        may_force(call.peer, &to)?;
        check_words(&to)?;
        if to.place.as_ref().is_some_and(|place| *place != v1::Place::default()) {
            return Err(wrong("to.place: a VF that is handed over is where it is; none is wanted".to_owned()));
        }
        // It gets the VF of the one that ends, from the same pool.
        (to.vf, to.pools) = (PciAddress::new(0, 0, 0, 0).to_string(), Vec::new());
        let (lease, peer, heir) = (from.clone(), call.peer, OnceLock::new());
        let handed = self.until_let_go(&call, &lease, wait_ms, move |vfs, caller| {
            let to = read_once(&heir, || read_request(&to, peer, vfs))?;
            Ok(response_to_acquire(vfs, &vfs.hand_over(&from, &to, caller)?))
        });
        Ok(answer(handed.await?, call))
    }

    async fn update(&self, request: Request<v1::UpdateRequest>) -> Result<Response<v1::UpdateResponse>, Status> {
        let call = self.begin_change(peer(request.extensions()))?;
        let peer = call.peer;
        let v1::UpdateRequest { lease, tenant, until, until_released } = request.into_inner();
        check_word("lease", &lease)?;
        if until.is_some() && until_released {
            return Err(wrong("until, until_released: one of both is wanted".to_owned()));
        }
        let known = OnceLock::new();
        let updated = self.change(&call, move |vfs, caller| {
            let read = |until: v1::Until| convert::until(until, peer, vfs).map_err(VfError::Wrong);
            let until = read_once(&known, || until.clone().map(read).transpose())?;
            let until = if until_released { Some(None) } else { until.map(Some) };
            let lease = vfs.update(&lease, some(tenant.clone()), until, peer.credentials, caller)?;
            Ok(convert::lease(&lease, None))
        });
        Ok(answer(v1::UpdateResponse { lease: Some(updated.await?) }, call))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        let call = self.begin_change(peer(request.extensions()))?;
        let peer = call.peer;
        let v1::ReleaseRequest { lease, wait_ms, dry_run, accept } = request.into_inner();
        check_word("lease", &lease)?;
        if dry_run {
            let steps =
                self.change(&call, move |vfs, caller| vfs.plan_release(&lease, peer.credentials, caller)).await?;
            let steps = steps.iter().map(ToString::to_string).collect();
            return Ok(answer(v1::ReleaseResponse { vf: String::new(), steps }, call));
        }
        let remains = if accept { Remains::Accepted } else { Remains::Refused };
        let name = lease.clone();
        let released = self.until_let_go(&call, &name, wait_ms, move |vfs, caller| {
            vfs.release_once(&lease, remains, peer.credentials, caller)
        });
        let vf = released.await?.vf.to_string();
        Ok(answer(v1::ReleaseResponse { vf, steps: Vec::new() }, call))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let peer = peer(request.extensions());
        let message = request.into_inner();
        let driver = convert::optional_driver(message.driver).map_err(wrong)?;
        let v1::ExplainRequest { vf, owner, .. } = message;
        let explain = move |vfs: &Vfs| vfs.explain_to(vfs.find_vf(&vf)?, driver, some(owner).as_deref());
        let (reasons, place) = self.ask(peer, explain).await?;
        Ok(answer(v1::ExplainResponse { reasons: reasons.iter().map(reason).collect() }, place))
    }

    async fn claim(&self, request: Request<v1::ClaimRequest>) -> Result<Response<v1::ClaimResponse>, Status> {
        let call = self.begin_change(peer(request.extensions()))?;
        let peer = call.peer;
        let v1::ClaimRequest { owner, pools, vfs: named } = request.into_inner();
        if pools.len() > POOLS_MAX {
            return Err(wrong(format!("pools: at most {POOLS_MAX} are wanted, not {}", pools.len())));
        }
        let pools: BTreeSet<_> = pools.into_iter().collect();
        let claimed = self.change(&call, move |vfs, _| {
            let named = named.iter().map(|vf| convert::vf_address(vf, vfs)).collect::<Result<_, _>>()?;
            let claim = Claim { pools: pools.clone(), vfs: named, ..Claim::default() };
            let claimed = vfs.claim(&owner, claim, peer.credentials)?;
            let vf = |vf: &PciAddress| Some(convert::vf(&vfs.vf_view(*vf)?, None));
            Ok(v1::ClaimResponse {
                vfs: claimed.vfs.iter().map(ToString::to_string).collect(),
                lent_to_others: claimed.lent_to_others.iter().filter_map(|(lent, _)| vf(lent)).collect(),
            })
        });
        Ok(answer(claimed.await?, call))
    }

    async fn unclaim(&self, request: Request<v1::UnclaimRequest>) -> Result<Response<v1::UnclaimResponse>, Status> {
        let call = self.begin_change(peer(request.extensions()))?;
        let peer = call.peer;
        let v1::UnclaimRequest { owner } = request.into_inner();
        self.change(&call, move |vfs, _| vfs.unclaim(&owner, peer.credentials)).await?;
        Ok(answer(v1::UnclaimResponse {}, call))
    }

    async fn cordon(&self, request: Request<v1::CordonRequest>) -> Result<Response<v1::CordonResponse>, Status> {
        let call = self.begin_change(root(request.extensions(), "cordon PFs")?)?;
        let peer = call.peer;
        let v1::CordonRequest { pf, why } = request.into_inner();
        let cordon = some(why).map(|why| Cordon { uid: peer.credentials.uid, why, card: None });
        self.change(&call, move |vfs, _| vfs.cordon(vfs.find_pf(&pf)?, cordon.clone())).await?;
        Ok(answer(v1::CordonResponse {}, call))
    }

    async fn blockers(&self, request: Request<v1::BlockersRequest>) -> Result<Response<v1::BlockersResponse>, Status> {
        let peer = peer(request.extensions());
        let v1::BlockersRequest { pf } = request.into_inner();
        let (found, place) = self.ask(peer, move |vfs| vfs.blockers(vfs.find_pf(&pf)?, peer.credentials)).await?;
        Ok(answer(v1::BlockersResponse { blockers: blockers(&found) }, place))
    }

    async fn apply_policies(
        &self,
        request: Request<v1::ApplyPoliciesRequest>,
    ) -> Result<Response<v1::ApplyPoliciesResponse>, Status> {
        let call = self.begin_change(root(request.extensions(), "apply policies")?)?;
        let v1::ApplyPoliciesRequest { document, dry_run } = request.into_inner();
        if document.len() > DOCUMENT_MAX {
            return Err(wrong(format!("document: at most {DOCUMENT_MAX} bytes are wanted, not {}", document.len())));
        }
        let applied =
            self.change(
                &call,
                move |vfs, _| {
                    if dry_run { vfs.plan_policies(&document) } else { vfs.apply_policies(&document) }
                },
            );
        Ok(answer(response_to_policies(&applied.await?), call))
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

/// The words of a request, before it waits with them.
fn check_words(message: &v1::AcquireRequest) -> Result<(), Status> {
    let owner = [("owner", &message.owner)].into_iter().filter(|(_, owner)| !owner.is_empty());
    [("id", &message.id), ("tenant", &message.tenant)]
        .into_iter()
        .chain(owner)
        .try_for_each(|(name, text)| check_word(name, text))
}

fn check_word(name: &str, text: &str) -> Result<(), Status> {
    check_name(name, text).map_err(|error| refusal(&error))
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
    only_root(peer, tried).map(|()| peer)
}

/// What the host itself uses is taken for root alone.
fn may_force(peer: Peer, message: &v1::AcquireRequest) -> Result<(), Status> {
    if message.force { only_root(peer, "take a VF that the host itself uses (`force`)") } else { Ok(()) }
}

fn only_root(peer: Peer, tried: &str) -> Result<(), Status> {
    if is_root(peer) {
        return Ok(());
    }
    Err(refusal(&VfError::OnlyRoot { uid: peer.credentials.uid, tried: tried.to_owned() }))
}

/// Whether somebody is root, or our own user.
fn is_root(peer: Peer) -> bool {
    [0, PeerCredentials::myself().uid].contains(&peer.credentials.uid)
}

/// Bytes of a document of policies.
const DOCUMENT_MAX: usize = 1 << 20;
