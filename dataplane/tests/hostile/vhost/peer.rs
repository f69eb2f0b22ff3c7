//! A frontend that says what it likes on the control socket.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::port::vhost_user::channel::{VhostUserChannel, VhostUserChannelError};
use ferrule_dataplane::port::vhost_user::message::VhostUserRequest;
use ferrule_dataplane::spec::SocketAddress;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use crate::raw;
use crate::testbed::Testbed;

/// A control socket without manners: it listens like any other, and says anything.
pub struct Peer(RefCell<VhostUserChannel>);

/// What a backend answered.
pub struct Answer {
    pub request: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
    pub files: Vec<OwnedFd>,
}

impl Answer {
    /// The number in it.
    pub fn value(&self) -> u64 {
        u64::from_ne_bytes(self.payload[..8].try_into().unwrap())
    }
}

impl Peer {
    /// Connects and says nothing.
    pub fn connect(testbed: &Testbed) -> Self {
        Self::insist(&testbed.socket)
    }

    /// Connects to a backend that may have many others at its door.
    pub fn insist(address: &SocketAddress) -> Self {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(peer) = Self::try_connect(address) {
                return peer;
            }
            assert!(Instant::now() < deadline, "the backend does not let anybody in");
            thread::yield_now();
        }
    }

    /// `None`: there is no descriptor left, or too many wait at the door.
    pub fn try_connect(address: &SocketAddress) -> Option<Self> {
        VhostUserChannel::connect(address).ok().map(Self::from)
    }

    /// Sends any bytes with any descriptors. Whether the socket took them all.
    pub fn send(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> bool {
        let deadline = Instant::now() + DEADLINE;
        let (mut left, mut files) = (bytes, files);
        while Instant::now() < deadline {
            match raw::send(&*self.0.borrow(), left, files) {
                Ok(sent) => (left, files) = (&left[sent..], &[]),
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT),
                Err(_) => return false,
            }
            if left.is_empty() {
                return true;
            }
        }
        false
    }

    /// Sends any request, with a header that tells the truth about its payload.
    pub fn request(&self, number: u32, flags: u32, payload: &[u8], files: &[BorrowedFd<'_>]) -> bool {
        self.send(&message(number, flags, payload), files)
    }

    /// Says something, and does not ask whether it was done.
    pub fn say(&self, request: &VhostUserRequest, files: &[BorrowedFd<'_>]) {
        self.send(&request.emit(false), files);
    }

    /// Says something and wants an answer: whether it was done.
    pub fn demand(&self, request: &VhostUserRequest, files: &[BorrowedFd<'_>]) -> bool {
        self.send(&request.emit(true), files);
        let answer = self.hear().expect("an answer, since one was asked for");
        assert_eq!((answer.request, answer.flags, answer.payload.len()), (request.number(), REPLY, 8));
        answer.value() == 0
    }

    /// Asks for something.
    pub fn ask(&self, request: &VhostUserRequest, files: &[BorrowedFd<'_>]) -> Answer {
        self.send(&request.emit(false), files);
        let answer = self.hear().unwrap_or_else(|| panic!("no answer to {}", request.word()));
        assert_eq!((answer.request, answer.flags), (request.number(), REPLY));
        answer
    }

    /// Waits until everything said so far was heard. `false`: the other side has closed.
    pub fn is_heard(&self) -> bool {
        self.send(&VhostUserRequest::GetFeatures.emit(false), &[]);
        self.hear().is_some()
    }

    /// The next answer; `None`: the other side has closed.
    pub fn hear(&self) -> Option<Answer> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.0.borrow_mut().receive() {
                Ok(Some(envelope)) => {
                    let files = envelope.files.iter().map(|file| file.as_fd().try_clone_to_owned().unwrap()).collect();
                    let header = envelope.header;
                    return Some(Answer {
                        request: header.request,
                        flags: header.flags,
                        payload: envelope.payload,
                        files,
                    });
                }
                Ok(None) => assert!(Instant::now() < deadline, "nothing heard on the control socket"),
                Err(VhostUserChannelError::Closed) => return None,
                Err(error) => panic!("the backend says nonsense: {error}"),
            }
            self.wait(PollFlags::POLLIN);
        }
    }

    /// Hears everything until the other side closes.
    pub fn is_parted(&self) {
        while self.hear().is_some() {}
    }

    /// The socket itself, to be passed or shut.
    pub fn socket(&self) -> OwnedFd {
        self.0.borrow().as_fd().try_clone_to_owned().unwrap()
    }

    fn wait(&self, what: PollFlags) {
        let channel = self.0.borrow();
        let _ = poll(&mut [PollFd::new(channel.as_fd(), what)], 100u16);
    }
}

impl From<VhostUserChannel> for Peer {
    fn from(channel: VhostUserChannel) -> Self {
        Self(RefCell::new(channel))
    }
}

/// A message, whose header tells the truth about the payload.
pub fn message(number: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let header = [number, flags, payload.len() as u32].map(u32::to_ne_bytes);
    [header.concat(), payload.to_vec()].concat()
}

/// Flags of a request.
pub const PLAIN: u32 = 1;
/// Flags of a request that wants an answer.
pub const NEED_REPLY: u32 = 9;
/// Flags of an answer.
const REPLY: u32 = 5;
const DEADLINE: Duration = Duration::from_secs(20);
