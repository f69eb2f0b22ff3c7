//! A connection on which both sides send at once and compare what they get.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::content;

/// Waits for a connection.
pub fn accept(address: SocketAddr, bytes: usize) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    println!("listening on {address}");
    let (stream, from) = listener.accept().context("accept a connection")?;
    exchange(&stream, bytes, [2, 1]).with_context(|| format!("exchange with {from}"))
}

/// Connects to one who waits.
pub fn connect(address: SocketAddr, bytes: usize) -> Result<()> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("connect to {address}"))?;
    exchange(&stream, bytes, [1, 2]).with_context(|| format!("exchange with {address}"))
}

fn exchange(stream: &TcpStream, bytes: usize, [sends, expects]: [u64; 2]) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE)).context("set a deadline")?;
    stream.set_write_timeout(Some(PATIENCE)).context("set a deadline")?;
    let began = Instant::now();
    content::exchange(stream, bytes, sends, expects)?;
    let megabits = bytes as f64 * 8.0 / 1e6 / began.elapsed().as_secs_f64();
    println!("{bytes} bytes each way, {megabits:.0} Mbit/s");
    Ok(())
}

/// How long nothing may move, also while the forwarder is replaced.
const PATIENCE: Duration = Duration::from_secs(20);
