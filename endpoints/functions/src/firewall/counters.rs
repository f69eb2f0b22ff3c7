//! What a firewall has counted. One thread adds, any thread reads.

use super::verdict::Reason;
use crate::counter::Counter;

/// What a rule decided.
#[derive(Debug)]
pub struct RuleCounters {
    /// The rule's name.
    pub name: String,
    /// Frames that it decided, itself or by the session that it opened.
    pub frames: Counter,
    /// Their bytes.
    pub bytes: Counter,
}

/// All counters of a firewall with one set of rules.
#[derive(Debug)]
pub struct Counters {
    /// Of each rule, in their order.
    pub rules: Vec<RuleCounters>,
    /// Frames that passed without a rule, or were dropped, by the reason.
    pub reasons: [Counter; Reason::ALL.len()],
    /// Sessions that there are.
    pub sessions: Counter,
}

impl Counters {
    /// For rules of these names; those that had these names before go on.
    pub fn new<'a>(names: impl Iterator<Item = &'a str>, before: Option<&Self>) -> Self {
        let go_on = |counter: &Counter, old: &Counter| counter.add(old.get());
        let rule = |name: &str| {
            let counters =
                RuleCounters { name: name.to_owned(), frames: Counter::default(), bytes: Counter::default() };
            let old = before.and_then(|before| before.rules.iter().find(|old| old.name == name));
            if let Some(old) = old {
                go_on(&counters.frames, &old.frames);
                go_on(&counters.bytes, &old.bytes);
            }
            counters
        };
        let counters =
            Self { rules: names.map(rule).collect(), reasons: Default::default(), sessions: Counter::default() };
        if let Some(before) = before {
            for (counter, old) in counters.reasons.iter().zip(&before.reasons) {
                go_on(counter, old);
            }
        }
        counters
    }

    /// Frames of a reason.
    pub fn of(&self, reason: Reason) -> u64 {
        self.reasons[reason as usize].get()
    }
}
