//! A `ferrule-cni` that kills itself at a wanted step of its work, so that tests can kill it at every one.
//!
//! It is the plugin of the crate with an observer; the program that runtimes run has no such thing.

use std::cell::Cell;
use std::io::{self, Read};
use std::process::ExitCode;

use ferrule_cni::plugin::serve_observed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn main() -> ExitCode {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(at) = variable("DIE_AT").and_then(|at| at.parse::<usize>().ok()) else {
        eprintln!("DIE_AT: the number of a step is wanted, counted from 0");
        return ExitCode::FAILURE;
    };
    let mut input = Vec::new();
    if let Err(error) = io::stdin().read_to_end(&mut input) {
        eprintln!("read the network's configuration: {error}");
        return ExitCode::FAILURE;
    }
    let seen = Cell::new(0);
    let answer = serve_observed(variable, &input, &|_| {
        if seen.replace(seen.get() + 1) == at {
            let killed = kill(Pid::this(), Signal::SIGKILL);
            unreachable!("nobody outlives this: {killed:?}");
        }
    });
    eprintln!("it has no step {at}, and answers {answer:?}");
    ExitCode::SUCCESS
}
