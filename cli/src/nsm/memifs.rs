//! Who answers at the memif sockets of an endpoint: a thread for each connection.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use ferrule_dataplane::spec::{MacAddress, MemifSpec, Mode, NetNs, Role, SocketAddress};
use ferrule_endpoints::Responder;
use ferrule_endpoints::memif_responder::MemifResponder;
use ferrule_nsm::endpoint::{MemifServer, MemifSocket};

/// Responders in a namespace, by the ids of their connections.
pub(super) struct MemifResponders {
    netns: PathBuf,
    running: Mutex<BTreeMap<String, Running>>,
}

/// One of them, until it is dropped.
struct Running {
    socket: MemifSocket,
    stop: Arc<AtomicBool>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl MemifResponders {
    /// None yet.
    pub(super) fn in_namespace(netns: &Path) -> Self {
        Self { netns: netns.to_owned(), running: Mutex::default() }
    }

    fn start(&self, socket: &MemifSocket) -> Result<Running, String> {
        let address: SocketAddress = socket.socket.parse().map_err(|error| format!("{error}"))?;
        let mode = if socket.is_ip { Mode::Ip } else { Mode::Ethernet };
        let netns = Some(NetNs::Path(self.netns.clone()));
        let spec = MemifSpec { netns, mode, ..MemifSpec::new(address, Role::Server) };
        let responder = MemifResponder::new(Responder::new(MAC, socket.addresses.clone()).in_mode(mode));
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (Arc::clone(&stop), socket.socket.clone());
        let serve = move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = responder.run(&spec, &stopped, |event| say(&name, &event.to_string())) {
                    // The one of before may still have the name.
                    say(&name, &error.to_string());
                    thread::sleep(RETRY);
                }
            }
        };
        thread::Builder::new().name("memif".to_owned()).spawn(serve).map_err(|error| error.to_string())?;
        Ok(Running { socket: socket.clone(), stop })
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemifServer for MemifResponders {
    fn open(&self, socket: MemifSocket) {
        let mut running = self.running();
        if running.get(&socket.connection).is_some_and(|known| known.socket == socket) {
            return;
        }
        // The one of before ends in a moment: until then the name is its own.
        running.remove(&socket.connection);
        match self.start(&socket) {
            Ok(started) => drop(running.insert(socket.connection.clone(), started)),
            Err(problem) => say(&socket.socket, &problem),
        }
    }

    fn close(&self, connection: &str) {
        self.running().remove(connection);
    }
}

fn say(socket: &str, event: &str) {
    println!("memif {socket}: {event}");
}

const RETRY: Duration = Duration::from_millis(200);
/// Each is alone on its link.
const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0xfe, 1]);
