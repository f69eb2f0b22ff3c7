//! A TCP transfer between two namespaces in which every byte is compared.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use ferrule_ffi::netns::NetNs;
use thiserror::Error;

/// What was carried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) bytes: u64,
    pub(super) elapsed: Duration,
}

impl Transfer {
    pub(super) fn gbit_s(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64() / 1e9
    }
}

/// Sends from one namespace to `address` in the other for about `time`.
pub(super) fn transfer(from: &NetNs, to: &NetNs, address: IpAddr, time: Duration) -> Result<Transfer, TcpError> {
    let listener =
        to.run(|| TcpListener::bind((address, 0))).and_then(|listener| listener).map_err(TcpError::Listen)?;
    let target = listener.local_addr().map_err(TcpError::Listen)?;
    let connect = || from.run(|| TcpStream::connect_timeout(&target, TIMEOUT)).and_then(|stream| stream);
    let sender = connect().map_err(|source| TcpError::Connect { target, source })?;
    // The connection waits in the backlog: this does not block.
    let (taker, _) = listener.accept().map_err(TcpError::Listen)?;
    for stream in [&sender, &taker] {
        let limits = stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(TIMEOUT)));
        limits.map_err(TcpError::Send)?;
    }
    thread::scope(|scope| {
        let received = scope.spawn(move || receive(taker));
        let sent = send(sender, time);
        let received = received.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        let (sent, elapsed) = sent?;
        if sent != received {
            return Err(TcpError::Short { sent, received });
        }
        Ok(Transfer { bytes: received, elapsed })
    })
}

/// Why the transfer failed.
#[derive(Debug, Error)]
pub(super) enum TcpError {
    /// No socket to listen on.
    #[error("listen: {0}")]
    Listen(#[source] io::Error),
    /// No connection.
    #[error("connect to {target}: {source}")]
    Connect {
        /// Whom.
        target: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The stream broke, or stood still.
    #[error("send: {0}")]
    Send(#[source] io::Error),
    /// The stream broke, or stood still.
    #[error("receive: {0}")]
    Receive(#[source] io::Error),
    /// What was received is not what was sent.
    #[error("block {block} of {BLOCK} bytes arrived with other contents")]
    Corrupt {
        /// Its number.
        block: u64,
    },
    /// Bytes are missing.
    #[error("{sent} bytes were sent, {received} arrived")]
    Short {
        /// Written at one end.
        sent: u64,
        /// Read at the other.
        received: u64,
    },
}

/// Sends blocks, and waits until the other side has them all.
fn send(mut stream: TcpStream, time: Duration) -> Result<(u64, Duration), TcpError> {
    let mut block = Block::new();
    let started = Instant::now();
    let mut sent = 0;
    while started.elapsed() < time {
        stream.write_all(block.numbered(sent)).map_err(TcpError::Send)?;
        sent += 1;
    }
    stream.shutdown(Shutdown::Write).map_err(TcpError::Send)?;
    stream.read_exact(&mut [0]).map_err(TcpError::Send)?;
    Ok((sent * BLOCK as u64, started.elapsed()))
}

/// Receives to the end, compares, and says so to the other side.
fn receive(mut stream: TcpStream) -> Result<u64, TcpError> {
    let (mut expected, mut block) = (Block::new(), vec![0; BLOCK]);
    for number in 0.. {
        let length = read_full(&mut stream, &mut block).map_err(TcpError::Receive)?;
        if length < BLOCK {
            stream.write_all(&[1]).map_err(TcpError::Receive)?;
            return Ok(number * BLOCK as u64 + length as u64);
        }
        if block != expected.numbered(number) {
            return Err(TcpError::Corrupt { block: number });
        }
    }
    unreachable!("no stream has 2^64 blocks")
}

/// Fills the buffer unless the stream ends before.
fn read_full(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match stream.read(&mut buffer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

/// Bytes that do not repeat within a block, and a number that makes each block another.
struct Block(Vec<u8>);

impl Block {
    fn new() -> Self {
        // A linear congruential generator (Knuth's MMIX), of which the high bytes are good.
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        Self(std::iter::repeat_with(&mut next).take(BLOCK).collect())
    }

    fn numbered(&mut self, number: u64) -> &[u8] {
        self.0[..8].copy_from_slice(&number.to_le_bytes());
        &self.0
    }
}

const BLOCK: usize = 128 * 1024;
/// How long a connection may stand still.
const TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_arrives_whole() {
        let here = NetNs::current().unwrap();
        let address = IpAddr::from([127, 0, 0, 1]);
        match transfer(&here, &here, address, Duration::from_millis(20)) {
            Ok(transfer) => assert!(transfer.bytes >= BLOCK as u64 && transfer.gbit_s() > 0.0),
            Err(TcpError::Listen(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                println!("skipped: entering a namespace ({error})");
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        let receiver = thread::spawn(move || receive(receiver));
        let mut block = Block::new();
        sender.write_all(block.numbered(0)).unwrap();
        let mut changed = block.numbered(1).to_vec();
        changed[BLOCK - 1] ^= 1;
        sender.write_all(&changed).unwrap();
        assert!(matches!(receiver.join().unwrap(), Err(TcpError::Corrupt { block: 1 })));
    }
}
