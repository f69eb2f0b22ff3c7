//! Bytes and file descriptors over Unix sockets: AF_UNIX, SOCK_SEQPACKET or SOCK_STREAM.

use std::io::{self, IoSlice};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{self, PassCred};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, accept4, bind, connect,
    getsockopt, listen, sendmsg, setsockopt, shutdown, socket,
};

use crate::peer_file::PeerFile;
use crate::socket_file::{Access, BindError, SocketFile, connect_to, listen_at};

/// A connected socket. It never blocks: an operation that would have to wait says `WouldBlock`.
pub struct UnixSocket {
    fd: OwnedFd,
    kind: Kind,
}

/// What a socket keeps apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each packet (SOCK_SEQPACKET).
    SeqPacket,
    /// Nothing: bytes follow bytes (SOCK_STREAM). Descriptors come no later than the byte that they were sent with.
    Stream,
}

/// What was received at once: one packet, or some bytes of a stream.
pub struct Packet {
    /// How many bytes of the buffer it filled.
    pub len: usize,
    /// Whether it was longer than the buffer, or its descriptors did not all arrive.
    pub truncated: bool,
    /// The descriptors that came with it; whoever does not want them drops them.
    pub files: Vec<PeerFile>,
}

impl UnixSocket {
    /// Connects to `address`, in the network namespace of the calling thread.
    pub fn connect(kind: Kind, address: &UnixAddr) -> io::Result<Self> {
        let socket = new_socket(kind)?;
        connect(socket.as_raw_fd(), address)?;
        Self::connected(socket, kind)
    }

    /// A connected socket that another process had.
    ///
    /// # Errors
    /// It is no socket, or one of the other kind.
    pub fn from_fd(fd: OwnedFd, kind: Kind) -> io::Result<Self> {
        let wanted = match kind {
            Kind::SeqPacket => SockType::SeqPacket,
            Kind::Stream => SockType::Stream,
        };
        if getsockopt(&fd, sockopt::SockType)? != wanted {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket of another kind"));
        }
        Self::connected(fd, kind)
    }

    /// Connects to whoever listens at `path`, of any length.
    pub fn connect_path(kind: Kind, path: &Path) -> io::Result<Self> {
        let socket = new_socket(kind)?;
        connect_to(socket.as_fd(), path)?;
        Self::connected(socket, kind)
    }

    fn connected(fd: OwnedFd, kind: Kind) -> io::Result<Self> {
        if kind == Kind::SeqPacket {
            // The kernel signs every packet, so that an empty one is not taken for the end.
            setsockopt(&fd, PassCred, &true)?;
        }
        Ok(Self { fd, kind })
    }

    /// Sends bytes with descriptors, and says how many bytes: of a packet, all; of a stream, perhaps not.
    pub fn send(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        Ok(sendmsg::<()>(self.fd.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?)
    }

    /// Receives one packet, or what there is of a stream and fits; `None`: the peer has gone.
    ///
    /// Not by nix: of a list of descriptors that was cut (because the table of this process is full) it
    /// shows none, and those that the kernel had already put into the table would stay there for ever.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Packet>> {
        let mut control = [0u64; CONTROL_WORDS];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: a msghdr is integers and pointers, for which zeros are valid.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: the header names `buffer` and `control` by their lengths, and both outlive the call.
        let len = Errno::result(unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut header, flags) })?;
        // SAFETY: the kernel has just filled the header and what it names.
        let (signed, files) = unsafe { taken(&header) };
        let truncated = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
        let is_end = match self.kind {
            Kind::SeqPacket => !signed,
            Kind::Stream => len == 0,
        };
        Ok((!is_end).then_some(Packet { len: len.cast_unsigned(), truncated, files }))
    }
}

/// What came beside the bytes of a packet: whether it says who sent it, as every packet does and the end
/// of the connection does not, and its descriptors.
///
/// # Safety
/// `header` must be what `recvmsg` has just filled, and nobody else may take its descriptors.
unsafe fn taken(header: &libc::msghdr) -> (bool, Vec<PeerFile>) {
    let (mut signed, mut files) = (false, Vec::new());
    // SAFETY: the header's control buffer is valid, by the caller.
    let mut part = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole header inside the buffer.
    while let Some(message) = unsafe { part.as_ref() } {
        match (message.cmsg_level, message.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => signed = true,
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                // SAFETY: CMSG_LEN and CMSG_DATA only calculate; the kernel wrote `cmsg_len` bytes, which
                // are this header and whole descriptors that it has just made for us.
                unsafe {
                    let list = libc::CMSG_DATA(part).cast::<[u8; size_of::<RawFd>()]>();
                    let count = (message.cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                    let raw = |at| OwnedFd::from_raw_fd(RawFd::from_ne_bytes(list.add(at).read()));
                    files.extend((0..count).map(|at| PeerFile::from(raw(at))));
                }
            }
            _ => {}
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        part = unsafe { libc::CMSG_NXTHDR(header, part) };
    }
    (signed, files)
}

impl UnixSocket {
    /// The socket for a successor: this value goes without ending the connection.
    pub fn into_fd(self) -> OwnedFd {
        let socket = ManuallyDrop::new(self);
        // SAFETY: the value is never dropped, so its descriptor is taken out once; the other field needs no drop.
        unsafe { std::ptr::read(&raw const socket.fd) }
    }
}

impl Drop for UnixSocket {
    /// Takes what was not read, so that descriptors in it are closed as [`PeerFile`]s are, and not by the
    /// kernel here. After the shutdown nothing can come any more.
    fn drop(&mut self) {
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
        while let Ok(Some(_)) = self.receive(&mut [0; 4096]) {}
    }
}

impl AsFd for UnixSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A listening socket. It never blocks.
pub struct UnixListener {
    fd: OwnedFd,
    kind: Kind,
}

impl UnixListener {
    /// Binds to `address`, in the network namespace of the calling thread, and listens.
    pub fn bind(kind: Kind, address: &UnixAddr, backlog: u8) -> io::Result<Self> {
        let fd = new_socket(kind)?;
        bind(fd.as_raw_fd(), address)?;
        listen(&fd, Backlog::new(i32::from(backlog))?)?;
        Ok(Self { fd, kind })
    }

    /// Listens at `path`, which whoever has `access` may connect to.
    pub fn bind_path(kind: Kind, path: &Path, access: Access, backlog: u8) -> Result<(Self, SocketFile), BindError> {
        let (fd, file) = listen_at(kind, path, access, backlog)?;
        Ok((Self { fd, kind }, file))
    }

    /// The next connection.
    pub fn accept(&self) -> io::Result<UnixSocket> {
        let raw = accept4(self.fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        // SAFETY: accept4 has just made this descriptor for us.
        UnixSocket::connected(unsafe { OwnedFd::from_raw_fd(raw) }, self.kind)
    }
}

impl AsFd for UnixListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A socket that does not block and is bound to nothing.
pub(crate) fn new_socket(kind: Kind) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let sort = match kind {
        Kind::SeqPacket => SockType::SeqPacket,
        Kind::Stream => SockType::Stream,
    };
    socket(AddressFamily::Unix, sort, flags, None)
}

/// The kernel passes no more descriptors than this with one packet (include/net/scm.h).
const SCM_MAX_FD: usize = 253;
/// Room for as many and the sender's credentials, in words, which align it for the kernel's headers:
/// a list that is cut for want of room is one that we would have to ask for again.
const CONTROL_WORDS: usize = (16 + 4 * SCM_MAX_FD).div_ceil(8) + (16 + size_of::<libc::ucred>()).div_ceil(8);

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn pair(kind: Kind, name: &str) -> (UnixSocket, UnixSocket) {
        let name = format!("ferrule-ffi-{name}-{kind:?}-{}", std::process::id());
        let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
        let listener = UnixListener::bind(kind, &address, 5).unwrap();
        let client = UnixSocket::connect(kind, &address).unwrap();
        (client, listener.accept().unwrap())
    }

    #[test]
    fn bytes_arrive_with_their_descriptors() {
        for kind in [Kind::SeqPacket, Kind::Stream] {
            let (client, server) = pair(kind, "descriptors");
            let file = File::open("/dev/null").unwrap();
            assert_eq!(client.send(b"hello", &[file.as_fd(), file.as_fd()]).unwrap(), 5);
            let mut buffer = [0; 16];
            let packet = server.receive(&mut buffer).unwrap().unwrap();
            assert_eq!((&buffer[..packet.len], packet.truncated, packet.files.len()), (&b"hello"[..], false, 2));
        }
    }

    #[test]
    fn a_packet_longer_than_the_buffer_says_so() {
        let (client, server) = pair(Kind::SeqPacket, "long");
        client.send(&[0; 17], &[]).unwrap();
        assert!(server.receive(&mut [0; 16]).unwrap().unwrap().truncated);
    }

    #[test]
    fn a_stream_is_read_in_pieces_and_each_descriptor_comes_with_its_byte() {
        let (client, server) = pair(Kind::Stream, "pieces");
        let file = File::open("/dev/null").unwrap();
        client.send(b"first", &[]).unwrap();
        client.send(b"second", &[file.as_fd()]).unwrap();
        let receive = |len: usize| {
            let packet = server.receive(&mut vec![0; len]).unwrap().unwrap();
            (packet.len, packet.truncated, packet.files.len())
        };
        assert_eq!(receive(3), (3, false, 0));
        assert_eq!(receive(2), (2, false, 0));
        assert_eq!(receive(4), (4, false, 1));
        assert_eq!(receive(9), (2, false, 0));
    }

    #[test]
    fn nothing_an_empty_packet_and_a_gone_peer_are_told_apart() {
        for kind in [Kind::SeqPacket, Kind::Stream] {
            let (client, server) = pair(kind, "gone");
            let error = server.receive(&mut [0; 16]).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            if kind == Kind::SeqPacket {
                client.send(&[], &[]).unwrap();
                assert_eq!(server.receive(&mut [0; 16]).unwrap().unwrap().len, 0);
            }
            drop(client);
            assert!(server.receive(&mut [0; 16]).unwrap().is_none());
        }
    }
}
