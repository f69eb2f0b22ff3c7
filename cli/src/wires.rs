//! `ferrule wires`: every wire as it stands, for people or for programs.

use std::io::Write as _;

use clap::Args;

use crate::CliError;
use crate::admin::proto::{Traffic, Wire};
use crate::admin::{Admin, AdminSocket};

mod json;
pub(crate) mod table;

/// Options of `ferrule wires`.
#[derive(Debug, Args)]
pub struct WiresArgs {
    /// Print JSON: `{"wires": [...]}`
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: AdminSocket,
}

/// Prints the wires.
pub async fn run(args: &WiresArgs) -> Result<(), CliError> {
    let list = Admin::connect(&args.socket.path).await?.list().await?;
    let text = if args.json { json::render(&list) } else { table::render(&list, table::TableStyle::of_stdout()) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Whether a wire works, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// An end is gone or cannot be made.
    Failed,
    /// An end is not there yet, or went away.
    Waiting,
    /// Frames can cross.
    Up,
}

impl State {
    pub(crate) fn of(wire: &Wire) -> Self {
        if wire.ends.iter().any(|end| end.state == "failed") {
            Self::Failed
        } else if wire.queues > 0 {
            Self::Up
        } else {
            Self::Waiting
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Waiting => "waiting",
            Self::Up => "up",
        }
    }
}

/// Frames of one direction that were dropped for any reason.
pub(crate) fn dropped(traffic: &Traffic) -> u64 {
    traffic.drops.iter().map(|drop| drop.frames).sum()
}

#[cfg(test)]
pub(crate) mod fixtures {
    use crate::admin::proto::{Drop, End, Origin, Traffic, Wire, WireSpec};

    /// One wire that is up, one that waits, one that failed.
    pub(crate) fn wires() -> Vec<Wire> {
        let mut up = wire("a-b", [end("memif", "connected", "testpmd"), end("kernel", "up", "")], 2);
        let labels = [("pod", "shop/web-0"), ("zone", "")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        up.spec = Some(WireSpec { owner: "cni".to_owned(), labels: labels.into(), ..WireSpec::default() });
        up.generation = 3;
        up.directions = vec![traffic(1_234_567, 79_012_288, 12), traffic(42, 2688, 0)];
        let mut waiting = wire("b-c", [end("memif", "connecting", "connection refused"), end("kernel", "up", "")], 0);
        waiting.origin = Origin::Admin.into();
        waiting.full = "drop".to_owned();
        let failed = wire("c-d", [end("memif", "listening", ""), end("kernel", "failed", "namespace is gone")], 0);
        vec![up, waiting, failed]
    }

    pub(crate) fn wire(name: &str, ends: [End; 2], queues: u32) -> Wire {
        let directions = vec![traffic(0, 0, 0), traffic(0, 0, 0)];
        let (name, full) = (name.to_owned(), "hold".to_owned());
        let (crossing, copied_because) = ("copied".to_owned(), String::new());
        let (origin, ends, generation) = (Origin::File.into(), ends.into(), 1);
        Wire { name, origin, ends, directions, queues, full, crossing, copied_because, generation, ..Wire::default() }
    }

    fn end(kind: &str, state: &str, detail: &str) -> End {
        let description = match kind {
            "memif" => "memif /run/ferrule/m.sock id 0 server",
            _ => "kernel nsm-1 in /run/netns/pod",
        };
        let [kind, state, detail, description] = [kind, state, detail, description].map(str::to_owned);
        End { kind, description, state, detail }
    }

    pub(crate) fn traffic(frames: u64, bytes: u64, full: u64) -> Traffic {
        let drops =
            vec![Drop { reason: "full".to_owned(), frames: full }, Drop { reason: "too_long".to_owned(), frames: 0 }];
        Traffic { frames, bytes, drops, stalls: 0 }
    }
}
