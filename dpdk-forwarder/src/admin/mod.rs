//! The admin API: gRPC on a Unix socket. `proto/ferrule/admin/v1/admin.proto` says what it promises.
//!
//! Modules: `socket` (where it listens), `convert` (wires as messages), `client` (for programs that ask).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ferrule_dataplane::EngineError;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::Phase;
use crate::config::parse_wire;
use crate::wires::{ChangeError, Wires};
use v1::admin_server::{Admin, AdminServer};

pub use client::{AdminClient, ConnectError, connect};
pub use socket::{AdminSocket, SocketError};

mod client;
mod convert;
mod socket;

/// The messages, the client and the server of the admin API, made from its `.proto`.
#[allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("ferrule.admin.v1");

    /// Its descriptors, for reflection.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("admin_descriptor");
}

/// Serves the admin API, health and reflection until the forwarder has stopped.
pub(crate) async fn serve(
    socket: AdminSocket,
    wires: Arc<Wires>,
    phase: watch::Receiver<Phase>,
) -> Result<(), ServeError> {
    let reporter = HealthReporter::new();
    set_health(&reporter, Phase::Serving).await;
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(reporter.clone()),
    );
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| ServeError(error.to_string()))?;
    let (guard, listener) = socket.into_parts();
    let mut stopped = phase.clone();
    let server = Server::builder()
        .add_service(health)
        .add_service(reflection)
        .add_service(AdminServer::new(Service { wires, phase: phase.clone() }))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            // An error means that the spine is gone, which is a stop as well.
            let _ = stopped.wait_for(|phase| *phase == Phase::Stopped).await;
        });
    let result = tokio::select! {
        result = server => result.map_err(|error| ServeError(error.to_string())),
        () = follow(reporter, phase) => Ok(()),
    };
    drop(guard);
    result
}

/// Why the admin API cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("serve the admin API: {0}")]
pub struct ServeError(String);

/// Keeps health in step with the phase. Never ends: the server does.
async fn follow(reporter: HealthReporter, phase: watch::Receiver<Phase>) {
    let mut phases = WatchStream::new(phase);
    while let Some(phase) = phases.next().await {
        set_health(&reporter, phase).await;
    }
    std::future::pending::<()>().await;
}

async fn set_health(reporter: &HealthReporter, phase: Phase) {
    let status = if phase == Phase::Serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in ["", v1::admin_server::SERVICE_NAME] {
        reporter.set_service_status(name, status).await;
    }
}

struct Service {
    wires: Arc<Wires>,
    phase: watch::Receiver<Phase>,
}

#[tonic::async_trait]
impl Admin for Service {
    type WatchWiresStream = Pin<Box<dyn Stream<Item = Result<v1::ListWiresResponse, Status>> + Send>>;

    async fn add_wire(&self, request: Request<v1::AddWireRequest>) -> Result<Response<v1::AddWireResponse>, Status> {
        let spec =
            parse_wire(&request.get_ref().yaml).map_err(|errors| status(Code::InvalidArgument, &errors.to_string()))?;
        let wires = Arc::clone(&self.wires);
        blocking(move || wires.add(spec)).await?.map_err(|error| refusal(&error))?;
        Ok(Response::new(v1::AddWireResponse {}))
    }

    async fn remove_wire(
        &self,
        request: Request<v1::RemoveWireRequest>,
    ) -> Result<Response<v1::RemoveWireResponse>, Status> {
        let wires = Arc::clone(&self.wires);
        let name = request.into_inner().name;
        blocking(move || wires.remove(&name)).await?.map_err(|error| refusal(&error))?;
        Ok(Response::new(v1::RemoveWireResponse {}))
    }

    async fn list_wires(
        &self,
        _request: Request<v1::ListWiresRequest>,
    ) -> Result<Response<v1::ListWiresResponse>, Status> {
        list(Arc::clone(&self.wires)).await.map(Response::new)
    }

    async fn watch_wires(
        &self,
        request: Request<v1::WatchWiresRequest>,
    ) -> Result<Response<Self::WatchWiresStream>, Status> {
        let period = watch_interval(request.get_ref().interval_ms)?;
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let wires = Arc::clone(&self.wires);
        let ticks = tokio_stream::wrappers::IntervalStream::new(ticks).map(|_| Phase::Serving);
        // The stream must end by itself when the forwarder stops: a graceful server waits for it.
        let answers = ticks
            .merge(WatchStream::new(self.phase.clone()).filter(|phase| *phase == Phase::Stopped))
            .take_while(|phase| *phase != Phase::Stopped)
            .then(move |_| list(Arc::clone(&wires)));
        Ok(Response::new(Box::pin(answers)))
    }
}

async fn list(wires: Arc<Wires>) -> Result<v1::ListWiresResponse, Status> {
    blocking(move || convert::response(&wires.list(), &wires.workers())).await
}

/// Runs what may wait where waiting holds up nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    spawn_blocking(work)
        .await
        .map_err(|error| Status::internal(format!("the forwarder failed at this request: {error}")))
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
        ChangeError::Engine(EngineError::NameTaken(_)) => Code::AlreadyExists,
        ChangeError::Engine(EngineError::NoSuchWire(_)) => Code::NotFound,
        ChangeError::Engine(EngineError::End { .. }) | ChangeError::FromFile(_) | ChangeError::FromAdmin(_) => {
            Code::FailedPrecondition
        }
        ChangeError::Engine(EngineError::Start(_)) => Code::Internal,
        ChangeError::Draining => Code::Unavailable,
    };
    status(code, &error.to_string())
}

/// A status whose message fits into the header that carries it.
fn status(code: Code, message: &str) -> Status {
    if message.len() <= MESSAGE_MAX {
        return Status::new(code, message);
    }
    let kept = &message[..message.floor_char_boundary(MESSAGE_MAX)];
    let left = message.lines().count() - kept.lines().count();
    Status::new(code, format!("{kept}...\nand {left} more lines"))
}

const WATCH_MS_MIN: u32 = 100;
/// HTTP/2 peers take 16 KiB of headers by default, and a byte may be escaped into three.
const MESSAGE_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_code_that_the_proto_promises() {
        let cases = [
            (EngineError::NameTaken("a".into()).into(), Code::AlreadyExists),
            (EngineError::NoSuchWire("a".into()).into(), Code::NotFound),
            (EngineError::Spec { wire: "a".into(), errors: vec![] }.into(), Code::InvalidArgument),
            (EngineError::End { wire: "a".into(), end: 0, problem: "gone".into() }.into(), Code::FailedPrecondition),
            (ChangeError::FromFile("a".into()), Code::FailedPrecondition),
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

    #[test]
    fn a_message_too_long_for_a_header_is_cut_and_says_so() {
        let lines = "one wrong thing\n".repeat(1000);
        let cut = status(Code::InvalidArgument, &lines);
        assert!(cut.message().len() < MESSAGE_MAX + 40 && cut.message().ends_with(" more lines"));
    }
}
