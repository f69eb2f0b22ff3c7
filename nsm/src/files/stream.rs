//! A Unix connection below TLS, which passes files beside its bytes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ferrule_ffi::unix::UnixSocket;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::table::Files;

/// Bytes, and files. Each file goes in a message of its own with one of the bytes, as the Go programs send them.
pub(crate) struct FileStream {
    socket: AsyncFd<PolledSocket>,
    files: Files,
}

impl FileStream {
    #[expect(
        deprecated,
        reason = "unsafe only for types that do not own their descriptor; ours does, and the successor is an unsafe fn"
    )]
    /// Without files, until these are opened.
    pub(crate) fn new(socket: UnixSocket) -> io::Result<Self> {
        Ok(Self { socket: AsyncFd::new(PolledSocket(socket))?, files: Files::default() })
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }
}

impl AsyncRead for FileStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buffer.initialize_unfilled();
        if room.is_empty() {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(context))?;
            // Nobody passes files before it is known who it is.
            let is_open = self.files.is_open();
            let files_max = if is_open { FILES_AT_ONCE_MAX } else { 0 };
            let Ok(received) = guard.try_io(|socket| socket.get_ref().0.receive(room, files_max)) else { continue };
            let Some(packet) = received? else {
                self.files.end();
                return Poll::Ready(Ok(()));
            };
            if let Some(lost) = packet.lost {
                let problem = if is_open { lost.to_string() } else { "files came before the handshake".to_owned() };
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, problem)));
            }
            if !packet.files.is_empty() {
                self.files.arrived(packet.files);
            }
            let len = packet.len;
            buffer.advance(len);
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for FileStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            let mut guard = ready!(self.socket.poll_write_ready(context))?;
            let file = self.files.next_to_send();
            let sent = guard.try_io(|socket| match &file {
                Some(file) => socket.get_ref().0.send(&bytes[..1], &[file.as_fd()]),
                None => socket.get_ref().0.send(bytes, &[]),
            });
            let Ok(sent) = sent else { continue };
            if file.is_some() && sent.is_ok() {
                self.files.sent();
            }
            return Poll::Ready(sent);
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(self.socket.get_ref().0.as_fd(), rustix::net::Shutdown::Write)?))
    }
}

impl AsFd for FileStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().0.as_fd()
    }
}

impl Drop for FileStream {
    fn drop(&mut self) {
        self.files.end();
    }
}

/// A socket as the runtime wants it.
struct PolledSocket(UnixSocket);

impl AsRawFd for PolledSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// A Go sender puts one into a message, and may put so many.
const FILES_AT_ONCE_MAX: usize = 64;
