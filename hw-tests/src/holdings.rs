//! What a process holds: what is to be the same again once its work is done.

use std::fs;

use anyhow::{Context, Result};

/// What a process holds at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Its open files.
    pub files: usize,
    /// Its threads.
    pub threads: usize,
    /// Unix sockets of its network namespace, whoever has them.
    pub sockets: usize,
    /// Memory that it shares with others (memfd): its mappings of it.
    pub shared: usize,
}

impl Holdings {
    /// Those of a process of this number.
    pub fn of(id: u32) -> Result<Self> {
        let count = |what: &str| {
            let directory = format!("/proc/{id}/{what}");
            Ok::<_, anyhow::Error>(fs::read_dir(&directory).with_context(|| format!("read {directory}"))?.count())
        };
        let lines = |what: &str, word: &str| {
            let path = format!("/proc/{id}/{what}");
            let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            Ok::<_, anyhow::Error>(text.lines().filter(|line| line.contains(word)).count())
        };
        Ok(Self {
            files: count("fd")?,
            threads: count("task")?,
            sockets: lines("net/unix", "")?,
            shared: lines("maps", "/memfd:")?,
        })
    }

    /// Whether there is more of anything than there was, by more than so many.
    pub fn exceeds(&self, before: &Self, by: usize) -> bool {
        let all = |held: &Self| [held.files, held.threads, held.sockets, held.shared];
        all(self).iter().zip(all(before)).any(|(now, before)| *now > before + by)
    }
}
