//! Why something was not done.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use thiserror::Error;

use super::Reason;
use crate::address::PciAddress;
use crate::attributes::Mac;
use crate::executor::StepError;
use crate::holders::{Holder, HostUse};
use crate::journal::JournalError;
use crate::lease::Until;
use crate::watchdog::CallError;

/// Why the node's VFs cannot be owned.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The tree cannot be read.
    #[error("look for PCI devices below {}: {source}; `--root` names the directory that holds `sys`", root.display())]
    Sysfs {
        /// The root.
        root: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another manager owns them.
    #[error("own the VFs below {}: another sriov-manager does, with another state directory; stop that one first", root.display())]
    Owned {
        /// The root.
        root: PathBuf,
    },
}

/// Why something was not done.
#[derive(Debug, Error)]
pub enum VfError {
    /// There is none.
    #[error("there is no VF {vf}; `ferrule vf list` shows those that are there")]
    NoSuchVf {
        /// Its address, or another name.
        vf: String,
    },
    /// There is none.
    #[error("there is no PF {pf}; name it by its address or its interface, as `ferrule vf list` shows them")]
    NoSuchPf {
        /// Its name or address.
        pf: String,
    },
    /// There is none.
    #[error("there is no pool {pool}; there are: {there}")]
    NoSuchPool {
        /// The name.
        pool: String,
        /// Those that are there.
        there: String,
    },
    /// There is none.
    #[error("there is no lease {lease}; `ferrule vf list` shows those that are there")]
    NoSuchLease {
        /// Its name, or the address of its VF.
        lease: String,
    },
    /// The request cannot be meant.
    #[error("{0}")]
    Wrong(String),
    /// The name of the lease is in use for another VF.
    #[error(
        "the lease {id} is there already, of {vf}{}, or choose another name",
        if *is_ending { ", which is being cleaned: ask again" } else { "; release it first" }
    )]
    IdTaken {
        /// The name.
        id: String,
        /// Its VF.
        vf: PciAddress,
        /// Its VF is being cleaned, and the name is free then.
        is_ending: bool,
    },
    /// The name of the lease is in use by somebody else.
    #[error("the lease {id} is the user {uid}'s; choose another name")]
    IdOfAnother {
        /// The name.
        id: String,
        /// Whose it is.
        uid: u32,
    },
    /// Somebody else has that name.
    #[error("the owner {owner} is the user {uid}'s; choose another name")]
    OwnerOfAnother {
        /// The name.
        owner: String,
        /// Whose it is.
        uid: u32,
    },
    /// There is none.
    #[error("nobody of the name {owner} owns VFs; `ferrule vf list` shows who does")]
    NoSuchOwner {
        /// The name.
        owner: String,
    },
    /// A VF is not of the pool that was named.
    #[error("{vf} is not in the pool {pool}; `ferrule vf list --json` shows which are")]
    NotOfPool {
        /// The VF.
        vf: PciAddress,
        /// The pool.
        pool: String,
    },
    /// No PF has enough VFs.
    #[error("no PF has all {count} VFs that are asked for{why}")]
    NoPfHasAll {
        /// How many.
        count: usize,
        /// What is wrong with the first one.
        why: String,
    },
    /// What a lease is for is gone already.
    #[error("lend a VF as {id}: what it is for is gone already: {}", told_until(until))]
    Ended {
        /// The lease.
        id: String,
        /// What it is for.
        until: Until,
    },
    /// Another card has come to the address of the one that is lent.
    #[error(
        "the lease {id} is of another card than the one that is now at the PF of {vf} ({now}, and it was {then}): put that card          back, or release the lease"
    )]
    OtherCard {
        /// The lease.
        id: String,
        /// Its VF.
        vf: PciAddress,
        /// The address that its PF was made with.
        then: Mac,
        /// That of the PF which is there.
        now: Mac,
    },
    /// The VF of a lease is not there.
    #[error(
        "the VF {vf} of the lease {id} is gone: make it again with `ferrule vf create`, and the lease comes back; or release it, \
         and ask again"
    )]
    Lost {
        /// The lease.
        id: String,
        /// Its VF.
        vf: PciAddress,
    },
    /// A PF did not tell what it says of a VF.
    #[error("what the PF {pf} says of {vf} is not known now, so nothing was done: {why}")]
    Untold {
        /// The VF.
        vf: PciAddress,
        /// Its PF.
        pf: PciAddress,
        /// Why not, and what to do.
        why: String,
        /// Nor of any other of its VFs.
        of_any: bool,
    },
    /// Something of a VF could not be brought back to what it was.
    #[error(
        "{vf} could not be brought back to what it was before the lease {id}, and is not lent: {left}; set that right, and it is \
         tried again, or take it as it is with `ferrule vf release {id} --accept`"
    )]
    Dirty {
        /// The lease.
        id: String,
        /// The VF.
        vf: PciAddress,
        /// What is left.
        left: String,
    },
    /// The host itself uses a VF.
    #[error("{tried}: {vf}: {host_use}; end that{}", if *can_force { ", or do it all the same (`--force`)" } else { "" })]
    UsedByHost {
        /// What was tried.
        tried: String,
        /// The VF.
        vf: PciAddress,
        /// What for.
        host_use: HostUse,
        /// Whether it is done all the same if somebody asks for that.
        can_force: bool,
    },
    /// The VF is not available.
    #[error("{vf} is not available: {}", reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Unavailable {
        /// The VF.
        vf: PciAddress,
        /// Why.
        reasons: Vec<Reason>,
    },
    /// No VF of a pool is available.
    #[error("no VF of {} is available: {why}; `ferrule vf explain` tells of each", told_pools(pools))]
    NoneFree {
        /// The pools.
        pools: Vec<String>,
        /// Of each how many VFs it has, and why the first is not available.
        why: String,
    },
    /// Somebody may not have it.
    #[error("the user {uid} may not {tried}; `who` of the pool in the policies says who may")]
    NotAllowed {
        /// Who asked.
        uid: u32,
        /// For what.
        tried: String,
    },
    /// Only root may.
    #[error("the user {uid} may not {tried}: only root may")]
    OnlyRoot {
        /// Who asked.
        uid: u32,
        /// For what.
        tried: String,
    },
    /// VFs of a PF are lent.
    #[error("the VFs of {pf} stay as they are: {vf} is lent as {id} to {tenant}; release it first")]
    Lent {
        /// The PF.
        pf: String,
        /// The VF.
        vf: PciAddress,
        /// The lease.
        id: String,
        /// To whom.
        tenant: String,
    },
    /// Somebody uses it.
    #[error("{tried}: {vf} is held: {holder}; end the holder, then ask again")]
    Held {
        /// What was tried.
        tried: String,
        /// The VF.
        vf: PciAddress,
        /// By whom.
        holder: Holder,
    },
    /// Somebody else works on it for too long.
    #[error("{what}: another operation works on it and has not ended; ask again")]
    Busy {
        /// The function, or the name of the lease.
        what: String,
    },
    /// Whoever asked has gone.
    #[error("{tried}: whoever asked has gone, so it was not done")]
    Cancelled {
        /// What was tried.
        tried: String,
    },
    /// The daemon stops.
    #[error("{tried}: sriov-manager is stopping; ask the next one")]
    Stopping {
        /// What was tried.
        tried: String,
    },
    /// A step failed, and everything is as it was before.
    #[error("{0}")]
    Step(StepError),
    /// A step failed, and so did the way back.
    #[error("{error}; and it could not be undone, {next}: {undo}")]
    NotUndone {
        /// What failed.
        error: Box<VfError>,
        /// What is done about it, or is to be.
        next: &'static str,
        /// What failed on the way back.
        undo: String,
    },
    /// The kernel could not be asked.
    #[error("{tried}: {error}")]
    Ask {
        /// What was tried.
        tried: String,
        /// Why not.
        error: CallError,
    },
    /// It was done, and is not what was wanted.
    #[error(
        "{vf} is not as it was set, there would still be to do: {left}; the driver of its PF ignores it, or something \
         else changes the VF (another manager, a CNI plugin, a script)"
    )]
    NotAsWanted {
        /// The VF.
        vf: PciAddress,
        /// The steps that would still be needed.
        left: String,
    },
    /// Policies come from a file.
    #[error("apply policies: the policies file {} is followed; change that, or start without `--config`", path.display())]
    PoliciesFile {
        /// Which.
        path: PathBuf,
    },
    /// Nobody knows who may have what.
    #[error("{}", Reason::NoPolicies { why: why.clone() })]
    NoPolicies {
        /// Why the policies cannot be used.
        why: String,
    },
    /// A pool is another owner's.
    #[error(
        "the pool {pool} is claimed by {owner}: claim another one, or end that claim (`ferrule vf unclaim {owner}`)"
    )]
    PoolOfAnother {
        /// The pool.
        pool: String,
        /// Whose it is.
        owner: String,
    },
    /// The journal cannot be written, so nothing was done.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl VfError {
    /// Whether somebody uses a VF, or came and went while that was looked at: the next look may tell something else.
    pub fn is_about_holders(&self) -> bool {
        match self {
            Self::Held { .. } => true,
            Self::Ask { error, .. } => error.errno() == Some(Errno::EAGAIN),
            _ => false,
        }
    }
}

fn told_pools(pools: &[String]) -> String {
    format!("the pool{} {}", if pools.len() == 1 { "" } else { "s" }, pools.join(", "))
}

fn told_until(until: &Until) -> String {
    match until {
        Until::Process { pid, .. } => format!("the process {pid}"),
        Until::Namespace { path, .. } => format!("the network namespace {}", path.display()),
        Until::Cgroup { path } => format!("the control group {}", path.display()),
    }
}
