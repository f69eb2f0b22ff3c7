//! A forwarder that only pretends: canned wires, and counters that grow by the same steps at each reading.

use std::path::Path;
use std::sync::{Arc, Mutex};

use ferrule::admin::proto::admin_server::{Admin, AdminServer};
use ferrule::admin::proto::{
    Change, Drop, End, ListWiresRequest, ListWiresResponse, Origin, PutWireRequest, PutWireResponse, RemoveWireRequest,
    RemoveWireResponse, Traffic, WatchEventsRequest, WatchWiresRequest, Wire, WireEvent, WireSpec,
};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// Serves until dropped.
pub struct Fake {
    /// Every wire that was put.
    pub added: Arc<Mutex<Vec<WireSpec>>>,
    _runtime: Runtime,
}

impl Fake {
    /// Listens on `socket` when this returns.
    pub fn serve(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let added = Arc::new(Mutex::new(Vec::new()));
        let listener = runtime.block_on(async { UnixListener::bind(socket) }).unwrap();
        let server = Server::builder().add_service(AdminServer::new(Canned { added: added.clone() }));
        runtime.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        Self { added, _runtime: runtime }
    }
}

struct Canned {
    added: Arc<Mutex<Vec<WireSpec>>>,
}

#[tonic::async_trait]
impl Admin for Canned {
    type WatchWiresStream = ReceiverStream<Result<ListWiresResponse, Status>>;

    type WatchEventsStream = ReceiverStream<Result<WireEvent, Status>>;

    async fn put_wire(&self, request: Request<PutWireRequest>) -> Result<Response<PutWireResponse>, Status> {
        let wire = request.into_inner().wire.unwrap();
        if wire.name == "taken" {
            return Err(Status::already_exists("wire `taken` belongs to `somebody`; choose another name"));
        }
        let mut added = self.added.lock().unwrap();
        let change = match added.iter().find(|known| known.name == wire.name) {
            None => Change::Made,
            Some(known) if *known == wire => Change::Unchanged,
            Some(_) => Change::Updated,
        };
        added.push(wire);
        Ok(Response::new(PutWireResponse { change: change.into(), generation: 1 }))
    }

    async fn watch_events(&self, _: Request<WatchEventsRequest>) -> Result<Response<Self::WatchEventsStream>, Status> {
        Err(Status::unimplemented("nothing happens here"))
    }

    async fn remove_wire(&self, request: Request<RemoveWireRequest>) -> Result<Response<RemoveWireResponse>, Status> {
        match request.into_inner().name.as_str() {
            "a-b" => Ok(Response::new(RemoveWireResponse { journal_only: false })),
            "of-file" => Ok(Response::new(RemoveWireResponse { journal_only: true })),
            "draining" => Err(Status::unavailable("the forwarder is draining; ask its successor")),
            name => Err(Status::not_found(format!("wire `{name}`: there is none of this name"))),
        }
    }

    async fn list_wires(&self, _: Request<ListWiresRequest>) -> Result<Response<ListWiresResponse>, Status> {
        Ok(Response::new(reading(1, 1000)))
    }

    async fn watch_wires(
        &self,
        request: Request<WatchWiresRequest>,
    ) -> Result<Response<Self::WatchWiresStream>, Status> {
        let interval_ms = request.into_inner().interval_ms;
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(std::time::Duration::from_millis(interval_ms.into()));
            for step in 1.. {
                interval.tick().await;
                if sender.send(Ok(reading(step, interval_ms))).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn reading(step: u64, interval_ms: u32) -> ListWiresResponse {
    let wires = vec![
        wire("a-b", memif("connected", "testpmd"), kernel("up", ""), 1, [14_000_000 * step, 2_000_000 * step]),
        wire("jumbo", memif("connecting", "connection refused"), kernel("up", ""), 0, [12, 0]),
        wire("pod-vm", memif("listening", ""), kernel("failed", "namespace /run/netns/pod is gone"), 0, [0, 0]),
    ];
    let file_problems = vec!["w.yaml:1:1: wrong".to_owned()];
    let monotonic_ns = 1_000_000 * u64::from(interval_ms) * step;
    ListWiresResponse { wires, monotonic_ns, workers: Vec::new(), file_problems }
}

fn wire(name: &str, a: End, b: End, queues: u32, frames: [u64; 2]) -> Wire {
    let drops = |frames| vec![Drop { reason: "too_long".to_owned(), frames }];
    let [ab, ba] =
        frames.map(|frames| Traffic { frames, bytes: frames * 64, drops: drops(frames / 2_000_000), stalls: 0 });
    Wire {
        name: name.to_owned(),
        origin: Origin::File.into(),
        ends: vec![a, b],
        directions: vec![ab, ba],
        queues,
        full: "hold".to_owned(),
        crossing: "copied".to_owned(),
        ..Wire::default()
    }
}

fn memif(state: &str, detail: &str) -> End {
    end("memif", "memif /run/ferrule/m.sock id 0 server", state, detail)
}

fn kernel(state: &str, detail: &str) -> End {
    end("kernel", "kernel nsm-1 in /run/netns/pod", state, detail)
}

fn end(kind: &str, description: &str, state: &str, detail: &str) -> End {
    let [kind, description, state, detail] = [kind, description, state, detail].map(str::to_owned);
    End { kind, description, state, detail }
}
