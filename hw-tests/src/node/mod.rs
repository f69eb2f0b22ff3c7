//! A Kubernetes node made of the real programs, in namespaces of its own (`make node`). `docs/node.md` says how to use it.
//!
//! - [`stand`]: kinds of node; [`scenario`]: what a scenario is; [`scenarios`]: all of them: this is where to add one;
//! - [`machine`]: the node that they have: [`runtime`], [`control_plane`], [`kubelet`], [`hardware`], and the plugin;
//! - [`kubectl`], [`pod`]: how it is asked and what is run on it; [`static_pods`]: the same without an API server;
//! - [`product`]: the product as a user brings it onto a node;
//! - [`runner`]: starts nodes and runs scenarios on them; [`cgroups`]: what a node leaves behind;
//! - [`pieces`]: the programs.

pub mod cgroups;
pub mod control_plane;
pub mod hardware;
pub mod kubectl;
pub mod kubelet;
pub mod machine;
pub mod pieces;
pub mod pod;
pub mod product;
pub mod runner;
pub mod runtime;
pub mod scenario;
pub mod scenarios;
pub mod stand;
pub mod static_pods;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Asks again until there is an answer, for at most [`DEADLINE`]. The error says what was to be, and why it was not at the end.
pub fn until<T>(what: &str, ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_within(DEADLINE, what, ask)
}

/// The same with another deadline.
pub fn until_within<T>(time: Duration, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + time;
    loop {
        let answer = ask();
        if let Ok(Some(value)) = answer {
            return Ok(value);
        }
        if Instant::now() > deadline {
            return match answer {
                Err(error) => Err(error).with_context(|| format!("not within {time:?}: {what}")),
                Ok(_) => bail!("not within {time:?}: {what}"),
            };
        }
        thread::sleep(POLL);
    }
}

/// How long anything may take on a machine of two cores that builds something beside it: what works is done in seconds.
pub const DEADLINE: Duration = Duration::from_mins(3);
/// The same for what `kubectl` and `helm` wait for.
pub const TIMEOUT: &str = "--timeout=180s";

const POLL: Duration = Duration::from_millis(50);
