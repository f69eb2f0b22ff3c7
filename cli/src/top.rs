//! `ferrule top`: what is moving now, on the whole screen of a terminal or as one table per interval.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;

use crate::CliError;
use crate::admin::proto::ListWiresResponse;
use crate::admin::{Admin, AdminSocket};

mod plain;
mod rates;
mod screen;
mod view;

/// Options of `ferrule top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Time between two readings, such as `500ms` or `2s`; at least 100ms
    #[arg(long, default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// End after this many readings
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    socket: AdminSocket,
}

/// Shows rates until told to stop.
pub async fn run(args: &TopArgs) -> Result<(), CliError> {
    let socket = &args.socket.path;
    let interval_ms = u32::try_from(args.interval.as_millis()).unwrap_or(u32::MAX);
    let watch = Admin::connect(socket).await?.watch(interval_ms).await?;
    if std::io::stdout().is_terminal() && std::io::stdin().is_terminal() {
        screen::run(watch, socket, args.count).await
    } else {
        plain::run(watch, args.count).await
    }
}

/// The last two readings, from which rates are made.
#[derive(Default)]
struct Readings {
    before: Option<ListWiresResponse>,
    now: Option<ListWiresResponse>,
}

impl Readings {
    fn push(&mut self, reading: ListWiresResponse) {
        self.before = self.now.replace(reading);
    }

    /// How much of its time each worker spent on frames: CPU and share.
    fn loads(&self) -> Vec<(u32, f64)> {
        match (&self.before, &self.now) {
            (Some(before), Some(now)) => rates::loads(before, now),
            _ => Vec::new(),
        }
    }

    fn rates(&self) -> Vec<rates::WireRates> {
        match (&self.before, &self.now) {
            (before, Some(now)) => rates::rates(before.as_ref(), now),
            (_, None) => Vec::new(),
        }
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let wanted = || format!("`500ms` or `2s`, from {INTERVAL_MIN:?} to {INTERVAL_MAX:?}, is wanted");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wanted())?;
    let interval = match &text[digits..] {
        "ms" => Duration::from_millis(number),
        "s" | "" => Duration::from_secs(number),
        _ => return Err(wanted()),
    };
    (INTERVAL_MIN..=INTERVAL_MAX).contains(&interval).then_some(interval).ok_or_else(wanted)
}

/// What the admin API takes.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_hours(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_seconds_or_milliseconds() {
        assert_eq!(interval("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(interval("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(interval("3"), Ok(Duration::from_secs(3)));
        for bad in ["", "s", "0s", "99ms", "1m", "-1s", "99999999999999999999s", "4000s"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
