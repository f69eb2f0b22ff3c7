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
    /// It does not arrive before [`Moving::finish`] as long as something in it writes to more memory than is sent meanwhile:
    /// what is left gets less with each round otherwise, and a busy machine leaves a guest little time to write.
    pub fn begin(from: &'a Machine, to: &'a Machine) -> Result<Self> {
        let deadline = Instant::now() + MOVING_MAX;
        // The last thing that the other one does before it waits.
        while !to.incoming().exists() {
            ensure!(Instant::now() < deadline, "no guest can move in: {}", to.console());
            thread::sleep(LOOK);
        }
        let mut source = Qmp::connect(&from.monitor())?;
        // With 0 QEMU does not look for pages that were written to after the first round.
        let limits = json!({ "max-bandwidth": FIRST_ROUND, "downtime-limit": 1 });
        source.ask("migrate-set-parameters", &limits)?;
        source.ask("migrate", &json!({ "uri": format!("unix:{}", to.incoming().display()) }))?;
        let mut moving = Self { machines: [from, to], source, deadline };
        // The first one began with all pages.
        moving.wait_until_rounds(2)?;
        moving.source.ask("migrate-set-parameters", &json!({ "max-bandwidth": LATER_ROUNDS }))?;
        Ok(moving)
    }

    /// Waits until the dirty pages were collected so many times more.
    pub fn wait_for_rounds(&mut self, count: u64) -> Result<()> {
        let before = rounds(&self.state()?);
        self.wait_until_rounds(before + count)
    }

    fn wait_until_rounds(&mut self, count: u64) -> Result<()> {
        while rounds(&self.must_go_on()?) < count {}
        Ok(())
    }

    /// What QEMU says of it: that it has not arrived.
    pub fn must_go_on(&mut self) -> Result<Value> {
        let state = self.state()?;
        ensure!(state["status"] != "completed", "the guest has moved too early: {state}");
        Ok(state)
    }

    /// Lets it stop here as soon as little is left to be sent, and waits until it runs there.
    pub fn finish(mut self) -> Result<Moved> {
        let limits = json!({ "max-bandwidth": LAST_ROUND, "downtime-limit": DOWNTIME_MS });
        self.source.ask("migrate-set-parameters", &limits)?;
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

fn rounds(state: &Value) -> u64 {
    state["ram"]["dirty-sync-count"].as_u64().unwrap_or_default()
}

/// Bytes of memory that are sent in a second: of all of it first.
const FIRST_ROUND: u64 = 64 << 20;
/// Of what was written to meanwhile: far less than a guest on a busy machine writes.
const LATER_ROUNDS: u64 = 8 << 20;
/// When it shall arrive.
const LAST_ROUND: u64 = 1 << 30;
/// The guest is stopped once what is left can be sent in this time.
const DOWNTIME_MS: u64 = 300;
const MOVING_MAX: Duration = Duration::from_mins(3);
const LOOK: Duration = Duration::from_millis(20);
