//! What an attack leaves running while its outcome is checked.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Sockets, files, threads: gone when this is dropped.
pub type Held = Box<dyn Any>;

/// Keeps `what` until the outcome of the case was checked.
pub fn hold(what: impl Any) -> Held {
    Box::new(what)
}

/// A thread that does something over and over until it is dropped.
pub struct Repeat {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Repeat {
    pub fn start(mut blow: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                blow();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Repeat {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|result| result.is_ok()) || thread::panicking(), "the attacker itself failed");
    }
}
