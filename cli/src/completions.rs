//! `ferrule completions`: a script that completes the commands and options in a shell.

use std::io::Write as _;

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell;

use crate::{Cli, CliError};

/// Options of `ferrule completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: KnownShell,
}

/// The shells that the documentation says how to set up.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KnownShell {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> Result<(), CliError> {
    let shell = match args.shell {
        KnownShell::Bash => Shell::Bash,
        KnownShell::Zsh => Shell::Zsh,
        KnownShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ferrule", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(())
}
