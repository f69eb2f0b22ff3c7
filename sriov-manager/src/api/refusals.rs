//! Errors as statuses: a code, words for people, and details for programs.

use ferrule_daemon::grpc::status;
use sriov_manager_client::refuse;
use sriov_manager_client::v1::{self, RefusalKind as Kind};
use tonic::{Code, Status};

use super::convert::reason;
use crate::vfs::{Reason, VfError};

/// The status of an error.
pub(super) fn refusal(error: &VfError) -> Status {
    // Only for its cut to the length of a header.
    let message = status(Code::Unknown, &error.to_string());
    refuse(code(error), message.message(), details(error))
}

/// A request that cannot be read.
pub(super) fn wrong(problem: String) -> Status {
    refusal(&VfError::Wrong(problem))
}

/// Somebody asks for too much at once.
pub(super) fn too_many(problem: &str) -> Status {
    let details = v1::Refusal { kind: Kind::TooMany.into(), retryable: true, ..Default::default() };
    refuse(Code::ResourceExhausted, problem, details)
}

fn code(error: &VfError) -> Code {
    match error {
        VfError::NoSuchVf { .. }
        | VfError::NoSuchPf { .. }
        | VfError::NoSuchPool { .. }
        | VfError::NoSuchOwner { .. }
        | VfError::NoSuchLease { .. } => Code::NotFound,
        VfError::Wrong(_) | VfError::NotOfPool { .. } => Code::InvalidArgument,
        VfError::IdTaken { .. } | VfError::IdOfAnother { .. } | VfError::OwnerOfAnother { .. } => Code::AlreadyExists,
        VfError::NoneFree { .. } | VfError::NoPfHasAll { .. } => Code::ResourceExhausted,
        VfError::NotAllowed { .. } | VfError::OnlyRoot { .. } => Code::PermissionDenied,
        VfError::Busy { .. } => Code::Aborted,
        VfError::Cancelled { .. } => Code::Cancelled,
        VfError::Stopping { .. } => Code::Unavailable,
        VfError::Unavailable { .. }
        | VfError::Lent { .. }
        | VfError::Held { .. }
        | VfError::Step(_)
        | VfError::NotUndone { .. }
        | VfError::Ask { .. }
        | VfError::Lost { .. }
        | VfError::OtherCard { .. }
        | VfError::Ended { .. }
        | VfError::Untold { .. }
        | VfError::Dirty { .. }
        | VfError::UsedByHost { .. }
        | VfError::PoliciesFile { .. }
        | VfError::NoPolicies { .. }
        | VfError::PoolOfAnother { .. }
        | VfError::NotAsWanted { .. } => Code::FailedPrecondition,
        VfError::Journal(_) => Code::Internal,
    }
}

/// What programs are told of an error.
pub(super) fn details(error: &VfError) -> v1::Refusal {
    let mut told = v1::Refusal { kind: kind(error).into(), retryable: is_retryable(error), ..Default::default() };
    match error {
        VfError::NoSuchVf { vf } => told.vf.clone_from(vf),
        VfError::NoSuchPf { pf } => told.pf.clone_from(pf),
        VfError::NoSuchPool { pool, .. } => told.pool.clone_from(pool),
        VfError::NoneFree { pools, .. } => {
            told.pool = if let [pool] = &pools[..] { pool.clone() } else { String::new() }
        }
        VfError::NoSuchLease { lease } | VfError::IdOfAnother { id: lease, .. } | VfError::Ended { id: lease, .. } => {
            told.lease.clone_from(lease);
        }
        VfError::NoSuchOwner { owner } | VfError::OwnerOfAnother { owner, .. } => told.owner.clone_from(owner),
        VfError::IdTaken { id, vf, .. }
        | VfError::Lost { id, vf }
        | VfError::OtherCard { id, vf, .. }
        | VfError::Dirty { id, vf, .. } => {
            (told.lease, told.vf) = (id.clone(), vf.to_string());
        }
        VfError::PoolOfAnother { pool, owner } => (told.pool, told.owner) = (pool.clone(), owner.clone()),
        VfError::NotOfPool { vf, pool } => (told.vf, told.pool) = (vf.to_string(), pool.clone()),
        VfError::Untold { vf, pf, .. } => (told.vf, told.pf) = (vf.to_string(), pf.to_string()),
        VfError::UsedByHost { vf, host_use, .. } => {
            told.vf = vf.to_string();
            told.reasons.push(reason(&Reason::UsedByHost(host_use.clone())));
        }
        VfError::Unavailable { vf, reasons } => {
            told.vf = vf.to_string();
            told.reasons = reasons.iter().map(reason).collect();
        }
        VfError::Lent { pf, vf, id, .. } => {
            (told.pf, told.vf, told.lease) = (pf.clone(), vf.to_string(), id.clone());
        }
        VfError::Held { vf, holder, .. } => {
            told.vf = vf.to_string();
            told.reasons.push(reason(&Reason::Held(holder.clone())));
        }
        VfError::NotAsWanted { vf, .. } => told.vf = vf.to_string(),
        VfError::Step(step) => told.errno = step.errno.map_or(0, |errno| errno as i32),
        VfError::Ask { error, .. } => told.errno = error.errno().map_or(0, |errno| errno as i32),
        VfError::NotUndone { error, .. } => {
            let first = details(error);
            told = v1::Refusal { kind: told.kind, retryable: told.retryable, ..first };
        }
        VfError::Wrong(_)
        | VfError::NoPfHasAll { .. }
        | VfError::NotAllowed { .. }
        | VfError::OnlyRoot { .. }
        | VfError::Busy { .. }
        | VfError::Cancelled { .. }
        | VfError::Stopping { .. }
        | VfError::PoliciesFile { .. }
        | VfError::NoPolicies { .. }
        | VfError::Journal(_) => {}
    }
    told
}

fn kind(error: &VfError) -> Kind {
    match error {
        VfError::NoSuchVf { .. } => Kind::NoSuchVf,
        VfError::NoSuchPf { .. } => Kind::NoSuchPf,
        VfError::NoSuchPool { .. } => Kind::NoSuchPool,
        VfError::NoSuchLease { .. } => Kind::NoSuchLease,
        VfError::NoSuchOwner { .. } => Kind::NoSuchOwner,
        VfError::Wrong(_) => Kind::Wrong,
        VfError::IdTaken { .. } => Kind::IdTaken,
        VfError::IdOfAnother { .. } => Kind::IdOfAnother,
        VfError::OwnerOfAnother { .. } => Kind::OwnerOfAnother,
        VfError::NotOfPool { .. } => Kind::NotOfPool,
        VfError::Lost { .. } => Kind::Lost,
        VfError::OtherCard { .. } => Kind::OtherCard,
        VfError::Ended { .. } => Kind::Ended,
        VfError::Untold { .. } => Kind::Untold,
        VfError::Dirty { .. } => Kind::Dirty,
        VfError::UsedByHost { .. } => Kind::UsedByHost,
        VfError::Unavailable { .. } => Kind::Unavailable,
        VfError::NoneFree { .. } | VfError::NoPfHasAll { .. } => Kind::NoneFree,
        VfError::NotAllowed { .. } | VfError::OnlyRoot { .. } => Kind::NotAllowed,
        VfError::Lent { .. } => Kind::Lent,
        VfError::Held { .. } => Kind::Held,
        VfError::Busy { .. } => Kind::Busy,
        VfError::Cancelled { .. } => Kind::Cancelled,
        VfError::Stopping { .. } => Kind::Stopping,
        VfError::Step(_) => Kind::Refused,
        VfError::NotUndone { .. } => Kind::NotUndone,
        VfError::Ask { .. } => Kind::NotAsked,
        VfError::NotAsWanted { .. } => Kind::NotAsWanted,
        VfError::PoliciesFile { .. } => Kind::PoliciesFile,
        VfError::NoPolicies { .. } => Kind::NoPolicies,
        VfError::PoolOfAnother { .. } => Kind::PoolOfAnother,
        VfError::Journal(_) => Kind::Journal,
    }
}

/// Whether the same may succeed later without anybody having changed it, or the node: somebody lets go, a kernel comes back.
fn is_retryable(error: &VfError) -> bool {
    match error {
        VfError::Busy { .. }
        | VfError::Stopping { .. }
        | VfError::Held { .. }
        | VfError::Untold { .. }
        | VfError::NoneFree { .. }
        | VfError::NoPfHasAll { .. }
        | VfError::Lent { .. }
        | VfError::Ask { .. }
        | VfError::Journal(_)
        | VfError::NotUndone { .. }
        | VfError::IdTaken { is_ending: true, .. } => true,
        VfError::Step(step) => !step.is_final(),
        VfError::Unavailable { reasons, .. } => reasons.iter().all(|reason| {
            matches!(
                reason,
                Reason::Lent { .. }
                    | Reason::Held(_)
                    | Reason::Stuck { .. }
                    | Reason::Resizing { .. }
                    | Reason::GroupLent { .. }
                    | Reason::GroupHeld { .. }
                    | Reason::Unknown(_)
            )
        }),
        _ => false,
    }
}
