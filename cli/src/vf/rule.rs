//! `ferrule vf claim`, `cordon`, `blockers`, `apply` and their opposites: who may lend what, and what there is to be.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;
use ferrule_daemon::counted;
use sriov_manager_client::{Client, v1};

use super::{VfCliError, json};
use crate::text;

/// What can be ruled.
#[derive(Debug, Subcommand)]
pub(super) enum RuleCommand {
    /// Reserve VFs for an owner: only requests in its name get them
    Claim {
        /// Name of the owner
        owner: String,
        /// All VFs of a pool, whenever they come; may be given several times
        #[arg(long = "pool", value_name = "NAME", required_unless_present = "vfs")]
        pools: Vec<String>,
        /// A VF; may be given several times
        #[arg(long = "vf", value_name = "ADDRESS")]
        vfs: Vec<String>,
    },
    /// End the claim of an owner: anybody may borrow its VFs
    Unclaim {
        /// Name of the owner
        owner: String,
    },
    /// Lend no VF of a PF to anybody new
    Cordon {
        /// The PF, by address or interface
        pf: String,
        /// Why, for others
        #[arg(long, value_name = "TEXT", default_value = "by hand", value_parser = NonEmptyStringValueParser::new())]
        why: String,
    },
    /// Lend the VFs of a PF again
    Uncordon {
        /// The PF, by address or interface
        pf: String,
    },
    /// Say everything that forbids another number of VFs of a PF
    Blockers {
        /// The PF, by address or interface
        pf: String,
    },
    /// Apply a policies file; it is kept over restarts of the manager
    Apply {
        /// The policies file
        file: PathBuf,
        /// Print what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// Does what was asked for.
pub(super) async fn run(client: &mut Client, command: &RuleCommand, json: bool) -> Result<String, VfCliError> {
    Ok(match command {
        RuleCommand::Claim { owner, pools, vfs } => {
            let request = v1::ClaimRequest { owner: owner.clone(), pools: pools.clone(), vfs: vfs.clone() };
            let claimed = client.claim(request).await?.into_inner();
            if json { json::claimed(&claimed) } else { told_claimed(owner, &claimed) }
        }
        RuleCommand::Unclaim { owner } => {
            client.unclaim(v1::UnclaimRequest { owner: owner.clone() }).await?;
            if json {
                json::done("unclaimed", owner)
            } else {
                format!("{} claims nothing any more\n", text::foreign(owner))
            }
        }
        RuleCommand::Cordon { pf, why } => {
            client.cordon(v1::CordonRequest { pf: pf.clone(), why: why.clone() }).await?;
            if json { json::done("cordoned", pf) } else { format!("{pf}: no VF is lent to anybody new\n") }
        }
        RuleCommand::Uncordon { pf } => {
            client.cordon(v1::CordonRequest { pf: pf.clone(), why: String::new() }).await?;
            if json { json::done("uncordoned", pf) } else { format!("{pf}: VFs are lent again\n") }
        }
        RuleCommand::Blockers { pf } => {
            let blockers = client.blockers(v1::BlockersRequest { pf: pf.clone() }).await?.into_inner().blockers;
            match (json, blockers.is_empty()) {
                (true, _) => json::blockers(&blockers),
                (false, true) => format!("{pf}: nothing forbids another number of VFs\n"),
                (false, false) => told_blockers(&blockers),
            }
        }
        RuleCommand::Apply { file, dry_run } => {
            let document = read(file)?;
            let request = v1::ApplyPoliciesRequest { document, dry_run: *dry_run };
            let applied = client.apply_policies(request).await?.into_inner();
            if json { json::applied(&applied) } else { told_applied(&applied, *dry_run) }
        }
    })
}

fn read(file: &Path) -> Result<String, VfCliError> {
    std::fs::read_to_string(file).map_err(|source| VfCliError::File { path: file.to_owned(), source })
}

fn told_claimed(owner: &str, claimed: &v1::ClaimResponse) -> String {
    let owner = text::foreign(owner);
    let mut out = format!("{owner} has claimed {}\n", counted(claimed.vfs.len(), "VF"));
    for vf in &claimed.lent_to_others {
        let lease = vf.lease.clone().unwrap_or_default();
        let _ = writeln!(out, "  {} is lent as {} until that is released", vf.address, text::foreign(&lease.id));
    }
    out
}

fn told_blockers(blockers: &[v1::Blocker]) -> String {
    let mut out = String::new();
    for v1::Blocker { vf, reason } in blockers {
        let why = reason.as_ref().map(|reason| text::foreign(&reason.text)).unwrap_or_default();
        let _ = writeln!(out, "{vf}: {why}");
    }
    out
}

fn told_applied(applied: &v1::ApplyPoliciesResponse, dry_run: bool) -> String {
    let vfs = |count: u32| counted(count as usize, "VF");
    let verb = if dry_run { "would be" } else { "hold as" };
    let mut out = format!("the policies {verb} generation {}\n", applied.generation);
    for v1::PolicyChange { pf, from, to, error, blockers } in &applied.changes {
        let _ = match (error.is_empty(), dry_run) {
            (true, true) => writeln!(out, "{pf}: {}, to be {to}", vfs(*from)),
            (true, false) => writeln!(out, "{pf}: {}, {from} before", vfs(*to)),
            (false, _) => writeln!(out, "{pf}: still {} and not {to}: {}", vfs(*from), text::foreign(error)),
        };
        for line in told_blockers(blockers).lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    for lease in &applied.forbidden {
        let _ =
            writeln!(out, "{}: the lease {} would not be allowed now, and stays", lease.vf, text::foreign(&lease.id));
    }
    for warning in &applied.warnings {
        let _ = writeln!(out, "{}", text::foreign(warning));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forbids_a_number_is_told_below_it_and_gives_no_orders_to_the_terminal() {
        let reason = v1::Reason { text: "it is lent as x\x1b[2J".into(), ..Default::default() };
        let blockers = vec![v1::Blocker { vf: "0000:02:10.0".into(), reason: Some(reason) }];
        let change = v1::PolicyChange { pf: "0000:02:00.0".into(), from: 2, to: 4, error: "lent".into(), blockers };
        let applied = v1::ApplyPoliciesResponse { generation: 3, changes: vec![change], ..Default::default() };
        let told = told_applied(&applied, false);
        assert_eq!(
            told,
            "the policies hold as generation 3\n0000:02:00.0: still 2 VFs and not 4: lent\n  0000:02:10.0: it is lent as \
             x\u{fffd}[2J\n"
        );
    }
}
