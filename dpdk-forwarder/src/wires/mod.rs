//! The wires of this forwarder: what was wanted, by whom, and what became of it.
//!
//! A change has three parts: under the turn it is noted and the engine is asked; the engine's answer is awaited without
//! the turn; then, if nobody else has changed the wire meanwhile, the outcome is noted. So one file system that does not
//! answer holds up those who wait for its wires, and no one else. The admin API lets 32 changes wait at once, and refuses
//! others while none of them ends.
//!
//! Modules in reading order: `entries` (what was asked for, by name; pure), `asked` (the engine's answers awaited), `put`
//! (a change of the admin API, and back if it cannot be).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferrule_dataplane::capture::Capture;
use ferrule_dataplane::engine::{Applied, Health, Pending, REMOVAL_TIMEOUT, Subscription};
use ferrule_dataplane::port::kernel::InterfaceOwner;
use ferrule_dataplane::spec::WireSpec;
use ferrule_dataplane::status::{WireStatus, WorkerStatus};
use ferrule_dataplane::{Engine, EngineError};
use thiserror::Error;
use tokio::sync::Notify;
use tracing::{error, info, warn};

use crate::admin::spec_from_proto;
use crate::journal::{Journal, JournalError};
use crate::plan::Step;
use asked::{Asked, Wanted, await_answers};
use entries::{Change, Entries, Entry, Failure, pinned};
use put::Turn;

mod asked;
mod entries;
mod put;

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
    /// A connection of Network Service Mesh, whose client asks again by itself.
    Mesh,
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

/// What was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A wire of the admin API, and what the journal had of it.
    Wire,
    /// Only what the journal had of that name: the wire, if there is one, is that of the file.
    FromJournal,
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

/// The engine, and why each of its wires is there. Calls that change something block until the engine has answered, or has
/// not for too long. Readers, [`Wires::drain`] and [`Wires::refuse_changes`] wait for none of them.
pub struct Wires {
    engine: Engine,
    entries: Mutex<Entries>,
    /// Held while a change is noted and the engine is asked, so that all who ask do so in one order.
    turn: Mutex<Turn>,
    /// Wires that were put, and whose answer nobody waits for any more. It is noted when it comes.
    late: Mutex<Vec<Asked>>,
    draining: AtomicBool,
    /// A wire has gone, or is another one.
    leases: Notify,
    /// Why the wires file as it is now is not used: one line for each reason; none: it is.
    file_problems: Mutex<Vec<String>>,
}

/// Wires that the engine was asked for at the start.
pub struct Starting(Vec<Asked>);

impl Wires {
    /// No wires yet.
    pub fn new(engine: Engine, journal: Option<Journal>) -> Self {
        let turn = Mutex::new(Turn::new(journal));
        let (entries, late, draining) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        let file_problems = Mutex::default();
        Self { engine, entries, turn, late, draining, leases: Notify::new(), file_problems }
    }

    /// Asks for the wires of the file and for those that the journal remembers: from here on their names are taken. Comes
    /// before anybody else can ask for wires.
    pub fn start(&self, of_file: &[WireSpec]) -> Starting {
        let turn = lock(&self.turn);
        let mut wanted: Vec<_> = of_file.iter().map(|spec| self.want(pinned(spec.clone()), Origin::File)).collect();
        for wire in turn.remembered() {
            if self.entries().get(&wire.name).is_some() {
                error!(
                    wire = wire.name,
                    "the wires file has a wire of this name, so that of the journal is not made; remove one of them"
                );
                continue;
            }
            match spec_from_proto(wire) {
                Ok(spec) => wanted.push(self.want(spec, Origin::Admin { persistent: true })),
                Err(errors) => {
                    error!(wire = wire.name, %errors, "a wire of the journal is wrong for this release; remove it, or put it again");
                }
            }
        }
        Starting(self.ask_all(wanted))
    }

    /// Waits until those were made or tried. One that cannot be made is logged and kept for [`Wires::retry`].
    pub fn finish_start(&self, starting: Starting) {
        self.finish(starting.0, Again::Once);
    }

    /// Removes a wire that the admin API made, or what only the journal remembers.
    pub fn remove(&self, name: &str) -> Result<Removed, ChangeError> {
        let mut turn = self.turn()?;
        let origin = self.entries().get(name).map(|entry| entry.origin);
        let is_of_admin = matches!(origin, Some(Origin::Admin { .. }));
        let is_remembered = turn.remembers(name);
        if !is_of_admin && !is_remembered {
            return Err(match origin {
                Some(Origin::Mesh) => ChangeError::FromMesh(name.to_owned()),
                Some(_) => ChangeError::FromFile(name.to_owned()),
                None => EngineError::NoSuchWire(name.to_owned()).into(),
            });
        }
        turn.forget(name)?;
        if !is_of_admin {
            // Of a name that the file took, or wrong for this release.
            info!(wire = name, "wire removed from the journal by the admin API");
            return Ok(Removed::FromJournal);
        }
        let (change, leaving) = self.let_go(name);
        drop(turn);
        self.await_removal(name, change, &leaving, REMOVAL_TIMEOUT)?;
        info!(wire = name, "wire removed by the admin API");
        Ok(Removed::Wire)
    }

    /// Removes the wire of a connection of Network Service Mesh. One that is not there is no error.
    pub fn remove_of_mesh(&self, name: &str) -> Result<(), ChangeError> {
        // Not refused while the forwarder drains: the wire is about to go all the same.
        let turn = lock(&self.turn);
        if self.entries().get(name).is_none_or(|entry| entry.origin != Origin::Mesh) {
            return Ok(());
        }
        let (change, leaving) = self.let_go(name);
        drop(turn);
        self.await_removal(name, change, &leaving, REMOVAL_TIMEOUT)?;
        info!(wire = name, "wire of a connection removed");
        Ok(())
    }

    /// Whose the interfaces of wires are.
    pub fn interface_owner(&self) -> &InterfaceOwner {
        self.engine.interface_owner()
    }

    /// What a wire does; none: the engine has none of this name.
    pub fn status(&self, name: &str) -> Option<WireStatus> {
        self.engine.wire(name)
    }

    /// Makes the wires of the file what `wanted` says. Wires of the admin API are left alone; when one of them has a name
    /// that is wanted, nothing is changed at all. A wire that cannot be made is logged and kept for [`Wires::retry`].
    /// Ends early when the forwarder begins to drain.
    pub fn apply(&self, wanted: &[WireSpec]) -> Result<Changes, ChangeError> {
        let turn = self.turn()?;
        let steps = self.entries().plan(wanted)?;
        let (mut changes, mut removals, mut to_make) = (Changes::default(), Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Remove(name) => {
                    changes.removed += 1;
                    let (change, leaving) = self.let_go(&name);
                    removals.push((name, change, leaving));
                }
                Step::Change(spec) => {
                    changes.changed += 1;
                    to_make.push(self.want(spec, Origin::File));
                }
                Step::Add(spec) => {
                    changes.added += 1;
                    to_make.push(self.want(spec, Origin::File));
                }
            }
        }
        drop(turn);
        // First: what they free may be wanted by the others.
        let end = Instant::now() + REMOVAL_TIMEOUT;
        for (name, change, leaving) in removals {
            match self.await_removal(&name, change, &leaving, end.saturating_duration_since(Instant::now())) {
                Ok(()) => info!(wire = name, "wire removed"),
                Err(EngineError::Draining) => return Err(ChangeError::Draining),
                Err(problem) => warn!(wire = name, %problem, "a wire that leaves the file is not removed yet"),
            }
        }
        let turn = self.turn()?;
        let asked = self.ask_all(to_make);
        drop(turn);
        self.finish(asked, Again::Once);
        Ok(changes)
    }

    /// Notes what became of wires that took longer than anybody waits. Then tries again to make wires that could not be made, or that lost an end for good (its namespace went away and may be
    /// back). While an interface cannot be made, the other end of its wire keeps its peer: that is the engine's work.
    pub fn retry(&self) {
        self.note_late();
        let statuses = self.engine.wires();
        let Ok(turn) = self.turn() else { return };
        let due = self.entries().to_retry(&statuses);
        let wanted = due.into_iter().map(|Entry { spec, origin, .. }| self.want(pinned(spec), origin)).collect();
        let asked = self.ask_all(wanted);
        drop(turn);
        self.finish(asked, Again::No);
    }

    /// The leases of VFs that wires want, those that are being removed too.
    pub fn wanted_leases(&self) -> BTreeSet<String> {
        self.entries().leases()
    }

    /// Returns when fewer leases may be wanted than before.
    pub async fn leases_changed(&self) {
        self.leases.notified().await;
    }

    /// Every wire, in the order of their names.
    pub fn list(&self) -> Vec<Listed> {
        self.entries().list(self.engine.wires())
    }

    /// The wires file as it is now is not used, for these reasons; none: it is.
    pub fn note_file_problems(&self, problems: Vec<String>) {
        *lock(&self.file_problems) = problems;
    }

    /// Why the wires file as it is now is not used: one line for each reason; none: it is.
    pub fn file_problems(&self) -> Vec<String> {
        lock(&self.file_problems).clone()
    }

    /// Every worker.
    pub fn workers(&self) -> Vec<WorkerStatus> {
        self.engine.workers()
    }

    /// Has copies of a wire's frames made, or not any more. Blocks for a moment.
    pub fn trace(&self, name: &str, capture: Option<Arc<Capture>>) -> Result<(), EngineError> {
        self.engine.trace(name, capture)
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

    /// Notes that somebody wants a wire. Under the turn.
    fn want(&self, spec: WireSpec, origin: Origin) -> Wanted {
        let change = self.entries().ask(spec.clone(), origin);
        Wanted { spec, origin, change }
    }

    /// Asks the engine for those that nobody has changed meanwhile. Under the turn.
    fn ask_all(&self, wanted: Vec<Wanted>) -> Vec<Asked> {
        let mine = wanted.into_iter().filter(|wanted| self.entries().is_last(&wanted.spec.name, wanted.change));
        mine.map(|wanted| Asked::of(&self.engine, wanted)).collect::<Vec<_>>()
    }

    /// Waits for what was asked for, and notes what became of it.
    fn finish(&self, asked: Vec<Asked>, again: Again) {
        let mut results = await_answers(&asked, ANSWER_TIMEOUT);
        if again == Again::Once && asked.len() > 1 {
            // A wire may want what another one gave up only later: once all are there or were tried, the others have a turn.
            let Ok(turn) = self.turn() else { return };
            let is_due = |&index: &usize| {
                let Wanted { spec, change, .. } = &asked[index].wanted;
                matches!(results[index], Err(EngineError::End { .. })) && self.entries().is_last(&spec.name, *change)
            };
            let which: Vec<_> = (0..asked.len()).filter(is_due).collect();
            let second: Vec<_> = which.iter().map(|&index| asked[index].again(&self.engine)).collect();
            drop(turn);
            for (index, result) in which.into_iter().zip(await_answers(&second, ANSWER_TIMEOUT)) {
                results[index] = result;
            }
        }
        for (Asked { wanted, .. }, result) in asked.into_iter().zip(results) {
            self.note(&wanted, result);
        }
    }

    fn note_late(&self) {
        let late = std::mem::take(&mut *lock(&self.late));
        for asked in late {
            let Wanted { spec, change, .. } = &asked.wanted;
            match asked.poll(Duration::ZERO) {
                Some(result) => self.note(&asked.wanted, result),
                None if self.entries().is_last(&spec.name, *change) => lock(&self.late).push(asked),
                None => {}
            }
        }
    }

    /// Notes what became of a wire, unless somebody else has changed it meanwhile.
    fn note(&self, wanted: &Wanted, result: Result<Applied, EngineError>) {
        let _turn = lock(&self.turn);
        let Wanted { spec, origin, change } = wanted;
        if !self.entries().is_last(&spec.name, *change) {
            return;
        }
        let known = self.entries().get(&spec.name).and_then(|entry| entry.failure.clone());
        let failure = result.as_ref().err().map(Failure::from);
        let then = match origin {
            Origin::Admin { persistent: false } => "it is not tried again: put it again",
            Origin::Mesh => "its client asks again",
            Origin::File | Origin::Admin { persistent: true } => "it will be tried again",
        };
        match (result, &failure) {
            (Ok(Applied::Unchanged) | Err(EngineError::Draining), _) => {}
            (Ok(applied), _) => info!(wire = spec.name, ends = ends(spec), done = applied.word(), "wire made"),
            // The same again would only fill the log.
            (Err(_), failure) if known == *failure => {}
            (Err(problem), _) => error!(wire = spec.name, %problem, "wire not made; {then}"),
        }
        self.entries().answer(&spec.name, failure);
        self.leases.notify_one();
    }

    /// Nobody wants a wire any more: the engine is asked to remove it. Under the turn.
    fn let_go(&self, name: &str) -> (Change, Pending<()>) {
        (self.entries().leave(name), self.engine.begin_remove(name))
    }

    /// Waits until the engine has removed a wire. One that takes longer is not ours any more: the engine goes on with it.
    fn await_removal(
        &self,
        name: &str,
        change: Change,
        leaving: &Pending<()>,
        limit: Duration,
    ) -> Result<(), EngineError> {
        let removed = match leaving.wait(limit) {
            // One that could not be made.
            Err(EngineError::NoSuchWire(_)) => Ok(()),
            removed => removed,
        };
        let _turn = lock(&self.turn);
        if self.entries().is_last(name, change) {
            self.entries().remove(name);
        }
        self.leases.notify_one();
        removed
    }

    fn turn(&self) -> Result<MutexGuard<'_, Turn>, ChangeError> {
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

/// Whether wires that could not be made are tried a second time at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    No,
    Once,
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
    /// The admin API cannot change what a connection of the mesh wants.
    #[error("wire `{0}` is that of a connection of Network Service Mesh; its client closes it")]
    FromMesh(String),
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
        "wire `{0}` cannot persist: this forwarder has no journal; start it with `--journal PATH`, or `journal:` in its file"
    )]
    NoJournal(String),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The forwarder is about to end.
    #[error("the forwarder is draining; ask its successor")]
    Draining,
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

/// How long the engine may work on wires without a sign of life before nobody waits for them any more. An interface takes the
/// kernel some ten milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
