//! `ferrule-cni`, as a container runtime runs it: variables and standard input in, standard output and an exit code out.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use ferrule_cni::plugin::{Answer, serve};

fn main() -> ExitCode {
    let mut input = Vec::new();
    if let Err(error) = io::stdin().take(INPUT_MAX).read_to_end(&mut input) {
        eprintln!("read the network's configuration: {error}");
        return ExitCode::FAILURE;
    }
    let Answer { document, is_done } = serve(|name| std::env::var(name).ok(), &input);
    let said = document.map_or(Ok(()), |document| writeln!(io::stdout(), "{document}"));
    match said {
        Ok(()) if is_done => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("answer the runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Far more than a configuration with what a chain of plugins made.
const INPUT_MAX: u64 = 16 << 20;
