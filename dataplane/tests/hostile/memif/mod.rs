//! What a bad memif peer can do.

mod control;
mod descriptors;
mod floods;
mod host;
mod memory;
mod peer;
mod rings;
mod servers;
mod setup;

use crate::testbed::Case;

pub const TABLES: &[&[Case]] =
    &[control::CASES, descriptors::CASES, memory::CASES, rings::CASES, floods::CASES, servers::CASES];
