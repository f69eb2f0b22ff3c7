//! Which devices were given to pods, and which of them are free again.
//!
//! The kubelet tells when it gives a device away, and never that it has it back. Its list of pods shows who has what, but not the
//! devices of plain init containers. So what was listed once and is not any more is free after a moment; what was never
//! listed is believed to be held for long. Time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::lease_name::LeaseName;

/// Every device that a pod has, or may have.
#[derive(Debug, Default)]
pub struct Grants {
    grants: BTreeMap<LeaseName, Grant>,
    /// Grows whenever a device is given to somebody, or is free.
    generation: u64,
}

/// Who has which device, as the kubelet lists it.
pub type Listing = BTreeMap<LeaseName, String>;

/// A device that a pod has, or may have.
#[derive(Clone, Debug)]
pub struct Grant {
    /// When the kubelet was answered last.
    allocated: Instant,
    /// When a container started with it last.
    started: Option<Instant>,
    /// The pod that the kubelet listed.
    pod: Option<String>,
    /// Since when it is not listed.
    absent_since: Option<Instant>,
    origin: Origin,
    /// Its lease was seen in the manager's list.
    is_lent: bool,
    /// The VF has what was set for the pod before.
    needs_cleaning: bool,
    /// It was lent for its pod by this process: a list of before says nothing of that.
    was_lent_here: bool,
    progress: Progress,
    /// Giving it back failed; not before then again.
    retry_at: Option<Instant>,
}

/// A lease of ours, as the manager lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownLease {
    /// How old it is.
    pub age: Duration,
    /// It names a pod, which is told only of what the kubelet listed.
    pub was_listed: bool,
}

/// How it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// We gave it to a pod, or a process before did.
    Given,
    /// A process before gave it to a pod, and saw it listed.
    GivenAndListed,
    /// The kubelet's list alone tells of it: another plugin may serve its resource.
    Listing,
}

/// How far it is on its way to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The manager is still to be asked for it.
    Pending,
    /// The manager lent it.
    Ready,
    /// The pod was refused: nobody has it.
    Refused,
}

/// For whom a device is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenant {
    /// It was free.
    New,
    /// For another container of the pod that has it.
    Same,
    /// For another pod than that which had it.
    Next,
}

impl Grants {
    /// Whether a pod has it, or may have it.
    pub fn is_held(&self, name: &LeaseName) -> bool {
        self.grants.contains_key(name)
    }

    /// Whether some pod has something.
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty()
    }

    /// Another one than before, if there are others than before.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All of them.
    pub fn names(&self) -> impl Iterator<Item = &LeaseName> {
        self.grants.keys()
    }

    /// The kubelet gives a device to a pod. `is_listed`: it lists the device now.
    pub fn allocate(&mut self, name: &LeaseName, is_listed: bool, now: Instant) -> Tenant {
        let Some(grant) = self.grants.get_mut(name) else {
            self.entry(name, now);
            return Tenant::New;
        };
        // The pod of one that was listed has its devices, or has gone.
        let is_same = is_listed || grant.pod.is_none() && now.duration_since(grant.allocated) < SAME_POD_FOR;
        if is_same {
            grant.allocated = now;
            grant.became_ours();
            grant.want_again();
            // Nobody was told of it before it was clean.
            return if grant.needs_cleaning { Tenant::Next } else { Tenant::Same };
        }
        *grant = Grant { is_lent: grant.is_lent, needs_cleaning: true, ..Grant::new(now) };
        Tenant::Next
    }

    /// The kubelet was answered: what it asks for at once is for the same pod.
    pub fn answered(&mut self, name: &LeaseName, now: Instant) {
        if let Some(grant) = self.grants.get_mut(name) {
            grant.allocated = now;
        }
    }

    /// The VF is lent, and clean.
    pub fn lent(&mut self, name: &LeaseName) {
        if let Some(grant) = self.grants.get_mut(name) {
            (grant.needs_cleaning, grant.was_lent_here, grant.progress) = (false, true, Progress::Ready);
        }
    }

    /// For whom the manager is still to be asked for it; none: it was, or nobody wants it any more.
    pub fn unready(&self, name: &LeaseName) -> Option<Tenant> {
        let grant = self.grants.get(name).filter(|grant| grant.progress == Progress::Pending)?;
        Some(if grant.needs_cleaning { Tenant::Next } else { Tenant::New })
    }

    /// A container is about to start with a device. Returns whether it has to be cleaned first.
    pub fn start(&mut self, name: &LeaseName, now: Instant) -> bool {
        let grant = self.entry(name, now);
        // That of the answer stays: it says which calls of Allocate are for the same pod.
        (grant.absent_since, grant.started) = (None, Some(now));
        grant.became_ours();
        grant.want_again();
        grant.needs_cleaning
    }

    /// It has what was set for another pod.
    pub fn needs_cleaning(&self, name: &LeaseName) -> bool {
        self.grants.get(name).is_some_and(|grant| grant.needs_cleaning)
    }

    /// It turns out to have what was set for another pod.
    pub fn note_unclean(&mut self, name: &LeaseName) {
        if let Some(grant) = self.grants.get_mut(name) {
            grant.needs_cleaning = true;
        }
    }

    /// The pod that the kubelet gave it to is refused: it is given back as soon as can be, unless that pod is listed with it.
    pub fn refused(&mut self, name: &LeaseName) {
        if let Some(grant) = self.grants.get_mut(name) {
            grant.progress = Progress::Refused;
        }
    }

    /// Whether its lease is there and as it shall be, as far as is known.
    pub fn is_in_order(&self, name: &LeaseName) -> bool {
        // The manager's answer is known before its list.
        self.grants
            .get(name)
            .is_some_and(|grant| (grant.is_lent || grant.progress == Progress::Ready) && !grant.needs_cleaning)
    }

    /// The pod that the kubelet listed with it.
    pub fn pod(&self, name: &LeaseName) -> Option<&str> {
        self.grants.get(name)?.pod.as_deref()
    }

    /// Whether it was this process that lent it for its pod.
    pub fn was_lent_here(&self, name: &LeaseName) -> bool {
        self.grants.get(name).is_some_and(|grant| grant.was_lent_here)
    }

    /// It has been given back, clean; if the kubelet gave it to the next pod meanwhile, that has it and no lease yet.
    pub fn released(&mut self, name: &LeaseName, now: Instant) {
        if self.is_due(name, now) {
            self.remove(name);
        } else if let Some(grant) = self.grants.get_mut(name) {
            (grant.is_lent, grant.needs_cleaning, grant.progress) = (false, false, Progress::Pending);
            grant.was_lent_here = false;
        }
    }

    /// It is free.
    pub fn remove(&mut self, name: &LeaseName) {
        self.generation += u64::from(self.grants.remove(name).is_some());
    }

    /// Takes over which leases of ours there are, and how old they are. Returns those that somebody else ended: they are no grants any more.
    pub fn note_leases(&mut self, leases: &BTreeMap<LeaseName, KnownLease>, now: Instant) -> Vec<LeaseName> {
        // The kubelet gave it to the next pod while that of the pod before was ended: it is to be lent anew.
        for (name, grant) in &mut self.grants {
            if grant.progress == Progress::Pending && !leases.contains_key(name) {
                grant.is_lent = false;
            }
        }
        let is_ended = |name: &LeaseName, grant: &mut Grant| grant.is_lent && !leases.contains_key(name);
        let ended: Vec<_> = self.grants.extract_if(.., is_ended).map(|(name, _)| name).collect();
        self.generation += u64::from(!ended.is_empty());
        for (name, KnownLease { age, was_listed }) in leases {
            if let Some(grant) = self.grants.get_mut(name) {
                self.generation += u64::from(grant.became_ours());
                grant.is_lent = true;
            } else {
                let grant = self.entry(name, now.checked_sub(*age).unwrap_or(now));
                (grant.is_lent, grant.progress) = (true, Progress::Ready);
                if *was_listed {
                    grant.origin = Origin::GivenAndListed;
                }
            }
        }
        ended
    }

    /// A process before gave it to a pod, which its wire tells.
    pub fn adopt(&mut self, name: &LeaseName, pod: Option<String>, now: Instant) {
        match self.grants.get_mut(name) {
            // What is held already may be the next pod's.
            Some(grant) => self.generation += u64::from(grant.became_ours()),
            None => self.entry(name, now).pod = pod,
        }
    }

    /// Takes over what the kubelet lists. Returns the pods of those whose pod was not known. `is_whole`: who is not listed has nothing;
    /// a kubelet that has just started may not know its pods yet.
    pub fn note_listing(&mut self, listing: &Listing, is_whole: bool, now: Instant) -> Vec<(LeaseName, String)> {
        let mut news = Vec::new();
        for (name, pod) in listing {
            // What is never borrowed has no lease by which it would be known.
            let is_new = !self.grants.contains_key(name);
            let grant = self.entry(name, now);
            if is_new {
                grant.origin = Origin::Listing;
            }
            grant.absent_since = None;
            if grant.pod.as_ref() != Some(pod) {
                grant.pod = Some(pod.clone());
                news.push((name.clone(), pod.clone()));
            }
        }
        for (_, grant) in self.grants.iter_mut().filter(|(name, _)| !listing.contains_key(name)) {
            grant.absent_since = is_whole.then(|| grant.absent_since.unwrap_or(now));
        }
        news
    }

    /// The kubelet lists this pod with it.
    pub fn note_pod(&mut self, name: &LeaseName, pod: String) {
        if let Some(grant) = self.grants.get_mut(name) {
            (grant.pod, grant.absent_since) = (Some(pod), None);
        }
    }

    /// Whether its pod is not listed any more.
    pub fn is_leaving(&self, name: &LeaseName) -> bool {
        self.grants.get(name).is_some_and(|grant| grant.absent_since.is_some())
    }

    /// Those that are to be given back.
    pub fn due(&self, now: Instant) -> Vec<LeaseName> {
        let due = self.grants.iter().filter(|(_, grant)| grant.is_due(now));
        due.map(|(name, _)| name.clone()).collect()
    }

    /// Whether this one is to be given back now: the kubelet may have given it away again.
    pub fn is_due(&self, name: &LeaseName, now: Instant) -> bool {
        self.grants.get(name).is_some_and(|grant| grant.is_due(now))
    }

    /// It could not be given back.
    pub fn postpone(&mut self, name: &LeaseName, until: Instant) {
        if let Some(grant) = self.grants.get_mut(name) {
            grant.retry_at = Some(until);
        }
    }

    /// Whether something will be due soon, so that it is looked at often.
    pub fn is_ending(&self) -> bool {
        self.grants.values().any(|grant| grant.absent_since.is_some() || grant.pod.is_none())
    }

    /// Which resources pods have each device by.
    pub fn by_device(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut by_device: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for name in self.grants.keys() {
            by_device.entry(&name.device).or_default().push(&name.resource);
        }
        by_device
    }

    /// Resources that we gave devices of to pods, or a process before did.
    pub fn given_resources(&self) -> BTreeSet<&str> {
        let ours = self.grants.iter().filter(|(_, grant)| grant.origin != Origin::Listing);
        ours.map(|(name, _)| name.resource.as_str()).collect()
    }

    /// Devices that pods have, by resource.
    pub fn by_resource(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut by_resource: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for name in self.grants.keys() {
            by_resource.entry(&name.resource).or_default().insert(&name.device);
        }
        by_resource
    }
}

impl Grants {
    /// What there is, or a new one.
    fn entry(&mut self, name: &LeaseName, began: Instant) -> &mut Grant {
        self.grants.entry(name.clone()).or_insert_with(|| {
            self.generation += 1;
            Grant::new(began)
        })
    }
}

impl Grant {
    fn new(now: Instant) -> Self {
        Self {
            allocated: now,
            started: None,
            pod: None,
            origin: Origin::Given,
            absent_since: None,
            is_lent: false,
            needs_cleaning: false,
            was_lent_here: false,
            progress: Progress::Pending,
            retry_at: None,
        }
    }

    /// It is not the kubelet alone any more that tells of it. Returns whether it was.
    fn became_ours(&mut self) -> bool {
        let was_listing = self.origin == Origin::Listing;
        if was_listing {
            self.origin = Origin::Given;
        }
        was_listing
    }

    /// Somebody has it after all.
    fn want_again(&mut self) {
        if self.progress == Progress::Refused {
            self.progress = Progress::Pending;
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let Some(absent) = self.absent_since else { return false };
        let last = self.started.map_or(self.allocated, |started| started.max(self.allocated));
        let was_listed = self.origin == Origin::GivenAndListed;
        let is_refused = self.progress == Progress::Refused;
        let is_over = self.pod.is_some() || was_listed || is_refused || now.duration_since(last) >= UNLISTED_FOR;
        is_over && now.duration_since(absent) >= ABSENT_FOR && self.retry_at.is_none_or(|retry| now >= retry)
    }
}

/// One pod's containers are asked for one after the other, without a pause.
const SAME_POD_FOR: Duration = Duration::from_secs(1);
/// How long a device that was listed has to be off the list.
const ABSENT_FOR: Duration = Duration::from_secs(2);
/// How long a device that was never listed may belong to an init container.
const UNLISTED_FOR: Duration = Duration::from_mins(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> LeaseName {
        LeaseName::new("a/b", "0000:3b:02.1")
    }

    fn lease(was_listed: bool) -> KnownLease {
        KnownLease { age: Duration::ZERO, was_listed }
    }

    fn listed() -> Listing {
        Listing::from([(name(), "pod".to_owned())])
    }

    #[test]
    fn the_next_pod_may_come_in_the_second_of_the_one_before() {
        let (mut grants, start) = (Grants::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(grants.allocate(&name(), false, at(0)), Tenant::New);
        grants.answered(&name(), at(0));
        grants.lent(&name());
        assert_eq!(grants.allocate(&name(), false, at(10)), Tenant::Same, "another container of it");
        grants.note_pod(&name(), "pod".to_owned());
        assert_eq!(grants.allocate(&name(), true, at(20)), Tenant::Same, "the kubelet lists its pod");
        assert_eq!(grants.allocate(&name(), false, at(30)), Tenant::Next, "its pod has gone");
        assert_eq!(grants.allocate(&name(), false, at(40)), Tenant::Next, "another container, and it is not clean yet");
    }

    #[test]
    fn what_was_listed_is_free_a_moment_after_it_is_not() {
        let (mut grants, start) = (Grants::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(grants.allocate(&name(), false, start), Tenant::New);
        grants.note_listing(&Listing::new(), true, at(1));
        assert!(grants.due(at(200)).is_empty(), "it was not listed yet: a start may take long");
        assert_eq!(grants.note_listing(&listed(), true, at(200)).len(), 1);
        assert_eq!(grants.note_listing(&listed(), true, at(201)).len(), 0, "it is known");
        grants.note_listing(&Listing::new(), true, at(202));
        assert!(grants.due(at(203)).is_empty());
        grants.note_listing(&listed(), true, at(203));
        assert!(grants.due(at(205)).is_empty(), "it was back");
        grants.note_listing(&Listing::new(), true, at(206));
        assert_eq!(grants.due(at(208)), [name()]);
        grants.postpone(&name(), at(210));
        assert!(grants.due(at(209)).is_empty() && !grants.due(at(210)).is_empty());
    }

    #[test]
    fn a_kubelet_that_does_not_know_its_pods_yet_takes_nothing_from_them() {
        let (mut grants, start) = (Grants::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        grants.allocate(&name(), false, start);
        grants.note_listing(&listed(), true, at(1));
        grants.note_listing(&Listing::new(), false, at(2));
        assert!(grants.due(at(60)).is_empty());
        grants.note_listing(&Listing::new(), true, at(60));
        assert!(grants.due(at(61)).is_empty() && !grants.due(at(62)).is_empty());
    }

    #[test]
    fn what_was_given_to_the_next_pod_while_it_was_released_is_that_pods() {
        let (mut grants, start) = (Grants::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        grants.allocate(&name(), false, start);
        grants.note_listing(&listed(), true, at(1));
        grants.note_listing(&Listing::new(), true, at(2));
        assert!(grants.is_due(&name(), at(5)));
        assert_eq!(grants.allocate(&name(), false, at(6)), Tenant::Next);
        grants.released(&name(), at(7));
        assert!(grants.is_held(&name()), "it is not free");
        assert!(!grants.start(&name(), at(8)), "and it is clean");
    }

    #[test]
    fn what_was_never_listed_may_be_an_init_containers() {
        let (mut grants, start) = (Grants::default(), Instant::now());
        grants.allocate(&name(), false, start);
        grants.note_listing(&Listing::new(), true, start);
        assert!(grants.due(start + UNLISTED_FOR / 2).is_empty());
        assert_eq!(grants.due(start + UNLISTED_FOR), [name()]);
    }

    #[test]
    fn an_init_container_that_starts_again_keeps_what_it_has_for_as_long_again() {
        let (mut grants, start) = (Grants::default(), Instant::now());
        grants.allocate(&name(), false, start);
        let again = start + UNLISTED_FOR / 2;
        grants.start(&name(), again);
        grants.note_listing(&Listing::new(), true, again);
        assert!(grants.due(start + UNLISTED_FOR).is_empty(), "it runs");
        assert_eq!(grants.due(again + UNLISTED_FOR), [name()]);
        assert_eq!(grants.allocate(&name(), false, again), Tenant::Next, "a start says nothing of who is asked for");
    }

    #[test]
    fn what_a_refused_pod_had_is_given_back_without_a_wait_for_a_listing() {
        let (mut grants, start) = (Grants::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        grants.allocate(&name(), false, start);
        // The pod before had it, and the next one is refused.
        assert_eq!(grants.allocate(&name(), false, at(3)), Tenant::Next);
        grants.note_listing(&Listing::new(), true, at(4));
        assert!(grants.due(at(10)).is_empty(), "that pod is not refused yet");
        grants.refused(&name());
        assert_eq!(grants.due(at(10)), [name()]);
        assert_eq!(grants.unready(&name()), None, "nobody asks for it any more");
        // And given away again before anybody came to it.
        assert_eq!(grants.allocate(&name(), false, at(11)), Tenant::Next);
        assert!(grants.due(at(20)).is_empty());
    }

    #[test]
    fn a_container_of_the_same_pod_is_told_from_the_next_pod() {
        let (mut grants, start) = (Grants::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        grants.allocate(&name(), false, start);
        grants.answered(&name(), after(2000));
        assert_eq!(grants.allocate(&name(), false, after(2500)), Tenant::Same, "the main container after the init one");
        assert_eq!(grants.allocate(&name(), true, after(60_000)), Tenant::Same, "its pod is there");
        assert_eq!(grants.allocate(&name(), false, after(70_000)), Tenant::Next);
        assert_eq!(grants.allocate(&name(), false, after(70_001)), Tenant::Next, "it is not clean yet");
        assert!(grants.start(&name(), after(70_002)), "nor now");
        grants.lent(&name());
        assert!(!grants.start(&name(), after(70_003)));
        assert_eq!(grants.allocate(&name(), false, after(70_004)), Tenant::Same);
    }

    #[test]
    fn leases_of_a_process_before_are_grants_and_those_that_others_end_are_not() {
        let (mut grants, start) = (Grants::default(), Instant::now());
        grants.note_leases(&BTreeMap::from([(name(), lease(false))]), start);
        assert!(grants.is_held(&name()) && grants.is_in_order(&name()));
        let other = LeaseName::new("a/b", "0000:3b:02.2");
        grants.allocate(&other, false, start);
        assert_eq!(grants.note_leases(&BTreeMap::new(), start), [name()]);
        assert!(!grants.is_held(&name()), "somebody released it");
        assert!(grants.is_held(&other), "its lease is not in the list yet");
    }

    #[test]
    fn a_lease_that_ends_late_takes_nothing_from_the_next_pod() {
        let (mut grants, start) = (Grants::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        grants.allocate(&name(), false, start);
        grants.lent(&name());
        grants.note_leases(&BTreeMap::from([(name(), lease(true))]), start);
        assert_eq!(grants.allocate(&name(), false, at(3)), Tenant::Next);
        grants.note_leases(&BTreeMap::new(), at(60));
        assert!(grants.is_held(&name()));
        assert_eq!(grants.unready(&name()), Some(Tenant::Next), "the manager is still asked for it");
        grants.lent(&name());
        grants.note_leases(&BTreeMap::from([(name(), lease(true))]), at(61));
        grants.note_leases(&BTreeMap::new(), at(62));
        assert!(!grants.is_held(&name()), "somebody released it");
    }

    #[test]
    fn a_resource_that_the_kubelet_alone_tells_of_is_not_ours_until_its_lease_is_seen() {
        let (mut grants, start) = (Grants::default(), Instant::now());
        grants.note_listing(&listed(), true, start);
        assert!(grants.is_held(&name()) && grants.given_resources().is_empty());
        let before = grants.generation();
        grants.note_leases(&BTreeMap::from([(name(), lease(true))]), start);
        assert_eq!(grants.given_resources(), BTreeSet::from(["a/b"]));
        assert_ne!(grants.generation(), before);
        grants.note_listing(&listed(), true, start);
        assert_eq!(grants.given_resources().len(), 1, "a listing takes nothing from it");
    }

    #[test]
    fn what_a_process_before_saw_listed_needs_no_second_listing() {
        for (was_listed, is_due_soon) in [(true, true), (false, false)] {
            let (mut grants, start) = (Grants::default(), Instant::now());
            grants.note_leases(&BTreeMap::from([(name(), lease(was_listed))]), start);
            grants.note_listing(&Listing::new(), true, start);
            assert_eq!(grants.is_due(&name(), start + ABSENT_FOR), is_due_soon);
            assert!(grants.is_due(&name(), start + UNLISTED_FOR));
        }
    }
}
