//! Lines that wait to be written, as many as there is room for.
//!
//! A thread of its own writes them: only it waits when the reader of a pipe does not read. A line that finds no room is
//! counted, and the log says at its place how many were lost.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Takes lines without waiting.
pub(super) struct LossyWriter(Arc<Queue>);

/// Makes a line that says how many lines were lost.
pub(super) type Notice = fn(u64) -> String;

/// What the writers and the thread share. The lock is never held while anything is written.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// Something changed.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Line>,
    /// Bytes of the lines.
    bytes: usize,
    /// Lines lost since the last one that waits.
    lost: u64,
    /// The thread is at work on something that it took.
    writing: bool,
    /// The last line came, and the thread is to end.
    closed: bool,
}

struct Line {
    text: Vec<u8>,
    /// Lines that were lost before this one.
    lost_before: u64,
}

impl LossyWriter {
    /// Writes to this file from now on. `notice` makes the line that says how many were lost.
    pub(super) fn start(file: impl Write + AsFd + Send + 'static, notice: Notice) -> io::Result<Self> {
        let queue = Arc::<Queue>::default();
        let shared = Arc::clone(&queue);
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_all(file, notice))?;
        Ok(Self(queue))
    }

    /// Waits until all lines were written, but no longer than this.
    pub(super) fn flush(&self, timeout: Duration) {
        let is_busy = |state: &mut State| state.writing || !state.lines.is_empty() || state.lost > 0;
        let state = self.0.lock();
        // Either way there is nothing left to do.
        drop(self.0.changed.wait_timeout_while(state, timeout, is_busy));
    }
}

impl Drop for LossyWriter {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, text: &[u8]) {
        let mut state = self.lock();
        if state.bytes + text.len() > BYTES_MAX {
            state.lost += 1;
        } else {
            let lost_before = std::mem::take(&mut state.lost);
            state.bytes += text.len();
            state.lines.push_back(Line { text: text.to_vec(), lost_before });
        }
        drop(state);
        self.changed.notify_all();
    }

    /// What the thread does.
    fn write_all(&self, mut file: impl Write + AsFd, notice: Notice) {
        // Lines that could not be written. Said with the next one: the file may take that, as a new reader may have come.
        let mut failed = 0;
        while let Some(Line { text, lost_before }) = self.next() {
            let lost = lost_before + std::mem::take(&mut failed);
            let notice = if lost > 0 { notice(lost) } else { String::new() };
            if write(&mut file, notice.as_bytes()).is_err() {
                failed = lost + u64::from(!text.is_empty());
            } else if write(&mut file, &text).is_err() {
                failed = 1;
            }
        }
    }

    /// The next line, or, when none is left, how many were lost behind the last one.
    fn next(&self) -> Option<Line> {
        let mut state = self.lock();
        state.writing = false;
        self.changed.notify_all();
        let is_idle = |state: &mut State| state.lines.is_empty() && state.lost == 0 && !state.closed;
        let mut state = self.changed.wait_while(state, is_idle).unwrap_or_else(PoisonError::into_inner);
        let line = match state.lines.pop_front() {
            Some(line) => line,
            None if state.lost > 0 => Line { text: Vec::new(), lost_before: std::mem::take(&mut state.lost) },
            None => return None,
        };
        state.bytes -= line.text.len();
        state.writing = true;
        Some(line)
    }
}

/// Writes all of it, however long that takes.
fn write(file: &mut (impl Write + AsFd), mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody else who has the same file may have made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// An event is written at once, so this is a line.
impl Write for &LossyWriter {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.push(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of the lines that wait: some ten thousand lines.
const BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::time::Instant;

    use super::*;

    #[test]
    fn lines_are_written_in_their_order_and_flushed() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let writer = LossyWriter::start(pipe, notice).unwrap();
        for number in 0..100 {
            (&writer).write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        writer.flush(TIMEOUT);
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let expected: Vec<_> = (0..100).map(|number| format!("line {number}")).collect();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn nobody_waits_for_a_reader_that_does_not_read_and_it_learns_how_much_it_missed() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let writer = LossyWriter::start(pipe, notice).unwrap();
        let line = vec![b'x'; 999];
        let line = || [&line[..], b"\n"].concat();
        for _ in 0..LINES {
            (&writer).write_all(&line()).unwrap();
        }
        let started = Instant::now();
        writer.flush(Duration::from_millis(50));
        assert!(started.elapsed() >= Duration::from_millis(50), "there was nobody to write to");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let (notices, lines): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.contains(" lost here"));
        let lost: usize =
            notices.iter().map(|notice| notice.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
        assert!(lost > 0 && lost + lines.len() == LINES, "{lost} lost, {} arrived", lines.len());
    }

    #[test]
    fn a_loss_is_told_at_its_place() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let writer = LossyWriter::start(pipe, notice).unwrap();
        let chunk = vec![b'x'; 4096];
        while writer.0.lock().lost == 0 {
            (&writer).write_all(&chunk).unwrap();
        }
        let mut skipped = vec![0; 1 << 20];
        reader.read_exact(&mut skipped).unwrap();
        while writer.0.lock().bytes > BYTES_MAX - 100 {
            thread::yield_now();
        }
        (&writer).write_all(b"\nlater\n").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("1 lost here\n\nlater\n"), "{}", &text[text.len() - 99..]);
    }

    fn notice(lost: u64) -> String {
        format!("{lost} lost here\n")
    }

    /// Of a thousand bytes: several times what the pipe and the queue hold.
    const LINES: usize = 5000;
    const TIMEOUT: Duration = Duration::from_secs(10);
}
