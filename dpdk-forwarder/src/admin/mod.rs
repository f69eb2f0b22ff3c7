//! The admin API: gRPC on a Unix socket. `client/proto/ferrule/admin/v1/admin.proto` says what it promises.
//!
//! Messages and client are in the crate `dpdk-forwarder-client`. Modules: `convert` (wires as messages), `change_limit` (how many
//! changes are under way), `trace` (copies of a wire's frames).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use ferrule_daemon::grpc::{self, ServeError, blocking, status};
use ferrule_daemon::{Phase, ServiceSocket};
use ferrule_dataplane::EngineError;
use ferrule_dataplane::engine::Applied;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::{IntervalStream, ReceiverStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

use crate::journal::JournalError;
use crate::wires::{ChangeError, Listed, Put, Removed, Wires};
use change_limit::ChangeLimit;
use v1::admin_server::{Admin, AdminServer};

pub use convert::{FieldErrors, Secrets, spec_from_proto, spec_to_proto};
pub use dpdk_forwarder_client::{AdminClient, ConnectError, connect, v1};

mod change_limit;
mod convert;
mod trace;

/// Serves the admin API, health and reflection until the forwarder has stopped.
pub(crate) async fn serve(
    socket: ServiceSocket,
    wires: Arc<Wires>,
    phase: watch::Receiver<Phase>,
) -> Result<(), ServeError> {
    let watchers = Arc::new(Semaphore::new(WATCHERS_MAX));
    let [changes, removals] = [CHANGES_MAX; 2].map(ChangeLimit::new);
    let traces = ferrule_trace::server::service(Arc::new(trace::WireTaps(Arc::clone(&wires))), phase.clone());
    let api = AdminServer::new(Service { wires, phase: phase.clone(), changes, removals, watchers });
    let names = ["", v1::admin_server::SERVICE_NAME, ferrule_trace::v1::trace_server::SERVICE_NAME];
    grpc::serve(socket, Routes::new(api).add_service(traces), DESCRIPTORS, &names, phase).await
}

struct Service {
    wires: Arc<Wires>,
    phase: watch::Receiver<Phase>,
    /// Wires that are put.
    changes: ChangeLimit,
    /// And those that are removed: that is what helps when the others wait for a file system that hangs.
    removals: ChangeLimit,
    /// One for each client that may watch events.
    watchers: Arc<Semaphore>,
}

#[tonic::async_trait]
impl Admin for Service {
    type WatchWiresStream = Answers<v1::ListWiresResponse>;
    type WatchEventsStream = Answers<v1::WireEvent>;

    async fn put_wire(&self, request: Request<v1::PutWireRequest>) -> Result<Response<v1::PutWireResponse>, Status> {
        let v1::PutWireRequest { wire, persist } = request.into_inner();
        let wire = wire.ok_or_else(|| Status::invalid_argument("wire: missing; what the wire should be is wanted"))?;
        let spec = spec_from_proto(&wire).map_err(|errors| status(Code::InvalidArgument, &errors.to_string()))?;
        let Put { applied, generation } = self.change(&self.changes, move |wires| wires.put(spec, persist)).await?;
        let change = match applied {
            Applied::Made => v1::Change::Made,
            Applied::Updated | Applied::Remade | Applied::Mended => v1::Change::Updated,
            Applied::Unchanged => v1::Change::Unchanged,
        };
        Ok(Response::new(v1::PutWireResponse { change: change.into(), generation }))
    }

    async fn remove_wire(
        &self,
        request: Request<v1::RemoveWireRequest>,
    ) -> Result<Response<v1::RemoveWireResponse>, Status> {
        let name = request.into_inner().name;
        let removed = self.change(&self.removals, move |wires| wires.remove(&name)).await?;
        Ok(Response::new(v1::RemoveWireResponse { journal_only: removed == Removed::FromJournal }))
    }

    async fn list_wires(
        &self,
        request: Request<v1::ListWiresRequest>,
    ) -> Result<Response<v1::ListWiresResponse>, Status> {
        list(Arc::clone(&self.wires), request.into_inner()).await.map(Response::new)
    }

    async fn watch_wires(
        &self,
        request: Request<v1::WatchWiresRequest>,
    ) -> Result<Response<Self::WatchWiresStream>, Status> {
        let v1::WatchWiresRequest { interval_ms, filter } = request.into_inner();
        let mut ticks = interval(watch_interval(interval_ms)?);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (wires, filter) = (Arc::clone(&self.wires), filter.unwrap_or_default());
        let answers = self.until_stopped(IntervalStream::new(ticks));
        let answers = answers.then(move |_| list(Arc::clone(&wires), filter.clone()));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn watch_events(
        &self,
        _request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let permit = Arc::clone(&self.watchers).try_acquire_owned().map_err(|_| {
            status(Code::ResourceExhausted, &format!("{WATCHERS_MAX} clients watch events already; close one"))
        })?;
        let events = self.wires.subscribe(EVENTS_MAX);
        let (sender, receiver) = mpsc::channel(1);
        let forward = move || {
            let _permit = permit;
            // The engine counts what a client is too slow for; here nothing piles up.
            while !sender.is_closed() {
                match events.next_event_within(LEFT_CHECK) {
                    Ok(event) => {
                        let sent = convert::event(event).map_or(Ok(()), |event| sender.blocking_send(Ok(event)));
                        if sent.is_err() {
                            return;
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        thread::Builder::new()
            .name("events".to_owned())
            .spawn(forward)
            .map_err(|error| status(Code::ResourceExhausted, &format!("start a thread for this client: {error}")))?;
        Ok(Response::new(Box::pin(self.until_stopped(ReceiverStream::new(receiver)))))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    /// Makes a change. Few wait for their turn on a thread, so that readers always have one; the others wait here.
    async fn change<T: Send + 'static>(
        &self,
        limit: &ChangeLimit,
        work: impl FnOnce(&Wires) -> Result<T, ChangeError> + Send + 'static,
    ) -> Result<T, Status> {
        let under_way = limit.begin().await.map_err(|error| status(Code::ResourceExhausted, &error.to_string()))?;
        let wires = Arc::clone(&self.wires);
        let changed = blocking(move || {
            // Held until the change is done, also when its client does not wait for that.
            let _under_way = under_way;
            work(&wires)
        });
        changed.await?.map_err(|error| refusal(&error))
    }

    /// A stream that ends by itself when the forwarder stops: a graceful server waits for it.
    fn until_stopped<T: Send + 'static>(
        &self,
        stream: impl Stream<Item = T> + Send + 'static,
    ) -> impl Stream<Item = T> + Send + 'static {
        let stopped = WatchStream::new(self.phase.clone()).filter(|phase| *phase == Phase::Stopped).map(|_| None);
        stream.map(Some).merge(stopped).map_while(|item| item)
    }
}

async fn list(wires: Arc<Wires>, filter: v1::ListWiresRequest) -> Result<v1::ListWiresResponse, Status> {
    let wanted = move |listed: &Listed| {
        let spec = &listed.status.spec;
        filter.owner.as_ref().is_none_or(|owner| *owner == spec.owner)
            && filter.labels.iter().all(|(key, value)| spec.labels.get(key) == Some(value))
    };
    blocking(move || {
        let mut listed = wires.list();
        listed.retain(wanted);
        v1::ListWiresResponse { file_problems: wires.file_problems(), ..convert::response(&listed, &wires.workers()) }
    })
    .await
}

fn watch_interval(milliseconds: u32) -> Result<Duration, Status> {
    match milliseconds {
        0 => Ok(Duration::from_secs(1)),
        1..WATCH_MS_MIN => {
            Err(Status::invalid_argument(format!("interval_ms {milliseconds}; at least {WATCH_MS_MIN} is wanted")))
        }
        _ => Ok(Duration::from_millis(milliseconds.into())),
    }
}

fn refusal(error: &ChangeError) -> Status {
    let code = match error {
        ChangeError::Engine(EngineError::Spec { .. }) => Code::InvalidArgument,
        ChangeError::Engine(EngineError::NameTaken(_)) | ChangeError::OtherOwner { .. } => Code::AlreadyExists,
        ChangeError::Engine(EngineError::NoSuchWire(_)) => Code::NotFound,
        ChangeError::Engine(EngineError::End { .. } | EngineError::NotTraced { .. })
        | ChangeError::FromFile(_)
        | ChangeError::FromMesh(_)
        | ChangeError::FromAdmin(_)
        | ChangeError::NoJournal(_) => Code::FailedPrecondition,
        ChangeError::Engine(EngineError::Cancelled(_)) => Code::Aborted,
        ChangeError::Engine(EngineError::StillMaking(_) | EngineError::StillRemoving(_)) => Code::DeadlineExceeded,
        ChangeError::Engine(EngineError::Start(_) | EngineError::Ended(_))
        | ChangeError::Journal(JournalError::Locked { .. } | JournalError::Failed { .. }) => Code::Internal,
        ChangeError::Journal(JournalError::Full { .. }) => Code::ResourceExhausted,
        ChangeError::Engine(EngineError::Draining) | ChangeError::Draining => Code::Unavailable,
    };
    status(code, &error.to_string())
}

const WATCH_MS_MIN: u32 = 100;
const DESCRIPTORS: &[&[u8]] = &[v1::DESCRIPTORS, ferrule_trace::v1::DESCRIPTORS];
/// Far fewer than the threads that may wait at a time.
const CHANGES_MAX: usize = 32;
/// Each has a thread, which sleeps.
const WATCHERS_MAX: usize = 64;
/// Events that a client may be behind.
const EVENTS_MAX: usize = 1024;
/// How often a thread looks whether its client has left while nothing happens.
const LEFT_CHECK: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_code_that_the_proto_promises() {
        let full = JournalError::Full { path: "/j".into(), source: std::io::Error::from_raw_os_error(28) };
        let cases = [
            (EngineError::NameTaken("a".into()).into(), Code::AlreadyExists),
            (EngineError::NoSuchWire("a".into()).into(), Code::NotFound),
            (EngineError::Spec { wire: "a".into(), errors: vec![] }.into(), Code::InvalidArgument),
            (EngineError::End { wire: "a".into(), end: 0, problem: "gone".into() }.into(), Code::FailedPrecondition),
            (ChangeError::FromFile("a".into()), Code::FailedPrecondition),
            (ChangeError::NoJournal("a".into()), Code::FailedPrecondition),
            (ChangeError::OtherOwner { wire: "a".into(), owner: "nsm".into() }, Code::AlreadyExists),
            (full.into(), Code::ResourceExhausted),
            (EngineError::StillMaking("a".into()).into(), Code::DeadlineExceeded),
            (EngineError::Draining.into(), Code::Unavailable),
            (ChangeError::Draining, Code::Unavailable),
        ];
        for (error, code) in cases {
            let status = refusal(&error);
            assert_eq!((status.code(), status.message()), (code, error.to_string().as_str()));
        }
    }

    #[test]
    fn an_interval_is_a_second_unless_told_and_never_under_the_least() {
        assert_eq!(watch_interval(0).unwrap(), Duration::from_secs(1));
        assert_eq!(watch_interval(100).unwrap(), Duration::from_millis(100));
        assert_eq!(watch_interval(99).unwrap_err().code(), Code::InvalidArgument);
    }
}
