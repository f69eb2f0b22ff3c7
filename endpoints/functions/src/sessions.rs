//! A bounded table of conversations that forgets those that are idle.
//!
//! A touch writes the time and nothing else; a conversation goes to the end of its class's queue only when it is met at the front, so
//! that keeping order costs a packet nothing. Whether one is idle is always judged by its own time, never by its place: it is not found
//! any more then, and it is forgotten after twice that time at the latest, whoever is in front of it.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::flow::FlowKey;

/// Conversations with what is known of each, in classes that idle for different times. Each is found by any of its keys.
#[derive(Debug)]
pub struct Sessions<S, const KEYS: usize = 1> {
    /// The number of a conversation, times `KEYS`, and which key.
    table: HashTable<u32>,
    slots: Vec<Slot<S, KEYS>>,
    /// By the same number.
    places: Vec<QueuePlace>,
    free: Vec<u32>,
    queues: Vec<Queue>,
    /// Seeded anew in every process: peers choose addresses and ports, and must not choose where they collide.
    hasher: RandomState,
    max: usize,
    evicted: u64,
    refused: u64,
    gone: Option<Vec<([FlowKey; KEYS], S)>>,
    /// How often one was added or forgotten.
    changes: u64,
}

/// A conversation that is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Sought {
    /// Which one.
    pub key: FlowKey,
    /// Where to look for it.
    pub hash: u64,
    found: Lookup,
    /// When that was found.
    changes: u64,
}

#[derive(Clone, Copy, Debug)]
enum Lookup {
    Live(u32),
    Idle(u32),
    Nothing,
}

/// How long conversations of a class idle, and whether the oldest of them makes room when the table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// They are forgotten after that time without a packet.
    pub idle_ms: u64,
    /// Whether the oldest goes when there is no room.
    pub can_be_evicted: bool,
}

/// What a packet needs: whole cache lines, since of very many conversations none is in the cache.
#[derive(Debug)]
#[repr(align(64))]
struct Slot<S, const KEYS: usize> {
    keys: [FlowKey; KEYS],
    seen_ms: u64,
    value: S,
    class: u8,
}

/// Where one is in the queue of its class, which packets do not ask for.
#[derive(Clone, Copy, Debug)]
struct QueuePlace {
    before: u32,
    after: u32,
    /// When it had been seen last as it was put there.
    queued_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Queue {
    class: Class,
    first: u32,
    last: u32,
}

impl<S: Copy, const KEYS: usize> Sessions<S, KEYS> {
    /// An empty table of at most `max` conversations. Memory is taken as they come.
    pub fn new(max: usize, classes: &[Class]) -> Self {
        let queue = |&class| Queue { class, first: NONE, last: NONE };
        Self {
            table: HashTable::new(),
            slots: Vec::new(),
            places: Vec::new(),
            free: Vec::new(),
            queues: classes.iter().map(queue).collect(),
            hasher: RandomState::default(),
            max: max.min(NONE as usize / KEYS - 1),
            gone: None,
            evicted: 0,
            refused: 0,
            changes: 0,
        }
    }

    /// How many there are; those that are idle and not met yet count.
    #[inline]
    pub fn len(&self) -> usize {
        self.table.len() / KEYS
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// How many were forgotten to make room, and how many found none.
    pub fn overflows(&self) -> (u64, u64) {
        (self.evicted, self.refused)
    }

    /// Where to look for a conversation. Not the same in another process.
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The number of a conversation that is there and not idle.
    #[inline]
    pub fn find(&mut self, key: &FlowKey, hash: u64, now_ms: u64) -> Option<u32> {
        let found = self.look(key, hash, now_ms);
        self.live(found)
    }

    /// A conversation that is to be looked for, by [`Self::find_sought`] at the latest.
    #[inline]
    pub fn sought(&self, key: FlowKey) -> Sought {
        Sought { key, hash: self.hash(&key), found: Lookup::Nothing, changes: NEVER }
    }

    /// Looks for one, so that it is in the cache when it is asked for. Done for many in a row, these wait for memory at the same time, and not
    /// one after the other.
    #[inline]
    pub fn seek(&self, sought: &mut Sought, now_ms: u64) {
        sought.found = self.look(&sought.key, sought.hash, now_ms);
        sought.changes = self.changes;
    }

    /// As [`Self::find`]. What was found before counts unless one was added or forgotten since.
    #[inline]
    pub fn find_sought(&mut self, sought: &Sought, now_ms: u64) -> Option<u32> {
        let is_so_still = sought.changes == self.changes;
        let found = if is_so_still { sought.found } else { self.look(&sought.key, sought.hash, now_ms) };
        self.live(found)
    }

    #[inline]
    fn look(&self, key: &FlowKey, hash: u64, now_ms: u64) -> Lookup {
        let Some(entry) = self.table.find(hash, |&entry| *self.key_of(entry) == *key) else { return Lookup::Nothing };
        let id = entry / KEYS as u32;
        let slot = &self.slots[id as usize];
        if self.is_idle(slot.seen_ms, slot.class, now_ms) { Lookup::Idle(id) } else { Lookup::Live(id) }
    }

    /// One that is idle is forgotten.
    #[inline]
    fn live(&mut self, found: Lookup) -> Option<u32> {
        match found {
            Lookup::Live(id) => Some(id),
            Lookup::Idle(id) => {
                self.remove(id);
                None
            }
            Lookup::Nothing => None,
        }
    }

    /// What is known of one that [`Self::find`] found.
    #[inline]
    pub fn get(&mut self, id: u32) -> &mut S {
        &mut self.slots[id as usize].value
    }

    /// A packet of it was seen, which may have moved it to another class.
    #[inline]
    pub fn touch(&mut self, id: u32, class: u8, now_ms: u64) {
        let slot = &mut self.slots[id as usize];
        slot.seen_ms = now_ms;
        if slot.class != class {
            self.unlink(id);
            self.append(id, class);
        }
    }

    /// Adds one that is not there. Its number; none: the table is full, of such as must stay.
    pub fn insert(&mut self, keys: [FlowKey; KEYS], class: u8, value: S, now_ms: u64) -> Option<u32> {
        self.expire(now_ms, EXPIRED_AT_ONCE);
        if self.len() >= self.max && !self.evict() {
            self.refused += 1;
            return None;
        }
        let slot = Slot { keys, seen_ms: now_ms, value, class };
        let id = if let Some(id) = self.free.pop() {
            self.slots[id as usize] = slot;
            id
        } else {
            self.slots.push(slot);
            self.places.push(QueuePlace { before: NONE, after: NONE, queued_ms: now_ms });
            // Fewer than `max`, which is below NONE.
            (self.slots.len() - 1) as u32
        };
        self.append(id, class);
        self.changes += 1;
        let Self { table, slots, hasher, .. } = self;
        for (which, key) in keys.iter().enumerate() {
            let entry = id * KEYS as u32 + which as u32;
            table.insert_unique(hasher.hash_one(key), entry, |&entry| hasher.hash_one(key_of(slots, entry)));
        }
        Some(id)
    }

    /// Forgets one.
    pub fn remove(&mut self, id: u32) {
        for which in 0..KEYS as u32 {
            let wanted = id * KEYS as u32 + which;
            let hash = self.hasher.hash_one(self.key_of(wanted));
            let Ok(entry) = self.table.find_entry(hash, |&entry| entry == wanted) else { return };
            entry.remove();
        }
        self.changes += 1;
        self.unlink(id);
        self.free.push(id);
        if let Some(gone) = &mut self.gone {
            let slot = &self.slots[id as usize];
            gone.push((slot.keys, slot.value));
        }
    }

    /// Keeps the keys of those that are forgotten and what was known of them, for [`Self::take_gone`].
    #[must_use]
    pub fn keeping_gone(self) -> Self {
        Self { gone: Some(Vec::new()), ..self }
    }

    /// Those that were forgotten since this was last asked: their keys, and what was known of them.
    pub fn take_gone(&mut self) -> Vec<([FlowKey; KEYS], S)> {
        self.gone.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Forgets idle ones, after looking at no more than `looks` of each class.
    pub fn expire(&mut self, now_ms: u64, looks: usize) {
        for class in 0..self.queues.len() {
            for _ in 0..looks {
                let id = self.queues[class].first;
                if id == NONE {
                    break;
                }
                let slot = &self.slots[id as usize];
                if self.is_idle(slot.seen_ms, slot.class, now_ms) {
                    self.remove(id);
                } else if !self.was_touched(id) {
                    break;
                } else {
                    self.requeue(id);
                }
            }
        }
    }

    #[inline]
    fn key_of(&self, entry: u32) -> &FlowKey {
        key_of(&self.slots, entry)
    }

    #[inline]
    fn is_idle(&self, seen_ms: u64, class: u8, now_ms: u64) -> bool {
        now_ms.saturating_sub(seen_ms) >= self.queues[usize::from(class)].class.idle_ms
    }

    /// Whether it was seen since it went to the end of its queue.
    fn was_touched(&self, id: u32) -> bool {
        self.slots[id as usize].seen_ms > self.places[id as usize].queued_ms
    }

    fn requeue(&mut self, id: u32) {
        let class = self.slots[id as usize].class;
        self.unlink(id);
        self.append(id, class);
    }

    /// Forgets the oldest of the first class that may be.
    fn evict(&mut self) -> bool {
        let Some(class) = self.queues.iter().position(|queue| queue.class.can_be_evicted && queue.first != NONE) else {
            return false;
        };
        for _ in 0..EXPIRED_AT_ONCE {
            let id = self.queues[class].first;
            if !self.was_touched(id) {
                break;
            }
            self.requeue(id);
        }
        self.remove(self.queues[class].first);
        self.evicted += 1;
        true
    }

    fn append(&mut self, id: u32, class: u8) {
        let queue = &mut self.queues[usize::from(class)];
        let before = std::mem::replace(&mut queue.last, id);
        if before == NONE {
            queue.first = id;
        } else {
            self.places[before as usize].after = id;
        }
        let slot = &mut self.slots[id as usize];
        slot.class = class;
        self.places[id as usize] = QueuePlace { before, after: NONE, queued_ms: slot.seen_ms };
    }

    fn unlink(&mut self, id: u32) {
        let QueuePlace { before, after, .. } = self.places[id as usize];
        let queue = &mut self.queues[usize::from(self.slots[id as usize].class)];
        match before {
            NONE => queue.first = after,
            before => self.places[before as usize].after = after,
        }
        match after {
            NONE => queue.last = before,
            after => self.places[after as usize].before = before,
        }
    }
}

#[inline]
fn key_of<S, const KEYS: usize>(slots: &[Slot<S, KEYS>], entry: u32) -> &FlowKey {
    &slots[entry as usize / KEYS].keys[entry as usize % KEYS]
}

/// No conversation.
const NONE: u32 = u32::MAX;
/// No number of changes is that large.
const NEVER: u64 = u64::MAX;
/// More go than come.
const EXPIRED_AT_ONCE: usize = 4;

#[cfg(test)]
mod tests;
