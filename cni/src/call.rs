//! One call of a runtime.

use crate::network::Network;
use crate::protocol::Environment;

/// One call of a runtime.
pub struct Call<'a> {
    /// Its variables.
    pub environment: &'a Environment,
    /// Its network.
    pub network: &'a Network,
    observer: &'a dyn Fn(&str),
}

impl<'a> Call<'a> {
    /// A call, and who is told of its steps.
    pub fn new(environment: &'a Environment, network: &'a Network, observer: &'a dyn Fn(&str)) -> Self {
        Self { environment, network, observer }
    }

    /// A part of it, as a call of its own: another network, another interface.
    #[must_use]
    pub fn of<'b>(&'b self, environment: &'b Environment, network: &'b Network) -> Call<'b> {
        Call { environment, network, observer: self.observer }
    }

    /// Something that can be seen from outside has been done. Tests end the program here.
    pub fn step(&self, done: &str) {
        (self.observer)(done);
    }
}
