//! Whichever function the settings name: the one file that joins them.

use std::sync::Arc;

use ferrule_dataplane::capture::Remark;

use crate::burst::Burst;
use crate::config::FunctionSettings;
use crate::firewall::Firewall;
use crate::firewall::counters::Counters;
use crate::function::{Disposition, Extra, Function, Side};
use crate::nat44::Nat44;
use crate::nat44::counters::NatCounters;
use crate::nptv6::Nptv6;
use crate::nptv6::counters::NptCounters;
use crate::packet::Link;
use crate::passthrough::Passthrough;

/// One of them.
#[derive(Debug)]
pub enum AnyFunction {
    /// Everything passes.
    Passthrough(Passthrough),
    /// Rules decide.
    Firewall(Box<Firewall>),
    /// Clients get addresses of a pool.
    Nat44(Box<Nat44>),
    /// Clients get another prefix.
    Nptv6(Box<Nptv6>),
}

/// What it counts, to be read by others.
#[derive(Clone, Debug)]
pub enum AnyCounters {
    /// Nothing beside what the hop counts.
    Passthrough,
    /// By rule and reason.
    Firewall(Arc<Counters>),
    /// By reason.
    Nat44(Arc<NatCounters>),
    /// By reason.
    Nptv6(Arc<NptCounters>),
}

impl AnyFunction {
    /// As the settings say.
    pub fn new(link: Link, settings: &FunctionSettings) -> Self {
        match settings {
            FunctionSettings::Passthrough | FunctionSettings::Gateway => Self::Passthrough(Passthrough),
            FunctionSettings::Firewall { policy, sessions_max } => {
                Self::Firewall(Box::new(Firewall::new(link, policy.clone(), *sessions_max)))
            }
            FunctionSettings::Nat44(settings) => Self::Nat44(Box::new(Nat44::new(settings.clone()))),
            FunctionSettings::Nptv6(settings) => Self::Nptv6(Box::new(Nptv6::new(settings.clone()))),
        }
    }

    /// Takes other settings, and keeps what it knows. `false`: only a new one can be that.
    pub fn adopt(&mut self, settings: &FunctionSettings) -> bool {
        match (self, settings) {
            (Self::Passthrough(_), FunctionSettings::Passthrough | FunctionSettings::Gateway) => true,
            (Self::Firewall(firewall), FunctionSettings::Firewall { policy, .. }) => {
                firewall.set_policy(policy.clone());
                true
            }
            (Self::Nat44(nat), FunctionSettings::Nat44(settings)) => {
                nat.set_settings(settings.clone());
                true
            }
            (Self::Nptv6(npt), FunctionSettings::Nptv6(settings)) => {
                npt.set_settings(settings.clone());
                true
            }
            _ => false,
        }
    }

    /// What it counts with the settings that it has now.
    pub fn counters(&self) -> AnyCounters {
        match self {
            Self::Passthrough(_) => AnyCounters::Passthrough,
            Self::Firewall(firewall) => AnyCounters::Firewall(Arc::clone(firewall.counters())),
            Self::Nat44(nat) => AnyCounters::Nat44(Arc::clone(nat.counters())),
            Self::Nptv6(npt) => AnyCounters::Nptv6(Arc::clone(npt.counters())),
        }
    }
}

impl Function for AnyFunction {
    #[inline]
    fn frame(&mut self, side: Side, frame: &mut [u8], now_ms: u64, out: &mut Vec<Extra>) -> Disposition {
        match self {
            Self::Passthrough(function) => function.frame(side, frame, now_ms, out),
            Self::Firewall(function) => function.frame(side, frame, now_ms, out),
            Self::Nat44(function) => function.frame(side, frame, now_ms, out),
            Self::Nptv6(function) => function.frame(side, frame, now_ms, out),
        }
    }

    #[inline]
    fn burst(&mut self, side: Side, burst: &mut Burst, now_ms: u64, out: &mut Vec<Extra>) {
        match self {
            Self::Passthrough(function) => function.burst(side, burst, now_ms, out),
            Self::Firewall(function) => function.burst(side, burst, now_ms, out),
            Self::Nat44(function) => function.burst(side, burst, now_ms, out),
            Self::Nptv6(function) => function.burst(side, burst, now_ms, out),
        }
    }

    fn remark(&self) -> Remark<'_> {
        match self {
            Self::Passthrough(function) => function.remark(),
            Self::Firewall(function) => function.remark(),
            Self::Nat44(function) => function.remark(),
            Self::Nptv6(function) => function.remark(),
        }
    }

    fn tick(&mut self, now_ms: u64) {
        match self {
            Self::Passthrough(function) => function.tick(now_ms),
            Self::Firewall(function) => function.tick(now_ms),
            Self::Nat44(function) => function.tick(now_ms),
            Self::Nptv6(function) => function.tick(now_ms),
        }
    }
}
