//! Asks a web server from inside a namespace, by the kernel's TCP.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ferrule_ffi::netns::NetNs;
use thiserror::Error;

/// A page, and who asked for it.
pub(super) struct Page {
    pub(super) body: String,
    /// Our own end of the connection.
    pub(super) client: SocketAddr,
}

/// What GET of this path gives, as `wget --timeout` would get it.
pub(super) fn get(from: &NetNs, server: SocketAddr, path: &str, timeout: Duration) -> Result<Page, HttpError> {
    let connected = from.run(|| TcpStream::connect_timeout(&server, timeout)).and_then(|stream| stream);
    let mut stream = connected.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => HttpError::TimedOut,
        _ => HttpError::Connect(error),
    })?;
    let limits = stream.set_read_timeout(Some(timeout)).and_then(|()| stream.set_write_timeout(Some(timeout)));
    let client = limits.and_then(|()| stream.local_addr()).map_err(HttpError::Stream)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    stream
        .write_all(request.as_bytes())
        .and_then(|()| stream.read_to_string(&mut answer))
        .map_err(HttpError::Stream)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| HttpError::Answer(answer.clone()))?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(HttpError::Answer(head.lines().next().unwrap_or_default().to_owned()));
    }
    Ok(Page { body: body.to_owned(), client })
}

/// Why there is no page.
#[derive(Debug, Error)]
pub(super) enum HttpError {
    /// Nobody answered, not even with a refusal.
    #[error("timed out")]
    TimedOut,
    /// It was refused, or there is no way.
    #[error("connect: {0}")]
    Connect(#[source] io::Error),
    /// It broke, or stood still.
    #[error("the connection broke: {0}")]
    Stream(#[source] io::Error),
    /// It was answered otherwise.
    #[error("answered `{0}`")]
    Answer(String),
}
