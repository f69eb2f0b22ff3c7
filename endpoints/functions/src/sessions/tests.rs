use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::function::Side;
use crate::packet::{Family, Fragment, Headers, UDP};

const SHORT: u8 = 0;
const LONG: u8 = 1;
const CLASSES: [Class; 2] =
    [Class { idle_ms: 10, can_be_evicted: true }, Class { idle_ms: 100, can_be_evicted: false }];

#[test]
fn one_is_found_until_it_has_idled_for_its_time() {
    let mut sessions = Sessions::new(10, &CLASSES);
    let id = sessions.insert([key(1)], SHORT, "one", 0).unwrap();
    assert_eq!(find(&mut sessions, 1, 9), Some(id));
    sessions.touch(id, SHORT, 9);
    assert_eq!(find(&mut sessions, 1, 18), Some(id));
    assert_eq!(find(&mut sessions, 1, 19), None);
    assert!(sessions.is_empty());
}

#[test]
fn a_full_table_forgets_the_oldest_of_those_that_may_go_and_refuses_otherwise() {
    let mut sessions = Sessions::new(3, &CLASSES);
    let first = sessions.insert([key(1)], SHORT, (), 0).unwrap();
    sessions.insert([key(2)], SHORT, (), 1);
    sessions.insert([key(3)], LONG, (), 2);
    sessions.touch(first, SHORT, 3);
    sessions.insert([key(4)], LONG, (), 4);
    assert_eq!(find(&mut sessions, 2, 4), None, "it was idle for longer than the first");
    sessions.insert([key(5)], LONG, (), 4);
    assert_eq!((find(&mut sessions, 1, 4), sessions.len()), (None, 3));
    assert_eq!(sessions.insert([key(6)], SHORT, (), 4), None, "the others stay");
    assert_eq!(sessions.overflows(), (2, 1));
    assert!(sessions.insert([key(7)], SHORT, (), 102).is_some(), "the idle ones made room");
}

#[test]
fn one_of_two_keys_is_found_by_either_and_goes_with_both() {
    let mut sessions = Sessions::<_, 2>::new(2, &CLASSES).keeping_gone();
    let find = |sessions: &mut Sessions<_, 2>, number| {
        let hash = sessions.hash(&key(number));
        sessions.find(&key(number), hash, 0)
    };
    let id = sessions.insert([key(1), key(2)], SHORT, "pair", 0);
    sessions.insert([key(3), key(4)], SHORT, "other", 0);
    assert_eq!((find(&mut sessions, 1), find(&mut sessions, 2), sessions.len()), (id, id, 2));
    sessions.remove(id.unwrap());
    assert_eq!((find(&mut sessions, 1), find(&mut sessions, 2), sessions.len()), (None, None, 1));
    assert!(find(&mut sessions, 3).is_some() && find(&mut sessions, 3) == find(&mut sessions, 4));
    assert_eq!((sessions.take_gone(), sessions.take_gone()), (vec![([key(1), key(2)], "pair")], vec![]));
}

#[test]
fn what_was_sought_is_looked_for_again_if_one_came_or_went_since() {
    let mut sessions = Sessions::new(10, &CLASSES);
    let mut sought = sessions.sought(key(1));
    sessions.seek(&mut sought, 0);
    assert_eq!(sessions.find_sought(&sought, 0), None);
    let id = sessions.insert([key(1)], SHORT, (), 0);
    assert_eq!(sessions.find_sought(&sought, 0), id, "it came");
    sessions.seek(&mut sought, 0);
    sessions.remove(id.unwrap());
    assert_eq!(sessions.insert([key(2)], LONG, (), 0), id);
    assert_eq!(sessions.find_sought(&sought, 0), None, "its place is another one's");
    sessions.insert([key(1)], SHORT, (), 0);
    sessions.seek(&mut sought, 10);
    assert_eq!((sessions.find_sought(&sought, 10), sessions.len()), (None, 1), "it was idle");
    assert_eq!(sessions.find_sought(&sought, 10), None);
}

#[test]
fn those_in_use_keep_nobody_idle_behind_them() {
    let mut sessions = Sessions::new(100, &CLASSES);
    let used = [1, 2].map(|number| sessions.insert([key(number)], LONG, (), 0).unwrap());
    for number in 3..50 {
        sessions.insert([key(number)], LONG, (), 0);
    }
    // The two of one burst, again and again.
    for now in (50..=200).step_by(50) {
        for id in used {
            sessions.touch(id, LONG, now);
        }
        for _ in 0..20 {
            sessions.expire(now, 4);
        }
    }
    assert_eq!(sessions.len(), 2, "the others have idled for twice their time");
    assert_eq!([1, 2].map(|number| find(&mut sessions, number, 200)), used.map(Some));
}

#[test]
fn another_class_has_another_time() {
    let mut sessions = Sessions::new(3, &CLASSES);
    let id = sessions.insert([key(1)], SHORT, (), 0).unwrap();
    sessions.touch(id, LONG, 5);
    assert_eq!(find(&mut sessions, 1, 104), Some(id));
    sessions.touch(id, SHORT, 104);
    assert_eq!(find(&mut sessions, 1, 114), None);
}

#[test]
fn memory_is_bounded_under_ever_new_keys() {
    let mut sessions = Sessions::new(100, &CLASSES);
    for number in 0..10_000 {
        sessions.insert([key(number)], SHORT, (), u64::from(number) / 1000);
    }
    assert_eq!((sessions.len(), sessions.slots.len()), (100, 100));
}

proptest! {
    /// Against a map that is searched from end to end.
    #[test]
    fn it_knows_what_an_obvious_table_knows(steps in prop::collection::vec((0..12u32, 0..2u8, 0..4u8, 0..8u64), 1..200)) {
        let mut sessions = Sessions::new(1000, &CLASSES);
        let mut obvious: BTreeMap<u32, (u64, u8)> = BTreeMap::new();
        let mut now = 0;
        for (number, class, what, passed) in steps {
            now += passed;
            obvious.retain(|_, (seen, class)| now - *seen < CLASSES[usize::from(*class)].idle_ms);
            let found = find(&mut sessions, number, now);
            prop_assert_eq!(found.is_some(), obvious.contains_key(&number));
            match (found, what) {
                (None, _) => {
                    prop_assert!(sessions.insert([key(number)], class, number, now).is_some());
                    obvious.insert(number, (now, class));
                }
                (Some(id), 0) => {
                    sessions.remove(id);
                    obvious.remove(&number);
                }
                (Some(id), _) => {
                    prop_assert_eq!(*sessions.get(id), number);
                    sessions.touch(id, class, now);
                    obvious.insert(number, (now, class));
                }
            }
            prop_assert!(sessions.len() >= obvious.len());
            sessions.expire(now, 1000);
            for (class, queue) in sessions.queues.iter().enumerate() {
                let mut id = queue.first;
                while id != NONE {
                    let slot = &sessions.slots[id as usize];
                    prop_assert!(now - slot.seen_ms < 2 * CLASSES[class].idle_ms);
                    id = sessions.places[id as usize].after;
                }
            }
        }
    }
}

fn find<S: Copy>(sessions: &mut Sessions<S>, number: u32, now_ms: u64) -> Option<u32> {
    let key = key(number);
    let hash = sessions.hash(&key);
    sessions.find(&key, hash, now_ms)
}

fn key(number: u32) -> FlowKey {
    let headers = Headers {
        family: Family::V4,
        source: number.into(),
        destination: 1,
        protocol: UDP,
        ports: [1, 2],
        identifier: 0,
        tcp_flags: 0,
        hop_limit: 64,
        fragment: Fragment::Whole,
        ip_at: 0,
        transport_at: 20,
        end: 28,
    };
    FlowKey::of(Side::Client, &headers)
}

#[test]
fn a_session_of_a_firewall_is_one_cache_line() {
    assert_eq!(size_of::<Slot<crate::firewall::session::Session, 1>>(), 64);
}
