//! DPDK's log: each line goes to `tracing`, on a thread of its own, and errors also to whoever made the call.

use std::cell::RefCell;
use std::ffi::c_char;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::{io, thread};

use ferrule_dpdk_sys::{Dpdk, RTE_LOG_ERR, RTE_LOG_INFO, RTE_LOG_NOTICE, RTE_LOG_WARNING};

use crate::error::cause;

/// Has the log sent to us from now on.
pub(crate) fn open(dpdk: &Dpdk) -> Result<(), String> {
    let (sender, receiver) = sync_channel(LINES_MAX);
    if SENDER.set(sender).is_ok() {
        let spawned: io::Result<_> =
            thread::Builder::new().name("dpdk-log".to_owned()).spawn(move || write_lines(&receiver));
        spawned.map_err(|error| format!("no thread for its log ({error})"))?;
    }
    // SAFETY: `receive` has the signature that is wanted, and is there as long as the program.
    let status = unsafe { dpdk.ferrule_log_open(Some(receive)) };
    if status < 0 { Err(format!("its log: {}", cause(status, &[]))) } else { Ok(()) }
}

/// What is said by errors while `call` runs, on this thread.
pub(crate) fn collect<T>(call: impl FnOnce() -> T) -> (T, Vec<String>) {
    let outer = COLLECTED.replace(Some(Vec::new()));
    let outcome = call();
    (outcome, COLLECTED.replace(outer).unwrap_or_default())
}

struct Line {
    level: u32,
    text: String,
}

/// Called by DPDK, on any thread: also on a worker, which must not wait. What finds the queue full is lost.
extern "C" fn receive(level: u32, text: *const c_char, len: usize) {
    // SAFETY: DPDK gives `len` bytes that stay where they are during this call.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    let text = String::from_utf8_lossy(bytes).trim_end().to_owned();
    if text.is_empty() {
        return;
    }
    if level <= RTE_LOG_ERR {
        let _ = COLLECTED.try_with(|collected| {
            if let Some(lines) = &mut *collected.borrow_mut()
                && lines.len() < COLLECTED_MAX
            {
                lines.push(text.clone());
            }
        });
    }
    if let Some(sender) = SENDER.get() {
        let _ = sender.try_send(Line { level, text });
    }
}

fn write_lines(lines: &Receiver<Line>) {
    for Line { level, text } in lines {
        match level {
            RTE_LOG_WARNING => tracing::warn!(target: "dpdk", "{text}"),
            RTE_LOG_NOTICE => tracing::info!(target: "dpdk", "{text}"),
            RTE_LOG_INFO => tracing::debug!(target: "dpdk", "{text}"),
            level if level <= RTE_LOG_ERR => tracing::error!(target: "dpdk", "{text}"),
            _ => tracing::trace!(target: "dpdk", "{text}"),
        }
    }
}

thread_local! {
    static COLLECTED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}
static SENDER: OnceLock<SyncSender<Line>> = OnceLock::new();
/// Lines that wait to be written.
const LINES_MAX: usize = 1024;
/// Lines that an error tells.
const COLLECTED_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn say(level: u32, text: &str) {
        receive(level, text.as_ptr().cast(), text.len());
    }

    #[test]
    fn errors_are_told_to_whoever_made_the_call_and_not_to_others() {
        say(RTE_LOG_ERR, "before");
        let ((), said) = collect(|| {
            say(RTE_LOG_ERR, "EAL: no\n");
            say(RTE_LOG_WARNING, "EAL: hm\n");
            thread::scope(|scope| drop(scope.spawn(|| say(RTE_LOG_ERR, "of another thread"))));
            let ((), inner) = collect(|| say(RTE_LOG_ERR, "inner"));
            assert_eq!(inner, ["inner"]);
            say(RTE_LOG_ERR, "EAL: never");
        });
        assert_eq!(said, ["EAL: no", "EAL: never"]);
        let ((), many) = collect(|| (0..100).for_each(|number| say(RTE_LOG_ERR, &number.to_string())));
        assert_eq!(many.len(), COLLECTED_MAX);
    }
}
