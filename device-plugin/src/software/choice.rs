//! Which free endpoints go first: advice for the kubelet.

use std::collections::BTreeSet;

/// An endpoint that may be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeEndpoint {
    /// What the kubelet calls it.
    pub id: String,
    /// The wire that it would be an end of.
    pub wire: String,
    /// A pod has the other end.
    pub is_awaited: bool,
    /// It is not to be had.
    pub is_taken: bool,
}

/// `size` of the available endpoints with all of `must_include`, or as many as there are: those whose other end a pod has go first, so
/// that the second pod is joined with the first one; and no two of one wire, unless there are no others.
pub fn prefer(available: &[FreeEndpoint], must_include: &[String], size: usize) -> Vec<String> {
    let mut chosen: Vec<&FreeEndpoint> =
        available.iter().filter(|endpoint| must_include.contains(&endpoint.id)).take(size).collect();
    let mut free: Vec<_> = available.iter().filter(|endpoint| !must_include.contains(&endpoint.id)).collect();
    let number = |id: &str| id.rsplit('-').next().and_then(|number| number.parse::<u32>().ok());
    free.sort_by_key(|endpoint| (endpoint.is_taken, !endpoint.is_awaited, number(&endpoint.id)));
    while chosen.len() < size && !free.is_empty() {
        let wires: BTreeSet<&str> = chosen.iter().map(|endpoint| endpoint.wire.as_str()).collect();
        let is_good = |endpoint: &&FreeEndpoint| !endpoint.is_taken && !wires.contains(endpoint.wire.as_str());
        chosen.push(free.remove(free.iter().position(is_good).unwrap_or(0)));
    }
    chosen.into_iter().map(|endpoint| endpoint.id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Endpoints 0 to 11, of which those of `held` are not available.
    fn available(held: &[usize]) -> Vec<FreeEndpoint> {
        let free = (0..12).rev().filter(|number| !held.contains(number));
        free.map(|number| FreeEndpoint {
            id: format!("soft-a-{number}"),
            wire: format!("soft-a-{}", number / 2 * 2),
            is_awaited: held.contains(&(number ^ 1)),
            is_taken: false,
        })
        .collect()
    }

    #[test]
    fn the_second_pod_is_joined_with_the_first() {
        assert_eq!(prefer(&available(&[]), &[], 1), ["soft-a-0"]);
        assert_eq!(prefer(&available(&[0]), &[], 1), ["soft-a-1"]);
        assert_eq!(prefer(&available(&[0, 1, 10]), &[], 2), ["soft-a-11", "soft-a-2"]);
    }

    #[test]
    fn a_pod_with_two_is_not_joined_with_itself_unless_nothing_else_is_left() {
        assert_eq!(prefer(&available(&[]), &[], 2), ["soft-a-0", "soft-a-2"]);
        assert_eq!(prefer(&available(&[0, 2]), &[], 2), ["soft-a-1", "soft-a-3"]);
        let last = available(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(prefer(&last, &[], 2), ["soft-a-10", "soft-a-11"]);
        assert_eq!(prefer(&available(&[]), &["soft-a-4".into()], 2), ["soft-a-4", "soft-a-0"]);
    }

    #[test]
    fn what_is_taken_goes_last_and_nonsense_is_answered_with_what_there_is() {
        let mut all = available(&[2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        all[1].is_taken = true;
        assert_eq!(prefer(&all, &[], 9), ["soft-a-1", "soft-a-0"]);
        assert!(prefer(&all, &["unknown".into()], 0).is_empty());
    }
}
