//! The functions of a process: one alone between two ends, or one for each connection of a mesh. All of them follow the same settings.

use std::collections::BTreeMap;
use std::mem::discriminant;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferrule_dataplane::capture::Capture;

use crate::any::{AnyCounters, AnyFunction};
use crate::config::FunctionSettings;
use crate::function::Side;
use crate::hop::{Hop, HopError, HopEvent};
use crate::packet::Link;
use crate::port::PortSpec;

/// The functions that run, by what they are called.
pub struct Functions {
    settings: Mutex<FunctionSettings>,
    running: Mutex<BTreeMap<String, Arc<Running>>>,
}

/// One that runs. Dropping it ends it, which may take half a second.
pub struct Running {
    hop: Hop<AnyFunction>,
    counters: Mutex<AnyCounters>,
    narrow: Narrow,
    link: Link,
    is_tapped: AtomicBool,
}

/// What one of several functions has of the settings of all.
pub type Narrow = Box<dyn Fn(&FunctionSettings) -> FunctionSettings + Send + Sync>;

impl Functions {
    /// None yet.
    pub fn new(settings: FunctionSettings) -> Self {
        Self { settings: Mutex::new(settings), running: Mutex::default() }
    }

    /// The settings of now.
    pub fn settings(&self) -> FunctionSettings {
        lock(&self.settings).clone()
    }

    /// Starts one. `say` is told what a person should know of its ends.
    pub fn start(
        &self,
        name: &str,
        link: Link,
        ends: [impl Into<PortSpec>; 2],
        narrow: Narrow,
        say: impl Fn(Side, HopEvent) + Clone + Send + 'static,
    ) -> Result<(), HopError> {
        // Held meanwhile: settings that come are for this one too.
        let settings = lock(&self.settings);
        let function = AnyFunction::new(link, &narrow(&settings));
        let counters = Mutex::new(function.counters());
        let hop = Hop::start(function, ends, say)?;
        let running = Running { hop, counters, narrow, link, is_tapped: AtomicBool::new(false) };
        let before = lock(&self.running).insert(name.to_owned(), Arc::new(running));
        drop(settings);
        drop(before);
        Ok(())
    }

    /// The one of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Running>> {
        lock(&self.running).get(name).cloned()
    }

    /// All of them, by their names.
    pub fn all(&self) -> Vec<(String, Arc<Running>)> {
        lock(&self.running).iter().map(|(name, running)| (name.clone(), Arc::clone(running))).collect()
    }

    /// Takes one out.
    pub fn remove(&self, name: &str) -> Option<Arc<Running>> {
        lock(&self.running).remove(name)
    }

    /// Takes out those whose threads have ended by themselves.
    pub fn take_dead(&self) -> Vec<(String, Arc<Running>)> {
        lock(&self.running).extract_if(.., |_, running| !running.hop().is_alive()).collect()
    }

    /// Has one take the settings of now again, of which it has another part than before.
    pub fn narrow_again(&self, name: &str) {
        let settings = self.settings();
        if let Some(running) = self.get(name) {
            // One that is dead is found so by whoever looks after it.
            running.adopt(&settings);
        }
    }

    /// Has all of them take other settings, and keep what they know. Blocks until each has heard of it. The names of those that are dead.
    pub fn adopt(&self, newer: &FunctionSettings) -> Vec<String> {
        {
            let mut settings = lock(&self.settings);
            if discriminant(&*settings) != discriminant(newer) {
                // Another function is another program's.
                return Vec::new();
            }
            newer.clone_into(&mut settings);
        }
        let mut dead = self.all();
        dead.retain(|(_, running)| !running.adopt(newer));
        dead.into_iter().map(|(name, _)| name).collect()
    }
}

impl Running {
    /// What carries its frames.
    pub fn hop(&self) -> &Hop<AnyFunction> {
        &self.hop
    }

    /// What it counts with the settings of now.
    pub fn counters(&self) -> AnyCounters {
        lock(&self.counters).clone()
    }

    /// What its frames begin with.
    pub fn link(&self) -> Link {
        self.link
    }

    /// Copies its frames from now on. `false`: somebody has that done already, or its thread has ended.
    pub fn tap(&self, capture: Arc<Capture>) -> bool {
        !self.is_tapped.swap(true, Relaxed) && self.hop.tap(Some(capture))
    }

    /// Copies none any more.
    pub fn untap(&self) {
        // A thread that has ended copies none.
        self.hop.tap(None);
        self.is_tapped.store(false, Relaxed);
    }

    /// `false`: its thread has ended.
    fn adopt(self: &Arc<Self>, newer: &FunctionSettings) -> bool {
        let (settings, running) = ((self.narrow)(newer), Arc::downgrade(self));
        self.hop.order(move |function| {
            if function.adopt(&settings)
                && let Some(running) = running.upgrade()
            {
                *lock(&running.counters) = function.counters();
                tracing::info!("settings applied; sessions stay that they allow");
            }
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
