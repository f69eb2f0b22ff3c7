//! The log of a daemon: one line an event on standard error, and nobody ever waits for whoever reads it.
//!
//! `writer` holds what waits to be written.

mod writer;

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use tracing::error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use writer::{LossyWriter, Notice};

/// How a daemon logs, as its command line says.
#[derive(Clone, Copy, Debug, Args)]
pub struct LogFlags {
    /// How log lines look
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    log: LogFormat,
    /// The least level that is logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LevelFilter,
}

impl Default for LogFlags {
    /// Of programs whose command line says nothing of it: text, from `info` on.
    fn default() -> Self {
        Self { log: LogFormat::Text, log_level: LevelFilter::INFO }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogFlags {
    /// Logs from now on: what `program` and our libraries say at the level asked for, what others say from `info` on.
    /// Panics are logged too.
    pub fn start(self, program: &str) -> io::Result<Log> {
        let notice: Notice = match self.log {
            LogFormat::Text => text_notice,
            LogFormat::Json => json_notice,
        };
        let writer = Arc::new(LossyWriter::start(io::stderr(), notice)?);
        let targets = [program, "ferrule"].map(|target| (target, self.log_level));
        // Who uses such a library says what becomes of its peers, and which: its own lines are for who looks into it.
        let for_debugging = if self.log_level >= LevelFilter::DEBUG { self.log_level } else { LevelFilter::OFF };
        let targets = targets.into_iter().chain(QUIET.map(|target| (target, for_debugging)));
        let filter = Targets::new().with_default(self.log_level.min(LevelFilter::INFO)).with_targets(targets);
        let (lines, registry) =
            (tracing_subscriber::fmt::layer().with_writer(Arc::clone(&writer)), tracing_subscriber::registry());
        match self.log {
            LogFormat::Text => {
                registry.with(filter).with(lines.with_target(false).with_ansi(io::stderr().is_terminal())).init();
            }
            LogFormat::Json => registry.with(filter).with(lines.json()).init(),
        }
        // The usual hook waits for standard error.
        std::panic::set_hook(Box::new(|panic| error!("{panic}")));
        Ok(Log(writer))
    }
}

/// A log that was started. When it is dropped, what was logged so far is written, unless nobody reads it for
/// [`FLUSH_TIMEOUT`].
#[must_use = "what was logged last is lost if this is dropped at once"]
pub struct Log(Arc<LossyWriter>);

impl Drop for Log {
    fn drop(&mut self) {
        self.0.flush(FLUSH_TIMEOUT);
    }
}

fn text_notice(lost: u64) -> String {
    format!("WARN {lost} log lines were lost here: nobody read the log in time\n")
}

/// As the others are, without a time: nobody knows when each of them was lost.
fn json_notice(lost: u64) -> String {
    let fields = json!({ "message": "log lines were lost here: nobody read the log in time", "lost": lost });
    format!("{}\n", json!({ "level": "WARN", "fields": fields, "target": module_path!() }))
}

/// How long the end of a daemon may wait for the reader of its log.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Libraries that say of each peer of theirs, as an error, that it does not answer.
const QUIET: [&str; 1] = ["defguard_boringtun"];
