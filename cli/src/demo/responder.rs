//! The responder of the demo, on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use ferrule_dataplane::spec::MemifSpec;
use ferrule_endpoints::Responder;
use ferrule_endpoints::memif_responder::{MemifResponder, Tally};

use super::DemoError;
use super::plan::{DemoWire, RESPONDER_MAC};

/// A responder that answers for side B of a wire of the demo. Dropping it ends it.
pub(super) struct ResponderThread {
    responder: Arc<MemifResponder>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ResponderThread {
    pub(super) fn start(demo_wire: DemoWire, spec: MemifSpec) -> Result<Self, DemoError> {
        let responder = Responder::new(RESPONDER_MAC, vec![demo_wire.v4(1), demo_wire.v6(1)]);
        let responder = Arc::new(MemifResponder::new(responder));
        let stop = Arc::new(AtomicBool::new(false));
        let (serving, told) = (Arc::clone(&responder), Arc::clone(&stop));
        // As a client it retries for ever. If it goes, pings and counters tell.
        let work = move || drop(serving.run(&spec, &told, |_| {}));
        let thread = thread::Builder::new().name("responder".to_owned()).spawn(work);
        let thread = thread.map_err(|error| DemoError::testbed("start the responder's thread", error))?;
        Ok(Self { responder, stop, thread: Some(thread) })
    }

    pub(super) fn tally(&self) -> Tally {
        self.responder.tally()
    }
}

impl Drop for ResponderThread {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
