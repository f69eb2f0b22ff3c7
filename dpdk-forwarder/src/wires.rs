//! The wires of this forwarder: what was wanted, by whom, and what became of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrule_dataplane::spec::{EndSpec, WireSpec};
use ferrule_dataplane::status::{EndState, WireStatus, WorkerStatus};
use ferrule_dataplane::{Engine, EngineError};
use thiserror::Error;
use tracing::{error, info, warn};

use crate::plan::{Step, plan};

/// Who asked for a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The wires file.
    File,
    /// The admin API.
    Admin,
}

/// A wire as it stood when it was asked for.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Who asked for it.
    pub origin: Origin,
    /// What it is doing. A wire of the file that could not be made has two failed ends.
    pub status: WireStatus,
}

/// The engine, and why each of its wires is there. All calls that change something block: they
/// take turns, and the engine may wait for a peer's kernel.
pub struct Wires {
    engine: Engine,
    ledger: Mutex<Ledger>,
    /// Held during a change, so that changes take turns and readers never wait for one.
    turn: Mutex<Turn>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Open,
    Draining,
}

impl Wires {
    /// No wires yet.
    pub fn new(engine: Engine) -> Self {
        Self { engine, ledger: Mutex::default(), turn: Mutex::new(Turn::Open) }
    }

    /// Makes a wire for the admin API.
    pub fn add(&self, spec: WireSpec) -> Result<(), ChangeError> {
        let _turn = self.turn()?;
        if self.ledger().entries.contains_key(&spec.name) {
            return Err(EngineError::NameTaken(spec.name).into());
        }
        self.engine.add(spec.clone())?;
        info!(wire = spec.name, ends = ends(&spec), "wire added by the admin API");
        self.ledger().put(spec, Origin::Admin, None);
        Ok(())
    }

    /// Removes a wire that the admin API made.
    pub fn remove(&self, name: &str) -> Result<(), ChangeError> {
        let _turn = self.turn()?;
        match self.ledger().entries.get(name).map(|entry| entry.origin) {
            None => return Err(EngineError::NoSuchWire(name.to_owned()).into()),
            Some(Origin::File) => return Err(ChangeError::FromFile(name.to_owned())),
            Some(Origin::Admin) => {}
        }
        self.engine.remove(name)?;
        self.ledger().entries.remove(name);
        info!(wire = name, "wire removed by the admin API");
        Ok(())
    }

    /// Makes the wires of the file what `wanted` says. Wires of the admin API are left alone; when one of
    /// them has a name that is wanted, nothing is changed at all. A wire that cannot be made is
    /// logged and kept for [`Wires::retry`].
    pub fn apply(&self, wanted: &[WireSpec]) -> Result<Applied, ChangeError> {
        let _turn = self.turn()?;
        let steps = self.ledger().plan(wanted)?;
        let mut applied = Applied::default();
        for step in steps {
            match step {
                Step::Remove(name) => {
                    applied.removed += 1;
                    self.forget(&name);
                }
                Step::Add(spec) => {
                    applied.added += 1;
                    self.make(spec);
                }
            }
        }
        Ok(applied)
    }

    /// Tries again to make the wires of the file that could not be made, or that lost an end for good
    /// (its namespace went away and may be back).
    pub fn retry(&self) {
        let Ok(_turn) = self.turn() else { return };
        let broken: Vec<_> = self.engine.wires().into_iter().filter(is_broken).map(|status| status.spec.name).collect();
        let due = self.ledger().to_retry(&broken);
        for spec in due {
            if broken.contains(&spec.name)
                && let Err(problem) = self.engine.remove(&spec.name)
            {
                warn!(wire = spec.name, %problem, "a wire that lost an end could not be removed");
                continue;
            }
            self.make(spec);
        }
    }

    /// Every wire, in the order of their names.
    pub fn list(&self) -> Vec<Listed> {
        self.ledger().list(self.engine.wires())
    }

    /// Every worker.
    pub fn workers(&self) -> Vec<WorkerStatus> {
        self.engine.workers()
    }

    /// Refuses changes from now on and removes every wire, politely, within `grace`.
    pub fn drain(&self, grace: Duration) {
        *lock(&self.turn) = Turn::Draining;
        self.engine.drain(grace);
        self.ledger().entries.clear();
    }

    /// Makes a wire of the file, and remembers it whether or not that worked.
    fn make(&self, spec: WireSpec) {
        let failure = self.engine.add(spec.clone()).err().map(|error| error.to_string());
        let known = self.ledger().failure(&spec.name);
        match &failure {
            None => info!(wire = spec.name, ends = ends(&spec), "wire added"),
            // The same text again would only fill the log.
            Some(problem) if known.as_ref() == Some(problem) => {}
            Some(problem) => error!(wire = spec.name, problem, "wire not added; it will be tried again"),
        }
        self.ledger().put(spec, Origin::File, failure);
    }

    fn forget(&self, name: &str) {
        let made = self.ledger().failure(name).is_none();
        if made && let Err(problem) = self.engine.remove(name) {
            warn!(wire = name, %problem, "the engine did not know a wire that leaves the file");
        }
        self.ledger().entries.remove(name);
        info!(wire = name, "wire removed");
    }

    fn turn(&self) -> Result<MutexGuard<'_, Turn>, ChangeError> {
        let turn = lock(&self.turn);
        if *turn == Turn::Draining { Err(ChangeError::Draining) } else { Ok(turn) }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }
}

/// What a reload changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Wires removed, among them those that changed.
    pub removed: usize,
    /// Wires added, among them those that changed and those that could not be made yet.
    pub added: usize,
}

/// Why a change was refused.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// The engine said no.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The admin API cannot remove what the file wants.
    #[error("wire `{0}` comes from the wires file; remove it there")]
    FromFile(String),
    /// The file wants names that the admin API has given out.
    #[error("{} added through the admin API and in the wires file; rename or remove one of each", names(.0))]
    FromAdmin(Vec<String>),
    /// The forwarder is about to end.
    #[error("the forwarder is draining; ask its successor")]
    Draining,
}

/// What was asked for, by name. Pure: it knows the engine's answers, not the engine.
#[derive(Debug, Default)]
struct Ledger {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    spec: WireSpec,
    origin: Origin,
    /// Why the engine could not make it; none: it did.
    failure: Option<String>,
}

impl Ledger {
    fn put(&mut self, spec: WireSpec, origin: Origin, failure: Option<String>) {
        self.entries.insert(spec.name.clone(), Entry { spec, origin, failure });
    }

    fn failure(&self, name: &str) -> Option<String> {
        self.entries.get(name)?.failure.clone()
    }

    fn plan(&self, wanted: &[WireSpec]) -> Result<Vec<Step>, ChangeError> {
        let by_admin = |spec: &&WireSpec| self.entries.get(&spec.name).is_some_and(|e| e.origin == Origin::Admin);
        let taken: Vec<_> = wanted.iter().filter(by_admin).map(|spec| spec.name.clone()).collect();
        if !taken.is_empty() {
            return Err(ChangeError::FromAdmin(taken));
        }
        let current: Vec<_> = self.of_file().map(|entry| entry.spec.clone()).collect();
        Ok(plan(&current, wanted))
    }

    fn to_retry(&self, broken: &[String]) -> Vec<WireSpec> {
        let due = |entry: &&Entry| entry.failure.is_some() || broken.contains(&entry.spec.name);
        self.of_file().filter(due).map(|entry| entry.spec.clone()).collect()
    }

    fn of_file(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| entry.origin == Origin::File)
    }

    fn list(&self, statuses: Vec<WireStatus>) -> Vec<Listed> {
        let mut statuses: HashMap<_, _> =
            statuses.into_iter().map(|status| (status.spec.name.clone(), status)).collect();
        let mut status = |entry: &Entry| match &entry.failure {
            Some(reason) => Some(WireStatus::failed(entry.spec.clone(), reason)),
            // Missing for the moment between its removal from the engine and from here.
            None => statuses.remove(&entry.spec.name),
        };
        self.entries
            .values()
            .filter_map(|entry| Some(Listed { origin: entry.origin, status: status(entry)? }))
            .collect()
    }
}

fn is_broken(status: &WireStatus) -> bool {
    status.ends.iter().any(|end| matches!(end, EndState::Failed { .. }))
}

fn ends(spec: &WireSpec) -> String {
    let [first, second] = &spec.ends;
    format!("{first} - {second}")
}

/// One word for the kind of an end: `memif`, `vhost-user` or `kernel`.
pub(crate) fn kind(end: &EndSpec) -> &'static str {
    match end {
        EndSpec::Memif(_) => "memif",
        EndSpec::VhostUser(_) => "vhost-user",
        EndSpec::Kernel(_) => "kernel",
    }
}

fn names(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    format!("{} {}", if names.len() == 1 { "wire" } else { "wires" }, quoted.join(", "))
}

/// A panic while the lock was held is reported where it happened; the data is whole after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_wire;

    #[test]
    fn a_wire_that_could_not_be_made_is_listed_with_its_problem_at_both_ends() {
        let mut ledger = Ledger::default();
        ledger.put(wire("a"), Origin::File, Some("namespace gone".into()));
        ledger.put(wire("b"), Origin::Admin, None);
        let listed = ledger.list(vec![up(wire("b"))]);
        let reason = EndState::Failed { reason: "namespace gone".into() };
        assert_eq!(listed[0].status.ends, [reason.clone(), reason]);
        assert!(!listed[0].status.is_up());
        assert_eq!((listed[0].origin, listed[1].origin), (Origin::File, Origin::Admin));
        assert!(listed[1].status.is_up());
    }

    #[test]
    fn a_reload_leaves_the_wires_of_the_admin_api_alone() {
        let mut ledger = Ledger::default();
        ledger.put(wire("file"), Origin::File, None);
        ledger.put(wire("admin"), Origin::Admin, None);
        assert_eq!(ledger.plan(&[]).unwrap(), [Step::Remove("file".into())]);
        assert_eq!(ledger.plan(&[wire("file")]).unwrap(), []);
    }

    #[test]
    fn a_file_that_wants_a_name_of_the_admin_api_is_refused_as_a_whole() {
        let mut ledger = Ledger::default();
        ledger.put(wire("mine"), Origin::Admin, None);
        let error = ledger.plan(&[wire("other"), wire("mine")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "wire `mine` added through the admin API and in the wires file; rename or remove one of each"
        );
    }

    #[test]
    fn what_is_tried_again_is_what_failed_or_broke_and_is_of_the_file() {
        let mut ledger = Ledger::default();
        ledger.put(wire("failed"), Origin::File, Some("no".into()));
        ledger.put(wire("broken"), Origin::File, None);
        ledger.put(wire("fine"), Origin::File, None);
        ledger.put(wire("mine"), Origin::Admin, None);
        let names: Vec<_> =
            ledger.to_retry(&["broken".into(), "mine".into()]).into_iter().map(|spec| spec.name).collect();
        assert_eq!(names, ["broken", "failed"]);
    }

    fn wire(name: &str) -> WireSpec {
        let ends = format!(
            "[{{memif: {{socket: '@{name}0', role: server}}}}, {{memif: {{socket: '@{name}1', role: server}}}}]"
        );
        parse_wire(&format!("{{name: {name}, ends: {ends}}}")).unwrap()
    }

    fn up(spec: WireSpec) -> WireStatus {
        let ends = [EndState::Up, EndState::Up];
        WireStatus { ends, queues: 1, ..WireStatus::failed(spec, "") }
    }
}
