//! The API: gRPC on a Unix socket. `vf.proto` of the crate `sriov-manager-client` says what it promises.
//!
//! Modules: `convert` (what others see as messages).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ferrule_daemon::grpc::{self, ServeError, blocking, status};
use ferrule_daemon::{Phase, ServiceSocket};
use tokio::sync::{Semaphore, watch};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Extensions, Request, Response, Status};

use sriov_manager_client::v1::{self, vfs_server::VfsServer};

use crate::address::PciAddress;
use crate::policy::PeerCredentials;
use crate::vfs::{Created, HostVfs, ReleaseOptions, Remains, VfError, Vfs};

mod convert;

pub use convert::response;

/// Serves the API, health and reflection until the daemon has stopped.
pub async fn serve(socket: ServiceSocket, vfs: Vfs, phase: watch::Receiver<Phase>) -> Result<(), ServeError> {
    let changes = Arc::new(Semaphore::new(CHANGES_MAX));
    let api = VfsServer::new(Service { vfs, phase: phase.clone(), changes });
    let names = ["", v1::vfs_server::SERVICE_NAME];
    grpc::serve(socket, Routes::new(api), v1::DESCRIPTORS, &names, phase).await
}

struct Service {
    vfs: Vfs,
    phase: watch::Receiver<Phase>,
    /// One for each change under way.
    changes: Arc<Semaphore>,
}

impl Service {
    /// Does what changes something, which may wait for long: on a thread of its own, of which there are fewer than
    /// there are in all, so that questions are answered always.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Vfs, &Cancelled) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let gone = || Status::internal("the daemon takes no changes any more");
        let permit = Arc::clone(&self.changes).acquire_owned().await.map_err(|_| gone())?;
        let vfs = self.vfs.clone();
        let cancelled = Cancelled(Arc::default());
        let waiting = Waiting(Arc::clone(&cancelled.0));
        let done = blocking(move || {
            let _permit = permit;
            work(&vfs, &cancelled)
        })
        .await;
        drop(waiting);
        done
    }

    fn takes_changes(&self) -> Result<(), Status> {
        match *self.phase.borrow() {
            Phase::Starting | Phase::Serving => Ok(()),
            Phase::Draining | Phase::Stopped => Err(Status::unavailable("sriov-manager is stopping; ask the next one")),
        }
    }
}

#[tonic::async_trait]
impl v1::vfs_server::Vfs for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::ListResponse, Status>> + Send>>;

    async fn list(&self, _: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let vfs = self.vfs.clone();
        blocking(move || response(&vfs.view())).await.map(Response::new)
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let vfs = self.vfs.clone();
        let changes = WatchStream::new(vfs.watch()).map(|_| Phase::Serving);
        // The stream must end by itself when the daemon stops: a graceful server waits for it.
        let answers = changes
            .merge(WatchStream::new(self.phase.clone()).filter(|phase| *phase == Phase::Stopped))
            .take_while(|phase| *phase != Phase::Stopped)
            .then(move |_| {
                let vfs = vfs.clone();
                async move { blocking(move || response(&vfs.view())).await }
            });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn create(&self, request: Request<v1::CreateRequest>) -> Result<Response<v1::CreateResponse>, Status> {
        self.takes_changes()?;
        // Other users may borrow, but the number of VFs is everybody's.
        let peer = peer(request.extensions());
        if peer.uid != PeerCredentials::myself().uid && peer.uid != 0 {
            return Err(Status::permission_denied("only root changes numbers of VFs"));
        }
        let v1::CreateRequest { counts, dry_run, force } = request.into_inner();
        if counts.is_empty() {
            return Err(Status::invalid_argument("counts: at least one PF is wanted"));
        }
        let created = self
            .change(move |vfs, _| create(vfs, &counts, dry_run, if force { HostVfs::Taken } else { HostVfs::Kept }))
            .await?;
        Ok(Response::new(v1::CreateResponse { created }))
    }

    async fn acquire(&self, request: Request<v1::AcquireRequest>) -> Result<Response<v1::AcquireResponse>, Status> {
        self.takes_changes()?;
        let peer = peer(request.extensions());
        let message = request.into_inner();
        let dry_run = message.dry_run;
        let wanted = convert::request(message, peer).map_err(|problem| status(Code::InvalidArgument, &problem))?;
        self.change(move |vfs, cancelled| {
            let acquired =
                if dry_run { vfs.plan_acquire(&wanted) } else { vfs.acquire_unless(&wanted, &|| cancelled.is_set()) }
                    .map_err(|error| refusal(&error))?;
            let vf = vfs.view().vfs.into_iter().find(|view| view.vf.address == acquired.vf);
            let steps = acquired.steps.iter().map(ToString::to_string).collect();
            Ok(Response::new(v1::AcquireResponse { vf: vf.as_ref().map(convert::vf), steps }))
        })
        .await?
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        self.takes_changes()?;
        let peer = peer(request.extensions());
        let v1::ReleaseRequest { lease, wait_ms, dry_run, accept } = request.into_inner();
        if wait_ms > WAIT_MS_MAX {
            return Err(Status::invalid_argument(format!("wait_ms {wait_ms}; at most {WAIT_MS_MAX} is wanted")));
        }
        self.change(move |vfs, cancelled| {
            if dry_run {
                let steps = vfs.plan_release(&lease, peer).map_err(|error| refusal(&error))?;
                let steps = steps.iter().map(ToString::to_string).collect();
                return Ok(Response::new(v1::ReleaseResponse { vf: String::new(), steps }));
            }
            let remains = if accept { Remains::Accepted } else { Remains::Refused };
            let options = ReleaseOptions { wait: Duration::from_millis(wait_ms.into()), remains };
            let released = vfs.release_unless(&lease, options, peer, &|| cancelled.is_set());
            let released = released.map_err(|error| refusal(&error))?;
            Ok(Response::new(v1::ReleaseResponse { vf: released.vf.to_string(), steps: Vec::new() }))
        })
        .await?
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let v1::ExplainRequest { vf, driver } = request.into_inner();
        let wrong = |problem: String| status(Code::InvalidArgument, &problem);
        let vf: PciAddress = vf.parse().map_err(|error| wrong(format!("vf: {error}")))?;
        let driver = convert::driver(&driver).map_err(wrong)?;
        let vfs = self.vfs.clone();
        let reasons = blocking(move || vfs.explain(vf, driver)).await?.map_err(|error| refusal(&error))?;
        Ok(Response::new(v1::ExplainResponse { reasons: reasons.iter().map(ToString::to_string).collect() }))
    }
}

/// Held by the answer that somebody waits for: it is dropped when he goes.
struct Waiting(Arc<AtomicBool>);

/// Whether whoever asked waits for the answer no more.
struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
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
            Err(error) => v1::Created { error: error.to_string(), ..answer },
        }
    };
    counts.iter().zip(found).map(answer).collect()
}

/// Who is at the other end of the socket.
fn peer(extensions: &Extensions) -> PeerCredentials {
    let peer = extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    // Without credentials somebody has no right but that of having reached the socket.
    peer.map_or(PeerCredentials { uid: u32::MAX, gid: u32::MAX }, |peer| PeerCredentials {
        uid: peer.uid(),
        gid: peer.gid(),
    })
}

fn refusal(error: &VfError) -> Status {
    let code = match error {
        VfError::NoSuchVf { .. }
        | VfError::NoSuchPf { .. }
        | VfError::NoSuchPool { .. }
        | VfError::NoSuchLease { .. } => Code::NotFound,
        VfError::Wrong(_) => Code::InvalidArgument,
        VfError::IdTaken { .. } | VfError::IdOfAnother { .. } => Code::AlreadyExists,
        VfError::NoneFree { .. } => Code::ResourceExhausted,
        VfError::NotAllowed { .. } => Code::PermissionDenied,
        VfError::Busy { .. } => Code::Aborted,
        VfError::Cancelled { .. } => Code::Cancelled,
        VfError::Stopping { .. } => Code::Unavailable,
        VfError::Unavailable { .. }
        | VfError::Lent { .. }
        | VfError::Held { .. }
        | VfError::Step(_)
        | VfError::NotUndone { .. }
        | VfError::Ask { .. }
        | VfError::Lost { .. }
        | VfError::Untold { .. }
        | VfError::Dirty { .. }
        | VfError::UsedByHost { .. }
        | VfError::NotAsWanted { .. } => Code::FailedPrecondition,
        VfError::Journal(_) => Code::Internal,
    };
    status(code, &error.to_string())
}

/// Of the 512 threads that tokio has for what may wait, half are for changes.
const CHANGES_MAX: usize = 256;
/// Ten minutes: whoever waits longer had better ask again.
const WAIT_MS_MAX: u32 = 600_000;
