//! Two guests on one wire, whose backend is succeeded again and again under traffic: neither notices.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use ferrule_dataplane::counters::LinkCounters;
use ferrule_dataplane::link::Scratch;
use ferrule_dataplane::port::any::{LaneEnd, forward};
use ferrule_dataplane::port::saved::{RestoreError, SavedFiles};
use ferrule_dataplane::port::vhost_user::channel::VhostUserChannel;
use ferrule_dataplane::port::vhost_user::features::{Features, ProtocolFeatures};
use ferrule_dataplane::port::vhost_user::message::{LogArea, VhostUserRequest, VringAddress, VringFile, VringState};
use ferrule_dataplane::port::vhost_user::peer::VhostUserPeer;
use ferrule_dataplane::port::vhost_user::restore::{SavedPendingFrontend, SavedVhostUserPeer};
use ferrule_dataplane::port::vhost_user::session::offer::VhostUserOffer;
use ferrule_dataplane::port::vhost_user::session::{Session, VhostUserMessage};
use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{EndSpec, Full, Role, VhostUserSpec};
use ferrule_endpoints::virtio::{DriverMemory, DriverRx, DriverSpec, DriverTx, Eventfds};
use ferrule_ffi::memory_budget::MemoryBudget;
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::region::Region;
use ferrule_ffi::unix::{Kind, UnixListener, UnixSocket};
use nix::sys::socket::UnixAddr;

use crate::pair::frame;

const SPEC: DriverSpec = DriverSpec { size: 32, buffer: 512, header_apart: false };
const PAGE: usize = 4096;

/// A guest, and its side of the control socket.
struct Guest {
    channel: VhostUserChannel,
    memory: DriverMemory,
    tx: DriverTx,
    rx: DriverRx,
    eventfds: [Eventfds; 2],
    features: Features,
    log: Option<Region>,
}

impl Guest {
    fn new(channel: VhostUserChannel, features: Features) -> Self {
        let memory = DriverMemory::create(SPEC, 2).unwrap();
        let eventfds = [Eventfds::new().unwrap(), Eventfds::new().unwrap()];
        Self {
            rx: DriverRx::new(&memory, 0, features, eventfds[0].clone()),
            tx: DriverTx::new(&memory, 1, features, eventfds[1].clone()),
            channel,
            memory,
            eventfds,
            features,
            log: None,
        }
    }

    fn say(&self, request: &VhostUserRequest, files: &[BorrowedFd<'_>]) {
        self.channel.send(&request.emit(false), files).unwrap();
    }

    fn describe(&self) {
        self.say(&VhostUserRequest::SetProtocolFeatures(ProtocolFeatures::LOG_SHMFD.0), &[]);
        self.say(&VhostUserRequest::SetFeatures(self.features.0), &[]);
        self.say(&VhostUserRequest::SetMemTable(vec![self.memory.row()]), &[self.memory.file()]);
        for index in 0..2u32 {
            let state = |num| VringState { index, num };
            let start = if self.features.has(Features::RING_PACKED) { 0x8000_8000 } else { 0 };
            self.say(&VhostUserRequest::SetVringNum(state(SPEC.size)), &[]);
            self.say(&VhostUserRequest::SetVringBase(state(start)), &[]);
            self.say(&self.address(index, false), &[]);
            self.say(&VhostUserRequest::SetVringEnable(state(1)), &[]);
            let eventfds = &self.eventfds[index as usize];
            self.say(&VhostUserRequest::SetVringCall(file_of(index)), &[eventfds.call.as_fd()]);
            self.say(&VhostUserRequest::SetVringKick(file_of(index)), &[eventfds.kick.as_fd()]);
        }
    }

    fn address(&self, index: u32, log: bool) -> VhostUserRequest {
        let at = self.memory.addresses(index as usize);
        let (desc, used, avail, log_guest) = (at.desc, at.used, at.avail, at.used_guest);
        VhostUserRequest::SetVringAddr(VringAddress { index, log, desc, used, avail, log_guest })
    }

    /// As at the beginning of a migration.
    fn start_log(&mut self) {
        let row = self.memory.row();
        let size = (row.guest + row.size).div_ceil(8 * PAGE as u64).next_multiple_of(4);
        let log = Region::create("log", size, &Arc::default()).unwrap();
        self.say(&VhostUserRequest::SetLogBase(LogArea { size, offset: 0 }), &[log.file()]);
        self.say(&VhostUserRequest::SetFeatures(self.features.with(Features::LOG_ALL).0), &[]);
        (0..2).for_each(|index| self.say(&self.address(index, true), &[]));
        self.log = Some(log);
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        self.tx.refresh().unwrap();
        let put = self.tx.put(&Frame { bytes: bytes.into(), offload: None, slots: 0 }).unwrap();
        self.tx.publish();
        put == Put::Stored
    }

    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut gather = vec![0; FRAME_MAX];
        let mut frames = Vec::new();
        while self.rx.refresh().unwrap() {
            while let Some(got) = self.rx.peek(&mut gather).unwrap() {
                let mut bytes = vec![0; got.bytes.len()];
                assert!(got.bytes.copy_out(&mut bytes));
                let slots = got.slots;
                self.rx.advance(slots);
                frames.push(bytes);
            }
            self.rx.release();
        }
        frames
    }

    fn bytes(&self) -> Vec<u8> {
        let region = self.memory.region();
        let mut bytes = vec![0; region.len()];
        assert!(region.span(0, region.len() as u32).unwrap().copy_out(&mut bytes));
        bytes
    }

    /// Every page that differs from `before` is marked in the log, if there is one.
    fn assert_logged(&self, before: &[u8], what: &str) {
        let Some(log) = &self.log else { return };
        let first = self.memory.row().guest / PAGE as u64;
        for (number, (old, new)) in before.chunks(PAGE).zip(self.bytes().chunks(PAGE)).enumerate() {
            let page = first + number as u64;
            let word = log.read_u32(page / 32 * 4).unwrap();
            assert!(old == new || word >> (page % 32) & 1 == 1, "{what}: page {page} was written and not logged");
        }
    }
}

fn file_of(index: u32) -> VringFile {
    VringFile { index: index as u8, has_file: true }
}

/// Our side: both frontends, and what a worker would have of them.
struct Backend {
    peers: [VhostUserPeer; 2],
    rings: [Option<LaneEnd>; 2],
    counters: LinkCounters,
    scratch: Scratch,
}

impl Backend {
    fn new(peers: [VhostUserPeer; 2]) -> Self {
        let scratch = Scratch::new(Notifier::new().unwrap());
        Self { peers, rings: [None, None], counters: LinkCounters::default(), scratch }
    }

    /// Handles everything that was said.
    fn serve(&mut self) {
        for (peer, rings) in self.peers.iter_mut().zip(&mut self.rings) {
            while let Some(message) = peer.receive().unwrap() {
                if let Some(rings) = rings.take() {
                    peer.session.park(rings);
                }
                peer.session.handle(message).unwrap();
            }
            if rings.is_none() {
                *rings = peer.session.rings().unwrap();
            }
        }
    }

    /// Handles one message of each.
    fn serve_one(&mut self) {
        for peer in &mut self.peers {
            if let Some(message) = peer.receive().unwrap() {
                peer.session.handle(message).unwrap();
            }
        }
    }

    /// Visits both directions so many times.
    fn turn(&mut self, visits: usize) {
        let [Some(a), Some(b)] = &mut self.rings else { return };
        for _ in 0..visits {
            for (direction, (from, to)) in
                [(&mut a.sources[0], &mut b.targets[0]), (&mut b.sources[0], &mut a.targets[0])].into_iter().enumerate()
            {
                let counters = self.counters.lane(direction);
                forward(&mut from.source, to, Full::Hold, &mut from.resume, &counters, &mut self.scratch).unwrap();
            }
        }
        self.scratch.notifier.flush();
    }

    /// What it is goes into text and descriptors, and comes back as another.
    fn succeed(mut self) -> Self {
        for (peer, rings) in self.peers.iter_mut().zip(&mut self.rings) {
            if let Some(rings) = rings.take() {
                peer.session.park(rings);
            }
            // A request may wait when it comes to it.
            peer.held = peer.receive().unwrap();
        }
        let mut files = SavedFiles::default();
        let text = self
            .peers
            .each_ref()
            .map(|peer| serde_json::to_string(&peer.save(&mut files, Instant::now()).unwrap()).unwrap());
        self.peers.into_iter().for_each(VhostUserPeer::release);
        let mut files = SavedFiles::from(files.into_inner());
        Self::new(text.map(|text| {
            let saved: SavedVhostUserPeer = serde_json::from_str(&text).unwrap();
            saved.restore(session(), &mut files, Instant::now()).unwrap()
        }))
    }
}

fn session() -> Session {
    let spec = VhostUserSpec::new("@v".parse().unwrap(), Role::Server);
    Session::new(VhostUserOffer::new(&spec, &EndSpec::VhostUser(spec.clone())), &MemoryBudget::unlimited())
}

/// A control socket: the frontend's side, and the peer that we have at the other.
fn connect(name: &str) -> (VhostUserChannel, VhostUserPeer) {
    let address = UnixAddr::new_abstract(format!("ferrule-{name}-{}", std::process::id()).as_bytes()).unwrap();
    let listener = UnixListener::bind(Kind::Stream, &address, 1).unwrap();
    let channel = UnixSocket::connect(Kind::Stream, &address).unwrap().into();
    let peer = listener.accept().unwrap().into();
    (channel, VhostUserPeer { channel: peer, session: session(), held: None, silent_until: None })
}

#[test]
fn a_successor_goes_on_under_traffic_and_no_guest_notices() {
    let base = Features::VERSION_1.with(Features::PROTOCOL_FEATURES);
    for (number, (packed, in_order, mergeable)) in (0..8).map(|set| (set, (set & 1 != 0, set & 2 != 0, set & 4 != 0))) {
        let chosen =
            [(packed, Features::RING_PACKED), (in_order, Features::IN_ORDER), (mergeable, Features::MRG_RXBUF)];
        let features = chosen.into_iter().filter(|(on, _)| *on).fold(base, |all, (_, feature)| all.with(feature));
        let ends = [0, 1].map(|end| connect(&format!("restore-{number}-{end}")));
        let [(first, a), (second, b)] = ends;
        let mut guests = [first, second].map(|channel| Guest::new(channel, features));
        guests.iter().for_each(Guest::describe);
        let mut backend = Backend::new([a, b]);
        backend.serve();
        let mut under_way = [VecDeque::new(), VecDeque::new()];
        for round in 0..60 {
            let what = format!("{features:x?}, round {round}");
            if round == 30 {
                guests.iter_mut().for_each(Guest::start_log);
            }
            for (guest, under_way) in guests.iter_mut().zip(&mut under_way) {
                for at in 0..=round % 11 {
                    let bytes = frame(round * 16 + at, if mergeable && at % 3 == 2 { 1500 } else { 60 + at });
                    if guest.send(&bytes) {
                        under_way.push_back(bytes);
                    }
                }
            }
            // One message is under way as well: half of it, or all of it and not handled.
            let call = VhostUserRequest::SetVringCall(file_of(round as u32 % 2)).emit(false);
            let cut = [5, 12, 17, call.len()][round % 4];
            let eventfds = &guests[0].eventfds[round % 2];
            guests[0].channel.send(&call[..cut], &[eventfds.call.as_fd()]).unwrap();
            let before = guests.each_ref().map(Guest::bytes);
            backend.turn(round % 3);
            backend = backend.succeed();
            if cut < call.len() {
                guests[0].channel.send(&call[cut..], &[]).unwrap();
            }
            backend.serve();
            backend.turn(round % 2);
            for (guest, before) in guests.iter().zip(&before) {
                guest.assert_logged(before, &what);
            }
            for (receiver, guest) in guests.iter_mut().enumerate() {
                for bytes in guest.receive() {
                    assert_eq!(Some(bytes), under_way[1 - receiver].pop_front(), "{what}");
                }
            }
        }
        for _ in 0..20 {
            backend.turn(1);
            for (receiver, guest) in guests.iter_mut().enumerate() {
                for bytes in guest.receive() {
                    assert_eq!(Some(bytes), under_way[1 - receiver].pop_front(), "{features:x?}");
                }
            }
        }
        assert!(under_way.iter().all(VecDeque::is_empty), "{features:x?}: no frame is lost");
        // Who hears a guest: its eventfds are still those that it named.
        guests[1].rx.enable_notify(true);
        assert!(guests[0].send(&[1; 60]));
        backend.turn(1);
        assert!(nix::unistd::read(&*guests[1].eventfds[0].call, &mut [0; 8]).is_ok(), "{features:x?}");
    }
}

#[test]
fn a_session_goes_on_after_each_request_of_its_negotiation() {
    let base = Features::VERSION_1.with(Features::PROTOCOL_FEATURES);
    for (name, features) in [("split", base), ("packed", base.with(Features::RING_PACKED))] {
        let ends = [0, 1].map(|end| connect(&format!("negotiation-{name}-{end}")));
        let [(first, a), (second, b)] = ends;
        let mut guests = [first, second].map(|channel| Guest::new(channel, features));
        let mut backend = Backend::new([a, b]).succeed();
        guests.iter().for_each(Guest::describe);
        // 15 requests, each of which waits for a successor.
        for _ in 0..15 {
            backend.serve_one();
            assert!(backend.rings.iter().all(Option::is_none));
            backend = backend.succeed();
        }
        backend.serve();
        assert!(backend.rings.iter().all(Option::is_some), "{name}");
        assert!(guests[0].send(&frame(1, 100)) && guests[1].send(&frame(2, 200)));
        backend.turn(1);
        assert_eq!((guests[1].receive(), guests[0].receive()), (vec![frame(1, 100)], vec![frame(2, 200)]));
    }
}

#[test]
fn a_frontend_that_is_nobody_s_peer_yet_goes_on_with_what_it_has_said() {
    let call = VhostUserRequest::SetVringCall(file_of(0)).emit(false);
    let eventfd = Eventfds::new().unwrap().call;
    for cut in [0, 1, 12, call.len() - 1, call.len()] {
        let (frontend, peer) = connect(&format!("pending-{cut}"));
        let mut channel = peer.channel;
        if cut > 0 {
            frontend.send(&call[..cut], &[eventfd.as_fd()]).unwrap();
        }
        let first = channel.receive().unwrap().map(|message| VhostUserMessage::new(message).unwrap());
        assert_eq!(first.is_some(), cut == call.len());
        let mut files = SavedFiles::default();
        let saved = SavedPendingFrontend::save(&channel, first.as_ref(), &mut files).unwrap();
        let text = serde_json::to_string(&saved).unwrap();
        channel.release();
        drop(first);
        let saved: SavedPendingFrontend = serde_json::from_str(&text).unwrap();
        let (mut channel, first) = saved.restore(&mut SavedFiles::from(files.into_inner())).unwrap();
        assert_eq!(first.is_some(), cut == call.len());
        let mut session = session();
        if let Some(first) = first {
            session.handle(first).unwrap();
        } else {
            let with: &[BorrowedFd<'_>] = if cut == 0 { &[eventfd.as_fd()] } else { &[] };
            frontend.send(&call[cut..], with).unwrap();
            session.handle(VhostUserMessage::new(channel.receive().unwrap().unwrap()).unwrap()).unwrap();
        }
    }
}

#[test]
fn what_was_not_passed_is_not_restored() {
    let (channel, peer) = connect("restore-refused");
    let guest = Guest::new(channel, Features::VERSION_1.with(Features::PROTOCOL_FEATURES));
    guest.describe();
    let (_other, other_peer) = connect("restore-refused-2");
    let mut backend = Backend::new([peer, other_peer]);
    backend.serve();
    let rings = backend.rings[0].take().unwrap();
    let peer = &mut backend.peers[0];
    assert!(peer.save(&mut SavedFiles::default(), Instant::now()).is_err(), "its rings are out");
    peer.session.park(rings);
    let mut files = SavedFiles::default();
    let text = serde_json::to_string(&peer.save(&mut files, Instant::now()).unwrap()).unwrap();
    let all = files.into_inner();
    let restore = |files: Vec<_>| {
        let saved: SavedVhostUserPeer = serde_json::from_str(&text).unwrap();
        saved.restore(session(), &mut SavedFiles::from(files), Instant::now()).map(drop)
    };
    let copies =
        |order: &mut dyn Iterator<Item = usize>| -> Vec<_> { order.map(|at| all[at].try_clone().unwrap()).collect() };
    restore(copies(&mut (0..all.len()))).unwrap();
    assert!(matches!(restore(copies(&mut (0..all.len() - 1))), Err(RestoreError::NoFile(_))));
    assert!(matches!(restore(Vec::new()), Err(RestoreError::NoFile(0))));
    // In another order nothing is what it should be.
    assert!(restore(copies(&mut (0..all.len()).rev())).is_err());
}
