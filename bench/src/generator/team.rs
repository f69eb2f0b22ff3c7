//! What threads that share a load know of each other: frames of one may arrive at another.
//!
//! They meet before each phase, and are apart while they send: then no thread writes what another one reads.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use crate::generator::RunError;
use crate::load::{Load, Stop};

/// All threads of a run.
pub(super) struct Team<'a> {
    members: Box<[Told]>,
    /// By direction and flow: the number that it goes on with.
    sequences: [Box<[AtomicU64]>; 2],
    /// How many have come to meetings so far.
    come: AtomicUsize,
    /// Somebody gave up.
    has_failed: AtomicBool,
    cancel: &'a AtomicBool,
}

/// What a thread tells the others, when it has sent all.
#[derive(Default)]
#[repr(align(128))]
struct Told {
    /// By direction: sent, received.
    frames: [[AtomicU64; 2]; 2],
    /// When it last received, or had sent all.
    last: AtomicU64,
    has_sent: AtomicBool,
}

/// The same, as a thread knows it of itself.
pub(super) struct LaneProgress {
    /// By direction: sent, received.
    pub frames: [[u64; 2]; 2],
    /// When it last received, or had sent all.
    pub last: u64,
}

impl<'a> Team<'a> {
    /// Of so many threads, which stop when `cancel` is set.
    pub fn new(load: &Load, members: usize, cancel: &'a AtomicBool) -> Self {
        let flows = || (0..load.flows.max(1)).map(|_| AtomicU64::new(0)).collect();
        Self {
            members: (0..members).map(|_| Told::default()).collect(),
            sequences: [flows(), flows()],
            come: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
            cancel,
        }
    }

    /// One of them, for its thread.
    pub fn member(&self, number: usize) -> Member<'_> {
        Member { team: self, number, meetings: 0, is_done: false }
    }
}

/// A thread's place in its team. If it goes before its [`end`](Self::end), the others give up too.
pub(super) struct Member<'a> {
    team: &'a Team<'a>,
    number: usize,
    meetings: usize,
    is_done: bool,
}

impl Member<'_> {
    /// Its place among them.
    pub fn number(&self) -> usize {
        self.number
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.team.members.len()
    }

    /// Its part of a number of frames.
    pub fn share(&self, stop: Stop) -> Stop {
        let (count, number) = (self.count() as u64, self.number as u64);
        match stop {
            Stop::Frames(frames) => Stop::Frames(frames / count + u64::from(number < frames % count)),
            after @ Stop::After(_) => after,
        }
    }

    /// Says which number a flow goes on with.
    pub fn tell_sequence(&self, way: usize, flow: usize, sequence: u64) {
        self.team.sequences[way][flow].store(sequence, Ordering::Relaxed);
    }

    /// Which number each flow goes on with, as those who send them said before the last meeting.
    pub fn sequences(&self, way: usize) -> impl Iterator<Item = u64> {
        self.team.sequences[way].iter().map(|sequence| sequence.load(Ordering::Relaxed))
    }

    /// Forgets what it told of the phase before: between two meetings, when all have left that.
    pub fn forget(&self) {
        self.team.members[self.number].has_sent.store(false, Ordering::Relaxed);
    }

    /// Waits until all have come.
    pub fn meet(&mut self) -> Result<(), RunError> {
        self.meetings += 1;
        let awaited = self.meetings * self.count();
        self.team.come.fetch_add(1, Ordering::AcqRel);
        let mut looks = 0u32;
        while self.team.come.load(Ordering::Acquire) < awaited {
            self.check()?;
            looks += 1;
            // Two of them may have one CPU.
            if looks.is_multiple_of(LOOKS_PER_YIELD) { thread::yield_now() } else { hint::spin_loop() }
        }
        Ok(())
    }

    /// Tells how far it is, now that it has sent all. Whether all have, and all of it has arrived, or nothing has for `grace`.
    pub fn is_over(&self, progress: &LaneProgress, now: u64, grace: u64) -> bool {
        let mine = &self.team.members[self.number];
        for (told, frames) in mine.frames.iter().flatten().zip(progress.frames.iter().flatten()) {
            told.store(*frames, Ordering::Relaxed);
        }
        mine.last.store(progress.last, Ordering::Relaxed);
        mine.has_sent.store(true, Ordering::Release);
        if self.team.members.iter().any(|told| !told.has_sent.load(Ordering::Acquire)) {
            return false;
        }
        let all = |way: usize, what: usize| {
            self.team.members.iter().map(|told| told.frames[way][what].load(Ordering::Relaxed)).sum::<u64>()
        };
        let last = self.team.members.iter().map(|told| told.last.load(Ordering::Relaxed)).max().unwrap_or(now);
        (0..2).all(|way| all(way, 1) >= all(way, 0)) || now.saturating_sub(last) > grace
    }

    /// Whether it is to go on.
    pub fn check(&self) -> Result<(), RunError> {
        let is_over = self.team.cancel.load(Ordering::Relaxed) || self.team.has_failed.load(Ordering::Relaxed);
        if is_over { Err(RunError::Cancelled) } else { Ok(()) }
    }

    /// It has done its part.
    pub fn end(mut self) {
        self.is_done = true;
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.team.has_failed.store(true, Ordering::Relaxed);
        }
    }
}

const LOOKS_PER_YIELD: u32 = 64;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::Mix;

    fn load(flows: u32) -> Load {
        Load { flows, ..Load::new(Mix::new([64]).unwrap(), Duration::ZERO) }
    }

    #[test]
    fn threads_meet_and_know_the_numbers_of_all_flows() {
        let never = AtomicBool::new(false);
        let team = Team::new(&load(3), 3, &never);
        thread::scope(|scope| {
            for number in 0..3 {
                let mut member = team.member(number);
                scope.spawn(move || {
                    for phase in 0..100 {
                        member.tell_sequence(1, number, phase * 10 + number as u64);
                        member.meet().unwrap();
                        let all: Vec<_> = member.sequences(1).collect();
                        assert_eq!(all, [0, 1, 2].map(|flow| phase * 10 + flow));
                        member.meet().unwrap();
                    }
                    member.end();
                });
            }
        });
    }

    #[test]
    fn who_fails_has_the_others_give_up_too() {
        let never = AtomicBool::new(false);
        let team = Team::new(&load(1), 2, &never);
        let mut member = team.member(0);
        drop(team.member(1));
        assert!(matches!(member.meet(), Err(RunError::Cancelled)));
    }

    #[test]
    fn it_is_over_when_all_have_sent_and_what_they_sent_arrived_at_any_of_them() {
        let never = AtomicBool::new(false);
        let team = Team::new(&load(1), 2, &never);
        let [first, second] = [0, 1].map(|number| team.member(number));
        let progress = |sent, received, last| LaneProgress { frames: [[sent, received], [0, 0]], last };
        assert!(!first.is_over(&progress(10, 0, 5), 1000, 50), "the other one sends still");
        assert!(!second.is_over(&progress(10, 19, 980), 1000, 50), "one frame is under way, and one came just now");
        assert!(first.is_over(&progress(10, 1, 1000), 1001, 50) && second.is_over(&progress(10, 19, 980), 1001, 50));
        assert!(second.is_over(&progress(10, 18, 980), 1051, 50), "nothing has come for a while");
        for member in [first, second] {
            member.end();
        }
    }

    #[test]
    fn frames_are_shared_out_to_the_last() {
        let never = AtomicBool::new(false);
        let team = Team::new(&load(1), 3, &never);
        let shares = [0, 1, 2].map(|number| {
            let member = team.member(number);
            let share = member.share(Stop::Frames(11));
            member.end();
            share
        });
        assert_eq!(shares, [4, 4, 3].map(Stop::Frames));
    }
}
