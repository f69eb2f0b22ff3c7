//! The admin API: gRPC on a Unix socket. `proto/ferrule/admin/v1/admin.proto` says what it promises.
//!
//! Modules: `convert` (wires as messages), `client` (for programs that ask).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ferrule_daemon::grpc::{self, ServeError, blocking, status};
use ferrule_daemon::{Phase, ServiceSocket};
use ferrule_dataplane::EngineError;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

use crate::config::parse_wire;
use crate::wires::{ChangeError, Wires};
use v1::admin_server::{Admin, AdminServer};

pub use client::{AdminClient, ConnectError, connect};

mod client;
mod convert;

/// The messages, the client and the server of the admin API, made from its `.proto`.
#[allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("ferrule.admin.v1");

    /// Its descriptors, for reflection.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("admin_descriptor");
}

/// Serves the admin API, health and reflection until the forwarder has stopped.
pub(crate) async fn serve(
    socket: ServiceSocket,
    wires: Arc<Wires>,
    phase: watch::Receiver<Phase>,
) -> Result<(), ServeError> {
    let api = AdminServer::new(Service { wires, phase: phase.clone() });
    let names = ["", v1::admin_server::SERVICE_NAME];
    grpc::serve(socket, Routes::new(api), v1::DESCRIPTORS, &names, phase).await
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
        ChangeError::Engine(EngineError::Cancelled(_)) => Code::Aborted,
        ChangeError::Engine(EngineError::StillRemoving(_)) => Code::DeadlineExceeded,
        ChangeError::Engine(EngineError::Start(_) | EngineError::Ended(_)) => Code::Internal,
        ChangeError::Engine(EngineError::Draining) | ChangeError::Draining => Code::Unavailable,
    };
    status(code, &error.to_string())
}

const WATCH_MS_MIN: u32 = 100;

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
}
