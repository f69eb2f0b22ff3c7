//! Counts the lines that the engine would log: no peer may fill a disk.

use std::sync::atomic::{AtomicU64, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

static LINES: AtomicU64 = AtomicU64::new(0);

/// Lines so far.
pub fn lines() -> u64 {
    LINES.load(Ordering::Relaxed)
}

/// Counts from now on.
pub fn count_lines() {
    // Whoever comes second finds it counting.
    let _ = tracing::subscriber::set_global_default(Counter);
}

struct Counter;

impl Subscriber for Counter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        LINES.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
