//! `ferrule`: see the library of the same name.

use std::process::ExitCode;

use clap::Parser as _;
use ferrule::{Cli, CliError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Usage errors leave from here, or from below, with exit code 2.
    let cli = Cli::parse_from(ferrule::arguments(std::env::args_os()));
    match cli.run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(CliError::Usage(error)) => error.exit(),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
