//! `ferrule vf`: the VFs of the node: list, make, borrow, give back, and why one cannot be borrowed, or no pod gets it.
//!
//! It asks the running `sriov-manager`. With `--root`, list and explain read a tree themselves; nothing is changed then.
//! Modules: `borrow` (acquire, hand over, update), `explain` (what the manager and the device plugin know), `rule` (owners, cordons, policies), `direct` (a tree without a manager).

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use ferrule_daemon::counted;
use ferrule_daemon::grpc::is_silent;
use sriov_manager_client::cache::apply;
use sriov_manager_client::{Client, ConnectError, connect, v1};
use thiserror::Error;
use tonic::Status;

use crate::CliError;
use crate::text;
use crate::wires::table::TableStyle;

mod attributes;
mod borrow;
mod direct;
mod explain;
mod json;
mod rule;
mod table;

use borrow::{AcquireArgs, HandOverArgs, UpdateArgs};
pub(crate) use direct::manager_program;
use explain::ExplainArgs;
use rule::RuleCommand;

/// Options of `ferrule vf`.
#[derive(Debug, Args)]
pub struct VfArgs {
    /// The manager's socket
    #[arg(long, global = true, env = "FERRULE_VF_SOCKET", value_name = "PATH", default_value = SOCKET_DEFAULT, display_order = 900)]
    manager: PathBuf,
    /// Read this tree instead of asking the manager: for list and explain
    #[arg(long, value_name = "DIR", display_order = 901)]
    root: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true, display_order = 902)]
    json: bool,
    /// What to do.
    #[command(subcommand)]
    command: VfCommand,
}

/// What can be done with VFs.
#[derive(Debug, Subcommand)]
enum VfCommand {
    /// Show every PF and VF, and who has it
    List(ListArgs),
    /// Set the number of VFs of PFs, all at the same time
    Create {
        /// PFs by address or interface, each with a number: `ens1f0=7`
        #[arg(required = true, value_name = "PF=N", value_parser = count)]
        counts: Vec<(String, u32)>,
        /// Print the steps, and do none
        #[arg(long)]
        dry_run: bool,
        /// Even if the host itself uses a VF: its interface has an address, a bond or an XDP program
        #[arg(long)]
        force: bool,
    },
    /// Borrow a VF, or several at once
    Acquire(AcquireArgs),
    /// Give the VF of a lease to another one, clean and without a moment in which it is free
    HandOver(HandOverArgs),
    /// Say for whom a lease is, and what ends it, without touching its VF
    Update(UpdateArgs),
    /// Give a VF back
    Release {
        /// The lease, or the address of its VF
        lease: String,
        /// How long to wait for a process that has it open
        #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
        wait: Duration,
        /// Print the steps, and do none
        #[arg(long)]
        dry_run: bool,
        /// Free the VF as it is, even if not all of it can be restored
        #[arg(long)]
        accept: bool,
    },
    /// Say why a VF cannot be borrowed, why no pod gets it, and why a pod that asks for one is Pending
    Explain(ExplainArgs),
    #[command(flatten)]
    Rule(RuleCommand),
}

/// Options of `ferrule vf list`.
#[derive(Debug, Args)]
struct ListArgs {
    /// Only VFs of this pool, and their PFs; may be given several times
    #[arg(long = "pool", value_name = "NAME")]
    pools: Vec<String>,
    /// Say of each VF whether it can be borrowed for this driver: kernel, vfio-pci or none [default: that of its pool]
    #[arg(long, value_name = "DRIVER")]
    driver: Option<v1::Driver>,
    /// Ask drivers and cards as well, for --json: link speed, eswitch mode, other names, what PFs say of their VFs
    #[arg(long, conflicts_with = "watch")]
    details: bool,
    /// Show it again whenever something has changed, until you interrupt it; with --json one document a line
    #[arg(long)]
    watch: bool,
    /// Read this tree instead of asking the manager
    #[arg(long, value_name = "DIR", display_order = 901)]
    root: Option<PathBuf>,
}

impl ListArgs {
    fn request(&self) -> v1::ListRequest {
        v1::ListRequest {
            pools: self.pools.clone(),
            driver: self.driver.unwrap_or_default().into(),
            details: self.details,
        }
    }
}

/// Does what was asked for.
pub async fn run(args: VfArgs) -> Result<(), CliError> {
    let root = match &args.command {
        VfCommand::List(ListArgs { root, .. }) | VfCommand::Explain(ExplainArgs { root, .. }) => root.as_ref(),
        _ => None,
    };
    let root = root.or(args.root.as_ref());
    if let (None, VfCommand::List(which @ ListArgs { watch: true, .. })) = (root, &args.command) {
        return watch(&args.manager, which, args.json).await;
    }
    let out = match (root, &args.command) {
        (Some(root), VfCommand::List(_)) => list(&direct::list(root)?, args.json),
        (Some(root), VfCommand::Explain(ExplainArgs { what: Some(vf), driver, .. })) => {
            explained(vf, &direct::explain(root, vf, driver.unwrap_or(v1::Driver::Kernel))?.reasons, args.json)
        }
        (Some(_), _) => return Err(VfCliError::ReadOnly.into()),
        (None, _) => ask(&args).await?,
    };
    std::io::stdout().write_all(out.as_bytes())?;
    Ok(())
}

async fn ask(args: &VfArgs) -> Result<String, VfCliError> {
    let (json, socket) = (args.json, &args.manager);
    Ok(match &args.command {
        VfCommand::List(which) => list(&reach(socket).await?.list(which.request()).await?.into_inner(), json),
        VfCommand::Create { counts, dry_run, force } => {
            let counts = counts.iter().map(|(pf, count)| v1::Count { pf: pf.clone(), count: *count }).collect();
            let created = reach(socket)
                .await?
                .create(v1::CreateRequest { counts, dry_run: *dry_run, force: *force })
                .await?
                .into_inner()
                .created;
            let failed: Vec<_> = created.iter().filter(|created| !created.error.is_empty()).collect();
            if !failed.is_empty() {
                print!("{}", if json { json::created(&created) } else { told_created(&created, *dry_run) });
                let errors = failed.iter().map(|created| created.error.clone()).collect::<Vec<_>>();
                return Err(VfCliError::Refused(errors.join("\n")));
            }
            if json { json::created(&created) } else { told_created(&created, *dry_run) }
        }
        VfCommand::Acquire(acquire) => borrow::acquire(&mut reach(socket).await?, acquire, json).await?,
        VfCommand::HandOver(hand_over) => borrow::hand_over(&mut reach(socket).await?, hand_over, json).await?,
        VfCommand::Update(update) => borrow::update(&mut reach(socket).await?, update, json).await?,
        VfCommand::Rule(rule) => rule::run(&mut reach(socket).await?, rule, json).await?,
        VfCommand::Release { lease, wait, dry_run, accept } => {
            let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
            let request = v1::ReleaseRequest { lease: lease.clone(), wait_ms, dry_run: *dry_run, accept: *accept };
            let v1::ReleaseResponse { vf, steps } = reach(socket).await?.release(request).await?.into_inner();
            match (json, dry_run) {
                (true, _) => json::released(&vf, &steps),
                (false, true) => told_steps(&steps),
                (false, false) => format!("{vf}: given back\n"),
            }
        }
        VfCommand::Explain(which) => explain::run(args, which).await?,
    })
}

/// Shows the list whenever something in it has changed.
async fn watch(socket: &Path, which: &ListArgs, json: bool) -> Result<(), CliError> {
    let v1::ListRequest { pools, driver, .. } = which.request();
    let mut changes =
        reach(socket).await?.watch(v1::WatchRequest { pools, driver }).await.map_err(VfCliError::from)?.into_inner();
    let mut known = v1::ListResponse::default();
    while let Some(change) = changes.message().await.map_err(VfCliError::from)? {
        apply(&mut known, change);
        let shown = if json { json::line(&known) } else { list(&known, false) + "\n" };
        let mut out = std::io::stdout();
        out.write_all(shown.as_bytes())?;
        out.flush()?;
    }
    Err(VfCliError::Ended.into())
}

async fn reach(socket: &Path) -> Result<Client, VfCliError> {
    Ok(connect(socket).await?)
}

fn list(response: &v1::ListResponse, json: bool) -> String {
    if json { json::list(response) } else { table::render(response, TableStyle::of_stdout()) }
}

fn explained(vf: &str, reasons: &[v1::Reason], json: bool) -> String {
    if json {
        return json::explained(vf, reasons);
    }
    if reasons.is_empty() {
        return format!("{vf} can be borrowed\n");
    }
    reasons.iter().fold(format!("{vf} cannot be borrowed:\n"), |mut out, reason| {
        let _ = writeln!(out, "- {}", text::foreign(&reason.text));
        out
    })
}

fn told_created(created: &[v1::Created], dry_run: bool) -> String {
    let vfs = |count: u32| counted(count as usize, "VF");
    let mut out = String::new();
    for v1::Created { pf, from, to, steps, error, .. } in created {
        let _ = match (error.is_empty(), dry_run, from == to) {
            (false, ..) => writeln!(out, "{pf}: failed"),
            (true, _, true) => writeln!(out, "{pf}: {}, as before", vfs(*to)),
            (true, true, false) => write!(out, "{pf}: {}, to be {to}\n{}", vfs(*from), told_steps(steps)),
            (true, false, false) => writeln!(out, "{pf}: {}, {from} before", vfs(*to)),
        };
    }
    out
}

fn told_steps(steps: &[String]) -> String {
    if steps.is_empty() {
        return "  nothing has to be done\n".to_owned();
    }
    steps.iter().fold(String::new(), |mut out, step| {
        let _ = writeln!(out, "  {}", text::foreign(step));
        out
    })
}

fn count(text: &str) -> Result<(String, u32), String> {
    let (pf, number) = text.split_once('=').ok_or("a PF and a number are wanted, as in `ens1f0=7`")?;
    let number = number.parse().map_err(|_| format!("`{number}`; a number of VFs is wanted"))?;
    Ok((pf.to_owned(), number))
}

/// Why `ferrule vf` failed.
#[derive(Debug, Error)]
pub enum VfCliError {
    /// Nobody serves the socket.
    #[error("{}{}", .0, without_manager(.0))]
    NoManager(#[from] ConnectError),
    /// Somebody listens there and says nothing at all.
    #[error("the manager does not answer; is it stopped, or a debugger at work?")]
    NoAnswer,
    /// The connection ended.
    #[error("the manager went away while it was asked; its next start finishes or undoes it: see `ferrule vf list`")]
    Gone,
    /// It stopped while it was watched.
    #[error("the manager has stopped; its next start goes on with the leases: watch again then")]
    Ended,
    /// The manager's own words.
    #[error("{0}")]
    Refused(String),
    /// A tree is only read.
    #[error("with --root only list and explain work: start `sriov-manager --root` on the tree to change it")]
    ReadOnly,
    /// The program that reads trees does not.
    #[error(
        "start `sriov-manager`, which reads the tree: {source}; put it beside `ferrule`, or where a shell finds it"
    )]
    Program {
        /// Why not.
        source: std::io::Error,
    },
    /// The device plugin says nothing.
    #[error("{0}; name its socket with --plugin")]
    NoPlugin(#[from] device_plugin_client::ReadError),
    /// A file of policies cannot be read.
    #[error("read the policies {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// What else helps whoever reaches no manager.
fn without_manager(error: &ConnectError) -> &'static str {
    match (error.is_denied(), direct::has_program()) {
        (true, _) => ", or name another socket with --manager",
        (false, true) => ", name its socket with --manager, or read the tree itself with `--root /`",
        (false, false) => ", or name its socket with --manager",
    }
}

impl From<Status> for VfCliError {
    fn from(status: Status) -> Self {
        if is_silent(&status) {
            return Self::NoAnswer;
        }
        // Only a status that was made here, of a broken connection, has a source.
        if std::error::Error::source(&status).is_some() {
            return Self::Gone;
        }
        Self::Refused(match status.message() {
            "" => format!("the manager failed: {:?}", status.code()),
            message => message.to_owned(),
        })
    }
}

const SOCKET_DEFAULT: &str = sriov_manager_client::SOCKET_DEFAULT;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_names_its_pf() {
        assert_eq!(count("ens1f0=7"), Ok(("ens1f0".to_owned(), 7)));
        assert_eq!(count("0000:3b:00.0=0"), Ok(("0000:3b:00.0".to_owned(), 0)));
        assert!(count("7").is_err() && count("x=y").is_err());
    }

    #[test]
    fn reasons_are_told_one_a_line() {
        assert_eq!(explained("a", &[], false), "a can be borrowed\n");
        assert_eq!(
            explained("a", &[v1::Reason { text: "x\x1b".into(), ..Default::default() }], false),
            "a cannot be borrowed:\n- x\u{fffd}\n"
        );
    }
}
