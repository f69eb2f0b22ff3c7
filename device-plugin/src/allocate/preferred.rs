//! Which of the free devices go first: advice for the kubelet, which is never refused.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Policy;

/// A device that may be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// Its PF; empty: not known.
    pub card: String,
    /// 0: as it shall be; more: it costs something to have it, such as another driver; most: somebody else has it.
    pub cost: u8,
}

/// `size` of the available devices with all of `must_include`, or as many as there are. Never more, never others.
pub fn prefer(policy: Option<Policy>, available: &[Candidate], must_include: &[String], size: usize) -> Vec<String> {
    let mut chosen: Vec<&Candidate> = Vec::new();
    let mut seen = BTreeSet::new();
    let is_must = |candidate: &&Candidate| must_include.contains(&candidate.id);
    chosen.extend(available.iter().filter(is_must).filter(|candidate| seen.insert(candidate.id.as_str())).take(size));
    let mut free: Vec<_> =
        available.iter().filter(|candidate| !is_must(candidate) && seen.insert(candidate.id.as_str())).collect();
    free.sort_by(|a, b| (a.cost, &a.card, &a.id).cmp(&(b.cost, &b.card, &b.id)));
    while chosen.len() < size && !free.is_empty() {
        let next = match policy {
            None => 0,
            Some(policy) => best(policy, &free, &chosen, size - chosen.len()),
        };
        chosen.push(free.remove(next));
    }
    chosen.into_iter().map(|candidate| candidate.id.clone()).collect()
}

/// The place of the next one.
fn best(policy: Policy, free: &[&Candidate], chosen: &[&Candidate], wanted: usize) -> usize {
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for candidate in free.iter().filter(|candidate| candidate.cost < COST_TAKEN) {
        *left.entry(&candidate.card).or_default() += 1;
    }
    let left = |candidate: &Candidate| left.get(candidate.card.as_str()).copied().unwrap_or(0);
    let has = |candidate: &Candidate| chosen.iter().filter(|other| other.card == candidate.card).count();
    // The first of equals is the cheapest: they are in order.
    let rank = |candidate: &Candidate| -> (bool, usize, usize) {
        let is_taken = candidate.cost >= COST_TAKEN;
        match policy {
            Policy::Pack => (is_taken, usize::from(has(candidate) == 0), left(candidate)),
            Policy::Spread => (is_taken, has(candidate), usize::MAX - left(candidate)),
            Policy::SamePf => {
                let is_elsewhere = !chosen.is_empty() && has(candidate) == 0;
                let is_short = left(candidate) < wanted;
                (is_taken, usize::from(is_elsewhere) * 2 + usize::from(is_short), left(candidate))
            }
        }
    };
    let ranked = free.iter().enumerate().min_by_key(|(place, candidate)| (rank(candidate), *place));
    ranked.map_or(0, |(place, _)| place)
}

/// Of a device that is another pod's, or is not to be had.
pub const COST_TAKEN: u8 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(cards: &[(&str, usize)]) -> Vec<Candidate> {
        let of = |&(card, count): &(&str, usize)| {
            let card = card.to_owned();
            (0..count).map(move |index| Candidate { id: format!("{card}{index}"), card: card.clone(), cost: 0 })
        };
        cards.iter().flat_map(of).collect()
    }

    #[test]
    fn each_policy_chooses_by_what_is_left_of_the_cards() {
        let all = candidates(&[("a", 3), ("b", 2), ("c", 4)]);
        assert_eq!(prefer(Some(Policy::Pack), &all, &[], 3), ["b0", "b1", "a0"]);
        assert_eq!(prefer(Some(Policy::Spread), &all, &[], 4), ["c0", "a0", "b0", "c1"]);
        assert_eq!(prefer(Some(Policy::SamePf), &all, &[], 3), ["a0", "a1", "a2"], "the smallest that has enough");
        assert_eq!(
            prefer(Some(Policy::SamePf), &all, &["b1".into()], 3),
            ["b1", "b0", "a0"],
            "that of the first, then another"
        );
        assert_eq!(prefer(None, &all, &["c2".into()], 2), ["c2", "a0"]);
    }

    #[test]
    fn what_costs_nothing_goes_first_and_what_others_have_goes_last() {
        let mut all = candidates(&[("a", 2), ("b", 2)]);
        all[0].cost = 1;
        all[2].cost = COST_TAKEN;
        assert_eq!(prefer(None, &all, &[], 4), ["a1", "b1", "a0", "b0"]);
        for policy in [Policy::Pack, Policy::Spread, Policy::SamePf] {
            assert_eq!(prefer(Some(policy), &all, &[], 4).last().map(String::as_str), Some("b0"), "{policy:?}");
        }
    }

    #[test]
    fn nonsense_is_answered_with_what_there_is() {
        let all = candidates(&[("a", 2)]);
        assert_eq!(prefer(Some(Policy::SamePf), &all, &["unknown".into()], 9), ["a0", "a1"]);
        assert!(prefer(Some(Policy::Pack), &[], &["x".into()], 1).is_empty());
        let twice = [all.clone(), all].concat();
        assert_eq!(prefer(Some(Policy::Spread), &twice, &[], 4).len(), 2);
        assert!(prefer(None, &twice, &["a0".into()], 0).is_empty());
    }
}
