//! What is there of ports without DPDK: nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::AtomicBool;

use super::{PortInfo, PortSetup, PortsError};
use crate::generator::{RunError, RunResult};
use crate::load::Load;

/// What was missing when this was built.
pub(crate) const MISSING: Option<&str> = ferrule_ethdev::MISSING;
/// The version of libdpdk that this was built for.
pub(crate) const VERSION: Option<&str> = None;

/// Ports that are never there.
pub(crate) struct NoPorts(Infallible);

impl NoPorts {
    pub fn open(_setup: &PortSetup, _cancel: &AtomicBool) -> Result<Self, PortsError> {
        Err(PortsError::BuiltWithout(MISSING.unwrap_or_default()))
    }

    pub fn info(&self) -> &[PortInfo; 2] {
        match self.0 {}
    }

    pub fn counters(&self) -> [BTreeMap<String, u64>; 2] {
        match self.0 {}
    }

    pub fn missed(&self) -> u64 {
        match self.0 {}
    }

    pub fn run(
        &mut self,
        _load: &Load,
        _reverse: bool,
        _cpus: &[usize],
        _cancel: &AtomicBool,
    ) -> Result<RunResult, RunError> {
        match self.0 {}
    }
}
