//! Which rule a flow was found to match, for the packets that follow.
//!
//! A table of fixed size in which each flow has one place: whoever floods it with new flows has the others classified again, and no more.

use crate::flow::FlowKey;
use crate::function::Side;

/// What was found for the flows seen last.
#[derive(Debug)]
pub struct Cache {
    places: Box<[Place]>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    key: Option<FlowKey>,
    side: Side,
    /// The first that matches, or [`NO_RULE`].
    rule: u32,
}

impl Cache {
    /// The rule that was found for a flow; the outer none: it is not known.
    #[inline]
    pub fn find(&self, side: Side, key: &FlowKey, hash: u64) -> Option<Option<u32>> {
        let place = &self.places[index(hash, side)];
        let known = place.side == side && place.key.as_ref() == Some(key);
        known.then_some((place.rule != NO_RULE).then_some(place.rule))
    }

    /// Notes what was found.
    pub fn put(&mut self, side: Side, key: FlowKey, hash: u64, rule: Option<u32>) {
        self.places[index(hash, side)] = Place { key: Some(key), side, rule: rule.unwrap_or(NO_RULE) };
    }

    /// Forgets all of it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Default for Cache {
    /// An empty one.
    fn default() -> Self {
        let empty = Place { key: None, side: Side::Client, rule: NO_RULE };
        Self { places: vec![empty; PLACES].into() }
    }
}

#[inline]
fn index(hash: u64, side: Side) -> usize {
    // The low bits choose the place in the table of sessions, too.
    ((hash >> 20) as usize ^ side.index()) % PLACES
}

const NO_RULE: u32 = u32::MAX;
const PLACES: usize = 1 << 14;
