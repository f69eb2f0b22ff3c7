//! The conversation before data flows, without I/O: messages and files in, messages and files out.
//!
//! ```text
//!  server                                   client
//!     | -- HELLO ------------------------------> |   what I take
//!     | <------------------------------- INIT -- |   which interface, secret
//!     | <------------- ADD_REGION, ADD_RING .. -- |  each after the ACK of the one before
//!     | <---------------------------- CONNECT -- |
//!     | -- CONNECTED --------------------------> |   data may flow
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ferrule_ffi::health::Health;
use ferrule_ffi::memory_budget::MemoryBudget;
use ferrule_ffi::peer_file::PeerFile;
use ferrule_ffi::unix::Lost;
use thiserror::Error;

use crate::port::memif::layout::{Layout, LayoutError, Loan, NoLoan, Queues, REGIONS_MAX};
use crate::port::memif::message::{Hello, Init, MemifMessage, MemifMessageError, VERSION, mode_number};
use crate::spec::{MemifSpec, Mode, QUEUES_MAX, RING_MAX, Secret};

/// A connection that carries data.
pub struct Connection {
    /// The interface id.
    pub id: u32,
    /// What the peer calls itself.
    pub peer: String,
    /// The shared memory.
    pub layout: Layout,
    /// Our ends of its rings.
    pub queues: Queues,
    /// As client that was to lend another peer's memory: why it does not.
    pub no_loan: Option<NoLoan>,
}

/// Messages to send, in order, some with a file.
#[derive(Default)]
pub struct Outbox(pub VecDeque<(MemifMessage, Option<OwnedFd>)>);

impl Outbox {
    fn push(&mut self, message: MemifMessage) {
        self.0.push_back((message, None));
    }
}

/// The server's side of a conversation.
pub enum Server {
    /// HELLO was sent.
    ExpectInit,
    /// The interface is known; its memory is being announced.
    ExpectLayout(ExpectLayout),
    /// CONNECTED was sent.
    Connected(Box<Connection>),
}

/// What is known once INIT was accepted.
pub struct ExpectLayout {
    pub(super) id: u32,
    pub(super) peer: String,
    pub(super) layout: Layout,
}

/// An interface that a server offers.
#[derive(Clone, Copy)]
pub struct MemifOffer<'a> {
    /// What its frames are.
    pub mode: Mode,
    /// What the client must know.
    pub secret: Option<&'a Secret>,
    /// The most queue pairs that it takes.
    pub queues: u16,
    /// What its memory may cost us.
    pub memory: &'a Arc<MemoryBudget>,
}

impl Server {
    /// A conversation with a client that has just been accepted, and that is told how many queue pairs to have at most.
    pub fn greet(queues: u16, out: &mut Outbox) -> Self {
        let last_ring = queues.clamp(1, QUEUES_MAX) - 1;
        out.push(MemifMessage::Hello(Hello {
            name: PROGRAM.to_owned(),
            min_version: VERSION,
            max_version: VERSION,
            max_region: REGIONS_MAX as u16 - 1,
            max_m2s_ring: last_ring,
            max_s2m_ring: last_ring,
            max_log2_ring_size: RING_MAX.ilog2() as u8,
        }));
        Self::ExpectInit
    }

    /// Takes one message. `offer` finds the interface of an id that is free.
    pub fn handle<'a>(
        self,
        message: MemifMessage,
        files: Vec<PeerFile>,
        offer: impl Fn(u32) -> Result<MemifOffer<'a>, HandshakeError>,
        out: &mut Outbox,
    ) -> Result<Self, HandshakeError> {
        match self {
            Self::ExpectInit => {
                no_file(&message, &files)?;
                let MemifMessage::Init(init) = message else { return Err(HandshakeError::unexpected("INIT", message)) };
                let offer = offer(init.id)?;
                check_init(&init, offer)?;
                out.push(MemifMessage::Ack);
                let layout = Layout::announced_by_peer(offer.memory).with_queues(offer.queues);
                Ok(Self::ExpectLayout(ExpectLayout { id: init.id, peer: init.name, layout }))
            }
            Self::ExpectLayout(state) => state.handle(message, files, offer, out),
            Self::Connected(_) => Err(HandshakeError::after_connect(message)),
        }
    }
}

impl ExpectLayout {
    fn handle<'a>(
        mut self,
        message: MemifMessage,
        files: Vec<PeerFile>,
        offer: impl Fn(u32) -> Result<MemifOffer<'a>, HandshakeError>,
        out: &mut Outbox,
    ) -> Result<Server, HandshakeError> {
        match message {
            MemifMessage::AddRegion(region) => self.layout.add_region(region, one_file("memory region", files)?)?,
            MemifMessage::AddRing(ring) => self.layout.add_ring(ring, one_file("ring interrupt", files)?)?,
            MemifMessage::Connect { .. } => {
                no_file(&message, &files)?;
                // Somebody else may have taken the id since INIT.
                offer(self.id)?;
                let queues = self.layout.queues()?;
                out.push(MemifMessage::Connected { name: PROGRAM.to_owned() });
                let Self { id, peer, layout } = self;
                return Ok(Server::Connected(Box::new(Connection { id, peer, layout, queues, no_loan: None })));
            }
            other => return Err(HandshakeError::unexpected("ADD_REGION, ADD_RING or CONNECT", other)),
        }
        out.push(MemifMessage::Ack);
        Ok(Server::ExpectLayout(self))
    }
}

/// The client's side of a conversation.
pub enum Client {
    /// Connected to the socket, nothing heard yet. The memory of another peer is to be lent to the server, if any
    /// is named; what we populate of our own is charged to the budget.
    ExpectHello(Option<Loan>, Arc<MemoryBudget>),
    /// Announcing; `rest` waits for an ACK each.
    ExpectAck(Announcing),
    /// CONNECTED was received.
    Connected(Box<Connection>),
}

/// A client's conversation between HELLO and CONNECTED.
pub struct Announcing {
    pub(super) peer: String,
    pub(super) layout: Layout,
    pub(super) no_loan: Option<NoLoan>,
    pub(super) rest: Outbox,
}

impl Client {
    /// Takes one message.
    pub fn handle(
        self,
        message: MemifMessage,
        files: &[PeerFile],
        spec: &MemifSpec,
        out: &mut Outbox,
    ) -> Result<Self, HandshakeError> {
        no_file(&message, files)?;
        match (self, message) {
            (Self::ExpectHello(loan, budget), MemifMessage::Hello(hello)) => {
                Announcing::begin(hello, spec, loan.as_ref(), &Health::within(&budget), out)
            }
            (Self::ExpectAck(mut state), MemifMessage::Ack) => {
                let next = state.rest.0.pop_front();
                out.0.push_back(next.ok_or_else(|| HandshakeError::unexpected("CONNECTED", MemifMessage::Ack))?);
                Ok(Self::ExpectAck(state))
            }
            (Self::ExpectAck(state), MemifMessage::Connected { .. }) if state.rest.0.is_empty() => {
                let Announcing { peer, mut layout, no_loan, .. } = state;
                let queues = layout.queues()?;
                Ok(Self::Connected(Box::new(Connection { id: spec.id, peer, layout, queues, no_loan })))
            }
            (Self::ExpectHello(..), other) => Err(HandshakeError::unexpected("HELLO", other)),
            (Self::ExpectAck(_), other) => Err(HandshakeError::unexpected("ACK", other)),
            (Self::Connected(_), other) => Err(HandshakeError::after_connect(other)),
        }
    }
}

impl Announcing {
    fn begin(
        hello: Hello,
        spec: &MemifSpec,
        loan: Option<&Loan>,
        health: &Arc<Health>,
        out: &mut Outbox,
    ) -> Result<Client, HandshakeError> {
        if !(hello.min_version..=hello.max_version).contains(&VERSION) {
            return Err(HandshakeError::Version(hello.max_version));
        }
        // The limits are the highest index, not a count.
        let most = hello.max_m2s_ring.min(hello.max_s2m_ring).saturating_add(1);
        let ring_max = 1 << hello.max_log2_ring_size.min(14);
        let regions_max = usize::from(hello.max_region) + 1;
        let fit = loan.map(|loan| loan.fit(regions_max, most, ring_max).map(|ring| (loan, ring)));
        let (layout, no_loan) = match fit {
            Some(Ok((loan, ring))) => (Layout::lend(spec, loan, ring, health), None),
            other => {
                let layout = Layout::create(spec, spec.queues.min(most), spec.ring.min(ring_max), health);
                (layout, other.and_then(Result::err))
            }
        };
        let layout = layout.map_err(HandshakeError::Memory)?;
        let secret = spec.secret.as_ref().map_or([0; 24], |secret| *secret.bytes());
        let mode = mode_number(spec.mode);
        out.push(MemifMessage::Init(Init { version: VERSION, id: spec.id, mode, secret, name: PROGRAM.to_owned() }));
        let mut rest = Outbox::default();
        for (region, file) in layout.regions() {
            let file = file.try_clone_to_owned().map_err(HandshakeError::Memory)?;
            rest.0.push_back((MemifMessage::AddRegion(region), Some(file)));
        }
        for (ring, interrupt) in layout.rings() {
            let file = interrupt.as_fd().try_clone_to_owned().map_err(HandshakeError::Memory)?;
            rest.0.push_back((MemifMessage::AddRing(ring), Some(file)));
        }
        rest.push(MemifMessage::Connect { name: PROGRAM.to_owned() });
        Ok(Client::ExpectAck(Self { peer: hello.name, layout, no_loan, rest }))
    }
}

/// Why a conversation ends.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// Not a memif message.
    #[error(transparent)]
    Message(#[from] MemifMessageError),
    /// Announced memory that does not do.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Out of turn.
    #[error("unexpected {got}, expected {expected}")]
    Unexpected {
        /// What would have been right.
        expected: &'static str,
        /// What came.
        got: &'static str,
    },
    /// The peer said goodbye.
    #[error("the peer disconnected: {0}")]
    Left(String),
    /// The peer's socket was closed.
    #[error("the peer closed its socket")]
    Closed,
    /// Descriptors did not arrive.
    #[error("{0}")]
    FilesLost(Lost),
    /// A trusted wire's memory is that of the peer at its other end.
    #[error("the other end of the trusted wire has a new peer, whose memory is lent instead")]
    NewLender,
    /// Another version.
    #[error("memif version {0:#06x} is not spoken here, only {VERSION:#06x}")]
    Version(u16),
    /// No wire has an end of this id on this socket.
    #[error("unmatched interface id {0}")]
    UnknownId(u32),
    /// A client is there.
    #[error("interface id {0} is already connected")]
    AlreadyConnected(u32),
    /// Clients came and went faster than what they gave us is dropped.
    #[error("memory and descriptors of former clients of interface id {0} are still being released; try again")]
    Releasing(u32),
    /// Ethernet or IP.
    #[error("mode mismatch: the client says {client}, the interface is {ours}")]
    Mode {
        /// The number the client sent.
        client: u8,
        /// Ours.
        ours: Mode,
    },
    /// None was sent.
    #[error("secret required")]
    SecretRequired,
    /// Another one was sent.
    #[error("incorrect secret")]
    SecretIncorrect,
    /// ADD_REGION or ADD_RING without one.
    #[error("missing {0} descriptor")]
    NoFile(&'static str),
    /// Descriptors where none belong.
    #[error("{count} descriptors came with {message}")]
    ForeignFiles {
        /// The message.
        message: &'static str,
        /// How many.
        count: usize,
    },
    /// What we send is not read.
    #[error("the peer does not read its control socket")]
    Deaf,
    /// Memory of our own could not be made.
    #[error("make the shared memory: {0}")]
    Memory(io::Error),
    /// The socket itself.
    #[error("control socket: {0}")]
    Socket(#[from] io::Error),
}

impl HandshakeError {
    fn unexpected(expected: &'static str, message: MemifMessage) -> Self {
        match message {
            MemifMessage::Disconnect { reason, .. } => Self::Left(reason),
            other => Self::Unexpected { expected, got: other.word() },
        }
    }

    /// What it means when a peer says something although data flows: only goodbye makes sense.
    pub fn after_connect(message: MemifMessage) -> Self {
        Self::unexpected("DISCONNECT", message)
    }

    /// Whether there is somebody left to tell.
    pub fn should_tell_peer(&self) -> bool {
        !matches!(self, Self::Left(_) | Self::Closed | Self::Deaf | Self::Socket(_))
    }
}

fn check_init(init: &Init, offer: MemifOffer<'_>) -> Result<(), HandshakeError> {
    if init.version != VERSION {
        return Err(HandshakeError::Version(init.version));
    }
    if init.mode != mode_number(offer.mode) {
        return Err(HandshakeError::Mode { client: init.mode, ours: offer.mode });
    }
    match offer.secret {
        Some(_) if init.secret == [0; 24] => Err(HandshakeError::SecretRequired),
        Some(secret) if !same(secret.bytes(), &init.secret) => Err(HandshakeError::SecretIncorrect),
        _ => Ok(()),
    }
}

/// Compares in a time that does not tell where two secrets differ.
fn same(a: &[u8; 24], b: &[u8; 24]) -> bool {
    a.iter().zip(b).fold(0, |difference, (a, b)| std::hint::black_box(difference | (a ^ b))) == 0
}

fn no_file(message: &MemifMessage, files: &[PeerFile]) -> Result<(), HandshakeError> {
    match files.len() {
        0 => Ok(()),
        count => Err(HandshakeError::ForeignFiles { message: message.word(), count }),
    }
}

fn one_file(of: &'static str, mut files: Vec<PeerFile>) -> Result<PeerFile, HandshakeError> {
    match (files.pop(), files.len()) {
        (Some(file), 0) => Ok(file),
        (None, _) => Err(HandshakeError::NoFile(of)),
        (Some(_), more) => Err(HandshakeError::ForeignFiles { message: of, count: more + 1 }),
    }
}

/// What this program calls itself; fits the 32 bytes of the name fields.
pub const PROGRAM: &str = concat!("ferrule ", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::LazyLock;

    use crate::port::memif::message::{AddRegion, AddRing, Direction};
    use crate::port::{FRAME_MAX, Frame, Put, Source, Target};
    use crate::spec::Role;

    fn spec() -> MemifSpec {
        let mut spec = MemifSpec::new("@unused".parse().unwrap(), Role::Client);
        (spec.id, spec.queues, spec.ring) = (7, 2, 64);
        spec
    }

    fn offer<'a>(id: u32) -> Result<MemifOffer<'a>, HandshakeError> {
        static BUDGET: LazyLock<Arc<MemoryBudget>> = LazyLock::new(MemoryBudget::unlimited);
        let offer = MemifOffer { mode: Mode::Ethernet, secret: None, queues: 2, memory: &BUDGET };
        if id == 7 { Ok(offer) } else { Err(HandshakeError::UnknownId(id)) }
    }

    /// Runs both sides until neither has anything to say.
    fn converse(spec: &MemifSpec, secret: Option<&Secret>) -> Result<(Connection, Connection), HandshakeError> {
        let (mut to_client, mut to_server) = (Outbox::default(), Outbox::default());
        let mut server = Server::greet(2, &mut to_client);
        let mut client = Client::ExpectHello(None, MemoryBudget::unlimited());
        let offer = |id| offer(id).map(|offer| MemifOffer { secret, ..offer });
        loop {
            if let Some((message, files)) = to_client.0.pop_front() {
                let message = MemifMessage::parse(&message.emit())?;
                client = client.handle(message, &Vec::from_iter(files.map(PeerFile::from)), spec, &mut to_server)?;
            } else if let Some((message, files)) = to_server.0.pop_front() {
                let message = MemifMessage::parse(&message.emit())?;
                server = server.handle(message, Vec::from_iter(files.map(PeerFile::from)), offer, &mut to_client)?;
            } else {
                break;
            }
        }
        match (server, client) {
            (Server::Connected(server), Client::Connected(client)) => Ok((*server, *client)),
            _ => panic!("the conversation stopped half-way"),
        }
    }

    #[test]
    fn both_sides_meet_and_a_frame_crosses_each_way() {
        let (mut server, mut client) = converse(&spec(), None).unwrap();
        assert_eq!((server.queues.receivers.len(), server.queues.senders.len()), (2, 2));
        carry(&mut client.queues, &mut server.queues);
        carry(&mut server.queues, &mut client.queues);
    }

    /// Frames of one piece and of many, on the second queue.
    fn carry(from: &mut Queues, to: &mut Queues) {
        let (sender, receiver) = (&mut from.senders[1], &mut to.receivers[1]);
        let mut gather = vec![0; FRAME_MAX];
        for size in [1usize, 60, 2048, 2049, 9000] {
            let data: Vec<u8> = (0..size).map(|i| i as u8).collect();
            let frame = Frame { bytes: data[..].into(), offload: None, slots: 0 };
            sender.refresh().unwrap();
            assert_eq!(sender.put(&frame).unwrap(), Put::Stored);
            sender.publish();
            assert!(receiver.refresh().unwrap());
            let frame = receiver.peek(&mut gather).unwrap().unwrap();
            let mut out = vec![0; frame.bytes.len()];
            assert!(frame.bytes.copy_out(&mut out));
            let slots = frame.slots;
            assert_eq!(out, data);
            receiver.advance(slots);
            receiver.release();
        }
    }

    #[test]
    fn memory_that_a_server_has_no_room_for_is_not_lent_to_it_but_copied() {
        let (lender, _client) = converse(&spec(), None).unwrap();
        for (max_region, lent) in [(1, false), (2, true)] {
            let hello = Hello {
                name: "small".to_owned(),
                min_version: VERSION,
                max_version: VERSION,
                max_region,
                max_m2s_ring: 15,
                max_s2m_ring: 15,
                max_log2_ring_size: 10,
            };
            let client = Client::ExpectHello(Some(lender.layout.loan().unwrap()), MemoryBudget::unlimited());
            let client = client.handle(MemifMessage::Hello(hello), &[], &spec(), &mut Outbox::default()).unwrap();
            let Client::ExpectAck(state) = client else { panic!("it announces") };
            assert_eq!((state.layout.is_lent(), state.no_loan.is_none()), (lent, lent));
            assert_eq!(state.layout.regions().count(), if lent { 3 } else { 2 });
        }
    }

    #[test]
    fn a_secret_is_wanted_and_compared() {
        let secret: Secret = "open sesame".parse().unwrap();
        assert!(matches!(converse(&spec(), Some(&secret)), Err(HandshakeError::SecretRequired)));
        let mut spec = spec();
        spec.secret = Some("open says me".parse().unwrap());
        assert!(matches!(converse(&spec, Some(&secret)), Err(HandshakeError::SecretIncorrect)));
        spec.secret = Some(secret.clone());
        assert!(converse(&spec, Some(&secret)).is_ok());
    }

    #[test]
    fn an_unknown_id_or_another_mode_is_refused() {
        let mut other = spec();
        other.id = 8;
        assert!(matches!(converse(&other, None), Err(HandshakeError::UnknownId(8))));
        let mut ip = spec();
        ip.mode = Mode::Ip;
        assert!(matches!(converse(&ip, None), Err(HandshakeError::Mode { client: 1, .. })));
    }

    /// A server that has accepted INIT.
    fn server() -> Server {
        let init = Init { version: VERSION, id: 7, mode: 0, secret: [0; 24], name: "test".into() };
        Server::ExpectInit.handle(MemifMessage::Init(init), vec![], offer, &mut Outbox::default()).unwrap()
    }

    fn region_file() -> PeerFile {
        let region = ferrule_ffi::region::Region::create("test", 4096, &Arc::default()).unwrap();
        region.file().try_clone_to_owned().unwrap().into()
    }

    fn add(message: MemifMessage, files: Vec<PeerFile>) -> Result<Server, HandshakeError> {
        server().handle(message, files, offer, &mut Outbox::default())
    }

    #[test]
    fn every_lie_about_memory_is_named() {
        let region = |index, size| MemifMessage::AddRegion(AddRegion { index, size });
        let text = |result: Result<Server, HandshakeError>| result.err().unwrap().to_string();
        assert!(text(add(region(1, 4096), vec![region_file()])).contains("unexpected region index 1"));
        assert!(text(add(region(0, 4097), vec![region_file()])).contains("fewer than"));
        assert!(text(add(region(0, u64::MAX), vec![region_file()])).contains("above"));
        assert!(text(add(region(0, 0), vec![region_file()])).contains("no bytes"));
        assert!(text(add(region(0, 4096), vec![])).contains("missing memory region"));
        assert!(text(add(region(0, 4096), vec![region_file(), region_file()])).contains("2 descriptors"));
    }

    #[test]
    fn every_lie_about_a_ring_is_named() {
        let good =
            AddRing { direction: Direction::S2M, index: 0, region: 0, offset: 0, log2_size: 4, private_header: 0 };
        let eventfd = || PeerFile::from(OwnedFd::from(ferrule_ffi::notifier::eventfd().unwrap()));
        let answer = |ring: AddRing, file: PeerFile| {
            let region = MemifMessage::AddRegion(AddRegion { index: 0, size: 4096 });
            let server = add(region, vec![region_file()]).unwrap();
            server.handle(MemifMessage::AddRing(ring), vec![file], offer, &mut Outbox::default())
        };
        assert!(answer(good, eventfd()).is_ok());
        let lies = [
            (AddRing { index: 1, ..good }, "unexpected index"),
            (AddRing { region: 1, ..good }, "not inside"),
            (AddRing { offset: 4032, ..good }, "not inside"),
            (AddRing { offset: 8, ..good }, "64-byte border"),
            (AddRing { offset: u32::MAX - 63, ..good }, "not inside"),
            (AddRing { log2_size: 15, ..good }, "2^15"),
            (AddRing { log2_size: 255, ..good }, "2^255"),
            (AddRing { private_header: 2, ..good }, "private headers"),
        ];
        for (ring, problem) in lies {
            let error = answer(ring, eventfd()).err().unwrap().to_string();
            assert!(error.contains(problem), "{error}");
        }
        let error = answer(good, region_file()).err().unwrap().to_string();
        assert!(error.contains("not an eventfd"), "{error}");
    }

    #[test]
    fn files_where_none_belong_end_the_conversation() {
        let error = add(MemifMessage::Connect { name: String::new() }, vec![region_file()]).err().unwrap();
        assert_eq!(error.to_string(), "1 descriptors came with CONNECT");
    }

    #[test]
    fn a_message_out_of_turn_and_a_goodbye_are_told_apart() {
        assert!(matches!(add(MemifMessage::Ack, vec![]), Err(HandshakeError::Unexpected { got: "ACK", .. })));
        let goodbye = MemifMessage::Disconnect { code: 0, reason: "tired".into() };
        assert!(matches!(add(goodbye, vec![]), Err(HandshakeError::Left(reason)) if reason == "tired"));
    }
}
