//! Which endpoints there are, and which two of them a wire joins.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{Config, Software, SoftwareKind};
use crate::lease_name::LeaseName;

/// One end of a wire that a pod may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoftwareEndpoint {
    /// Its resource, and what the kubelet calls it.
    pub name: LeaseName,
    /// What a pod finds.
    pub kind: SoftwareKind,
}

/// Two endpoints that a wire joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Both.
    pub ends: [SoftwareEndpoint; 2],
}

impl Pair {
    /// What the forwarder calls their wire: as the first of them.
    pub fn name(&self) -> &str {
        &self.ends[0].name.device
    }

    /// Whether this is one of its ends, by what the kubelet calls it.
    pub fn has(&self, id: &str) -> bool {
        self.ends.iter().any(|end| end.name.device == id)
    }

    /// The end of this name, and the one that it is joined with.
    pub fn seen_from(&self, id: &str) -> Option<(&SoftwareEndpoint, &SoftwareEndpoint)> {
        let [a, b] = &self.ends;
        match id {
            _ if a.name.device == id => Some((a, b)),
            _ if b.name.device == id => Some((b, a)),
            _ => None,
        }
    }
}

/// Who has an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// A pod; its name, if the kubelet has listed it.
    Pod(Option<String>),
}

/// A pair that is in use, and who has its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairState {
    /// Both ends.
    pub pair: Arc<Pair>,
    /// In their order.
    pub holders: [Holder; 2],
}

impl PairState {
    /// Whether a pod has something of it.
    pub fn is_held(&self) -> bool {
        self.holders.iter().any(|holder| *holder != Holder::Nobody)
    }

    /// The same, when this end is given back.
    #[must_use]
    pub fn without(mut self, id: &str) -> Self {
        for (end, holder) in self.pair.ends.iter().zip(&mut self.holders) {
            if end.name.device == id {
                *holder = Holder::Nobody;
            }
        }
        self
    }
}

/// All pairs: those that are asked for, and those of which pods have something, which stay as they are until they have not.
#[derive(Debug, Default)]
pub struct Pairs {
    /// By what the kubelet calls each of their ends.
    asked_for: BTreeMap<String, Arc<Pair>>,
    /// The same.
    in_use: BTreeMap<String, Arc<Pair>>,
    /// The forwarder was asked for the wires of a process before.
    are_wires_known: bool,
}

impl Pairs {
    /// From now on these are asked for.
    pub fn set_config(&mut self, config: &Config) {
        self.asked_for = asked_for(config);
    }

    /// Takes over what pods have.
    pub fn note_held(&mut self, is_held: impl Fn(&LeaseName) -> bool) {
        let is_in_use = |pair: &Pair| pair.ends.iter().any(|end| is_held(&end.name));
        self.in_use.retain(|_, pair| is_in_use(pair));
        // What pods have may be joined in another way than the configuration says now.
        if !self.are_wires_known {
            return;
        }
        let started: Vec<_> = self
            .asked_for
            .iter()
            .filter(|(id, pair)| self.other_use(id, pair).is_none() && is_in_use(pair))
            .map(|(id, pair)| (id.clone(), Arc::clone(pair)))
            .collect();
        self.in_use.extend(started);
    }

    /// Takes over pairs whose wires are there already, made by a process before.
    pub fn adopt<'a>(&mut self, pairs: impl IntoIterator<Item = &'a Arc<Pair>>) {
        self.are_wires_known = true;
        for pair in pairs {
            if pair.ends.iter().all(|end| !self.in_use.contains_key(&end.name.device)) {
                let ids = pair.ends.iter().map(|end| end.name.device.clone());
                self.in_use.extend(ids.map(|id| (id, Arc::clone(pair))));
            }
        }
    }

    /// Whether the wires of a process before were taken over.
    pub fn are_wires_known(&self) -> bool {
        self.are_wires_known
    }

    /// Each pair that is in use, once.
    pub fn in_use(&self) -> impl Iterator<Item = &Arc<Pair>> {
        self.in_use.iter().filter(|(id, pair)| *id == pair.name()).map(|(_, pair)| pair)
    }

    /// The pair that an endpoint is or would be an end of.
    pub fn of(&self, id: &str) -> Option<&Arc<Pair>> {
        self.in_use.get(id).or_else(|| self.asked_for.get(id))
    }

    /// Endpoints of a resource, and why one that is free is not to be had. What is not asked for any more is one while a pod has it.
    pub fn of_resource(
        &self,
        resource: &str,
        is_held: impl Fn(&LeaseName) -> bool,
    ) -> Vec<(SoftwareEndpoint, Option<String>)> {
        let left = self.in_use.keys().filter(|id| !self.asked_for.contains_key(*id));
        let endpoint = |id: &String| {
            let (end, _) = self.of(id)?.seen_from(id)?;
            let asked_for = self.asked_for.get(id);
            let is_there = end.name.resource == resource && (asked_for.is_some() || is_held(&end.name));
            let blocked = asked_for.and_then(|pair| self.other_use(id, pair));
            is_there.then(|| (end.clone(), blocked))
        };
        self.asked_for.keys().chain(left).filter_map(endpoint).collect()
    }

    /// Why a pair that is asked for cannot be made: a pod has one of its ends joined with another.
    fn other_use(&self, id: &str, pair: &Arc<Pair>) -> Option<String> {
        let other =
            pair.ends.iter().find_map(|end| self.in_use.get(&end.name.device).filter(|other| *other != pair))?;
        let (a, b) = (&other.ends[0].name.device, &other.ends[1].name.device);
        Some(format!("{a} is joined with {b}, as the configuration said before, until no pod has them; {id} waits"))
    }
}

/// Whether this is what the kubelet calls an endpoint; no device of the node is called so.
pub fn is_endpoint(id: &str) -> bool {
    id.starts_with(ID_PREFIX)
}

/// By what the kubelet calls each end.
fn asked_for(config: &Config) -> BTreeMap<String, Arc<Pair>> {
    let named: BTreeMap<&str, (String, &Software)> = config
        .resources
        .iter()
        .filter_map(|resource| {
            Some((resource.name.name.as_str(), (resource.name.to_string(), resource.software.as_ref()?)))
        })
        .collect();
    let end = |name: &str, number: u32| {
        let (resource, software) = named.get(name)?;
        let name = LeaseName::new(resource, &format!("{ID_PREFIX}{name}-{number}"));
        Some(SoftwareEndpoint { name, kind: software.kind })
    };
    let mut pairs = BTreeMap::new();
    for (&name, (_, software)) in &named {
        let is_peer = |other: &Software| other.peer.as_deref() == Some(name);
        let ends: Vec<_> = match &software.peer {
            Some(peer) => (0..software.count).map(|number| [(name, number), (peer.as_str(), number)]).collect(),
            // Those of a peer are joined as the other one says.
            None if named.values().any(|(_, other)| is_peer(other)) => continue,
            None => (0..software.count / 2).map(|half| [(name, 2 * half), (name, 2 * half + 1)]).collect(),
        };
        for mut ends in ends {
            // Whoever of two names the other, it is the same pair.
            ends.sort_unstable();
            let [Some(a), Some(b)] = ends.map(|(name, number)| end(name, number)) else { continue };
            let pair = Arc::new(Pair { ends: [a, b] });
            pairs.extend(pair.ends.iter().map(|end| (end.name.device.clone(), Arc::clone(&pair))));
        }
    }
    pairs
}

const ID_PREFIX: &str = "soft-";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn pairs(entries: &str) -> Pairs {
        let mut pairs = Pairs::default();
        pairs.set_config(&config(entries));
        pairs.adopt([]);
        pairs
    }

    fn config(entries: &str) -> Config {
        Config::parse("f", &format!("{{\"resourceList\": [{entries}]}}"), "intel.com").unwrap()
    }

    fn joined(pairs: &Pairs, id: &str) -> String {
        pairs.of(id).and_then(|pair| pair.seen_from(id)).map(|(_, other)| other.name.device.clone()).unwrap_or_default()
    }

    fn free(pairs: &Pairs, resource: &str) -> Vec<String> {
        let all = pairs.of_resource(resource, |_| false).into_iter();
        all.filter(|(_, blocked)| blocked.is_none()).map(|(end, _)| end.name.device).collect()
    }

    /// As if pods had these.
    fn hold(pairs: &mut Pairs, ids: &[&str]) {
        let held: BTreeSet<&str> = ids.iter().copied().collect();
        pairs.note_held(|name| held.contains(name.device.as_str()));
    }

    #[test]
    fn endpoints_are_joined_by_number_with_each_other_or_with_a_peer() {
        let pairs = pairs(
            r#"{"resourceName": "own", "software": 4}, {"resourceName": "b", "software": {"count": 2, "kind": "vhost-user"}},
               {"resourceName": "a", "software": {"count": 2, "peer": "b"}}"#,
        );
        let all = ["soft-own-0", "soft-own-3", "soft-a-1", "soft-b-1"].map(|id| joined(&pairs, id));
        assert_eq!(all, ["soft-own-1", "soft-own-2", "soft-b-1", "soft-a-1"]);
        assert_eq!(pairs.of("soft-b-0").unwrap().name(), "soft-a-0");
        assert_eq!(free(&pairs, "intel.com/b"), ["soft-b-0", "soft-b-1"]);
        assert_eq!(pairs.of("soft-b-0").unwrap().ends[1].kind, SoftwareKind::VhostUser);
        assert!(is_endpoint("soft-b-0") && !is_endpoint("0000:3b:02.1"));
    }

    #[test]
    fn fewer_endpoints_leave_those_that_pods_have() {
        let mut pairs = pairs(r#"{"resourceName": "a", "software": 6}"#);
        hold(&mut pairs, &["soft-a-4"]);
        pairs.set_config(&config(r#"{"resourceName": "a", "software": 2}"#));
        hold(&mut pairs, &["soft-a-4"]);
        assert_eq!(free(&pairs, "intel.com/a"), ["soft-a-0", "soft-a-1"]);
        assert_eq!(joined(&pairs, "soft-a-4"), "soft-a-5", "its wire is as it was");
        let all = |pairs: &Pairs| pairs.of_resource("intel.com/a", |name| name.device == "soft-a-4").len();
        assert_eq!(all(&pairs), 3, "and its other end is nobody's");
        hold(&mut pairs, &[]);
        assert_eq!(all(&pairs), 2);
    }

    #[test]
    fn another_peer_waits_until_no_pod_has_the_pair_of_before() {
        let mut pairs = pairs(r#"{"resourceName": "a", "software": 2}"#);
        hold(&mut pairs, &["soft-a-0"]);
        let apart =
            r#"{"resourceName": "a", "software": {"count": 2, "peer": "b"}}, {"resourceName": "b", "software": 2}"#;
        pairs.set_config(&config(apart));
        hold(&mut pairs, &["soft-a-0"]);
        assert_eq!(joined(&pairs, "soft-a-0"), "soft-a-1");
        assert_eq!(free(&pairs, "intel.com/b"), [""; 0], "both of its peers are in the wire of before");
        let blocked = pairs.of_resource("intel.com/b", |_| false).remove(0).1.unwrap();
        assert!(blocked.starts_with("soft-a-0 is joined with soft-a-1"), "{blocked}");
        hold(&mut pairs, &[]);
        assert_eq!(free(&pairs, "intel.com/b").len(), 2);
        hold(&mut pairs, &["soft-b-1"]);
        assert_eq!(joined(&pairs, "soft-a-1"), "soft-b-1");
        assert_eq!(pairs.in_use().count(), 1);
    }

    #[test]
    fn a_wire_of_a_process_before_is_taken_over_as_it_is() {
        let old = pairs(r#"{"resourceName": "a", "software": {"count": 2, "kind": "vhost-user"}}"#);
        let pair = Arc::clone(old.of("soft-a-0").unwrap());
        let mut pairs = Pairs::default();
        pairs.set_config(&config(r#"{"resourceName": "a", "software": 2}"#));
        // The kubelet's list is read before the forwarder answers.
        hold(&mut pairs, &["soft-a-1"]);
        assert_eq!(pairs.in_use().count(), 0, "how it is joined is not known yet");
        pairs.adopt([&pair]);
        hold(&mut pairs, &["soft-a-1"]);
        assert_eq!(pairs.of("soft-a-1").unwrap().ends[1].kind, SoftwareKind::VhostUser, "what its pod was given");
        assert_eq!(free(&pairs, "intel.com/a"), [""; 0], "the other end is the same wire's");
    }
}
