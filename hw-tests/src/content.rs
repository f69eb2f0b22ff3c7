//! Bytes that are compared where they arrive.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use anyhow::{Context, Result, ensure};

/// Bytes that never repeat, so that one which is missing, doubled or out of place is noticed.
pub struct Content(u64);

impl Content {
    /// Those of a seed that is not zero.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next so many.
    pub fn next(&mut self, bytes: usize) -> Vec<u8> {
        let word = |state: &mut u64| {
            // Marsaglia's xorshift64; its state is never zero.
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            state.to_le_bytes()
        };
        let mut content: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| word(&mut self.0)).collect();
        content.truncate(bytes);
        content
    }
}

/// One side of a connection on which both send `bytes` at once, and both compare what they get.
///
/// The sides have different seeds: `sends` and `expects`.
pub fn exchange(stream: &TcpStream, bytes: usize, sends: u64, expects: u64) -> Result<()> {
    thread::scope(|scope| {
        let writer = scope.spawn(|| write_all(stream, sends, bytes));
        compare_all(stream, expects, bytes)?;
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?
    })
}

fn write_all(mut to: &TcpStream, seed: u64, bytes: usize) -> Result<()> {
    let mut content = Content::new(seed);
    for number in 0..bytes / CHUNK {
        to.write_all(&content.next(CHUNK)).with_context(|| format!("send chunk {number}"))?;
    }
    Ok(())
}

/// Reads so many bytes and compares them with what that seed gives.
pub fn compare_all(mut from: &TcpStream, seed: u64, bytes: usize) -> Result<()> {
    let mut content = Content::new(seed);
    let mut chunk = vec![0; CHUNK];
    for number in 0..bytes / CHUNK {
        from.read_exact(&mut chunk).with_context(|| format!("receive chunk {number}"))?;
        ensure!(chunk == content.next(CHUNK), "chunk {number} is not what was sent");
    }
    Ok(())
}

/// Bytes of one write.
pub const CHUNK: usize = 64 << 10;
