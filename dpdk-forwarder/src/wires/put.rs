//! A wire put by the admin API, or by a connection of the mesh: in the journal first, then made; back to what there was if it cannot be.

use std::collections::HashMap;
use std::sync::MutexGuard;

use dpdk_forwarder_client::v1;
use ferrule_dataplane::EngineError;
use ferrule_dataplane::engine::Applied;
use ferrule_dataplane::spec::WireSpec;
use tracing::{error, info, warn};

use super::asked::{Asked, Wanted, await_answers};
use super::entries::{Entry, Failure, Stage, pinned, with_processes_of};
use super::{ANSWER_TIMEOUT, ChangeError, Origin, Put, Wires, ends, lock};
use crate::admin::{Secrets, spec_to_proto};
use crate::journal::{Journal, JournalError, Undo};

/// What belongs to whoever makes a change.
pub(super) struct Turn {
    journal: Option<Journal>,
    /// Wires that were put and that the engine works on, by name.
    unfinished: HashMap<String, Unfinished>,
}

/// What to go back to if a wire that was put cannot be made.
#[derive(Default)]
struct Unfinished {
    before: Option<Entry>,
    undo: Option<Undo>,
}

impl Turn {
    pub fn new(journal: Option<Journal>) -> Self {
        Self { journal, unfinished: HashMap::new() }
    }

    /// The wires of the journal.
    pub fn remembered(&self) -> impl Iterator<Item = &v1::WireSpec> {
        self.journal.iter().flat_map(Journal::wires)
    }

    /// Whether the journal has a wire.
    pub fn remembers(&self, name: &str) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.has(name))
    }

    /// Nobody wants a wire any more, at the next start either.
    pub fn forget(&mut self, name: &str) -> Result<(), JournalError> {
        if let Some(journal) = self.journal.as_mut().filter(|journal| journal.has(name)) {
            journal.remove(name)?;
        }
        self.unfinished.remove(name);
        Ok(())
    }

    /// Writes down what is about to be done.
    fn record(&mut self, spec: &WireSpec, persistent: bool, is_there: bool) -> Result<Option<Undo>, JournalError> {
        match &mut self.journal {
            Some(journal) if persistent && !is_there => journal.put(spec_to_proto(spec, Secrets::Shown)).map(Some),
            Some(journal) if !persistent && journal.has(&spec.name) => journal.remove(&spec.name).map(Some),
            _ => Ok(None),
        }
    }

    fn take_back(&mut self, name: &str, undo: Option<Undo>) {
        if let (Some(journal), Some(undo)) = (&mut self.journal, undo)
            && let Err(error) = journal.undo(undo)
        {
            error!(wire = name, %error, "the journal keeps a wire that could not be made");
        }
    }
}

impl Wires {
    /// Makes a wire of the admin API what `spec` says. `persist` says whether it is made again when the forwarder starts
    /// again; none: if there is a journal. Whoever puts the same wire later has its way, also while this one is being made.
    pub fn put(&self, spec: WireSpec, persist: Option<bool>) -> Result<Put, ChangeError> {
        let asked = self.begin_put(spec, persist)?;
        self.await_put(asked)
    }

    /// The same for a connection of Network Service Mesh. It is never in the journal: its client asks again after a restart.
    pub fn put_of_mesh(&self, spec: WireSpec) -> Result<Put, ChangeError> {
        let turn = self.turn()?;
        let asked = self.begin_put_as(turn, spec, Origin::Mesh)?;
        self.await_put(asked)
    }

    fn await_put(&self, asked: Asked) -> Result<Put, ChangeError> {
        let asked = [asked];
        let result = await_answers(&asked, ANSWER_TIMEOUT).swap_remove(0);
        let [asked] = asked;
        self.finish_put(asked, result)
    }

    pub(super) fn begin_put(&self, spec: WireSpec, persist: Option<bool>) -> Result<Asked, ChangeError> {
        let turn = self.turn()?;
        let persistent = persist.unwrap_or(turn.journal.is_some());
        if persistent && turn.journal.is_none() {
            return Err(ChangeError::NoJournal(spec.name));
        }
        self.begin_put_as(turn, spec, Origin::Admin { persistent })
    }

    fn begin_put_as(
        &self,
        mut turn: MutexGuard<'_, Turn>,
        spec: WireSpec,
        origin: Origin,
    ) -> Result<Asked, ChangeError> {
        let known = self.entries().get(&spec.name).cloned();
        let mut spec = pinned(spec);
        if let Some(known) = &known {
            may_change(known, &spec, origin)?;
            spec = with_processes_of(spec, &known.spec);
        }
        let is_there =
            known.as_ref().is_some_and(|known| known.spec == spec && known.origin == origin && known.failure.is_none());
        // Written before it is acted on.
        let persistent = origin == Origin::Admin { persistent: true };
        let undo = turn.record(&spec, persistent, is_there)?;
        let unfinished = match turn.unfinished.remove(&spec.name) {
            // The engine still works on an earlier one: what there was before that is what to go back to.
            Some(earlier) => Unfinished { undo: Undo::of_both(earlier.undo, undo), ..earlier },
            None => Unfinished { before: known, undo },
        };
        turn.unfinished.insert(spec.name.clone(), unfinished);
        Ok(Asked::of(&self.engine, self.want(spec, origin)))
    }

    pub(super) fn finish_put(&self, asked: Asked, result: Result<Applied, EngineError>) -> Result<Put, ChangeError> {
        let Wanted { spec, origin, change } = asked.wanted.clone();
        let name = spec.name.clone();
        let mut turn = lock(&self.turn);
        let is_last = self.entries().is_last(&name, change);
        self.leases.notify_one();
        match result {
            Ok(applied) => {
                if applied != Applied::Unchanged {
                    info!(wire = name, ends = ends(&spec), done = applied.word(), "wire put by {}", asker(origin));
                }
                if is_last {
                    turn.unfinished.remove(&name);
                    self.entries().answer(&name, None);
                } else if let Some(later) = turn.unfinished.get_mut(&name) {
                    // This one was there before the one that the engine works on.
                    let record =
                        (origin == Origin::Admin { persistent: true }).then(|| spec_to_proto(&spec, Secrets::Shown));
                    later.undo = later.undo.take().map(|undo| undo.to(record));
                    later.before = Some(Entry { spec, origin, stage: Stage::Answered, failure: None, change });
                }
                let generation = self.engine.wire(&name).map_or(0, |status| status.generation);
                Ok(Put { applied, generation })
            }
            // Whoever changed it meanwhile sees to it.
            Err(problem) if !is_last => Err(problem.into()),
            Err(problem @ EngineError::StillMaking(_)) => {
                warn!(wire = name, %problem, "a wire put by {} takes long", asker(origin));
                turn.unfinished.remove(&name);
                self.entries().answer(&name, Some(Failure::from(&problem)));
                lock(&self.late).push(asked);
                Err(problem.into())
            }
            Err(problem) => {
                let Unfinished { before, undo } = turn.unfinished.remove(&name).unwrap_or_default();
                turn.take_back(&name, undo);
                let restored = self.go_back(&name, before);
                self.leases.notify_one();
                drop(turn);
                self.finish(restored.into_iter().collect(), super::Again::No);
                Err(problem.into())
            }
        }
    }

    /// Goes back to what was there before a change that failed. Under the turn.
    fn go_back(&self, name: &str, before: Option<Entry>) -> Option<Asked> {
        let Some(before) = before else {
            self.entries().remove(name);
            return None;
        };
        let wanted = self.want(before.spec, before.origin);
        if self.engine.wire(name).is_some() || self.is_draining() {
            self.entries().answer(name, before.failure);
            return None;
        }
        Some(Asked::of(&self.engine, wanted))
    }
}

/// Whether whoever asks may make something else of this wire.
fn may_change(known: &Entry, spec: &WireSpec, origin: Origin) -> Result<(), ChangeError> {
    let wire = spec.name.clone();
    match known.origin {
        Origin::File => Err(ChangeError::FromFile(wire)),
        Origin::Mesh if origin == Origin::Mesh => Ok(()),
        Origin::Mesh => Err(ChangeError::FromMesh(wire)),
        Origin::Admin { .. } if origin == Origin::Mesh => Err(ChangeError::FromAdmin(vec![wire])),
        Origin::Admin { .. } if known.spec.owner != spec.owner => {
            Err(ChangeError::OtherOwner { wire, owner: known.spec.owner.clone() })
        }
        Origin::Admin { .. } => Ok(()),
    }
}

/// In words.
fn asker(origin: Origin) -> &'static str {
    match origin {
        Origin::File => "the wires file",
        Origin::Admin { .. } => "the admin API",
        Origin::Mesh => "a connection of the mesh",
    }
}
