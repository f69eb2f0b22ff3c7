//! The responder of the demo, on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use ferrule_dataplane::spec::MemifSpec;
use ferrule_endpoints::Responder;
use ferrule_endpoints::memif_responder::{MemifResponder, Tally};

use super::DemoError;
use super::plan::{RESPONDER_MAC, Subject};

/// A responder that answers for side B of a subject. Dropping it ends it.
pub(super) struct FarEnd {
    responder: Arc<MemifResponder>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FarEnd {
    pub(super) fn start(subject: Subject, spec: MemifSpec) -> Result<Self, DemoError> {
        let responder = Responder::new(RESPONDER_MAC, vec![subject.v4(1), subject.v6(1)]);
        let responder = Arc::new(MemifResponder::new(responder));
        let stop = Arc::new(AtomicBool::new(false));
        let (serving, told) = (Arc::clone(&responder), Arc::clone(&stop));
        // As a client it retries for ever. If it goes, pings and counters tell.
        let work = move || drop(serving.run(&spec, &told, |_| {}));
        let thread = thread::Builder::new().name("responder".to_owned()).spawn(work);
        let thread = thread.map_err(|error| DemoError::site("start the responder's thread", error))?;
        Ok(Self { responder, stop, thread: Some(thread) })
    }

    pub(super) fn tally(&self) -> Tally {
        self.responder.tally()
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
