//! A successor goes on with live memif connections: saved, dropped without a word to the peers, and restored, under traffic.
//! So it does with handshakes that are not finished, and with listening sockets at which peers wait.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use common::DEADLINE;
use ferrule_dataplane::Settings;
use ferrule_dataplane::counters::LinkCounters;
use ferrule_dataplane::lane::{collect, deal};
use ferrule_dataplane::mailbox::Mailbox;
use ferrule_dataplane::port::any::LaneEnd;
use ferrule_dataplane::port::memif::channel::MemifChannel;
use ferrule_dataplane::port::memif::handshake::{HandshakeError, MemifOffer, Outbox, Server};
use ferrule_dataplane::port::memif::layout::{Layout, Queues};
use ferrule_dataplane::port::memif::peer::{ClientHandshake, ClientStep};
use ferrule_dataplane::port::memif::restore::{SavedClientHandshake, SavedClientOfOurs, SavedConnection};
use ferrule_dataplane::port::saved::SavedFiles;
use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::socket::{Listener, SavedListener};
use ferrule_dataplane::spec::{Full, MemifSpec, Role, SocketAccess, SocketAddress};
use ferrule_dataplane::worker::{Returned, WorkerHandle};
use ferrule_ffi::memory_budget::MemoryBudget;
use ferrule_ffi::unix::Kind;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

/// Our end of a connection.
struct OurEnd {
    channel: MemifChannel,
    layout: Layout,
    rings: LaneEnd,
}

/// The peer's.
struct PeerEnd {
    queues: Queues,
    channel: MemifChannel,
    _layout: Layout,
}

fn spec() -> MemifSpec {
    MemifSpec::new("@unused".parse().unwrap(), Role::Client)
}

fn channels() -> [MemifChannel; 2] {
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_NONBLOCK).unwrap();
    [a, b].map(|socket| socket.try_into().unwrap())
}

/// What a server makes of a client's layout.
fn server_of(client: &Layout) -> Layout {
    let mut layout = Layout::announced_by_peer(&MemoryBudget::unlimited());
    for (region, file) in client.regions() {
        layout.add_region(region, file.try_clone_to_owned().unwrap().into()).unwrap();
    }
    for (ring, interrupt) in client.rings() {
        layout.add_ring(ring, interrupt.as_fd().try_clone_to_owned().unwrap().into()).unwrap();
    }
    layout
}

fn connection(mut near: Layout, mut far: Layout) -> (OurEnd, PeerEnd) {
    let [ours, theirs] = channels();
    let rings = LaneEnd::memif(near.queues().unwrap());
    let queues = far.queues().unwrap();
    (OurEnd { channel: ours, layout: near, rings }, PeerEnd { queues, channel: theirs, _layout: far })
}

/// A connection in which we have this role.
fn connected(role: Role) -> (OurEnd, PeerEnd) {
    let client = Layout::create(&spec(), 1, RING, &<_>::default()).unwrap();
    let server = server_of(&client);
    match role {
        Role::Server => connection(server, client),
        Role::Client => connection(client, server),
    }
}

/// A lender and a borrower of its memory.
fn trusted() -> [(OurEnd, PeerEnd); 2] {
    let lender = Layout::create(&spec(), 1, RING, &<_>::default()).unwrap();
    let mut near = server_of(&lender);
    // Mapped now: the loan names its regions.
    assert!(near.queues().is_ok());
    let lent = Layout::lend(&spec(), &near.loan().unwrap(), RING, &<_>::default()).unwrap();
    let borrower = server_of(&lent);
    [connection(near, lender), connection(lent, borrower)]
}

#[test]
fn copying_wires_go_on_with_the_next_frame_whichever_role_we_have() {
    for roles in [[Role::Server; 2], [Role::Client; 2], [Role::Server, Role::Client]] {
        hand_over_under_traffic(roles.map(connected));
    }
}

#[test]
fn a_trusted_wire_goes_on_with_every_frame_that_its_borrower_still_has() {
    hand_over_under_traffic(trusted());
}

#[test]
fn peers_that_wait_at_a_listening_socket_find_the_successor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sock");
    let name = format!("@ferrule-restore-{}", std::process::id());
    for (kind, other) in [(Kind::SeqPacket, Kind::Stream), (Kind::Stream, Kind::SeqPacket)] {
        for address in [path.to_str().unwrap(), &name] {
            let address: SocketAddress = address.parse().unwrap();
            let connect = |text: &[u8]| {
                let peer = ferrule_dataplane::socket::connect(kind, &address, None).unwrap();
                assert_eq!(peer.send(text, &[]).unwrap(), text.len());
                peer
            };
            let listener = Listener::bind(kind, &address, None, &SocketAccess::default()).unwrap();
            let mut peers = vec![connect(b"first"), connect(b"second")];
            let mut files = SavedFiles::default();
            let text = serde_json::to_string(&listener.save(&mut files).unwrap()).unwrap();
            listener.release();
            peers.push(connect(b"third"));
            let saved = || serde_json::from_str::<SavedListener>(&text).unwrap();
            let passed = files.into_inner();
            let copies = || passed.iter().map(|file| file.try_clone().unwrap()).collect::<Vec<_>>();
            assert!(saved().restore(other, &mut copies().into()).is_err(), "of another kind");
            let successor = saved().restore(kind, &mut copies().into()).unwrap();
            drop(passed);
            for text in [&b"first"[..], b"second", b"third"] {
                let mut buffer = [0; 16];
                let packet = successor.accept().unwrap().receive(&mut buffer, 0).unwrap().unwrap();
                assert_eq!(&buffer[..packet.len], text);
            }
            assert!(successor.location().is_none_or(|location| location.leads_here()));
            drop(successor);
            assert!(!path.exists());
            assert!(ferrule_dataplane::socket::connect(kind, &address, None).is_err(), "nobody listens any more");
        }
    }
}

#[test]
fn a_connected_socket_is_no_listening_one() {
    let [ours, _theirs] = channels();
    let listener = SavedListener::restore(
        serde_json::from_str(r#"{"socket": 0, "file": null}"#).unwrap(),
        Kind::SeqPacket,
        &mut vec![OwnedFd::from(ours)].into(),
    );
    assert!(listener.is_err());
}

#[test]
fn a_handshake_goes_on_after_each_of_its_messages() {
    let spec = MemifSpec { queues: 2, ring: RING, ..spec() };
    let budget = MemoryBudget::unlimited();
    let offer = |_| Ok(MemifOffer { mode: spec.mode, secret: None, queues: 2, memory: &budget });
    let [ours, theirs] = channels();
    let mut out = Outbox::default();
    let mut server = (ours, Server::greet(2, &mut out));
    server.0.send(&mut out).unwrap();
    let mut client = ClientHandshake::new(theirs, None, &budget, Instant::now() + DEADLINE);
    let mut steps = 0;
    let (mut near, mut far) = loop {
        client = succeed_client(client, &budget);
        let step = client.step(&spec).unwrap();
        if let ClientStep::Connected(far) = step {
            panic!("the server is not done: {}", far.peer);
        }
        server = succeed_server(server, offer);
        let (message, files) = server.0.receive().unwrap().unwrap();
        steps += 1;
        server.1 = server.1.handle(message, files, offer, &mut out).unwrap();
        server.0.send(&mut out).unwrap();
        if let Server::Connected(near) = server.1 {
            client = succeed_client(client, &budget);
            let ClientStep::Connected(far) = client.step(&spec).unwrap() else { panic!("the server is done") };
            break (near, far);
        }
    };
    assert_eq!(steps, 8, "INIT, two regions, four rings, CONNECT");
    cross(&mut near.queues, &mut far.queues);
    cross(&mut far.queues, &mut near.queues);
}

fn cross(from: &mut Queues, to: &mut Queues) {
    assert_eq!((from.senders.len(), to.receivers.len()), (2, 2));
    for (sender, receiver) in from.senders.iter_mut().zip(&mut to.receivers) {
        sender.refresh().unwrap();
        assert_eq!(sender.put(&Frame { bytes: frame(7)[..].into(), offload: None, slots: 0 }).unwrap(), Put::Stored);
        sender.publish();
        assert!(receiver.refresh().unwrap());
    }
}

/// Writes the server's side down, lets go of it and takes it up again.
fn succeed_server<'a>(
    (channel, server): (MemifChannel, Server),
    offer: impl Fn(u32) -> Result<MemifOffer<'a>, HandshakeError>,
) -> (MemifChannel, Server) {
    let mut files = SavedFiles::default();
    let saved = SavedClientOfOurs::save(&channel, &server, &mut files).unwrap();
    drop((OwnedFd::from(channel), server));
    let saved: SavedClientOfOurs = serde_json::from_str(&serde_json::to_string(&saved).unwrap()).unwrap();
    saved.restore(offer, &mut files.into_inner().into()).unwrap()
}

/// The same for the client's side.
fn succeed_client(client: ClientHandshake, budget: &Arc<MemoryBudget>) -> ClientHandshake {
    let mut files = SavedFiles::default();
    let saved = SavedClientHandshake::save(&client, &mut files, Instant::now()).unwrap();
    drop(OwnedFd::from(client.channel));
    let saved: SavedClientHandshake = serde_json::from_str(&serde_json::to_string(&saved).unwrap()).unwrap();
    saved.restore(None, budget, &mut files.into_inner().into(), Instant::now()).unwrap()
}

/// Peers send and receive numbered frames all the time, while our side is saved, dropped and restored again and again.
fn hand_over_under_traffic([(a, far_a), (b, far_b)]: [(OurEnd, PeerEnd); 2]) {
    let (stop, totals) = (AtomicBool::new(false), [UNKNOWN; 2].map(AtomicU32::new));
    let [total_a, total_b] = &totals;
    let received = thread::scope(|scope| {
        let stop = &stop;
        let peers = [
            scope.spawn(move || exchange(far_a, stop, total_a, total_b)),
            scope.spawn(move || exchange(far_b, stop, total_b, total_a)),
        ];
        let mut ends = [a, b];
        for _ in 0..ROUNDS {
            ends = hand_over(serve_for_a_while(ends));
        }
        stop.store(true, Ordering::Relaxed);
        // What is still under way arrives.
        let ends = serve_until(ends, || peers.iter().all(ScopedJoinHandle::is_finished));
        let received = peers.map(|peer| peer.join().unwrap());
        drop(ends);
        received
    });
    let [(sent_a, received_a), (sent_b, received_b)] = received;
    assert_eq!((received_b, received_a), (sent_a, sent_b), "every frame arrives once");
    assert!(sent_a > ROUNDS as u32 && sent_b > ROUNDS as u32);
}

/// A new worker serves the ends, until frames have crossed each way.
fn serve_for_a_while(ends: [OurEnd; 2]) -> [OurEnd; 2] {
    let counters = Arc::<[LinkCounters; 2]>::default();
    let moved = Arc::clone(&counters);
    serve(ends, &counters, move || moved.iter().all(|link| link.read().frames > 40))
}

fn serve_until(ends: [OurEnd; 2], done: impl Fn() -> bool) -> [OurEnd; 2] {
    serve(ends, &Arc::default(), done)
}

fn serve(ends: [OurEnd; 2], counters: &Arc<[LinkCounters; 2]>, done: impl Fn() -> bool) -> [OurEnd; 2] {
    let returned = Arc::new(Mailbox::<Returned>::new(4).unwrap());
    let mut worker = WorkerHandle::start(0, 0, &Settings::new(vec![0]), Arc::clone(&returned), ()).unwrap();
    let [a, b] = ends;
    let lane = deal([a.rings, b.rings], Full::Hold, counters).remove(0);
    let id = worker.serve(Box::new(lane)).map_err(|(error, _)| error).unwrap();
    let deadline = Instant::now() + 4 * DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "no traffic");
        assert!(returned.take().is_none_or(|back| back.fault.is_none()), "a fault");
        thread::yield_now();
    }
    // In the middle of traffic: what waits is the successor's.
    worker.recall(id, Duration::ZERO);
    let lane = loop {
        if let Some(back) = returned.take() {
            assert_eq!(back.fault, None);
            break back.lane;
        }
        thread::yield_now();
    };
    let [first, second] = lane.ends.map(|end| collect(vec![end]));
    [
        OurEnd { rings: first, channel: a.channel, layout: a.layout },
        OurEnd { rings: second, channel: b.channel, layout: b.layout },
    ]
}

/// Writes both ends down, drops them, and makes them again from what was written and the descriptors.
fn hand_over(ends: [OurEnd; 2]) -> [OurEnd; 2] {
    let mut files = SavedFiles::default();
    let saved = ends.map(|OurEnd { channel, layout, rings }| {
        SavedConnection::save((7, "peer"), channel, &layout, &rings, &mut files).unwrap()
    });
    let text = serde_json::to_string(&saved).unwrap();
    drop(saved);
    let passed: Vec<OwnedFd> = files.into_inner();
    let mut files = SavedFiles::from(passed);
    let [first, second]: [SavedConnection; 2] = serde_json::from_str(&text).unwrap();
    let first = first.restore(None, Arc::default(), &mut files).unwrap();
    let loan = first.layout.loan().unwrap();
    let second = second.restore(Some(&loan), Arc::default(), &mut files).unwrap();
    [first, second].map(|restored| {
        assert_eq!((restored.id, &*restored.peer), (7, "peer"));
        OurEnd { channel: restored.channel, layout: restored.layout, rings: restored.rings }
    })
}

/// Sends numbered frames of many sizes, says how many, and checks those that come, until it is told to stop and all are
/// there. How many were sent and received.
fn exchange(mut far: PeerEnd, stop: &AtomicBool, total: &AtomicU32, expected: &AtomicU32) -> (u32, u32) {
    let (mut sent, mut received) = (0u32, 0u32);
    let mut gather = vec![0; FRAME_MAX];
    let mut deadline = None;
    loop {
        assert!(far.channel.receive().unwrap().is_none(), "the peer is told nothing");
        let (sender, receiver) = (&mut far.queues.senders[0], &mut far.queues.receivers[0]);
        if stop.load(Ordering::Relaxed) {
            total.store(sent, Ordering::Relaxed);
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + 2 * DEADLINE);
            assert!(Instant::now() < deadline, "{received} frames of {expected:?} came");
            if received == expected.load(Ordering::Relaxed) {
                return (sent, received);
            }
        } else {
            sender.refresh().unwrap();
            // As many as there is room for: the next worker finds some that the last one has left.
            while sender.put(&Frame { bytes: frame(sent)[..].into(), offload: None, slots: 0 }).unwrap() == Put::Stored
            {
                sent += 1;
            }
            if sender.publish() {
                nix::unistd::write(sender.notify_fd().unwrap(), &1u64.to_ne_bytes()).unwrap();
            }
        }
        if !receiver.refresh().unwrap() {
            thread::yield_now();
            continue;
        }
        while let Some(frame_came) = receiver.peek(&mut gather).unwrap() {
            let mut bytes = vec![0; frame_came.bytes.len()];
            assert!(frame_came.bytes.copy_out(&mut bytes));
            let slots = frame_came.slots;
            assert!(bytes == frame(received), "frame {received} of {} bytes", bytes.len());
            received += 1;
            receiver.advance(slots);
        }
        receiver.release();
    }
}

fn frame(number: u32) -> Vec<u8> {
    // Some of them lie in chains of 2048-byte buffers.
    let len = 60 + (number as usize * 97) % 5000;
    let mut frame = vec![number as u8; len];
    frame[..4].copy_from_slice(&number.to_be_bytes());
    frame
}

/// Small, so that rings are full and frames wait when they are handed over.
const RING: u32 = 32;
const ROUNDS: usize = 20;
/// A number of frames that nobody has sent.
const UNKNOWN: u32 = u32::MAX;
