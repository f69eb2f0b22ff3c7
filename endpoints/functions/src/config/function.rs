//! What is between the ends of a hop.

use crate::firewall::rule::Policy;
use crate::nat44::settings::NatSettings;

/// Which function, and what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FunctionSettings {
    /// Everything passes.
    Passthrough,
    /// Rules decide.
    Firewall {
        /// Which.
        policy: Policy,
        /// Sessions at a time.
        sessions_max: usize,
    },
    /// Clients get addresses of a pool.
    Nat44(NatSettings),
    /// The chain ends here, with an interface of the kernel.
    Gateway,
}
