//! Whether the threads of an engine are all there: a panic ends one, and nothing would say so.

use std::sync::Arc;
use std::thread;

use arc_swap::ArcSwapOption;

use super::inbox::{ControlMessage, Inbox};

/// Whether an engine can still do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// All its threads are there.
    Good,
    /// A thread, or what it did for the engine, has panicked: the engine is of no use any more, and its process should end for its supervisor.
    ThreadDied {
        /// The thread's name.
        thread: String,
    },
}

/// The first thread that died, for everybody to read.
#[derive(Clone, Default)]
pub struct HealthCell(Arc<ArcSwapOption<String>>);

impl HealthCell {
    /// How it stands.
    pub fn read(&self) -> Health {
        match self.0.load_full() {
            None => Health::Good,
            Some(thread) => Health::ThreadDied { thread: (*thread).clone() },
        }
    }

    fn set(&self, thread: String) {
        self.0.compare_and_swap(&None::<Arc<String>>, Some(Arc::new(thread)));
    }
}

/// Belongs to a thread, or to one task of a thread: if that panics, it says so.
pub struct ThreadGuard {
    health: HealthCell,
    inbox: Inbox,
}

impl ThreadGuard {
    /// For the thread that will drop it, where it is done or panics.
    pub fn new(health: &HealthCell, inbox: &Inbox) -> Self {
        Self { health: health.clone(), inbox: inbox.clone() }
    }
}

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            let name = thread::current().name().unwrap_or("without a name").to_owned();
            self.health.set(name.clone());
            self.inbox.post(ControlMessage::Panicked(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_is_seen_and_one_that_ends_is_not() {
        let (health, (inbox, messages)) = (HealthCell::default(), Inbox::new().unwrap());
        let run = |name: &str, work: fn()| {
            let guard = ThreadGuard::new(&health, &inbox);
            let body = move || {
                let _guard = guard;
                work();
            };
            let _ = thread::Builder::new().name(name.to_owned()).spawn(body).unwrap().join();
        };
        run("calm", || {});
        assert_eq!(health.read(), Health::Good);
        run("first", || panic!("on purpose"));
        run("second", || panic!("on purpose"));
        assert_eq!(health.read(), Health::ThreadDied { thread: "first".to_owned() });
        assert!(matches!(messages.try_recv(), Ok(ControlMessage::Panicked(name)) if name == "first"));
    }
}
