//! Packets and file descriptors over Unix sockets (AF_UNIX, SOCK_SEQPACKET).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, accept4, bind, connect, listen, recvmsg, sendmsg, socket,
};

/// A connected socket. It never blocks: an operation that would have to wait says `WouldBlock`.
pub struct SeqPacket(OwnedFd);

/// One packet received.
pub struct Packet {
    /// How many bytes of the buffer it filled.
    pub len: usize,
    /// Whether it was longer than the buffer, or its descriptors did not all arrive.
    pub truncated: bool,
    /// The descriptors that came with it; whoever does not want them drops them.
    pub files: Vec<OwnedFd>,
}

impl SeqPacket {
    /// Connects to `address`, in the network namespace of the calling thread.
    pub fn connect(address: &UnixAddr) -> io::Result<Self> {
        let socket = new_socket()?;
        connect(socket.as_raw_fd(), address)?;
        Ok(Self(socket))
    }

    /// Sends one packet, with at most one descriptor.
    pub fn send(&self, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let raw: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?;
        Ok(())
    }

    /// Receives one packet. A length of 0 means that the peer has gone.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Packet> {
        // Room for all that the kernel passes at once, so that it never cuts a list and we never
        // lose track of a descriptor it has already put into our table.
        let mut control = cmsg_space!([RawFd; SCM_MAX_FD], UnixCredentials);
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let cut = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
        let mut files = Vec::new();
        for part in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(list) = part {
                // SAFETY: the kernel has just made these descriptors for us and nobody else owns them.
                files.extend(list.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        Ok(Packet { len: message.bytes, truncated: cut, files })
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A listening socket. It never blocks.
pub struct SeqPacketListener(OwnedFd);

impl SeqPacketListener {
    /// Binds to `address`, in the network namespace of the calling thread, and listens.
    pub fn bind(address: &UnixAddr, backlog: u8) -> io::Result<Self> {
        let socket = new_socket()?;
        bind(socket.as_raw_fd(), address)?;
        listen(&socket, Backlog::new(i32::from(backlog))?)?;
        Ok(Self(socket))
    }

    /// The next connection.
    pub fn accept(&self) -> io::Result<SeqPacket> {
        let raw = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        // SAFETY: accept4 has just made this descriptor for us.
        Ok(SeqPacket(unsafe { OwnedFd::from_raw_fd(raw) }))
    }
}

impl AsFd for SeqPacketListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
}

/// The kernel passes no more descriptors than this with one packet (include/net/scm.h).
const SCM_MAX_FD: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn pair(name: &str) -> (SeqPacket, SeqPacket) {
        let name = format!("ferrule-ffi-{name}-{}", std::process::id());
        let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
        let listener = SeqPacketListener::bind(&address, 5).unwrap();
        let client = SeqPacket::connect(&address).unwrap();
        (client, listener.accept().unwrap())
    }

    #[test]
    fn a_packet_arrives_with_its_descriptor() {
        let (client, server) = pair("descriptor");
        let file = File::open("/dev/null").unwrap();
        client.send(b"hello", Some(file.as_fd())).unwrap();
        let mut buffer = [0; 16];
        let packet = server.receive(&mut buffer).unwrap();
        assert_eq!((&buffer[..packet.len], packet.truncated, packet.files.len()), (&b"hello"[..], false, 1));
    }

    #[test]
    fn a_packet_longer_than_the_buffer_says_so() {
        let (client, server) = pair("long");
        client.send(&[0; 17], None).unwrap();
        assert!(server.receive(&mut [0; 16]).unwrap().truncated);
    }

    #[test]
    fn nothing_to_receive_is_would_block_and_a_gone_peer_is_zero_bytes() {
        let (client, server) = pair("gone");
        let error = server.receive(&mut [0; 16]).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(client);
        assert_eq!(server.receive(&mut [0; 16]).unwrap().len, 0);
    }
}
