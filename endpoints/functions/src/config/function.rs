//! What is between the ends of a hop.

use crate::firewall::rule::Policy;
use crate::nat44::settings::NatSettings;
use crate::nptv6::settings::NptSettings;

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
    /// Clients get another prefix.
    Nptv6(NptSettings),
    /// The chain ends here, with an interface of the kernel.
    Gateway,
}

impl FunctionSettings {
    /// What it is called, if it is a router: then it needs Ethernet.
    pub fn router(&self) -> Option<&'static str> {
        match self {
            Self::Nat44(_) => Some("nat44"),
            Self::Nptv6(_) => Some("nptv6"),
            Self::Passthrough | Self::Firewall { .. } | Self::Gateway => None,
        }
    }
}
