//! `ferrule wire`: adds and removes wires of a running forwarder.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Subcommand, ValueEnum};

use dpdk_forwarder::admin::{Secrets, spec_to_proto};
use dpdk_forwarder::config::{ConfigErrors, parse_wire};

use crate::admin::proto::{Change, WireSpec};
use crate::admin::{Admin, AdminError, AdminSocket};
use crate::{Cli, CliError};

mod end_arg;
mod split_file;

pub use end_arg::{EndArg, LabelArg};
pub use split_file::DocumentError;
use split_file::{Item, WirePlace};

/// The commands below `ferrule wire`.
#[derive(Debug, Subcommand)]
pub enum WireCommand {
    /// Add wires, or change those of the same name
    Add(AddArgs),
    /// Remove wires that were added
    Remove(RemoveArgs),
}

/// Options of `ferrule wire add`: a file, or a name and two ends.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// YAML of one wire, a list of wires, or a whole wires file; `-` reads standard input
    #[arg(value_name = "FILE", conflicts_with_all = ["name", "end", "full", "trusted", "owner", "labels"])]
    file: Option<PathBuf>,
    /// Name of the wire
    #[arg(long, requires = "end")]
    name: Option<String>,
    /// An end; two are needed. As in `memif:socket=@x,id=0,role=server`, `vhost-user:socket=PATH,role=server`,
    /// `kernel:netns=PATH,name=nsm-1,address=10.0.0.1/30`, `vf:pool=fast`, `vf:address=0000:3b:02.1` or
    /// `ethdev:device=0000:3b:02.1`. A value with a comma needs a file
    #[arg(long, value_name = "KIND:KEY=VALUE,...", requires = "name")]
    end: Vec<EndArg>,
    /// What happens to frames when the other end is full
    #[arg(long, value_enum, requires = "name")]
    full: Option<Full>,
    /// The peer at the memif client end gets the memory of the one at the memif server end: no frame is copied
    #[arg(long, requires = "name")]
    trusted: bool,
    /// Who the wire belongs to
    #[arg(long, requires = "name")]
    owner: Option<String>,
    /// A label, for programs that list wires; can be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", requires = "name")]
    labels: Vec<LabelArg>,
    /// Whether the forwarder makes the wires again when it is restarted; without this option, it does if it has a journal
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    persist: Option<bool>,
    #[command(flatten)]
    socket: AdminSocket,
}

/// What happens to frames when the other end is full.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Full {
    /// They wait in the ring that they came from
    Hold,
    /// They are dropped and counted
    Drop,
}

/// Options of `ferrule wire remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The wires
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    socket: AdminSocket,
}

/// Adds or removes.
pub async fn run(command: WireCommand) -> Result<(), CliError> {
    match command {
        WireCommand::Add(args) => add(args).await,
        WireCommand::Remove(args) => remove(args).await,
    }
}

async fn add(args: AddArgs) -> Result<(), CliError> {
    let persist = args.persist;
    let items = match &args.file {
        Some(file) => split_file::split(&read(file)?)?,
        None if args.name.is_none() => return Err(wrong_usage("a FILE is wanted, or --name and two --end")),
        None if args.end.len() != 2 => {
            let given = args.end.len();
            return Err(wrong_usage(&format!("a wire has two ends: --end is needed twice, and {given} came")));
        }
        None => vec![end_arg::item(&args)],
    };
    let mut admin = Admin::connect(&args.socket.path).await?;
    let mut report = Outcomes::new(items.len());
    let mut lines = HashMap::new();
    for Item { label, yaml, place } in items {
        let again = place.as_ref().and_then(|place| Some((place, lines.insert(label.clone(), place.line)?)));
        let read = match again {
            Some((WirePlace { line, column, field }, first)) => Err(format!(
                "{}:{line}:{column}: {field}: the wire `{label}` is on line {first} already; rename one of them",
                file_name(&args)
            )),
            None => wire_of(&yaml, &file_name(&args), place.as_ref()),
        };
        let change = match read {
            Ok(wire) => admin.put(wire, persist).await,
            Err(message) => Err(AdminError::WrongText { message }),
        };
        let done = match change {
            Ok(Change::Updated) => "changed",
            Ok(Change::Unchanged) => "unchanged",
            Ok(Change::Made | Change::Unspecified) | Err(_) => "added",
        };
        report.note(done, &label, change.map(drop))?;
    }
    report.finish()
}

async fn remove(RemoveArgs { names, socket }: RemoveArgs) -> Result<(), CliError> {
    let mut admin = Admin::connect(&socket.path).await?;
    let mut report = Outcomes::new(names.len());
    for name in names {
        match admin.remove(name.clone()).await {
            Ok(true) => report.note("removed", &format!("{name} from the journal only"), Ok(()))?,
            removed => report.note("removed", &name, removed.map(drop))?,
        }
    }
    report.finish()
}

/// One entry of a wires file as the forwarder is asked for it. What is wrong with it is told with its place in the file; the short form
/// has none.
fn wire_of(yaml: &str, file: &str, place: Option<&WirePlace>) -> Result<WireSpec, String> {
    let told = |ConfigErrors { mut errors, .. }| {
        let Some(place) = place else {
            let told = errors.iter().map(|error| {
                // The short form has no other way to write such a value.
                let hint =
                    if error.problem.starts_with("unknown key") { "; a value with a comma needs a file" } else { "" };
                let field = if error.field.is_empty() { String::new() } else { format!("{}: ", error.field) };
                format!("{field}{}{hint}", error.problem)
            });
            return told.collect::<Vec<_>>().join("\n");
        };
        for error in &mut errors {
            let between = if place.field.is_empty() || error.field.is_empty() { "" } else { "." };
            error.field = format!("{}{between}{}", place.field, error.field);
        }
        ConfigErrors { file: file.to_owned(), errors }.to_string()
    };
    let spec = parse_wire(yaml).map_err(told)?;
    Ok(spec_to_proto(&spec, Secrets::Shown))
}

/// What errors call the text.
fn file_name(args: &AddArgs) -> String {
    match args.file.as_deref() {
        Some(file) if file == Path::new("-") => "standard input".to_owned(),
        Some(file) => file.display().to_string(),
        None => String::new(),
    }
}

fn wrong_usage(message: &str) -> CliError {
    let mut cli = Cli::command();
    cli.build();
    let add = cli.find_subcommand_mut("wire").and_then(|wire| wire.find_subcommand_mut("add"));
    let add = add.expect("it is a command of ours");
    CliError::Usage(add.error(ErrorKind::WrongNumberOfValues, message))
}

fn read(file: &Path) -> Result<String, DocumentError> {
    let unreadable = |source| DocumentError::Unreadable { file: file.to_owned(), source };
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(unreadable)?;
        Ok(text)
    } else {
        std::fs::read_to_string(file).map_err(unreadable)
    }
}

/// What became of several requests: one that fails does not keep the others from being made.
struct Outcomes {
    asked: usize,
    failed: usize,
}

impl Outcomes {
    fn new(asked: usize) -> Self {
        Self { asked, failed: 0 }
    }

    /// Says what was done. An error is passed on if it is the only thing to tell, or if nothing more can be asked.
    fn note(&mut self, done: &str, wire: &str, result: Result<(), AdminError>) -> Result<(), CliError> {
        match result {
            Ok(()) => writeln!(std::io::stdout(), "{done} {wire}")?,
            // It names file, line and wire.
            Err(AdminError::WrongText { message }) if self.asked > 1 => {
                self.failed += 1;
                eprintln!("{message}");
            }
            Err(AdminError::Refused { message }) if self.asked > 1 => {
                self.failed += 1;
                eprintln!("{wire}: {message}");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn finish(self) -> Result<(), CliError> {
        let Self { asked, failed } = self;
        if failed > 0 { Err(CliError::Some { failed, asked }) } else { Ok(()) }
    }
}
