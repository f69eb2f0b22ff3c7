//! What goes through a wire on one core, beside a peer's program doing the same work: what `ferrule bench` runs.
//!
//! In reading order:
//!
//! - [`traffic`]: stamped frames, and the count of what became of them; [`load`]: what to send, and how;
//! - [`generator`]: sends through a wire and checks what arrives; [`latency`]: how long frames were under way;
//! - `args`: what a person can ask for; `plan`: that, checked and spelled out; `case`: kinds of ends and of work;
//! - `method`: what is tried and concluded, without any traffic;
//! - `dut`: the programs under test, and how they are started; `ports`: what the generator uses where ends are ports of DPDK;
//!   `folder`: where sockets are;
//! - `session`: gives each its turn; `progress`: says so;
//! - `report`: the table, the JSON, the HTML; [`spread`]: medians; `machine`: where it was; `error`: why not;
//! - `doctor`: whether a machine is fit for it.

#![cfg_attr(not(has_dpdk), allow(dead_code, reason = "only ports use some of it, and there are none without DPDK"))]

mod args;
mod case;
mod doctor;
mod dut;
mod error;
mod folder;
pub mod generator;
pub mod latency;
pub mod load;
mod machine;
mod method;
mod plan;
mod ports;
mod progress;
mod quantity;
mod report;
mod session;
pub mod spread;
pub mod traffic;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::args::BenchCommand;
use crate::plan::Plan;

pub use args::BenchArgs;
pub use error::BenchError;
pub use quantity::quantity;
pub use traffic::{Pattern, Sink};

/// Measures and reports. Signals that end a program end it here too, and nothing stays behind.
pub async fn run(args: &BenchArgs) -> Result<(), BenchError> {
    if let Some(BenchCommand::Doctor(args)) = &args.command {
        return doctor::run(args);
    }
    let plan = Plan::new(args)?;
    let cancel = Arc::new(AtomicBool::new(false));
    let (done, mut outcome) = oneshot::channel();
    let flag = Arc::clone(&cancel);
    // A thread of its own: the programs it starts end with it.
    let work = move || {
        let results = session::run(&plan, &flag).and_then(|results| report::publish(&plan, &results));
        // Nobody waits any more only if this process ends anyway.
        let _ = done.send(results);
    };
    let worker = thread::Builder::new().name("bench".to_owned()).spawn(work)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let result = loop {
        tokio::select! {
            result = &mut outcome => break result,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        cancel.store(true, Relaxed);
    };
    if let Err(panic) = worker.join() {
        std::panic::resume_unwind(panic);
    }
    // Without a panic the outcome was sent.
    result.unwrap_or(Err(BenchError::Interrupted))
}
