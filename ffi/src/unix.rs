//! Bytes and file descriptors over Unix sockets: AF_UNIX, SOCK_SEQPACKET or SOCK_STREAM.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{self, PassCred};
use nix::sys::socket::{
    Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, UnixAddr, accept4, bind, connect, getsockopt, listen,
    sendmsg, setsockopt, shutdown,
};

use crate::closers;
use crate::descriptor_account::{DescriptorAccount, account_max};
use crate::peer_file::PeerFile;
use crate::socket_file::{Access, BindError, SocketFile, connect_to, listen_at};
pub use crate::socket_kind::Kind;
use crate::socket_kind::{new_socket, socket_type};

/// A connected socket. It never blocks: an operation that would have to wait says `WouldBlock`.
pub struct UnixSocket {
    /// There until it is dropped or given away.
    fd: Option<OwnedFd>,
    kind: Kind,
    account: Arc<DescriptorAccount>,
    /// The descriptors that come next in a stream, before their byte was taken.
    ahead: RefCell<Vec<PeerFile>>,
}

/// What was received at once: one packet, or some bytes of a stream.
pub struct Packet {
    /// How many bytes of the buffer it filled.
    pub len: usize,
    /// What of it did not arrive. Without all of its descriptors it stays in the socket: nothing comes behind it.
    pub lost: Option<Lost>,
    /// The descriptors that came with it; whoever does not want them drops them.
    pub files: Vec<PeerFile>,
}

/// Why not all of a packet arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It is longer than the buffer.
    Bytes,
    /// More descriptors came than are taken.
    TooManyFiles,
    /// The peers of this socket hold as many descriptors as they may.
    NoRoomForFiles,
    /// This process has as many descriptors as it may.
    TableFull,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes => f.write_str("a message is longer than any that there is"),
            Self::TooManyFiles => f.write_str("more descriptors came with a message than any message has"),
            Self::NoRoomForFiles => write!(
                f,
                "descriptors that came with a message were lost: those that peers of this socket sent, and which are not \
                 closed yet, are as many as may be ({}, and half of ulimit -n for all sockets)",
                account_max()
            ),
            Self::TableFull => f.write_str(
                "descriptors that came with a message were lost: this process has as many open as it may (ulimit -n)",
            ),
        }
    }
}

impl UnixSocket {
    /// Connects to `address`, in the network namespace of the calling thread.
    pub fn connect(kind: Kind, address: &UnixAddr) -> io::Result<Self> {
        let socket = new_socket(kind)?;
        connect(socket.as_raw_fd(), address)?;
        Self::connected(socket, kind, Arc::default())
    }

    /// A connected socket that another process had.
    ///
    /// # Errors
    /// It is no socket, or one of the other kind.
    pub fn from_fd(fd: OwnedFd, kind: Kind) -> io::Result<Self> {
        check_kind(&fd, kind, false)?;
        Self::connected(fd, kind, Arc::default())
    }

    /// Connects to whoever listens at `path`, of any length.
    pub fn connect_path(kind: Kind, path: &Path) -> io::Result<Self> {
        let socket = new_socket(kind)?;
        connect_to(socket.as_fd(), path)?;
        Self::connected(socket, kind, Arc::default())
    }

    /// What the peer sends counts in this account from now on: that of whoever connects, and connects again when the peer
    /// has gone. Otherwise each connection would have an account of its own, and a peer as many as it likes.
    #[must_use]
    pub fn charged_to(mut self, account: &Arc<DescriptorAccount>) -> Self {
        self.account = Arc::clone(account);
        self
    }

    /// The descriptor, for another process: the peer does not notice that this one lets go of it.
    pub fn into_fd(mut self) -> OwnedFd {
        self.fd.take().expect("it is there until the value is dropped")
    }

    fn connected(fd: OwnedFd, kind: Kind, account: Arc<DescriptorAccount>) -> io::Result<Self> {
        if kind == Kind::SeqPacket {
            // The kernel signs every packet, so that an empty one is not taken for the end.
            setsockopt(&fd, PassCred, &true)?;
        }
        Ok(Self { fd: Some(fd), kind, account, ahead: RefCell::default() })
    }

    /// Sends bytes with descriptors, and says how many bytes: of a packet, all; of a stream, perhaps not.
    pub fn send(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        Ok(sendmsg::<()>(self.as_fd().as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?)
    }

    /// Receives one packet, or what there is of a stream and fits; `None`: the peer has gone. No more than `files_max`
    /// descriptors are taken, and none that the account has no room for.
    ///
    /// The packet is looked at first, which takes its descriptors, and then taken without them: a descriptor that the
    /// kernel drops here for want of room would be closed here, for as long as its sender likes.
    pub fn receive(&self, buffer: &mut [u8], files_max: usize) -> io::Result<Option<Packet>> {
        let mut ahead = self.ahead.borrow_mut();
        let mut len = buffer.len();
        let mut lost = None;
        if ahead.is_empty() {
            let room = self.account.room();
            let Some(seen) = self.receive_once(buffer, files_max.min(room), libc::MSG_PEEK)? else { return Ok(None) };
            if seen.files_cut {
                let lost = match seen.files.len() {
                    count if count >= files_max => Lost::TooManyFiles,
                    count if count >= room => Lost::NoRoomForFiles,
                    _ => Lost::TableFull,
                };
                return Ok(Some(Packet { len: seen.len, lost: Some(lost), files: seen.files }));
            }
            (len, lost, *ahead) = (seen.len, seen.bytes_cut.then_some(Lost::Bytes), seen.files);
        }
        let Some(taken) = self.receive_once(&mut buffer[..len], 0, 0)? else { return Ok(None) };
        // A look at the end of one piece of a stream also shows the descriptors of the next.
        let files = if taken.files_cut { std::mem::take(&mut *ahead) } else { Vec::new() };
        Ok(Some(Packet { len: taken.len, lost, files }))
    }

    /// Not by nix: of a list of descriptors that was cut (because the table of this process is full) it
    /// shows none, and those that the kernel had already put into the table would stay there for ever.
    fn receive_once(&self, buffer: &mut [u8], files_max: usize, flags: i32) -> io::Result<Option<Received>> {
        let mut control = [0u64; CONTROL_WORDS];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: a msghdr is integers and pointers, for which zeros are valid.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control_len(self.kind, files_max.min(SCM_MAX_FD));
        let flags = flags | libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: the header names `buffer` and `control` by no more than their lengths, and both outlive the call.
        let len = Errno::result(unsafe { libc::recvmsg(self.as_fd().as_raw_fd(), &raw mut header, flags) })?;
        // SAFETY: the kernel has just filled the header and what it names.
        let (signed, files) = unsafe { taken(&header, &self.account) };
        let is_end = match self.kind {
            Kind::SeqPacket => !signed,
            Kind::Stream => len == 0,
        };
        let [files_cut, bytes_cut] = [libc::MSG_CTRUNC, libc::MSG_TRUNC].map(|flag| header.msg_flags & flag != 0);
        Ok((!is_end).then_some(Received { len: len.cast_unsigned(), files_cut, bytes_cut, files }))
    }
}

/// What one system call brought.
struct Received {
    len: usize,
    /// There were more descriptors.
    files_cut: bool,
    /// There were more bytes.
    bytes_cut: bool,
    files: Vec<PeerFile>,
}

/// Room in the control buffer for so many descriptors, and the sender's credentials where each packet has them.
fn control_len(kind: Kind, files: usize) -> usize {
    // SAFETY: CMSG_SPACE and CMSG_LEN only calculate.
    let (credentials, list) = unsafe {
        (libc::CMSG_SPACE(size_of::<libc::ucred>() as u32), libc::CMSG_LEN((files * size_of::<RawFd>()) as u32))
    };
    let credentials = if kind == Kind::SeqPacket { credentials as usize } else { 0 };
    credentials + if files > 0 { list as usize } else { 0 }
}

/// What came beside the bytes of a packet: whether it says who sent it, as every packet does and the end
/// of the connection does not, and its descriptors.
///
/// # Safety
/// `header` must be what `recvmsg` has just filled, and nobody else may take its descriptors.
unsafe fn taken(header: &libc::msghdr, account: &Arc<DescriptorAccount>) -> (bool, Vec<PeerFile>) {
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
                    files.extend((0..count).map(|at| PeerFile::counted(raw(at), account)));
                }
            }
            _ => {}
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        part = unsafe { libc::CMSG_NXTHDR(header, part) };
    }
    (signed, files)
}

impl Drop for UnixSocket {
    /// The peer sees the end at once. What was not read may hold descriptors, which the kernel closes with the socket: so
    /// a closer does that. After the shutdown nothing can come any more.
    fn drop(&mut self) {
        let Some(fd) = &self.fd else { return };
        let _ = shutdown(fd.as_raw_fd(), Shutdown::Both);
        let has_more = !matches!(self.receive_once(&mut [0], 0, libc::MSG_PEEK), Ok(None));
        if has_more && let Some(fd) = self.fd.take() {
            closers::close(fd, self.account.count());
        }
    }
}

impl AsFd for UnixSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("it is there until the value is dropped").as_fd()
    }
}

/// A listening socket. It never blocks.
pub struct UnixListener {
    fd: OwnedFd,
    kind: Kind,
    account: Arc<DescriptorAccount>,
}

impl UnixListener {
    /// Binds to `address`, in the network namespace of the calling thread, and listens.
    pub fn bind(kind: Kind, address: &UnixAddr, backlog: u8) -> io::Result<Self> {
        let fd = new_socket(kind)?;
        bind(fd.as_raw_fd(), address)?;
        listen(&fd, Backlog::new(i32::from(backlog))?)?;
        Ok(Self { fd, kind, account: Arc::default() })
    }

    /// Listens at `path`, which whoever has `access` may connect to.
    pub fn bind_path(kind: Kind, path: &Path, access: Access, backlog: u8) -> Result<(Self, SocketFile), BindError> {
        let (fd, file) = listen_at(kind, path, access, backlog)?;
        Ok((Self { fd, kind, account: Arc::default() }, file))
    }

    /// A listening socket that another process had, with everybody who waits there.
    ///
    /// # Errors
    /// It is no socket, does not listen, or is one of the other kind.
    pub fn from_fd(fd: OwnedFd, kind: Kind) -> io::Result<Self> {
        check_kind(&fd, kind, true)?;
        Ok(Self { fd, kind, account: Arc::default() })
    }

    /// What whoever comes here sends counts in this account from now on: that of the path, which may be listened on again.
    #[must_use]
    pub fn charged_to(mut self, account: &Arc<DescriptorAccount>) -> Self {
        self.account = Arc::clone(account);
        self
    }

    /// What the peers that came here hold of our descriptors.
    pub fn account(&self) -> &DescriptorAccount {
        &self.account
    }

    /// Closes it. Nobody can connect any more, and whoever waits here sees the end. What they sent may hold descriptors,
    /// which the kernel closes with their sockets, for as long as their senders like: so each is taken out, and a closer
    /// closes it at the cost of the account. This does not wait for any of them.
    pub fn turn_away(self) {
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
        loop {
            match self.accept() {
                Ok(waiting) => drop(waiting),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // No descriptors are left to take them out with: they go as one.
                Err(_) => return closers::close(self.fd, self.account.count()),
            }
        }
    }

    /// The next connection.
    pub fn accept(&self) -> io::Result<UnixSocket> {
        let raw = accept4(self.fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        // SAFETY: accept4 has just made this descriptor for us.
        UnixSocket::connected(unsafe { OwnedFd::from_raw_fd(raw) }, self.kind, Arc::clone(&self.account))
    }
}

impl AsFd for UnixListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a descriptor from elsewhere is such a socket, and listens or does not.
fn check_kind(fd: &OwnedFd, kind: Kind, listens: bool) -> io::Result<()> {
    if getsockopt(fd, sockopt::SockType)? != socket_type(kind) || getsockopt(fd, sockopt::AcceptConn)? != listens {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket of another kind"));
    }
    Ok(())
}

/// The kernel passes no more descriptors than this with one packet (include/net/scm.h).
const SCM_MAX_FD: usize = 253;
/// Room for as many and the sender's credentials, in words, which align it for the kernel's headers:
/// a list that is cut for want of room is one that we would have to ask for again.
const CONTROL_WORDS: usize = (16 + 4 * SCM_MAX_FD).div_ceil(8) + (16 + size_of::<libc::ucred>()).div_ceil(8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::closers::tests::stuck;
    use std::fs::File;
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

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
            let packet = server.receive(&mut buffer, 4).unwrap().unwrap();
            assert_eq!((&buffer[..packet.len], packet.lost, packet.files.len()), (&b"hello"[..], None, 2));
        }
    }

    #[test]
    fn a_packet_longer_than_the_buffer_says_so() {
        let (client, server) = pair(Kind::SeqPacket, "long");
        client.send(&[0; 17], &[]).unwrap();
        assert!(server.receive(&mut [0; 16], 4).unwrap().unwrap().lost == Some(Lost::Bytes));
    }

    #[test]
    fn descriptors_beyond_the_limit_are_not_taken_and_nothing_comes_behind_them() {
        for kind in [Kind::SeqPacket, Kind::Stream] {
            let (client, server) = pair(kind, "limit");
            let file = File::open("/dev/null").unwrap();
            client.send(b"many", &[file.as_fd(); 5]).unwrap();
            client.send(b"more", &[]).unwrap();
            for _ in 0..2 {
                let packet = server.receive(&mut [0; 4], 4).unwrap().unwrap();
                assert_eq!((packet.lost, packet.files.len()), (Some(Lost::TooManyFiles), 4));
            }
            let packet = server.receive(&mut [0; 4], 5).unwrap().unwrap();
            assert_eq!((packet.lost, packet.files.len()), (None, 5));
            assert_eq!(server.receive(&mut [0; 4], 0).unwrap().unwrap().lost, None);
        }
    }

    #[test]
    fn an_account_without_room_takes_no_descriptors() {
        let (client, server) = pair(Kind::SeqPacket, "account");
        let file = File::open("/dev/null").unwrap();
        let mut held = Vec::new();
        let lost = (0..account_max()).find_map(|_| {
            client.send(b"x", &[file.as_fd(); 100]).unwrap();
            let packet = server.receive(&mut [0; 1], 100).unwrap().unwrap();
            held.extend(packet.files);
            packet.lost
        });
        assert_eq!((lost, server.account.held()), (Some(Lost::NoRoomForFiles), account_max()));
        held.clear();
        let deadline = Instant::now() + Duration::from_secs(20);
        while server.account.held() > 0 {
            assert!(Instant::now() < deadline, "{} are held", server.account.held());
            std::thread::yield_now();
        }
        assert_eq!(server.receive(&mut [0; 1], 100).unwrap().unwrap().files.len(), 100);
    }

    #[test]
    fn the_connections_of_one_account_hold_descriptors_together() {
        let account = Arc::default();
        let file = File::open("/dev/null").unwrap();
        let connected = ["first", "second"].map(|name| {
            let name = format!("ferrule-ffi-charged-{name}-{}", std::process::id());
            let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
            let listener = UnixListener::bind(Kind::Stream, &address, 5).unwrap();
            let client = UnixSocket::connect(Kind::Stream, &address).unwrap().charged_to(&account);
            let server = listener.accept().unwrap();
            server.send(b"x", &[file.as_fd(); 3]).unwrap();
            (client.receive(&mut [0; 1], 3).unwrap().unwrap().files, server)
        });
        let taken = connected.each_ref().map(|(files, _)| files.len());
        assert_eq!((taken, account.held()), ([3, 3], 6));
    }

    #[test]
    fn who_waits_at_a_socket_that_is_closed_is_turned_away_and_holds_up_nobody() {
        for kind in [Kind::SeqPacket, Kind::Stream] {
            let address =
                UnixAddr::new_abstract(format!("ferrule-ffi-away-{kind:?}-{}", std::process::id()).as_bytes());
            let address = address.unwrap();
            let account = Arc::default();
            let listener = UnixListener::bind(kind, &address, 5).unwrap().charged_to(&account);
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            // The close of what each sent waits for as long as its far end does not read.
            let waiting: Vec<_> = (0..3)
                .map(|_| {
                    let (file, far) = stuck(&tcp);
                    let client = UnixSocket::connect(kind, &address).unwrap();
                    client.send(b"x", &[file.as_fd()]).unwrap();
                    (client, far)
                })
                .collect();
            let (closed, is_closed) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                listener.turn_away();
                let _ = closed.send(());
            });
            assert_eq!(is_closed.recv_timeout(Duration::from_secs(20)), Ok(()), "nothing waits for a peer");
            assert_eq!(account.held(), 3);
            assert!(UnixSocket::connect(kind, &address).is_err());
            for (client, _) in &waiting {
                // What it had sent is lost, which the kernel may say first.
                match client.receive(&mut [0; 1], 0) {
                    Ok(packet) => assert!(packet.is_none()),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{kind:?}"),
                }
            }
            let _again = UnixListener::bind(kind, &address, 5).unwrap();
            drop(waiting);
            let deadline = Instant::now() + Duration::from_secs(20);
            while account.held() > 0 {
                assert!(Instant::now() < deadline, "{} are held", account.held());
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn a_stream_is_read_in_pieces_and_each_descriptor_comes_with_its_byte() {
        let (client, server) = pair(Kind::Stream, "pieces");
        let file = File::open("/dev/null").unwrap();
        client.send(b"first", &[]).unwrap();
        client.send(b"second", &[file.as_fd()]).unwrap();
        let receive = |len: usize| {
            let packet = server.receive(&mut vec![0; len], 4).unwrap().unwrap();
            (packet.len, packet.lost.is_some(), packet.files.len())
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
            let error = server.receive(&mut [0; 16], 4).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            if kind == Kind::SeqPacket {
                client.send(&[], &[]).unwrap();
                assert_eq!(server.receive(&mut [0; 16], 4).unwrap().unwrap().len, 0);
            }
            drop(client);
            assert!(server.receive(&mut [0; 16], 4).unwrap().is_none());
        }
    }
}
