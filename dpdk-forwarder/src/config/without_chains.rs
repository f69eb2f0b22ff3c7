//! A build without the feature `nsm`: which function comes next is decided by code of that.

use std::path::Path;

use ferrule_daemon::settings::{Diagnostics, Field};
use ferrule_dataplane::spec::WireSpec;

use super::Assignments;

/// There are none.
#[derive(Clone, Debug, PartialEq)]
pub enum NoChains {}

impl NoChains {
    /// Says that this build has none.
    pub(super) fn read<'a>(field: &Field<'a>, _: &Path, _: &Diagnostics) -> Option<(Self, Vec<Field<'a>>)> {
        field.wrong("this build composes no chains; build the forwarder with its feature `nsm`");
        None
    }

    /// The wires of all chains.
    pub fn wires(&self) -> std::slice::Iter<'_, WireSpec> {
        match *self {}
    }

    /// Who comes next to whom.
    pub fn assignments(&self) -> &Assignments {
        match *self {}
    }

    /// Leaves with each client what it had before.
    pub fn keep(&mut self, _: &Assignments) {
        match *self {}
    }

    /// Each chain in a line.
    pub fn lines(&self) -> std::vec::IntoIter<String> {
        match *self {}
    }

    /// What is no error, and probably not meant.
    pub fn warnings(&self) -> &[String] {
        match *self {}
    }
}
