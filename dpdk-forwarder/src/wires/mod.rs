//! The wires of this forwarder: what was wanted, by whom, and what became of it.
//!
//! Module: `entries` (what was asked for, by name; pure).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrule_dataplane::engine::{Applied, Health, Subscription};
use ferrule_dataplane::spec::{EndSpec, WireSpec};
use ferrule_dataplane::status::{EndState, WireStatus, WorkerStatus};
use ferrule_dataplane::{Engine, EngineError};
use thiserror::Error;
use tracing::{error, info, warn};

use crate::admin::{Secrets, spec_from_proto, spec_to_proto};
use crate::journal::{Journal, JournalError};
use crate::plan::Step;
use entries::{Entries, Entry, Failure};

mod entries;

/// Who asked for a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The wires file.
    File,
    /// The admin API.
    Admin {
        /// Whether it is made again when the forwarder starts again.
        persistent: bool,
    },
}

/// A wire as it stood when it was asked for.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Who asked for it.
    pub origin: Origin,
    /// What it is doing. The ends of a wire that could not be made have failed.
    pub status: WireStatus,
}

/// What became of a wire that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// What was done.
    pub applied: Applied,
    /// How often the wire has changed.
    pub generation: u64,
}

/// What a reload changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Wires removed.
    pub removed: usize,
    /// Wires that are something else now.
    pub changed: usize,
    /// Wires added, among them those that could not be made yet.
    pub added: usize,
}

/// The engine, and why each of its wires is there. All calls that change something block: they take turns, and the
/// engine may wait for the kernel. Readers, [`Wires::drain`] and [`Wires::refuse_changes`] wait for none of them.
pub struct Wires {
    engine: Engine,
    entries: Mutex<Entries>,
    /// Held during a change. The journal is written by whoever has the turn.
    turn: Mutex<Option<Journal>>,
    draining: AtomicBool,
}

impl Wires {
    /// No wires yet.
    pub fn new(engine: Engine, journal: Option<Journal>) -> Self {
        Self { engine, entries: Mutex::default(), turn: Mutex::new(journal), draining: AtomicBool::new(false) }
    }

    /// Makes a wire of the admin API what `spec` says. `persist` says whether it is made again when the forwarder starts
    /// again; none: if there is a journal.
    pub fn put(&self, spec: WireSpec, persist: Option<bool>) -> Result<Put, ChangeError> {
        let mut journal = self.turn()?;
        let persistent = persist.unwrap_or(journal.is_some());
        if persistent && journal.is_none() {
            return Err(ChangeError::NoJournal(spec.name));
        }
        let (name, origin) = (spec.name.clone(), Origin::Admin { persistent });
        let before = self.entries().get(&name).cloned();
        if let Some(before) = &before {
            match before.origin {
                Origin::File => return Err(ChangeError::FromFile(name)),
                Origin::Admin { .. } if before.spec.owner != spec.owner => {
                    return Err(ChangeError::OtherOwner { wire: name, owner: before.spec.owner.clone() });
                }
                Origin::Admin { .. } => {}
            }
        }
        let spec = entries::pinned(spec, before.as_ref().map(|entry| &entry.spec));
        let was_persistent = before.as_ref().is_some_and(|entry| entry.origin == Origin::Admin { persistent: true });
        let same = before.as_ref().is_some_and(|entry| entry.spec == spec && entry.failure.is_none());
        // Written before it is acted on.
        let undo = match journal.as_mut() {
            Some(journal) if persistent && !(same && was_persistent) => {
                Some(journal.put(spec_to_proto(&spec, Secrets::Shown))?)
            }
            Some(journal) if was_persistent && !persistent => Some(journal.remove(&name)?),
            _ => None,
        };
        match self.engine.apply(spec.clone()) {
            Ok(applied) => {
                if applied != Applied::Unchanged {
                    info!(wire = name, ends = ends(&spec), ?applied, "wire put by the admin API");
                }
                self.entries().put(Entry { spec, origin, failure: None });
                let generation = self.engine.wire(&name).map_or(0, |status| status.generation);
                Ok(Put { applied, generation })
            }
            Err(problem) => {
                if let (Some(journal), Some(undo)) = (journal.as_mut(), undo)
                    && let Err(error) = journal.undo(undo)
                {
                    error!(wire = name, %error, "the journal keeps a wire that could not be made");
                }
                self.restore(before);
                Err(problem.into())
            }
        }
    }

    /// Removes a wire that the admin API made, or that only the journal remembers.
    pub fn remove(&self, name: &str) -> Result<(), ChangeError> {
        let mut journal = self.turn()?;
        let origin = self.entries().get(name).map(|entry| entry.origin);
        let is_remembered = journal.as_ref().is_some_and(|journal| journal.has(name));
        match origin {
            Some(Origin::Admin { .. }) => {}
            // Of a name that the file took, or wrong for this release.
            _ if is_remembered => {}
            Some(Origin::File) => return Err(ChangeError::FromFile(name.to_owned())),
            None => return Err(EngineError::NoSuchWire(name.to_owned()).into()),
        }
        if let (Some(journal), true) = (journal.as_mut(), is_remembered) {
            journal.remove(name)?;
        }
        if !matches!(origin, Some(Origin::Admin { .. })) {
            info!(wire = name, "wire removed from the journal by the admin API");
            return Ok(());
        }
        match self.engine.remove(name) {
            // One that could not be made.
            Ok(()) | Err(EngineError::NoSuchWire(_)) => {}
            Err(error) => {
                // The engine goes on with it.
                if matches!(error, EngineError::StillRemoving(_)) {
                    self.entries().remove(name);
                }
                return Err(error.into());
            }
        }
        self.entries().remove(name);
        info!(wire = name, "wire removed by the admin API");
        Ok(())
    }

    /// Makes the wires that the journal remembers. One that cannot be made is logged and kept for [`Wires::retry`].
    pub fn replay(&self) -> Result<usize, ChangeError> {
        let journal = self.turn()?;
        let mut wanted = Vec::new();
        for wire in journal.iter().flat_map(Journal::wires) {
            if self.entries().get(&wire.name).is_some() {
                error!(
                    wire = wire.name,
                    "the wires file has a wire of this name, so that of the journal is not made; remove one of them"
                );
                continue;
            }
            match spec_from_proto(wire) {
                Ok(spec) => wanted.push(spec),
                Err(errors) => {
                    error!(wire = wire.name, %errors, "a wire of the journal is wrong for this release; remove it, or put it again");
                }
            }
        }
        let count = wanted.len();
        self.make_all(wanted, Origin::Admin { persistent: true });
        Ok(count)
    }

    /// Makes the wires of the file what `wanted` says. Wires of the admin API are left alone; when one of them has a name
    /// that is wanted, nothing is changed at all. A wire that cannot be made is logged and kept for [`Wires::retry`].
    /// Ends early when the forwarder begins to drain.
    pub fn apply(&self, wanted: &[WireSpec]) -> Result<Changes, ChangeError> {
        let _turn = self.turn()?;
        let steps = self.entries().plan(wanted)?;
        let mut changes = Changes::default();
        let mut to_make = Vec::new();
        for step in steps {
            match step {
                Step::Remove(name) => {
                    changes.removed += 1;
                    self.forget(&name)?;
                }
                Step::Change(spec) => {
                    changes.changed += 1;
                    to_make.push(spec);
                }
                Step::Add(spec) => {
                    changes.added += 1;
                    to_make.push(spec);
                }
            }
        }
        self.make_all(to_make, Origin::File);
        Ok(changes)
    }

    /// Tries again to make wires that could not be made, or that lost an end for good (its namespace went away and may be
    /// back). One that could not be made now either is not touched: an end of it may have its peer.
    pub fn retry(&self) {
        let Ok(_turn) = self.turn() else { return };
        let broken: Vec<_> = self.engine.wires().into_iter().filter(is_broken).collect();
        let hopeless: Vec<_> =
            broken.iter().filter(|status| !can_be_made(status)).map(|status| status.spec.name.as_str()).collect();
        let due = self.entries().to_retry(&broken);
        let due: Vec<_> = due.into_iter().filter(|entry| !hopeless.contains(&entry.spec.name.as_str())).collect();
        for Entry { spec, origin, .. } in due {
            self.make_all(vec![entries::pinned(spec, None)], origin);
        }
    }

    /// Every wire, in the order of their names.
    pub fn list(&self) -> Vec<Listed> {
        self.entries().list(self.engine.wires())
    }

    /// Every worker.
    pub fn workers(&self) -> Vec<WorkerStatus> {
        self.engine.workers()
    }

    /// What happens to wires from now on.
    pub fn subscribe(&self, capacity: usize) -> Subscription {
        self.engine.subscribe(capacity)
    }

    /// Whether the engine can still do its work.
    pub fn health(&self) -> Health {
        self.engine.health()
    }

    /// Refuses changes from now on. A change that is under way ends early.
    pub fn refuse_changes(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Refuses changes and removes every wire, politely, within `grace`.
    pub fn drain(&self, grace: Duration) {
        self.refuse_changes();
        self.engine.drain(grace);
    }

    /// Makes or changes wires, and remembers them whether or not that worked.
    fn make_all(&self, wanted: Vec<WireSpec>, origin: Origin) {
        let mut results = self.engine.apply_all(wanted.clone());
        // A wire may want what another one gave up only later: once all are there or were tried, the others have a turn.
        for (spec, result) in wanted.iter().zip(&mut results) {
            if matches!(result, Err(EngineError::End { .. })) && wanted.len() > 1 && !self.is_draining() {
                *result = self.engine.apply(spec.clone());
            }
        }
        for (spec, result) in wanted.into_iter().zip(results) {
            self.note(spec, origin, result);
        }
    }

    fn note(&self, spec: WireSpec, origin: Origin, result: Result<Applied, EngineError>) {
        let known = self.entries().get(&spec.name).and_then(|entry| entry.failure.clone());
        let failure = result.as_ref().err().map(Failure::from);
        match (result, &failure) {
            (Ok(Applied::Unchanged) | Err(EngineError::Draining), _) => {}
            (Ok(applied), _) => info!(wire = spec.name, ends = ends(&spec), ?applied, "wire made"),
            // The same again would only fill the log.
            (Err(_), failure) if known == *failure => {}
            (Err(problem), _) => error!(wire = spec.name, %problem, "wire not made; it will be tried again"),
        }
        self.entries().put(Entry { spec, origin, failure });
    }

    /// Goes back to what was there before a change that failed.
    fn restore(&self, before: Option<Entry>) {
        let Some(before) = before.filter(|entry| self.engine.wire(&entry.spec.name).is_none() && !self.is_draining())
        else {
            return;
        };
        let result = self.engine.apply(before.spec.clone());
        self.note(before.spec, before.origin, result);
    }

    fn forget(&self, name: &str) -> Result<(), ChangeError> {
        match self.engine.remove(name) {
            Ok(()) | Err(EngineError::NoSuchWire(_)) => {}
            Err(EngineError::Draining) => return Err(ChangeError::Draining),
            Err(problem) => {
                // It leaves; the engine goes on with it.
                warn!(wire = name, %problem, "a wire that leaves the file is not removed yet");
            }
        }
        self.entries().remove(name);
        info!(wire = name, "wire removed");
        Ok(())
    }

    fn turn(&self) -> Result<MutexGuard<'_, Option<Journal>>, ChangeError> {
        let turn = lock(&self.turn);
        if self.is_draining() { Err(ChangeError::Draining) } else { Ok(turn) }
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        lock(&self.entries)
    }
}

/// Why a change was refused.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// The engine said no.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The admin API cannot change what the file wants.
    #[error("wire `{0}` comes from the wires file; change or remove it there")]
    FromFile(String),
    /// The file wants names that the admin API has given out.
    #[error("{} added through the admin API and in the wires file; rename or remove one of each", names(.0))]
    FromAdmin(Vec<String>),
    /// Somebody else's wire has the name.
    #[error("wire `{wire}` belongs to {}; choose another name, or remove that wire first", owner_text(.owner))]
    OtherOwner {
        /// The wire.
        wire: String,
        /// Whose it is.
        owner: String,
    },
    /// There is nothing to persist in.
    #[error(
        "wire `{0}` shall persist, and this forwarder has no journal; start it with `--journal PATH`, or `journal:` in its file"
    )]
    NoJournal(String),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The forwarder is about to end.
    #[error("the forwarder is draining; ask its successor")]
    Draining,
}

/// An end is gone and does not come back by itself.
fn is_broken(status: &WireStatus) -> bool {
    status.problem.is_none() && status.ends.iter().any(|end| matches!(end, EndState::Failed { .. }))
}

/// Whether there is hope for the ends that failed: the namespace of one is there.
fn can_be_made(status: &WireStatus) -> bool {
    status.spec.ends.iter().zip(&status.ends).all(|(spec, state)| match (spec, state) {
        (EndSpec::Kernel(kernel), EndState::Failed { .. }) => {
            kernel.netns.as_ref().is_none_or(|netns| netns.open().is_ok())
        }
        _ => true,
    })
}

fn ends(spec: &WireSpec) -> String {
    let [first, second] = &spec.ends;
    format!("{first} - {second}")
}

fn names(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    format!("{} {}", if names.len() == 1 { "wire" } else { "wires" }, quoted.join(", "))
}

fn owner_text(owner: &str) -> String {
    if owner.is_empty() { "nobody in particular".to_owned() } else { format!("`{owner}`") }
}

/// A panic while the lock was held is reported where it happened; the data is whole after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
