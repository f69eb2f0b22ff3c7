//! Whether a device may be given to a new pod, and whether one that a pod has is lost.
//!
//! The two are not the same. A held device that is told to be unhealthy is counted twice by the scheduler and costs its pod the next
//! restart of the kubelet; so only what is beyond repair makes it so. What is free may be unhealthy at no cost.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use sriov_manager_client::v1;

use crate::config::ResourceConfig;
use crate::host::FunctionCondition;
use crate::lease_name::{LeaseName, OWNER};
use crate::pools::Member;

/// Why a device is not to be given away, or is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is not there.
    Gone,
    /// The link of its PF to the machine had a fatal error.
    FatalError,
    /// It had one itself.
    OwnFatalError,
    /// It is on no driver, and its resource takes devices as they are.
    DriverLost,
    /// A pod has it by another resource.
    OtherResource(String),
    /// Somebody has borrowed it who is no pod.
    Lent(String),
    /// Somebody else alone may lend it.
    Owned(String),
    /// It was given back, and cannot be cleaned.
    Dirty(String),
    /// `sriov-manager` would not lend it.
    Blocked(String),
    /// It was refused to a pod not long ago.
    Refused(String),
    /// Its PF has no link.
    NoLink,
}

impl Problem {
    /// One word for a label.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::FatalError => "fatal-error",
            Self::OwnFatalError => "own-fatal-error",
            Self::DriverLost => "driver-lost",
            Self::OtherResource(_) => "other-resource",
            Self::Lent(_) => "lent",
            Self::Owned(_) => "owned",
            Self::Dirty(_) => "dirty",
            Self::Blocked(_) => "blocked",
            Self::Refused(_) => "refused",
            Self::NoLink => "no-link",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("it is not there any more"),
            Self::FatalError => f.write_str("the PCI Express link of its PF had a fatal error"),
            Self::OwnFatalError => f.write_str("it had a fatal PCI Express error itself"),
            Self::DriverLost => f.write_str("it is on no driver any more: bind it, or give its resource a `driver`"),
            Self::OtherResource(name) => write!(f, "a pod has it by the resource {name}"),
            Self::Lent(lease) => write!(f, "it is lent as {lease}"),
            Self::Owned(owner) => write!(f, "{owner} alone may lend it"),
            Self::Dirty(fault) => write!(f, "it was given back and cannot be cleaned: {fault}"),
            Self::Blocked(reason) => f.write_str(reason),
            Self::Refused(why) => write!(f, "it was refused to a pod: {why}"),
            Self::NoLink => f.write_str("its PF has no link"),
        }
    }
}

/// What is wrong with a member of a resource; none: it is healthy.
pub fn judge(resource: &ResourceConfig, member: &Member, is_held: bool, pfs: &FunctionHealth) -> Option<Problem> {
    if member.is_gone {
        return Some(Problem::Gone);
    }
    let (pf, own) = (pfs.of(member.device.card()), pfs.of(&member.device.pci));
    let of_errors = || {
        let of_pf = pf.had_fatal_error.then_some(Problem::FatalError);
        of_pf.or(own.had_fatal_error.then_some(Problem::OwnFatalError))
    };
    if is_held {
        // We have given it back, so its pod has gone; what is left of it must not come to the next.
        let lease = member.device.vf().and_then(|vf| vf.lease.as_ref());
        if let Some(lease) = lease.filter(|lease| is_ending(lease) && !lease.fault.is_empty()) {
            return Some(Problem::Dirty(lease.fault.clone()));
        }
        return of_errors();
    }
    if resource.driver.is_none() && is_bare(member) {
        return Some(Problem::DriverLost);
    }
    let of_vf = member.device.vf().and_then(|vf| {
        if let Some(lease) = &vf.lease {
            return of_lease(lease, &resource.name.to_string());
        }
        if !vf.owner.is_empty() && vf.owner != OWNER {
            return Some(Problem::Owned(vf.owner.clone()));
        }
        if !vf.pf_problem.is_empty() {
            return Some(Problem::Blocked(vf.pf_problem.clone()));
        }
        let reasons = match resource.driver.or(member.device.present_driver()) {
            Some(v1::Driver::VfioPci) => &vf.reasons_vfio,
            _ => &vf.reasons_kernel,
        };
        // Something is being done to it for a moment: what, is known when it is done.
        reasons.first().filter(|_| !vf.is_busy).map(|reason| Problem::Blocked(reason.text.clone()))
    });
    let of_software = member.device.software().and_then(|end| end.blocked.clone()).map(Problem::Blocked);
    let of_link = (resource.needs_link && pf.is_without_link).then_some(Problem::NoLink);
    of_vf.or(of_software).or_else(of_errors).or(of_link)
}

/// Whether it is on no driver, and nobody is about to bind it: `sriov-manager` binds what it lends and what it gets back.
fn is_bare(member: &Member) -> bool {
    let is_in_work = member.device.vf().is_some_and(|vf| vf.is_busy || vf.lease.is_some());
    member.device.driver.is_none() && member.device.software().is_none() && !is_in_work
}

/// Of a VF that is lent and that no pod has by this resource.
fn of_lease(lease: &v1::Lease, resource: &str) -> Option<Problem> {
    match LeaseName::parse(lease) {
        _ if is_ending(lease) && !lease.fault.is_empty() => Some(Problem::Dirty(lease.fault.clone())),
        Some(name) if name.resource != resource => Some(Problem::OtherResource(name.resource)),
        // On its way back to us, or a pod has just got it.
        Some(_) => None,
        None => Some(Problem::Lent(lease.id.clone())),
    }
}

fn is_ending(lease: &v1::Lease) -> bool {
    matches!(lease.stage(), v1::Stage::Releasing | v1::Stage::Dirty)
}

/// How PFs and VFs are, as it is told: what changes for a moment only is not.
#[derive(Debug, Default)]
pub struct FunctionHealth {
    functions: BTreeMap<String, FunctionRecord>,
}

/// How a function is, as it is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionState {
    /// Its link has been away for a while.
    pub is_without_link: bool,
    /// A fatal error happened not long ago.
    pub had_fatal_error: bool,
}

#[derive(Debug)]
struct FunctionRecord {
    last: FunctionCondition,
    /// Since when the link is as it is.
    link_since: Instant,
    is_without_link: bool,
    fatal_until: Option<Instant>,
}

impl FunctionHealth {
    /// What is told of a function.
    pub fn of(&self, pf: &str) -> FunctionState {
        self.functions.get(pf).map_or_else(FunctionState::default, |record| FunctionState {
            is_without_link: record.is_without_link,
            had_fatal_error: record.fatal_until.is_some(),
        })
    }

    /// Only these are there now.
    pub fn keep_only(&mut self, is_there: impl Fn(&str) -> bool) {
        self.functions.retain(|address, _| is_there(address));
    }

    /// Takes over how a function was found. Returns whether something else is told of it.
    pub fn note(&mut self, pf: &str, found: FunctionCondition, now: Instant) -> bool {
        let is_without_link = found.has_link == Some(false);
        let record = self.functions.entry(pf.to_owned()).or_insert_with(|| FunctionRecord {
            last: found,
            link_since: now,
            is_without_link,
            fatal_until: None,
        });
        let before = (record.is_without_link, record.fatal_until.is_some());
        if found.has_link != record.last.has_link {
            record.link_since = now;
        }
        let wait = if is_without_link { LINK_DOWN_AFTER } else { LINK_UP_AFTER };
        if now.duration_since(record.link_since) >= wait {
            record.is_without_link = is_without_link;
        }
        if found.fatal_errors > record.last.fatal_errors {
            record.fatal_until = Some(now + FATAL_FOR);
        }
        record.fatal_until = record.fatal_until.filter(|until| *until > now);
        record.last = found;
        before != (record.is_without_link, record.fatal_until.is_some())
    }
}

/// A link that is away for less than this is a flap.
const LINK_DOWN_AFTER: Duration = Duration::from_secs(3);
/// And one that is back has to stay for this long.
const LINK_UP_AFTER: Duration = Duration::from_secs(5);
/// How long after a fatal error nothing of the PF is given away.
const FATAL_FOR: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::inventory::{Device, Source, VfState};

    fn link(up: bool) -> FunctionCondition {
        FunctionCondition { has_link: Some(up), fatal_errors: 0 }
    }

    #[test]
    fn a_vf_that_is_being_bound_has_not_lost_its_driver() {
        let resource = ResourceConfig::of_name("intel.com/as_it_is").unwrap();
        let told = |state: VfState| {
            let device = Device { source: Source::Vf(Box::new(state)), ..Device::default() };
            let member = Member { device: Arc::new(device), selector: 0, is_gone: false };
            judge(&resource, &member, false, &FunctionHealth::default())
        };
        assert_eq!(told(VfState::default()), Some(Problem::DriverLost));
        assert_eq!(told(VfState { is_busy: true, ..VfState::default() }), None, "it is cleaned");
        let id = LeaseName::new("intel.com/as_it_is", "").to_string();
        let lease = v1::Lease { id, owner: OWNER.into(), stage: v1::Stage::Releasing.into(), ..v1::Lease::default() };
        assert_eq!(told(VfState { lease: Some(lease), ..VfState::default() }), None, "it is on its way back");
    }

    #[test]
    fn a_flap_is_not_told_and_a_link_that_is_away_is() {
        let mut pfs = FunctionHealth::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!pfs.note("a", link(true), at(0)));
        assert!(!pfs.note("a", link(false), at(1)));
        assert!(!pfs.note("a", link(true), at(2)), "a flap");
        assert!(!pfs.note("a", link(false), at(3)));
        assert!(!pfs.note("a", link(false), at(5)));
        assert!(pfs.note("a", link(false), at(6)) && pfs.of("a").is_without_link);
        assert!(!pfs.note("a", link(true), at(7)) && pfs.of("a").is_without_link, "not for a moment");
        assert!(pfs.note("a", link(true), at(12)) && !pfs.of("a").is_without_link);
        assert!(!pfs.note("b", link(false), at(0)) && pfs.of("b").is_without_link, "at first it is as it is");
    }

    #[test]
    fn a_fatal_error_is_told_for_a_while_and_old_ones_are_not() {
        let mut pfs = FunctionHealth::default();
        let start = Instant::now();
        let errors = |fatal_errors| FunctionCondition { has_link: None, fatal_errors };
        pfs.note("a", errors(3), start);
        assert_eq!(pfs.of("a"), FunctionState::default(), "they happened before");
        assert!(pfs.note("a", errors(4), start) && pfs.of("a").had_fatal_error);
        assert!(!pfs.note("a", errors(4), start + FATAL_FOR / 2));
        assert!(pfs.note("a", errors(4), start + FATAL_FOR) && !pfs.of("a").had_fatal_error);
    }
}
