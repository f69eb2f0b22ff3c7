//! A vhost-user frontend for a program of ours that is the peer at one end of a wire: generator, responder, test.
//!
//! What DPDK calls virtio-user: the memory and the driver's side of the rings without a guest around them. It blocks: the
//! handshake is led on the calling thread, with a deadline. The rings are those of [`crate::virtio`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::port::Source;
use ferrule_dataplane::port::vhost_user::channel::{VhostUserChannel, VhostUserChannelError};
use ferrule_dataplane::port::vhost_user::features::{Features, ProtocolFeatures};
use ferrule_dataplane::port::vhost_user::memory::MemoryRegion;
use ferrule_dataplane::port::vhost_user::message::{
    LogArea, ReplyBody, VhostUserMessageError, VhostUserReply, VhostUserRequest, VringAddress, VringFile, VringState,
    word_of,
};
use ferrule_dataplane::socket::{Listener, SocketError};
use ferrule_dataplane::spec::{SocketAccess, SocketAddress};
use ferrule_ffi::region::Region;
use ferrule_ffi::unix::Kind;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use crate::virtio::{DriverMemory, DriverRx, DriverSpec, DriverTx, Eventfds};

/// What a frontend is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendSpec {
    /// Where the control socket is.
    pub socket: SocketAddress,
    /// Whether we listen there; otherwise we connect.
    pub listens: bool,
    /// Queue pairs, as far as the backend has them.
    pub queues: u16,
    /// What the rings look like.
    pub rings: DriverSpec,
    /// What to use of what the backend offers.
    pub features: Features,
}

impl FrontendSpec {
    /// A frontend that connects, with one queue pair of split rings and what makes them fast.
    pub fn new(socket: SocketAddress) -> Self {
        let features = Features::VERSION_1 | Features::IN_ORDER;
        Self { socket, listens: false, queues: 1, rings: DriverSpec::default(), features }
    }
}

/// A connected frontend.
pub struct Frontend {
    /// The driver's ends of the rings.
    pub queues: DriverQueues,
    /// What was agreed on.
    pub features: Features,
    conversation: Conversation,
    memory: DriverMemory,
    eventfds: Vec<Eventfds>,
    _listener: Option<Listener>,
}

/// The driver's ends of the rings.
#[derive(Default)]
pub struct DriverQueues {
    /// What it receives from, by queue pair.
    pub receivers: Vec<DriverRx>,
    /// What it transmits into, by queue pair.
    pub senders: Vec<DriverTx>,
}

impl Frontend {
    /// Connects to a backend that is or comes there, or listens until one comes.
    pub fn open(spec: &FrontendSpec, timeout: Duration) -> Result<Self, FrontendError> {
        let deadline = Instant::now() + timeout;
        if spec.listens { Self::listen(spec, deadline) } else { Self::connect(spec, deadline) }
    }

    /// What becomes readable when the backend says something or goes; then ask [`Self::check_peer`].
    pub fn control(&self) -> BorrowedFd<'_> {
        self.conversation.channel.as_fd()
    }

    /// Reads what the peer has said on the control socket, without waiting.
    ///
    /// # Errors
    /// The backend has gone, and why.
    pub fn check_peer(&mut self) -> Result<(), FrontendError> {
        match self.conversation.channel.receive()? {
            None => Ok(()),
            Some(envelope) => Err(FrontendError::Unasked { message: word_of(envelope.header.request) }),
        }
    }

    /// Sleeps until the backend rings for a frame, says something, or `timeout` is over.
    pub fn sleep(&mut self, timeout: Duration) {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        for receiver in &mut self.queues.receivers {
            receiver.enable_notify(true);
        }
        // Looked at once more after asking for eventfds, as the protocol wants.
        if !self.queues.receivers.iter_mut().any(|receiver| receiver.refresh().unwrap_or(true)) {
            let eventfds = self.queues.receivers.iter().filter_map(Source::notify_fd);
            let sockets = std::iter::once(self.conversation.channel.as_fd()).chain(eventfds);
            let mut waiting: Vec<_> = sockets.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            let _ = poll(&mut waiting, timeout);
        }
        for receiver in &mut self.queues.receivers {
            receiver.enable_notify(false);
            if let Some(eventfd) = receiver.notify_fd() {
                // An eventfd holds 8 bytes; only whether it rings matters.
                let _ = nix::unistd::read(eventfd, &mut [0; 8]);
            }
        }
    }

    /// The memory that the rings and their buffers lie in.
    pub fn memory(&self) -> &DriverMemory {
        &self.memory
    }

    /// Has the backend log which pages it writes from now on, as at the beginning of a migration. The bitmap.
    pub fn start_log(&mut self) -> Result<Region, FrontendError> {
        let MemoryRegion { guest, size, .. } = self.memory.row();
        let bytes = (guest + size).div_ceil(8 * LOG_PAGE);
        let log = Region::create("vhost-log", bytes, self.memory.health()).map_err(FrontendError::Memory)?;
        let area = VhostUserRequest::SetLogBase(LogArea { size: bytes, offset: 0 });
        if self.conversation.protocol.has(ProtocolFeatures::LOG_SHMFD) {
            self.conversation.ask(&area, &[log.file()])?;
        } else {
            self.conversation.tell(&area, &[log.file()])?;
        }
        self.features = self.features | Features::LOG_ALL;
        self.conversation.tell(&VhostUserRequest::SetFeatures(self.features.0), &[])?;
        for index in 0..self.eventfds.len() {
            self.conversation.tell(&self.address(index), &[])?;
        }
        self.conversation.wait_until_done()?;
        Ok(log)
    }

    /// Has the backend stop a ring, and says where a successor would begin.
    pub fn stop(&mut self, index: u32) -> Result<u32, FrontendError> {
        let request = VhostUserRequest::GetVringBase(VringState { index, num: 0 });
        match self.conversation.ask(&request, &[])? {
            ReplyBody::Vring(state) => Ok(state.num),
            _ => Err(FrontendError::NoAnswer { request: request.word() }),
        }
    }

    /// Says something to the backend beside what the handshake said, and waits until it was done.
    pub fn tell(&mut self, request: &VhostUserRequest, files: &[BorrowedFd<'_>]) -> Result<(), FrontendError> {
        self.conversation.deadline = Instant::now() + ANSWER;
        self.conversation.tell(request, files)?;
        self.conversation.wait_until_done()
    }

    fn connect(spec: &FrontendSpec, deadline: Instant) -> Result<Self, FrontendError> {
        // Why the try before the last failed tells more than that the last had no time left.
        let mut problem = FrontendError::Timeout;
        loop {
            let outcome = VhostUserChannel::connect(&spec.socket).map_err(FrontendError::from);
            match outcome.and_then(|channel| Self::lead(channel, spec, deadline)) {
                Ok(frontend) => return Ok(frontend),
                Err(FrontendError::Timeout) => return Err(problem),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(error) => problem = error,
            }
            thread::sleep(RETRY);
        }
    }

    fn listen(spec: &FrontendSpec, deadline: Instant) -> Result<Self, FrontendError> {
        let listener = Listener::bind(Kind::Stream, &spec.socket, None, &SocketAccess::default())?;
        loop {
            wait(&listener, deadline)?;
            // A backend that fails its handshake does not end the wait for a better one.
            if let Ok(socket) = listener.accept()
                && let Ok(frontend) = Self::lead(socket.into(), spec, deadline)
            {
                return Ok(Self { _listener: Some(listener), ..frontend });
            }
        }
    }

    /// The whole handshake, in the order of DPDK's virtio-user.
    fn lead(channel: VhostUserChannel, spec: &FrontendSpec, deadline: Instant) -> Result<Self, FrontendError> {
        let mut conversation = Conversation { channel, deadline, protocol: ProtocolFeatures::default() };
        let (features, queues) = conversation.negotiate(spec)?;
        let rings = 2 * usize::from(queues);
        let memory = DriverMemory::create(spec.rings, rings).map_err(FrontendError::Memory)?;
        let eventfds = std::iter::repeat_with(Eventfds::new).take(rings).collect::<io::Result<Vec<_>>>();
        let eventfds = eventfds.map_err(FrontendError::Memory)?;
        let mut frontend =
            Self { queues: DriverQueues::default(), features, conversation, memory, eventfds, _listener: None };
        for index in 0..rings {
            let eventfds = frontend.eventfds[index].clone();
            if index.is_multiple_of(2) {
                frontend.queues.receivers.push(DriverRx::new(&frontend.memory, index, features, eventfds));
            } else {
                frontend.queues.senders.push(DriverTx::new(&frontend.memory, index, features, eventfds));
            }
        }
        frontend.announce()?;
        Ok(frontend)
    }

    /// Tells the backend of the memory and the rings, and starts them.
    fn announce(&mut self) -> Result<(), FrontendError> {
        let talk = &mut self.conversation;
        talk.tell(&VhostUserRequest::SetMemTable(vec![self.memory.row()]), &[self.memory.file()])?;
        let first = if self.features.has(Features::RING_PACKED) { PACKED_START } else { 0 };
        for index in 0..self.eventfds.len() {
            let state = |num| VringState { index: index as u32, num };
            // At most 256 rings.
            let file = VringFile { index: index as u8, has_file: true };
            let talk = &mut self.conversation;
            talk.tell(&VhostUserRequest::SetVringNum(state(self.memory.spec().size)), &[])?;
            talk.tell(&VhostUserRequest::SetVringBase(state(first)), &[])?;
            let address = self.address(index);
            let (talk, eventfds) = (&mut self.conversation, &self.eventfds[index]);
            talk.tell(&address, &[])?;
            talk.tell(&VhostUserRequest::SetVringCall(file), &[eventfds.call.as_fd()])?;
            talk.tell(&VhostUserRequest::SetVringKick(file), &[eventfds.kick.as_fd()])?;
        }
        let talk = &mut self.conversation;
        if self.features.has(Features::PROTOCOL_FEATURES) {
            for index in 0..self.eventfds.len() as u32 {
                talk.tell(&VhostUserRequest::SetVringEnable(VringState { index, num: 1 }), &[])?;
            }
        }
        if talk.protocol.has(ProtocolFeatures::STATUS) {
            talk.tell(&VhostUserRequest::SetStatus(DRIVER_OK), &[])?;
        }
        talk.wait_until_done()
    }

    fn address(&self, index: usize) -> VhostUserRequest {
        let at = self.memory.addresses(index);
        VhostUserRequest::SetVringAddr(VringAddress {
            index: index as u32,
            log: self.features.has(Features::LOG_ALL),
            desc: at.desc,
            used: at.used,
            avail: at.avail,
            log_guest: at.used_guest,
        })
    }
}

/// The control socket and what was agreed on for it.
struct Conversation {
    channel: VhostUserChannel,
    deadline: Instant,
    /// Protocol features.
    protocol: ProtocolFeatures,
}

impl Conversation {
    /// Agrees on features and on the number of queue pairs.
    fn negotiate(&mut self, spec: &FrontendSpec) -> Result<(Features, u16), FrontendError> {
        self.tell(&VhostUserRequest::SetOwner, &[])?;
        let offered = Features(self.value(&VhostUserRequest::GetFeatures)?);
        let mut wanted = spec.features | Features::PROTOCOL_FEATURES;
        let mut queues = spec.queues.max(1);
        if offered.has(Features::PROTOCOL_FEATURES) {
            let offered = self.value(&VhostUserRequest::GetProtocolFeatures)?;
            let protocol = ProtocolFeatures(offered & KNOWN.0);
            self.tell(&VhostUserRequest::SetProtocolFeatures(protocol.0), &[])?;
            self.protocol = protocol;
        }
        if queues > 1 && self.protocol.has(ProtocolFeatures::MQ) && offered.has(Features::MQ) {
            wanted = wanted | Features::MQ;
            let pairs = self.value(&VhostUserRequest::GetQueueNum)?;
            queues = u16::try_from(pairs).unwrap_or(u16::MAX).clamp(1, queues).min(PAIRS_MAX);
        } else {
            queues = 1;
        }
        let features = offered & wanted;
        self.tell(&VhostUserRequest::SetFeatures(features.0), &[])?;
        Ok((features, queues))
    }

    /// Says something that has no answer of its own; that it was done is waited for, if the backend says so.
    fn tell(&mut self, request: &VhostUserRequest, files: &[BorrowedFd<'_>]) -> Result<(), FrontendError> {
        let acknowledged = self.protocol.has(ProtocolFeatures::REPLY_ACK);
        self.channel.send(&request.emit(acknowledged), files)?;
        if acknowledged && self.answer(request)? != ReplyBody::Value(0) {
            return Err(FrontendError::Refused { request: request.word() });
        }
        Ok(())
    }

    /// Asks for something.
    fn ask(&mut self, request: &VhostUserRequest, files: &[BorrowedFd<'_>]) -> Result<ReplyBody, FrontendError> {
        self.channel.send(&request.emit(false), files)?;
        self.answer(request)
    }

    fn value(&mut self, request: &VhostUserRequest) -> Result<u64, FrontendError> {
        match self.ask(request, &[])? {
            ReplyBody::Value(value) => Ok(value),
            _ => Err(FrontendError::NoAnswer { request: request.word() }),
        }
    }

    fn answer(&mut self, request: &VhostUserRequest) -> Result<ReplyBody, FrontendError> {
        loop {
            let Some(envelope) = self.channel.receive()? else {
                wait(&self.channel, self.deadline)?;
                continue;
            };
            let number = request.number();
            if !envelope.header.is_reply() || envelope.header.request != number {
                return Err(FrontendError::Unasked { message: word_of(envelope.header.request) });
            }
            return Ok(VhostUserReply::parse(number, &envelope.payload)?.body);
        }
    }

    /// Requests are answered in their order, so whoever answers this one has done all before it.
    fn wait_until_done(&mut self) -> Result<(), FrontendError> {
        self.value(&VhostUserRequest::GetFeatures).map(|_| ())
    }
}

/// Waits until something can be read.
fn wait(socket: &impl AsFd, deadline: Instant) -> Result<(), FrontendError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(0) => Err(FrontendError::Timeout),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(VhostUserChannelError::from(io::Error::from(errno)).into()),
    }
}

/// Why a frontend has no backend.
#[derive(Debug, Error)]
pub enum FrontendError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// What goes over it.
    #[error("vhost-user: {0}")]
    Channel(#[from] VhostUserChannelError),
    /// What the backend says is no message.
    #[error("vhost-user: {0}")]
    Message(#[from] VhostUserMessageError),
    /// The backend does not want it.
    #[error("vhost-user: the backend refused {request}")]
    Refused {
        /// What we asked for.
        request: &'static str,
    },
    /// The answer is of another kind.
    #[error("vhost-user: the backend's answer to {request} holds no number")]
    NoAnswer {
        /// What we asked for.
        request: &'static str,
    },
    /// The backend says something that we did not ask for.
    #[error("vhost-user: {message} came from the backend, which nobody had asked for it")]
    Unasked {
        /// What it says.
        message: &'static str,
    },
    /// No memory, or no more eventfds.
    #[error("make memory and eventfds for the rings: {0}")]
    Memory(#[source] io::Error),
    /// Nobody came in time.
    #[error("no backend came in time")]
    Timeout,
}

/// What we speak of the protocol.
const KNOWN: ProtocolFeatures = ProtocolFeatures::MQ
    .with(ProtocolFeatures::LOG_SHMFD)
    .with(ProtocolFeatures::REPLY_ACK)
    .with(ProtocolFeatures::STATUS);
/// ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK (virtio 1.2, 2.1).
const DRIVER_OK: u64 = 0x0f;
/// Where a packed ring begins: at 0, with both wrap counters set.
const PACKED_START: u32 = 0x8000_8000;
/// Queue pairs whose ring indexes fit the byte that SET_VRING_KICK has for them.
const PAIRS_MAX: u16 = 128;
const LOG_PAGE: u64 = 4096;
/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(20);
/// How long a backend may take to answer once it runs.
const ANSWER: Duration = Duration::from_secs(5);
