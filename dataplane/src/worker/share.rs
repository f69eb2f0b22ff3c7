//! Fair shares of a worker's time, by the TSC.
//!
//! A visit to one lane costs 1 us, to another 160 us: its frames are long, are cut into segments, or lie on pages that the
//! kernel has to make first. Visited in turns, the second would get nearly all of the time. So a lane owes what its
//! visits took, pays a quantum back in each round, and is passed over while it owes too much. While no other lane has
//! work, nobody waits: all debts are forgiven. A lane that is stalled has none, but a visit to it may still be long (a frame
//! in pieces is gathered and finds no room): then it shares like the others.

use crate::visit::Visit;

/// What a worker keeps to share its time.
pub(crate) struct Shares {
    /// What an ordinary visit takes, in ticks: it leaves no debt.
    quantum: u64,
    /// What each lane pays back at its next turn.
    payment: u64,
    /// Lanes that had work in this round, visited or passed over.
    with_work: usize,
    /// Stalled lanes whose visit took longer than an ordinary one. They keep no worker awake.
    costly_stalled: usize,
    /// Whether one with work was visited.
    any_moved: bool,
}

impl Shares {
    pub(crate) fn new(quantum: u64) -> Self {
        Self { quantum, payment: u64::MAX, with_work: 0, costly_stalled: 0, any_moved: false }
    }

    /// Whether it is the turn of a lane that owes so much. A debt is paid off before.
    #[inline(always)]
    pub(crate) fn is_turn(&mut self, debt: &mut u64) -> bool {
        *debt = debt.saturating_sub(self.payment);
        let turn = *debt <= self.quantum;
        self.with_work += usize::from(!turn);
        turn
    }

    /// A lane was visited, which took so many ticks.
    #[inline(always)]
    pub(crate) fn charge(&mut self, debt: &mut u64, ticks: u64, visit: Visit) {
        // A thread that was preempted took long as well, which is not the lane's fault.
        *debt = (*debt + ticks).min(self.quantum * DEBT_MAX);
        let moved = visit == Visit::Moved;
        self.with_work += usize::from(moved);
        self.costly_stalled += usize::from(visit == Visit::Stalled && ticks > self.quantum);
        self.any_moved |= moved;
    }

    /// All lanes had their turn. Whether one was passed over, so that there is work left.
    #[inline(always)]
    pub(crate) fn end_round(&mut self) -> bool {
        let contended = self.any_moved && self.with_work + self.costly_stalled > 1;
        let left = self.with_work > 0 && !self.any_moved;
        self.payment = if contended { self.quantum } else { u64::MAX };
        self.with_work = 0;
        self.costly_stalled = 0;
        self.any_moved = false;
        left
    }
}

/// The most that a lane owes, in quanta: what the longest visits take in which every page has to be made.
const DEBT_MAX: u64 = 500;

#[cfg(test)]
mod tests {
    use super::*;
    use Visit::{Moved, Quiet, Stalled};

    /// Ticks that each lane got of a worker, whose visits take so many and end so.
    fn shares(visits: &[(u64, Visit)]) -> Vec<u64> {
        let mut shares = Shares::new(1000);
        let (mut debts, mut got) = (vec![0; visits.len()], vec![0; visits.len()]);
        while got.iter().sum::<u64>() < 100_000_000 {
            for (lane, &(ticks, visit)) in visits.iter().enumerate() {
                if shares.is_turn(&mut debts[lane]) {
                    shares.charge(&mut debts[lane], ticks, visit);
                    got[lane] += ticks;
                }
            }
            shares.end_round();
        }
        got
    }

    #[test]
    fn a_lane_whose_visits_are_long_gets_no_more_time_than_the_others() {
        let got = shares(&[(160_000, Moved), (1000, Moved)]);
        assert!(got[1].abs_diff(got[0]) < got[0] / 10, "{got:?}");
        let got = shares(&[(160_000, Moved), (2000, Moved), (2000, Moved), (1000, Moved)]);
        assert!(got.iter().all(|&share| share > 10_000_000), "{got:?}");
    }

    #[test]
    fn a_stalled_lane_whose_visits_are_long_gets_no_more_time_than_the_others() {
        let got = shares(&[(100_000, Stalled), (1000, Moved)]);
        assert!(got[1].abs_diff(got[0]) < got[0] / 10, "{got:?}");
    }

    #[test]
    fn a_worker_whose_lanes_are_all_stalled_may_rest() {
        let mut shares = Shares::new(1000);
        let mut debt = 0;
        assert!(shares.is_turn(&mut debt));
        shares.charge(&mut debt, 160_000, Stalled);
        assert!(!shares.end_round());
    }

    #[test]
    fn a_lane_that_is_alone_with_work_is_never_passed_over() {
        let mut shares = Shares::new(1000);
        let (mut debt, mut idle) = (0, 0);
        for _ in 0..100 {
            assert!(shares.is_turn(&mut debt));
            shares.charge(&mut debt, 160_000, Moved);
            assert!(shares.is_turn(&mut idle));
            shares.charge(&mut idle, 30, Quiet);
            assert!(!shares.end_round());
        }
    }

    #[test]
    fn a_lane_in_whose_visit_the_thread_was_preempted_is_back_soon() {
        let mut shares = Shares::new(1000);
        let (mut preempted, mut other) = (0, 0);
        let mut rounds = 0;
        shares.charge(&mut preempted, 80_000_000, Moved);
        loop {
            shares.charge(&mut other, 1000, Moved);
            shares.end_round();
            rounds += 1;
            if shares.is_turn(&mut preempted) {
                break;
            }
            assert!(shares.is_turn(&mut other));
        }
        assert!((400..=500).contains(&rounds), "{rounds}");
    }

    #[test]
    fn nobody_waits_for_a_lane_that_has_no_work_any_more() {
        let mut shares = Shares::new(1000);
        let (mut hog, mut other) = (0, 0);
        assert!(shares.is_turn(&mut hog));
        shares.charge(&mut hog, 160_000, Moved);
        assert!(shares.is_turn(&mut other));
        shares.charge(&mut other, 1000, Moved);
        shares.end_round();
        assert!(!shares.is_turn(&mut hog), "the other one has work");
        shares.charge(&mut other, 30, Quiet);
        assert!(shares.end_round(), "the worker must not rest");
        assert!(shares.is_turn(&mut hog));
    }
}
