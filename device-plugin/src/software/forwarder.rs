//! The forwarder of this node, asked for the wires of pods.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dpdk_forwarder_client::{AdminClient, connect, v1};
use thiserror::Error;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status, Streaming};

use super::pairs::PairState;
use super::place::Place;
use super::wire;
use crate::device_locks::DeviceLock;
use crate::lease_name::OWNER;
use crate::under_way::UnderWay;

/// The forwarder, and where its sockets are.
#[derive(Clone, Debug)]
pub struct Forwarder {
    socket: PathBuf,
    /// Where sockets of endpoints are.
    pub place: Place,
    /// Once there is one, it connects again by itself.
    client: Arc<AsyncMutex<Option<AdminClient>>>,
    /// Why it did not answer last; none: it did, or was not asked.
    problem: Arc<Mutex<Option<String>>>,
    /// How many wires are being made anew.
    making_anew: watch::Sender<usize>,
}

impl Forwarder {
    /// That whose admin socket is at this path. It need not be there yet.
    pub fn at(socket: impl Into<PathBuf>, place: Place) -> Self {
        let problem = "it has not answered yet: start it, or look at its log".to_owned();
        let problem = Arc::new(Mutex::new(Some(problem)));
        Self { socket: socket.into(), place, client: Arc::default(), problem, making_anew: watch::Sender::new(0) }
    }

    /// Why it does not answer.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the wire of a pair, or makes it what it should be, with its sockets where pods look for them. `lock`: that of the wire.
    pub async fn put(&self, state: &PairState, lock: &DeviceLock) -> Result<(), WireError> {
        for end in &state.pair.ends {
            self.make_directory(&end.name.device)?;
        }
        self.ask_to_put(state).await?;
        // The forwarder listens again by itself where a path leads elsewhere, and no peer is cut.
        if self.until_sockets(state).await { Ok(()) } else { self.put_anew(state, lock).await }
    }

    /// Makes the directory of an endpoint anew, whose pod has gone: an open descriptor of the one before leads nowhere.
    pub fn renew_directory(&self, id: &str) -> Result<(), WireError> {
        let directory = |error| WireError::Directory { path: self.place.directory(id), error };
        self.place.remove(id).and_then(|()| self.place.make(id)).map_err(directory)
    }

    /// Removes the wire of a pair and makes it again: nobody is connected. What was begun is brought to its end also if nobody waits
    /// for it any more; half of it would leave a pod without its wire.
    pub async fn put_anew(&self, state: &PairState, lock: &DeviceLock) -> Result<(), WireError> {
        let (forwarder, state, lock) = (self.clone(), state.clone(), Arc::clone(lock));
        let under_way = UnderWay::new(&self.making_anew);
        let made = tokio::spawn(async move {
            let (_under_way, _lock) = (under_way, lock);
            let made = async {
                forwarder.ask_to_remove(state.pair.name()).await?;
                forwarder.ask_to_put(&state).await
            };
            timeout(ANEW_WAIT, made).await.unwrap_or(Err(WireError::Late(ANEW_WAIT)))?;
            forwarder.lost_socket(&state).map_or(Ok(()), |path| Err(WireError::NotHere { path }))
        });
        made.await.unwrap_or_else(|error| Err(WireError::Away(error.to_string())))
    }

    /// Waits until no wire is being made anew.
    pub async fn settled(&self) {
        // The sender is ours.
        let _ = self.making_anew.subscribe().wait_for(|wires| *wires == 0).await;
    }

    /// Removes the wire of a pair that no pod has, and its directories.
    pub async fn remove(&self, state: &PairState) -> Result<(), WireError> {
        self.ask_to_remove(state.pair.name()).await?;
        for end in &state.pair.ends {
            let directory = |error| WireError::Directory { path: self.place.directory(&end.name.device), error };
            self.place.remove(&end.name.device).map_err(directory)?;
        }
        Ok(())
    }

    /// Removes a wire of ours that is none of a pair's.
    pub async fn ask_to_remove(&self, name: &str) -> Result<(), WireError> {
        let request = v1::RemoveWireRequest { name: name.to_owned() };
        match self.client().await?.remove_wire(request).await {
            Err(status) if status.code() != Code::NotFound => Err(self.refused(&status)),
            _ => Ok(()),
        }
    }

    /// Whether a wire is as it should be for a pair.
    pub fn is_good(&self, wire: &v1::Wire, state: &PairState) -> bool {
        wire.name == state.pair.name() && wire::is_as(wire, &wire::spec(state, &self.place))
    }

    /// The pair of a wire, and who has it; none: it is no pair's.
    pub fn read(&self, wire: &v1::Wire) -> Option<PairState> {
        wire::read(wire.spec.as_ref()?, &self.place)
    }

    /// Whether somebody is connected at this end of a wire.
    pub async fn has_peer(&self, state: &PairState, id: &str) -> Result<bool, WireError> {
        let wires = self.list().await?;
        let wire = wires.iter().find(|wire| wire.name == state.pair.name());
        let mut ends = wire.into_iter().flat_map(|wire| &wire.ends).zip(&state.pair.ends);
        Ok(ends.any(|(end, pod)| pod.name.device == id && end.state != "listening"))
    }

    /// Our wires as they stand now.
    pub async fn list(&self) -> Result<Vec<v1::Wire>, WireError> {
        let answer = self.client().await?.list_wires(ours()).await.map_err(|status| self.refused(&status))?;
        self.answered(None);
        Ok(of_api(answer.into_inner()))
    }

    /// The same again and again.
    pub async fn watch(&self) -> Result<Watched<'_>, WireError> {
        let request = v1::WatchWiresRequest { interval_ms: WATCH_MS, filter: Some(ours()) };
        let stream = self.client().await?.watch_wires(request).await.map_err(|status| self.refused(&status))?;
        Ok(Watched { forwarder: self, stream: stream.into_inner() })
    }

    async fn ask_to_put(&self, state: &PairState) -> Result<(), WireError> {
        let request = v1::PutWireRequest { wire: Some(wire::spec(state, &self.place)), persist: None };
        let put = self.client().await?.put_wire(request).await;
        put.map(|_| self.answered(None)).map_err(|status| self.refused(&status))
    }

    fn make_directory(&self, id: &str) -> Result<(), WireError> {
        let directory = |error| WireError::Directory { path: self.place.directory(id), error };
        self.place.make(id).map_err(directory)
    }

    async fn until_sockets(&self, state: &PairState) -> bool {
        let deadline = Instant::now() + LISTEN_AGAIN_WAIT;
        while self.lost_socket(state).is_some() && Instant::now() < deadline {
            sleep(LISTEN_AGAIN_PAUSE).await;
        }
        self.lost_socket(state).is_none()
    }

    fn lost_socket(&self, state: &PairState) -> Option<PathBuf> {
        let lost = state.pair.ends.iter().find(|end| !self.place.has_socket(&end.name.device, end.kind))?;
        Some(self.place.socket(&lost.name.device, lost.kind))
    }

    async fn client(&self) -> Result<AdminClient, WireError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let connected = connect(&self.socket).await.map_err(|error| {
            self.answered(Some(error.to_string()));
            WireError::Away(error.to_string())
        })?;
        Ok(client.insert(connected).clone())
    }

    fn refused(&self, status: &Status) -> WireError {
        // Only a status that we made ourselves, of a broken connection, has a source.
        if std::error::Error::source(status).is_none() && status.code() != Code::Unavailable {
            self.answered(None);
            return WireError::Refused(status.message().to_owned());
        }
        let message = format!("the forwarder on {} does not answer: {}", self.socket.display(), status.message());
        self.answered(Some(message.clone()));
        WireError::Away(message)
    }

    fn answered(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// Our wires, again and again.
pub struct Watched<'a> {
    forwarder: &'a Forwarder,
    stream: Streaming<v1::ListWiresResponse>,
}

impl Watched<'_> {
    /// As they stand, at once and then every second.
    pub async fn next(&mut self) -> Result<Vec<v1::Wire>, WireError> {
        let answer = self.stream.message().await.map_err(|status| self.forwarder.refused(&status))?;
        let ended = || self.forwarder.refused(&Status::unavailable("it ends"));
        let answer = answer.ok_or_else(ended)?;
        self.forwarder.answered(None);
        Ok(of_api(answer))
    }
}

fn ours() -> v1::ListWiresRequest {
    v1::ListWiresRequest { owner: Some(OWNER.to_owned()), ..Default::default() }
}

/// Those of the wires file are its own.
fn of_api(answer: v1::ListWiresResponse) -> Vec<v1::Wire> {
    answer.wires.into_iter().filter(|wire| wire.origin() == v1::Origin::Admin).collect()
}

/// Why a wire is not as it should be. Each may heal.
#[derive(Debug, Error)]
pub enum WireError {
    /// Nobody could be asked.
    #[error("{0}")]
    Away(String),
    /// The forwarder said no.
    #[error("the forwarder says: {0}")]
    Refused(String),
    /// A directory cannot be made, or removed.
    #[error("the directory {} of an endpoint: {error}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A wire is not made anew.
    #[error("no answer for {} s: look at the log of dpdk-forwarder", .0.as_secs())]
    Late(Duration),
    /// Nobody knows what it is joined with.
    #[error("{id} is no endpoint of the configuration, and no wire tells what it was joined with: delete its pod")]
    Unknown {
        /// Which.
        id: String,
    },
    /// The forwarder listens somewhere else.
    #[error(
        "the forwarder has made {} and it is not there: give dpdk-forwarder and device-plugin the same directory of the host",
        path.display()
    )]
    NotHere {
        /// What is missing.
        path: PathBuf,
    },
}

/// The forwarder looks each second whether its sockets are where they were.
const LISTEN_AGAIN_WAIT: Duration = Duration::from_secs(3);
const LISTEN_AGAIN_PAUSE: Duration = Duration::from_millis(20);
/// The forwarder's own limits of both calls.
const ANEW_WAIT: Duration = Duration::from_secs(15);
/// How often wires are looked at.
const WATCH_MS: u32 = 1000;

#[cfg(test)]
mod tests {
    use std::iter;

    use dpdk_forwarder_client::v1::admin_server::{Admin, AdminServer};
    use tokio::net::UnixListener;
    use tokio::sync::{Notify, mpsc};
    use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
    use tonic::transport::Server;
    use tonic::{Request, Response};

    use super::*;
    use crate::config::SoftwareKind;
    use crate::device_locks::DeviceLocks;
    use crate::lease_name::LeaseName;
    use crate::software::{Holder, Pair, SoftwareEndpoint};

    /// A forwarder that says what it is asked, and removes a wire when it may.
    struct Slow {
        asked: mpsc::UnboundedSender<&'static str>,
        may_remove: Arc<Notify>,
    }

    #[tonic::async_trait]
    impl Admin for Slow {
        type WatchWiresStream = ReceiverStream<Result<v1::ListWiresResponse, Status>>;

        type WatchEventsStream = ReceiverStream<Result<v1::WireEvent, Status>>;

        async fn put_wire(&self, _: Request<v1::PutWireRequest>) -> Result<Response<v1::PutWireResponse>, Status> {
            self.asked.send("put").unwrap();
            Ok(Response::new(v1::PutWireResponse::default()))
        }

        async fn remove_wire(
            &self,
            _: Request<v1::RemoveWireRequest>,
        ) -> Result<Response<v1::RemoveWireResponse>, Status> {
            self.asked.send("remove").unwrap();
            self.may_remove.notified().await;
            Ok(Response::new(v1::RemoveWireResponse::default()))
        }

        async fn list_wires(
            &self,
            _: Request<v1::ListWiresRequest>,
        ) -> Result<Response<v1::ListWiresResponse>, Status> {
            Ok(Response::new(v1::ListWiresResponse::default()))
        }

        async fn watch_wires(
            &self,
            _: Request<v1::WatchWiresRequest>,
        ) -> Result<Response<Self::WatchWiresStream>, Status> {
            Err(Status::unimplemented("nobody watches"))
        }

        async fn watch_events(
            &self,
            _: Request<v1::WatchEventsRequest>,
        ) -> Result<Response<Self::WatchEventsStream>, Status> {
            Err(Status::unimplemented("nobody watches"))
        }
    }

    #[tokio::test]
    async fn a_wire_that_is_being_made_anew_is_made_also_if_the_plugin_stops_in_the_middle() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("admin.sock");
        let (asked, mut seen) = mpsc::unbounded_channel();
        let may_remove = Arc::new(Notify::new());
        let admin = AdminServer::new(Slow { asked, may_remove: Arc::clone(&may_remove) });
        let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        tokio::spawn(Server::builder().add_service(admin).serve_with_incoming(listener));
        let forwarder = Forwarder::at(&socket, Place::at(directory.path().join("software")));
        let end = |id| SoftwareEndpoint { name: LeaseName::new("a/b", id), kind: SoftwareKind::Memif };
        let pair = Arc::new(Pair { ends: ["soft-b-0", "soft-b-1"].map(end) });
        let state = PairState { pair, holders: [Holder::Nobody, Holder::Pod(None)] };
        let lock = DeviceLocks::default().lock(iter::once("the wire soft-b-0".to_owned())).await;

        // Whoever waits for it is dropped, as the work of a daemon that stops.
        tokio::select! {
            _ = forwarder.put_anew(&state, &lock) => panic!("it may not be removed yet"),
            asked = seen.recv() => assert_eq!(asked, Some("remove")),
        }
        may_remove.notify_one();
        timeout(Duration::from_secs(20), forwarder.settled()).await.unwrap();
        assert_eq!(seen.try_recv(), Ok("put"));
    }
}
