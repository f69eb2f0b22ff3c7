//! Finds the first rule that a packet matches, in a time that hardly depends on how many there are.
//!
//! For each field, the values are cut into the intervals between the borders of all rules; each interval has a row of bits, one for each
//! rule. A packet's five rows, ANDed word by word, show its rules (Lakshman and Stiliadis, 1998). The search of an interval is
//! logarithmic, the rows of 1000 rules are 16 words, and the first word with a bit ends it.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;

use super::rule::{Match, Rule, Tuple, range_of};
use crate::function::Side;
use crate::packet::Family;

/// The rules for what comes in on one side, of one family.
#[derive(Debug)]
pub struct Classifier {
    /// Of each bit: the rule, and which TCP flags it wants.
    rules: Vec<(u32, u8, u8)>,
    source: Field<u128>,
    destination: Field<u128>,
    source_port: Field<u16>,
    destination_port: Field<u16>,
    protocol: Field<u8>,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The first rule that matches, by its number.
    pub rule: Option<u32>,
    /// Whether other TCP flags might have led to another one.
    pub by_flags: bool,
}

impl Classifier {
    /// For the rules that mean packets of `family` that come in on `side`.
    pub fn new(rules: &[Rule], side: Side, family: Family) -> Self {
        let of_side = |(number, rule): (usize, &Rule)| {
            let matched = rule.matches[side.index()].clone()?;
            matched.is_for(family).then_some((number as u32, matched))
        };
        let ours: Vec<(u32, Match)> = rules.iter().enumerate().filter_map(of_side).collect();
        let addresses = |of: fn(&Match) -> &Option<ipnet::IpNet>| {
            Field::new(ours.iter().map(|(_, rule)| of(rule).as_ref().map_or(0..=u128::MAX, range_of)))
        };
        Self {
            rules: ours.iter().map(|(number, rule)| (*number, rule.tcp_mask, rule.tcp_value)).collect(),
            source: addresses(|rule| &rule.source),
            destination: addresses(|rule| &rule.destination),
            source_port: Field::new(ours.iter().map(|(_, rule)| rule.source_ports.clone())),
            destination_port: Field::new(ours.iter().map(|(_, rule)| rule.destination_ports.clone())),
            protocol: Field::new(ours.iter().map(|(_, rule)| rule.protocol.map_or(0..=u8::MAX, |one| one..=one))),
        }
    }

    /// The first rule that the packet matches.
    pub fn find(&self, tuple: &Tuple) -> Found {
        let rows = [
            self.protocol.row(tuple.protocol),
            self.destination_port.row(tuple.ports[1]),
            self.destination.row(tuple.destination),
            self.source.row(tuple.source),
            self.source_port.row(tuple.ports[0]),
        ];
        let mut by_flags = false;
        for word in 0..self.rules.len().div_ceil(64) {
            let mut bits = rows.iter().fold(u64::MAX, |bits, row| bits & row[word]);
            while bits != 0 {
                let (rule, mask, value) = self.rules[word * 64 + bits.trailing_zeros() as usize];
                by_flags |= mask != 0;
                if tuple.tcp_flags & mask == value {
                    return Found { rule: Some(rule), by_flags };
                }
                bits &= bits - 1;
            }
        }
        Found { rule: None, by_flags }
    }
}

/// One field of the rules.
#[derive(Debug)]
struct Field<T> {
    /// Where an interval begins; the first one begins at the least value.
    starts: Vec<T>,
    /// The row of each interval: where its words begin. Intervals of the same rules share one.
    rows: Vec<u32>,
    words: Vec<u64>,
    row_len: usize,
}

impl<T: Bounded> Field<T> {
    fn new(ranges: impl Iterator<Item = RangeInclusive<T>>) -> Self {
        let ranges: Vec<_> = ranges.collect();
        let borders = ranges.iter().flat_map(|range| [Some(*range.start()), range.end().next()]).flatten();
        let starts: BTreeSet<T> = borders.chain([T::LEAST]).collect();
        let row_len = ranges.len().div_ceil(64);
        let mut field = Self { starts: starts.into_iter().collect(), rows: Vec::new(), words: Vec::new(), row_len };
        let mut known: HashMap<Vec<u64>, u32> = HashMap::new();
        // Only at its borders does a rule begin or cease to match.
        let (mut begins, mut ends): (HashMap<T, Vec<usize>>, HashMap<T, Vec<usize>>) = Default::default();
        for (number, range) in ranges.iter().enumerate() {
            begins.entry(*range.start()).or_default().push(number);
            if let Some(after) = range.end().next() {
                ends.entry(after).or_default().push(number);
            }
        }
        let mut row = vec![0u64; row_len];
        for start in &field.starts {
            for number in ends.get(start).into_iter().flatten() {
                row[number / 64] &= !(1 << (number % 64));
            }
            for number in begins.get(start).into_iter().flatten() {
                row[number / 64] |= 1 << (number % 64);
            }
            let words = &mut field.words;
            let at = *known.entry(row.clone()).or_insert_with(|| {
                let at = words.len() as u32;
                words.extend(&row);
                at
            });
            field.rows.push(at);
        }
        field
    }

    #[inline]
    fn row(&self, value: T) -> &[u64] {
        // The first interval begins at the least value, so there is one before the partition point.
        let interval = self.starts.partition_point(|start| *start <= value) - 1;
        let at = self.rows[interval] as usize;
        &self.words[at..at + self.row_len]
    }
}

trait Bounded: Copy + Ord + std::hash::Hash {
    const LEAST: Self;

    /// The value after this one.
    fn next(self) -> Option<Self>;
}

macro_rules! bounded {
    ($($kind:ty),*) => {$(
        impl Bounded for $kind {
            const LEAST: Self = 0;

            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
        }
    )*};
}

bounded!(u8, u16, u128);
