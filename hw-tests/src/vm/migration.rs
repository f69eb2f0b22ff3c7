//! A guest that moves from one machine to another while it runs.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::machine::Machine;
use super::qmp::Qmp;

/// A guest on its way: its memory is being copied, again and again as far as it is written to, and it still runs where it
/// was.
pub struct Moving<'a> {
    machines: [&'a Machine; 2],
    source: Qmp,
    deadline: Instant,
}

/// How a guest moved.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// From the first page sent until it ran again.
    pub total: Duration,
    /// How long it ran nowhere, as QEMU sees it.
    pub downtime: Duration,
    /// How often the dirty pages were collected.
    pub rounds: u64,
}

impl<'a> Moving<'a> {
    /// Begins to move what runs in `from` into `to`, which was started to take it in and is like the other in every device.
    /// At most so many bytes of memory are sent in a second, so that the guest can run meanwhile. It does not arrive as long
    /// as something in it writes to more memory than is sent in a millisecond.
    pub fn begin(from: &'a Machine, to: &'a Machine, bytes_per_second: u64) -> Result<Self> {
        let deadline = Instant::now() + MOVING_MAX;
        // The last thing that the other one does before it waits.
        while !to.incoming().exists() {
            ensure!(Instant::now() < deadline, "no guest can move in: {}", to.console());
            thread::sleep(LOOK);
        }
        let mut source = Qmp::connect(&from.monitor())?;
        // With 0 QEMU does not look for pages that were written to after the first round.
        let limits = json!({ "max-bandwidth": bytes_per_second, "downtime-limit": 1 });
        source.ask("migrate-set-parameters", &limits)?;
        source.ask("migrate", &json!({ "uri": format!("unix:{}", to.incoming().display()) }))?;
        Ok(Self { machines: [from, to], source, deadline })
    }

    /// Waits until the dirty pages were collected so many times more.
    pub fn wait_for_rounds(&mut self, count: u64) -> Result<()> {
        let rounds = |state: &Value| state["ram"]["dirty-sync-count"].as_u64().unwrap_or_default();
        let first = rounds(&self.state()?);
        loop {
            let state = self.state()?;
            ensure!(state["status"] != "completed", "the guest has moved too early: {state}");
            if rounds(&state) >= first + count {
                return Ok(());
            }
        }
    }

    /// Lets it stop here as soon as little is left to be sent, and waits until it runs there.
    pub fn finish(mut self) -> Result<Moved> {
        self.source.ask("migrate-set-parameters", &json!({ "downtime-limit": DOWNTIME_MS }))?;
        let done = loop {
            let state = self.state()?;
            if state["status"] == "completed" {
                break state;
            }
        };
        let [from, to] = self.machines;
        to.take_in(from);
        let mut target = Qmp::connect(&to.monitor())?;
        while target.ask("query-status", &json!({}))?["status"] != "running" {
            ensure!(Instant::now() < self.deadline, "the guest has moved and does not run");
            thread::sleep(LOOK);
        }
        let number = |value: &Value| value.as_u64().with_context(|| format!("a number is missing in {done}"));
        let time = |value: &Value| number(value).map(Duration::from_millis);
        Ok(Moved {
            total: time(&done["total-time"])?,
            downtime: time(&done["downtime"])?,
            rounds: number(&done["ram"]["dirty-sync-count"])?,
        })
    }

    /// What QEMU says of it, a moment later.
    fn state(&mut self) -> Result<Value> {
        thread::sleep(LOOK);
        let state = self.source.ask("query-migrate", &json!({}))?;
        if matches!(state["status"].as_str(), Some("failed" | "cancelled")) {
            bail!("the guest does not move: {state}; {}", self.machines[1].console());
        }
        ensure!(Instant::now() < self.deadline, "the guest still moves: {state}");
        Ok(state)
    }
}

/// The guest is stopped once what is left can be sent in this time.
const DOWNTIME_MS: u64 = 300;
const MOVING_MAX: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(20);
