//! What was asked for, by name. Pure: it knows the engine's answers, not the engine.

use std::collections::{BTreeMap, HashMap};

use ferrule_dataplane::EngineError;
use ferrule_dataplane::spec::{NetNs, Process, WireSpec};
use ferrule_dataplane::status::{EndState, WireStatus};

use super::{ChangeError, Listed, Origin};
use crate::plan::{Step, plan};

/// Every wire that somebody wants.
#[derive(Debug, Default)]
pub(super) struct Entries(BTreeMap<String, Entry>);

/// A wire that somebody wants.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub spec: WireSpec,
    pub origin: Origin,
    /// Why the engine could not make it; none: it did.
    pub failure: Option<Failure>,
}

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
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.0.get(name)
    }

    pub fn put(&mut self, entry: Entry) {
        self.0.insert(entry.spec.name.clone(), entry);
    }

    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// What makes the wires of the file those that are wanted.
    pub fn plan(&self, wanted: &[WireSpec]) -> Result<Vec<Step>, ChangeError> {
        let of_admin = |spec: &&WireSpec| self.get(&spec.name).is_some_and(|entry| entry.origin != Origin::File);
        let taken: Vec<_> = wanted.iter().filter(of_admin).map(|spec| spec.name.clone()).collect();
        if !taken.is_empty() {
            return Err(ChangeError::FromAdmin(taken));
        }
        let of_file = self.0.values().filter(|entry| entry.origin == Origin::File);
        let current: Vec<_> = of_file.map(|entry| entry.spec.clone()).collect();
        let pin = |spec: &WireSpec| pinned(spec.clone(), self.get(&spec.name).map(|entry| &entry.spec));
        Ok(plan(&current, &wanted.iter().map(pin).collect::<Vec<_>>()))
    }

    /// The wires that could not be made or are broken now, and that nobody but us sees to.
    pub fn to_retry(&self, broken: &[WireStatus]) -> Vec<Entry> {
        let broken = |name: &str| broken.iter().any(|status| status.spec.name == name);
        let ours = |entry: &&Entry| entry.origin != Origin::Admin { persistent: false };
        let due = |entry: &&Entry| entry.failure.is_some() || broken(&entry.spec.name);
        self.0.values().filter(ours).filter(due).cloned().collect()
    }

    /// Every wire with its state.
    pub fn list(&self, statuses: Vec<WireStatus>) -> Vec<Listed> {
        let mut statuses: HashMap<_, _> =
            statuses.into_iter().map(|status| (status.spec.name.clone(), status)).collect();
        let mut status = |entry: &Entry| match (statuses.remove(&entry.spec.name), &entry.failure) {
            (Some(status), _) => Some(status),
            (None, Some(failure)) => Some(not_made(&entry.spec, failure)),
            // For the moment between its removal from the engine and from here.
            (None, None) => None,
        };
        self.0.values().filter_map(|entry| Some(Listed { origin: entry.origin, status: status(entry)? })).collect()
    }
}

/// The end that could not be made says why; the other one has nothing wrong with it.
fn not_made(spec: &WireSpec, failure: &Failure) -> WireStatus {
    let mut status = WireStatus::failed(spec.clone(), &failure.problem);
    if let Some(other) = failure.end.and_then(|end| status.ends.get_mut(1 - end.min(1))) {
        *other = EndState::Failed { reason: OTHER_END.to_owned() };
    }
    status
}

const OTHER_END: &str = "not made, because the other end cannot be";

/// The wire with its processes told from later ones of their numbers. A process that the same wire was told of before
/// stays that one, unless another one has its number now.
pub(super) fn pinned(mut spec: WireSpec, before: Option<&WireSpec>) -> WireSpec {
    let before = before.cloned();
    let mut known = before.map(|before| before.ends).into_iter().flatten().collect::<Vec<_>>();
    for (index, end) in spec.ends.iter_mut().enumerate() {
        let Some(netns) = end.netns_mut() else { continue };
        *netns = netns.take().map(NetNs::pinned);
        let Some(NetNs::Process(Process { pid, start_time: start_time @ None })) = netns else { continue };
        // It has ended: what it was told from then still says which one is meant.
        if let Some(Some(NetNs::Process(earlier))) = known.get_mut(index).and_then(|end| end.netns_mut())
            && earlier.pid == *pid
        {
            *start_time = earlier.start_time;
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use ferrule_dataplane::status::Traffic;

    use super::*;
    use crate::config::parse_wire;

    const ADMIN: Origin = Origin::Admin { persistent: false };
    const PERSISTENT: Origin = Origin::Admin { persistent: true };

    fn entries(list: &[(&str, Origin, Option<&str>)]) -> Entries {
        let mut entries = Entries::default();
        for (name, origin, failure) in list {
            let failure = failure.map(|problem| Failure { end: Some(1), problem: problem.to_owned() });
            entries.put(Entry { spec: wire(name), origin: *origin, failure });
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
        let broken = [up(wire("broken")), up(wire("mine"))];
        let names: Vec<_> = entries.to_retry(&broken).into_iter().map(|entry| entry.spec.name).collect();
        assert_eq!(names, ["broken", "failed", "kept"]);
    }

    #[test]
    fn a_process_of_a_wire_stays_the_one_that_was_meant() {
        let text = |pid: u32| {
            parse_wire(&format!(
                "{{name: w, ends: [{{kernel: {{name: a, netns: 'pid:{pid}'}}}}, {{kernel: {{name: b}}}}]}}"
            ))
            .unwrap()
        };
        let here = std::process::id();
        let first = pinned(text(here), None);
        assert_ne!(first, text(here), "it knows when the process was started");
        assert_eq!(pinned(text(here), Some(&first)), first, "a reload of the same text changes nothing");
        // A number that no process has: the wire of one that ended is not taken for another wire.
        let mut gone = text(4_000_000);
        let Some(netns) = gone.ends[0].netns_mut() else { panic!("a kernel end") };
        *netns = Some(NetNs::Process(Process { pid: 4_000_000, start_time: Some(7) }));
        assert_eq!(pinned(text(4_000_000), Some(&gone)), gone);
        assert_eq!(pinned(text(4_000_000), None), text(4_000_000));
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
