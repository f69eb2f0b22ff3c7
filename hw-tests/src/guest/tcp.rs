//! A connection on which both sides send at once and compare what they get, or one of them after a while.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use crate::content;

/// Waits for a connection.
pub fn accept(address: SocketAddr, bytes: usize) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    println!("listening on {address}");
    let (stream, from) = listener.accept().context("accept a connection")?;
    exchange(&stream, bytes, [2, 1]).with_context(|| format!("exchange with {from}"))
}

/// Waits for a connection, and leaves what comes in the kernel's buffers, which are those of the NIC, until there is a file;
/// then it is compared. The other side sends the content of [`HELD`].
pub fn hold(address: SocketAddr, bytes: usize, until: &Path) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    // The kernel counts more than the bytes: whole buffers, and what it knows of them.
    setsockopt(&listener, RcvBufForce, &(4 * bytes)).context("make room for all that comes")?;
    println!("listening on {address}");
    let (stream, _) = listener.accept().context("accept a connection")?;
    stream.set_read_timeout(Some(TIMEOUT)).context("set a deadline")?;
    let deadline = Instant::now() + HELD_MAX;
    while !until.exists() {
        ensure!(Instant::now() < deadline, "{} does not come", until.display());
        thread::sleep(Duration::from_millis(20));
    }
    content::compare_all(&stream, HELD, bytes)?;
    println!("{bytes} bytes are as they were sent");
    Ok(())
}

/// Connects to one who waits.
pub fn connect(address: SocketAddr, bytes: usize) -> Result<()> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("connect to {address}"))?;
    exchange(&stream, bytes, [1, 2]).with_context(|| format!("exchange with {address}"))
}

fn exchange(stream: &TcpStream, bytes: usize, [sends, expects]: [u64; 2]) -> Result<()> {
    stream.set_read_timeout(Some(TIMEOUT)).context("set a deadline")?;
    stream.set_write_timeout(Some(TIMEOUT)).context("set a deadline")?;
    let began = Instant::now();
    content::exchange(stream, bytes, sends, expects)?;
    let megabits = bytes as f64 * 8.0 / 1e6 / began.elapsed().as_secs_f64();
    println!("{bytes} bytes each way, {megabits:.0} Mbit/s");
    Ok(())
}

/// The seed of what is held.
pub const HELD: u64 = 3;

/// How long it is held at most.
const HELD_MAX: Duration = Duration::from_mins(3);

/// How long nothing may move, also while the forwarder is replaced.
const TIMEOUT: Duration = Duration::from_secs(20);
