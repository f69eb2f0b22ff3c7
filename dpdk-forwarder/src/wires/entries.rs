//! What was asked for, by name. Pure: it knows the engine's answers, not the engine.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ferrule_dataplane::EngineError;
use ferrule_dataplane::spec::{EndSpec, NetNs, Process, WireSpec};
use ferrule_dataplane::status::{EndState, WireStatus};
use ferrule_ethdev::{VfSpec, lease_name};

use super::{ChangeError, Listed, Origin};
use crate::plan::{Step, plan};

/// Every wire that somebody wants, and those that leave.
#[derive(Debug, Default)]
pub(super) struct Entries {
    wires: BTreeMap<String, Entry>,
    last: Change,
}

/// A wire that somebody wants.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub spec: WireSpec,
    pub origin: Origin,
    pub stage: Stage,
    /// Why the engine could not make it when it answered last.
    pub failure: Option<Failure>,
    /// The last change of it. Who waited for the engine finds by it whether somebody else changed the wire meanwhile.
    pub change: Change,
}

/// How far a wire is, as far as we asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The engine is to make it, and has not answered.
    Asked,
    /// The engine has answered.
    Answered,
    /// The engine is to remove it, and has not answered. Nobody wants it any more.
    Leaving,
}

/// Tells one change of a wire from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Change(u64);

/// Why a wire could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The end that it is about; none: the wire as a whole.
    pub end: Option<usize>,
    /// What was tried, why not, and what to do.
    pub problem: String,
}

impl From<&EngineError> for Failure {
    fn from(error: &EngineError) -> Self {
        match error {
            EngineError::End { end, problem, .. } => Self { end: Some(*end), problem: problem.clone() },
            error => Self { end: None, problem: error.to_string() },
        }
    }
}

impl Entries {
    /// A wire that somebody wants.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.wires.get(name).filter(|entry| entry.stage != Stage::Leaving)
    }

    /// Somebody wants this wire, and the engine is asked for it now. What an earlier try failed of is told until it answers.
    pub fn ask(&mut self, spec: WireSpec, origin: Origin) -> Change {
        let earlier = self.get(&spec.name).filter(|entry| entry.spec == spec);
        let failure = earlier.and_then(|entry| entry.failure.clone());
        let change = self.next_change();
        self.wires.insert(spec.name.clone(), Entry { spec, origin, stage: Stage::Asked, failure, change });
        change
    }

    /// The engine has answered.
    pub fn answer(&mut self, name: &str, failure: Option<Failure>) {
        if let Some(entry) = self.wires.get_mut(name) {
            (entry.stage, entry.failure) = (Stage::Answered, failure);
        }
    }

    /// Nobody wants it any more. It is listed while the engine removes it.
    pub fn leave(&mut self, name: &str) -> Change {
        let change = self.next_change();
        if let Some(entry) = self.wires.get_mut(name) {
            (entry.stage, entry.change) = (Stage::Leaving, change);
        }
        change
    }

    /// Whether nobody has changed the wire since `change`.
    pub fn is_last(&self, name: &str, change: Change) -> bool {
        self.wires.get(name).is_some_and(|entry| entry.change == change)
    }

    pub fn remove(&mut self, name: &str) {
        self.wires.remove(name);
    }

    fn next_change(&mut self) -> Change {
        self.last.0 += 1;
        self.last
    }

    /// The leases of the VFs that its wires have as ends.
    pub fn leases(&self) -> BTreeSet<String> {
        let ends = self.wires.values().flat_map(|entry| {
            entry.spec.ends.iter().enumerate().map(|(number, end)| (entry.spec.name.as_str(), number, end))
        });
        let is_vf = |end: &EndSpec| matches!(end, EndSpec::External(end) if end.downcast_ref::<VfSpec>().is_some());
        ends.filter(|(.., end)| is_vf(end)).map(|(wire, number, _)| lease_name(wire, number)).collect()
    }

    /// What makes the wires of the file those that are wanted.
    pub fn plan(&self, wanted: &[WireSpec]) -> Result<Vec<Step>, ChangeError> {
        let of_admin = |spec: &&WireSpec| self.get(&spec.name).is_some_and(|entry| entry.origin != Origin::File);
        let taken: Vec<_> = wanted.iter().filter(of_admin).map(|spec| spec.name.clone()).collect();
        if !taken.is_empty() {
            return Err(ChangeError::FromAdmin(taken));
        }
        let is_of_file = |entry: &&Entry| entry.origin == Origin::File && entry.stage != Stage::Leaving;
        let current: Vec<_> = self.wires.values().filter(is_of_file).map(|entry| entry.spec.clone()).collect();
        let pin = |spec: &WireSpec| {
            let before = self.get(&spec.name).map(|entry| &entry.spec);
            pinned(before.map_or_else(|| spec.clone(), |before| with_processes_of(spec.clone(), before)))
        };
        Ok(plan(&current, &wanted.iter().map(pin).collect::<Vec<_>>()))
    }

    /// The wires that could not be made or have lost an end, and that nobody but us sees to. One that the engine still works
    /// on is left alone.
    pub fn to_retry(&self, statuses: &[WireStatus]) -> Vec<Entry> {
        let statuses: HashMap<_, _> = statuses.iter().map(|status| (status.spec.name.as_str(), status)).collect();
        let due = |entry: &&Entry| {
            let status = statuses.get(entry.spec.name.as_str());
            let is_being_made = status.is_some_and(|status| status.ends.contains(&EndState::Making));
            (entry.failure.is_some() && !is_being_made) || status.is_some_and(|status| is_broken(status))
        };
        let ours = |entry: &&Entry| matches!(entry.origin, Origin::File | Origin::Admin { persistent: true });
        let answered = self.wires.values().filter(|entry| entry.stage == Stage::Answered);
        answered.filter(ours).filter(due).cloned().collect()
    }

    /// Every wire with its state.
    pub fn list(&self, statuses: Vec<WireStatus>) -> Vec<Listed> {
        let mut statuses: HashMap<_, _> =
            statuses.into_iter().map(|status| (status.spec.name.clone(), status)).collect();
        let mut status = |entry: &Entry| match (statuses.remove(&entry.spec.name), &entry.failure) {
            (Some(status), _) => Some(status),
            (None, Some(failure)) if entry.stage != Stage::Leaving => Some(not_made(&entry.spec, failure)),
            // The engine has not looked at it yet.
            (None, None) if entry.stage == Stage::Asked => Some(not_made_yet(&entry.spec)),
            // For the moment between its removal from the engine and from here.
            (None, _) => None,
        };
        self.wires.values().filter_map(|entry| Some(Listed { origin: entry.origin, status: status(entry)? })).collect()
    }
}

/// An end is gone and does not come back by itself.
fn is_broken(status: &WireStatus) -> bool {
    status.problem.is_none() && status.ends.iter().any(|end| matches!(end, EndState::Failed { .. }))
}

/// The end that could not be made says why; the other one has nothing wrong with it.
fn not_made(spec: &WireSpec, failure: &Failure) -> WireStatus {
    let mut status = WireStatus::failed(spec.clone(), &failure.problem);
    if let Some(other) = failure.end.and_then(|end| status.ends.get_mut(1 - end.min(1))) {
        *other = EndState::Failed { reason: OTHER_END.to_owned() };
    }
    status
}

fn not_made_yet(spec: &WireSpec) -> WireStatus {
    WireStatus { ends: [EndState::Making, EndState::Making], ..WireStatus::failed(spec.clone(), "") }
}

const OTHER_END: &str = "not made, because the other end cannot be";

/// The wire with its processes told from later ones of their numbers.
pub(super) fn pinned(mut spec: WireSpec) -> WireSpec {
    for end in &mut spec.ends {
        if let Some(netns) = end.netns_mut() {
            *netns = netns.take().map(NetNs::pinned);
        }
    }
    spec
}

/// The wire with the processes that it was told of before, where it names the same numbers: who has them now may be
/// somebody else.
pub(super) fn with_processes_of(mut spec: WireSpec, before: &WireSpec) -> WireSpec {
    let mut earlier_ends = before.ends.clone();
    for (end, earlier) in spec.ends.iter_mut().zip(&mut earlier_ends) {
        if let Some(Some(NetNs::Process(Process { pid, start_time: start_time @ None }))) = end.netns_mut()
            && let Some(Some(NetNs::Process(earlier))) = earlier.netns_mut()
            && earlier.pid == *pid
        {
            *start_time = earlier.start_time;
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use std::slice;

    use ferrule_dataplane::status::Traffic;

    use super::*;
    use crate::config::parse_wire;

    const ADMIN: Origin = Origin::Admin { persistent: false };
    const PERSISTENT: Origin = Origin::Admin { persistent: true };

    fn entries(list: &[(&str, Origin, Option<&str>)]) -> Entries {
        let mut entries = Entries::default();
        for (name, origin, failure) in list {
            let failure = failure.map(|problem| Failure { end: Some(1), problem: problem.to_owned() });
            entries.ask(wire(name), *origin);
            entries.answer(name, failure);
        }
        entries
    }

    #[test]
    fn a_wire_that_could_not_be_made_is_listed_with_its_problem_at_the_end_that_it_is_about() {
        let entries = entries(&[("a", Origin::File, Some("namespace gone")), ("b", ADMIN, None)]);
        let listed = entries.list(vec![up(wire("b"))]);
        let reason = EndState::Failed { reason: "namespace gone".into() };
        assert_eq!(listed[0].status.ends, [EndState::Failed { reason: OTHER_END.into() }, reason]);
        assert!(!listed[0].status.is_up());
        assert_eq!((listed[0].origin, listed[1].origin), (Origin::File, ADMIN));
        assert!(listed[1].status.is_up());
    }

    #[test]
    fn a_reload_leaves_the_wires_of_the_admin_api_alone() {
        let entries = entries(&[("file", Origin::File, None), ("admin", PERSISTENT, None)]);
        assert_eq!(entries.plan(&[]).unwrap(), [Step::Remove("file".into())]);
        assert_eq!(entries.plan(&[wire("file")]).unwrap(), []);
    }

    #[test]
    fn a_file_that_wants_a_name_of_the_admin_api_is_refused_as_a_whole() {
        let error = entries(&[("mine", ADMIN, None)]).plan(&[wire("other"), wire("mine")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "wire `mine` added through the admin API and in the wires file; rename or remove one of each"
        );
    }

    #[test]
    fn what_is_tried_again_is_what_failed_or_broke_and_is_of_the_file_or_persists() {
        let entries = entries(&[
            ("failed", Origin::File, Some("no")),
            ("broken", Origin::File, None),
            ("fine", Origin::File, None),
            ("mine", ADMIN, None),
            ("kept", PERSISTENT, Some("no")),
        ]);
        let making = |name| WireStatus { ends: [EndState::Up, EndState::Making], ..up(wire(name)) };
        let lost = |name| WireStatus::failed(wire(name), "gone");
        let due =
            |statuses: &[_]| entries.to_retry(statuses).into_iter().map(|entry| entry.spec.name).collect::<Vec<_>>();
        let statuses = [lost("broken"), up(wire("fine")), lost("mine")];
        assert_eq!(due(&statuses), ["broken", "failed", "kept"]);
        assert_eq!(due(&[making("failed")]), ["kept"], "the engine still works on it");
    }

    #[test]
    fn wires_are_listed_from_when_they_are_asked_for_until_they_have_left() {
        let mut entries = Entries::default();
        let change = entries.ask(wire("a"), Origin::File);
        assert_eq!(entries.list(vec![])[0].status.ends, [EndState::Making, EndState::Making]);
        assert!(entries.to_retry(&[up(wire("a"))]).is_empty(), "the engine is at it");
        entries.answer("a", Some(Failure { end: None, problem: "no".into() }));
        assert!(entries.is_last("a", change));
        entries.ask(wire("a"), Origin::File);
        assert!(!entries.is_last("a", change));
        assert_eq!(entries.list(vec![])[0].status.ends[0], EndState::Failed { reason: "no".into() });
        entries.leave("a");
        assert!(entries.get("a").is_none() && entries.list(vec![]).is_empty());
        assert_eq!(entries.list(vec![up(wire("a"))]).len(), 1, "the engine removes it");
        assert_eq!(entries.plan(&[wire("a")]).unwrap(), [Step::Add(wire("a"))]);
    }

    #[test]
    fn a_reload_takes_nobody_for_the_process_that_the_wire_was_told_of() {
        let here = std::process::id();
        let wanted = in_namespace_of(here, None);
        let mut entries = Entries::default();
        // Another one has the number now: ours.
        let before = in_namespace_of(here, Some(7));
        entries.ask(before.clone(), Origin::File);
        assert_eq!(entries.plan(slice::from_ref(&wanted)).unwrap(), []);
        let named = in_namespace_of(here, Some(8));
        assert_eq!(entries.plan(slice::from_ref(&named)).unwrap(), [Step::Change(named)], "the file says which one");

        let Ok(steps) = Entries::default().plan(slice::from_ref(&wanted)) else { panic!("nothing is in the way") };
        let [Step::Add(first)] = &steps[..] else { panic!("{steps:?}") };
        assert_ne!(*first, wanted, "it knows when the process was started");
        // A number that no process has: the wire of one that ended is not taken for another wire.
        let gone = in_namespace_of(4_000_000, Some(7));
        assert_eq!(with_processes_of(in_namespace_of(4_000_000, None), &gone), gone);
        assert_eq!(with_processes_of(in_namespace_of(4_000_001, None), &gone), in_namespace_of(4_000_001, None));
        assert_eq!(pinned(in_namespace_of(4_000_000, None)), in_namespace_of(4_000_000, None));
    }

    fn in_namespace_of(pid: u32, start_time: Option<u64>) -> WireSpec {
        let text = "{name: w, ends: [{kernel: {name: a, netns: 'pid:1'}}, {kernel: {name: b}}]}";
        let mut spec = parse_wire(text).unwrap();
        let Some(netns) = spec.ends[0].netns_mut() else { panic!("a kernel end") };
        *netns = Some(NetNs::Process(Process { pid, start_time }));
        spec
    }

    fn wire(name: &str) -> WireSpec {
        let ends = format!(
            "[{{memif: {{socket: '@{name}0', role: server}}}}, {{memif: {{socket: '@{name}1', role: server}}}}]"
        );
        parse_wire(&format!("{{name: {name}, ends: {ends}}}")).unwrap()
    }

    fn up(spec: WireSpec) -> WireStatus {
        let ends = [EndState::Up, EndState::Up];
        WireStatus { ends, directions: [Traffic::default(); 2], queues: 1, ..WireStatus::failed(spec, "") }
    }
}
