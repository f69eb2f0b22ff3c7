//! Wires with vhost-user ends, served by an engine: frontends of ours against memif ends and against each other.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use common::{DEADLINE, client, client_spec, engine, eventually, unique};
use ferrule_dataplane::Engine;
use ferrule_dataplane::offload::VnetHeader;
use ferrule_dataplane::port::vhost_user::channel::{VhostUserChannel, VhostUserChannelError};
use ferrule_dataplane::port::vhost_user::features::{Features, ProtocolFeatures};
use ferrule_dataplane::port::vhost_user::memory::MemoryRegion;
use ferrule_dataplane::port::vhost_user::message::{
    Header, ReplyBody, VhostUserReply, VhostUserRequest, VringAddress, VringFile, VringState,
};
use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{EndSpec, MemifSpec, Role, VhostUserSpec, WireSpec};
use ferrule_dataplane::status::{DropReason, EndState, WireStatus};
use ferrule_endpoints::memif::Endpoint;
use ferrule_endpoints::vhost_user::{Frontend, FrontendError, FrontendSpec};
use ferrule_endpoints::virtio::DriverSpec;
use ferrule_ffi::notifier::eventfd;
use ferrule_ffi::region::Region;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll as poll_fds};

const SIZES: [usize; 8] = [60, 64, 65, 1514, 1518, 2048, 2049, 9000];

fn notify(eventfd: Option<BorrowedFd<'_>>) {
    if let Some(eventfd) = eventfd {
        // Full means that it rings already.
        let _ = nix::unistd::write(eventfd, &1u64.to_ne_bytes());
    }
}

/// Puts one frame, when there is room.
fn put(target: &mut dyn Target, bytes: &[u8], offload: Option<&VnetHeader>) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        target.refresh().unwrap();
        match target.put(&Frame { bytes: bytes.into(), offload, slots: 0 }).unwrap() {
            Put::Stored => break,
            Put::Full => {}
            Put::Refused(reason) => panic!("a frame of {} bytes was refused: {reason:?}", bytes.len()),
        }
        assert!(Instant::now() < deadline, "no room to send a frame");
        thread::yield_now();
    }
    if target.publish() {
        notify(target.notify_fd());
    }
}

/// Takes one frame if there is one, and whether something is left to do on it.
fn poll(source: &mut dyn Source) -> Option<(Vec<u8>, Option<VnetHeader>)> {
    if !source.refresh().unwrap() {
        return None;
    }
    let mut gather = vec![0; FRAME_MAX];
    let frame = source.peek(&mut gather).unwrap()?;
    let mut bytes = vec![0; frame.bytes.len()];
    assert!(frame.bytes.copy_out(&mut bytes));
    let (offload, slots) = (frame.offload.copied(), frame.slots);
    source.advance(slots);
    source.release();
    notify(source.release_notify_fd());
    Some((bytes, offload))
}

fn take(source: &mut dyn Source) -> (Vec<u8>, Option<VnetHeader>) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(frame) = poll(source) {
            return frame;
        }
        assert!(Instant::now() < deadline, "no frame came");
        thread::yield_now();
    }
}

/// A frame of `size` bytes that no other number gives.
fn frame(number: usize, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 7 + number * 31 + size) as u8).collect()
}

/// Frames of every size cross from one to the other, in their order.
fn cross(from: &mut dyn Target, to: &mut dyn Source, sizes: &[usize]) {
    for (number, &size) in sizes.iter().enumerate() {
        let sent = frame(number, size);
        put(from, &sent, None);
        let (received, offload) = take(to);
        assert!(received == sent, "frame {number} of {size} bytes");
        assert_eq!(offload, None);
    }
}

/// An end on a socket of its own.
fn vhost_end(name: &str, number: usize, mode: Role, queues: u16) -> VhostUserSpec {
    let socket = format!("@{name}-{number}").parse().unwrap();
    VhostUserSpec { queues, ..VhostUserSpec::new(socket, mode) }
}

fn frontend_spec(name: &str, number: usize) -> FrontendSpec {
    FrontendSpec::new(format!("@{name}-{number}").parse().unwrap())
}

/// A wire from a vhost-user end (number 0) to a memif server (number 1).
fn mixed_wire(name: &str, mode: Role, queues: u16) -> (String, WireSpec) {
    let name = unique(name);
    let memif = MemifSpec { role: Role::Server, queues, ..client_spec(&name, 1) };
    let ends = [EndSpec::VhostUser(vhost_end(&name, 0, mode, queues)), EndSpec::Memif(memif)];
    (name.clone(), WireSpec::new(name, ends))
}

/// A wire between two vhost-user ends that listen.
fn vhost_wire(name: &str) -> (String, WireSpec) {
    let name = unique(name);
    let end = |number| EndSpec::VhostUser(vhost_end(&name, number, Role::Server, 1));
    (name.clone(), WireSpec::new(name.clone(), [end(0), end(1)]))
}

fn open(spec: &FrontendSpec) -> Frontend {
    Frontend::open(spec, DEADLINE).unwrap()
}

fn status(engine: &Engine, name: &str) -> WireStatus {
    engine.wire(name).unwrap()
}

fn until_up(engine: &Engine, name: &str, queues: usize) {
    eventually("the wire is up", || status(engine, name).queues == queues);
}

/// Every layout and every way to describe a buffer, against memif.
#[test]
fn frames_cross_between_a_frontend_and_a_memif_end_whatever_the_rings_are() {
    let base = Features::VERSION_1;
    let plain = DriverSpec::default();
    let apart = DriverSpec { header_apart: true, ..plain };
    let long = DriverSpec { buffer: 9216, ..plain };
    let small = DriverSpec { size: 32, ..plain };
    for (features, rings) in [
        (Features::default(), long),
        (base, long),
        (base | Features::MRG_RXBUF, plain),
        (base | Features::MRG_RXBUF | Features::EVENT_IDX, apart),
        (base | Features::MRG_RXBUF | Features::IN_ORDER, small),
        (base | Features::RING_PACKED, long),
        (base | Features::RING_PACKED | Features::MRG_RXBUF, plain),
        (base | Features::RING_PACKED | Features::MRG_RXBUF | Features::EVENT_IDX, apart),
        (base | Features::RING_PACKED | Features::MRG_RXBUF | Features::IN_ORDER, small),
    ] {
        let engine = engine();
        let (name, wire) = mixed_wire("layouts", Role::Server, 1);
        engine.add(wire).unwrap();
        let mut guest = open(&FrontendSpec { features, rings, ..frontend_spec(&name, 0) });
        assert_eq!(guest.features & features, features);
        let mut memif = client(&name, 1);
        until_up(&engine, &name, 1);
        for _ in 0..40 {
            cross(&mut guest.queues.senders[0], &mut memif.queues.receivers[0], &SIZES);
            cross(&mut memif.queues.senders[0], &mut guest.queues.receivers[0], &SIZES);
        }
        let frames = status(&engine, &name).directions.map(|traffic| (traffic.frames, traffic.dropped()));
        assert_eq!(frames, [(320, 0), (320, 0)], "{features:?}");
    }
}

#[test]
fn queues_stay_apart() {
    let engine = engine();
    let (name, wire) = mixed_wire("queues", Role::Server, 4);
    engine.add(wire).unwrap();
    let features = Features::VERSION_1 | Features::MRG_RXBUF;
    let mut guest = open(&FrontendSpec { queues: 4, features, ..frontend_spec(&name, 0) });
    let mut memif = Endpoint::open(&MemifSpec { queues: 4, ..client_spec(&name, 1) }, DEADLINE).unwrap();
    until_up(&engine, &name, 4);
    for queue in 0..4 {
        cross(&mut guest.queues.senders[queue], &mut memif.queues.receivers[queue], &SIZES);
        cross(&mut memif.queues.senders[queue], &mut guest.queues.receivers[queue], &SIZES);
    }
}

#[test]
fn a_frontend_cannot_have_more_queues_than_the_wire_gives() {
    let engine = engine();
    let (name, wire) = mixed_wire("fewer", Role::Server, 2);
    engine.add(wire).unwrap();
    let guest = open(&FrontendSpec { queues: 4, ..frontend_spec(&name, 0) });
    assert_eq!(guest.queues.senders.len(), 2);
}

#[test]
fn two_guests_meet_on_one_wire_and_either_may_come_back() {
    let engine = engine();
    let (name, wire) = vhost_wire("guests");
    engine.add(wire).unwrap();
    let features = Features::VERSION_1 | Features::MRG_RXBUF;
    let packed = FrontendSpec { features: features | Features::RING_PACKED, ..frontend_spec(&name, 0) };
    let split = FrontendSpec { features, ..frontend_spec(&name, 1) };
    let (mut first, mut second) = (open(&packed), open(&split));
    for round in 0..4 {
        until_up(&engine, &name, 1);
        cross(&mut first.queues.senders[0], &mut second.queues.receivers[0], &SIZES);
        cross(&mut second.queues.senders[0], &mut first.queues.receivers[0], &SIZES);
        // Gone without a word, and back at once.
        if round % 2 == 0 {
            drop(first);
            first = open(&packed);
        } else {
            drop(second);
            second = open(&split);
        }
    }
}

#[test]
fn an_end_that_connects_finds_a_frontend_that_was_restarted() {
    let engine = engine();
    let (name, wire) = mixed_wire("redial", Role::Client, 1);
    engine.add(wire).unwrap();
    let mut memif = client(&name, 1);
    for _ in 0..3 {
        let mut guest = open(&FrontendSpec { listens: true, ..frontend_spec(&name, 0) });
        until_up(&engine, &name, 1);
        cross(&mut guest.queues.senders[0], &mut memif.queues.receivers[0], &SIZES[..5]);
        cross(&mut memif.queues.senders[0], &mut guest.queues.receivers[0], &SIZES[..5]);
        drop(guest);
        eventually("the end dials again", || matches!(status(&engine, &name).ends[0], EndState::Connecting { .. }));
    }
}

#[test]
fn an_engine_that_comes_back_serves_the_frontend_that_waited() {
    let (name, wire) = mixed_wire("comeback", Role::Client, 1);
    let first = engine();
    first.add(wire.clone()).unwrap();
    let spec = FrontendSpec { listens: true, ..frontend_spec(&name, 0) };
    let guest = open(&spec);
    drop(first);
    // The frontend listens on, as QEMU does, and the same wire of another engine comes to it.
    drop(guest);
    let second = engine();
    second.add(wire).unwrap();
    let mut guest = open(&spec);
    let mut memif = client(&name, 1);
    until_up(&second, &name, 1);
    cross(&mut guest.queues.senders[0], &mut memif.queues.receivers[0], &SIZES[..5]);
}

#[test]
fn a_second_frontend_is_turned_away_and_a_silent_one_makes_room() {
    let engine = engine();
    let (name, wire) = mixed_wire("crowd", Role::Server, 1);
    engine.add(wire).unwrap();
    let spec = frontend_spec(&name, 0);
    let mut silent = VhostUserChannel::connect(&spec.socket).unwrap();
    let _guest = open(&spec);
    let closed = |channel: &mut VhostUserChannel| matches!(channel.receive(), Err(VhostUserChannelError::Closed));
    eventually("the silent one is closed", || closed(&mut silent));
    let mut late = VhostUserChannel::connect(&spec.socket).unwrap();
    eventually("the late one is closed", || closed(&mut late));
    assert!(matches!(status(&engine, &name).ends[0], EndState::Connected { .. }));
}

#[test]
fn a_frontend_that_has_spoken_is_next_when_one_without_rings_goes() {
    let engine = engine();
    let (name, wire) = mixed_wire("next", Role::Server, 1);
    engine.add(wire).unwrap();
    let socket = frontend_spec(&name, 0).socket;
    let say = |channel: &VhostUserChannel| channel.send(&VhostUserRequest::GetFeatures.emit(false), &[]).unwrap();
    let hears = |channel: &mut VhostUserChannel| channel.receive().unwrap().is_some();
    let mut first = VhostUserChannel::connect(&socket).unwrap();
    say(&first);
    eventually("the first is answered", || hears(&mut first));
    let mut next = VhostUserChannel::connect(&socket).unwrap();
    say(&next);
    // Events are handled in their order: once this is answered, the other has been heard.
    say(&first);
    eventually("the first is answered again", || hears(&mut first));
    assert!(!hears(&mut next));
    drop(first);
    eventually("the next one is answered", || hears(&mut next));
    assert!(matches!(status(&engine, &name).ends[0], EndState::Starting { .. }));
}

#[test]
fn a_guest_that_cannot_ring_is_polled() {
    let engine = engine();
    let (name, wire) = mixed_wire("polled", Role::Server, 1);
    engine.add(wire).unwrap();
    let mut guest = open(&frontend_spec(&name, 0));
    let mut memif = client(&name, 1);
    for index in 0..2 {
        guest.tell(&VhostUserRequest::SetVringKick(VringFile { index, has_file: false }), &[]).unwrap();
    }
    until_up(&engine, &name, 1);
    let (mut looks, sender) = (0, &mut guest.queues.senders[0]);
    eventually("a frame finds the lane asleep, and is taken all the same", || {
        looks += 1;
        // Between two frames there is time to fall asleep.
        if looks % 4 > 0 {
            return false;
        }
        sender.refresh().unwrap();
        assert_eq!(sender.put(&Frame { bytes: [7; 60][..].into(), offload: None, slots: 0 }).unwrap(), Put::Stored);
        let asks_for_kicks = sender.publish();
        assert_eq!(take(&mut memif.queues.receivers[0]).0, [7; 60]);
        asks_for_kicks
    });
    // The other direction has its eventfd.
    cross(&mut memif.queues.senders[0], &mut guest.queues.receivers[0], &SIZES[..5]);
}

#[test]
fn no_frame_is_lost_while_a_frontend_changes_its_mind() {
    let engine = engine();
    let (name, wire) = mixed_wire("changes", Role::Server, 1);
    engine.add(wire).unwrap();
    let mut guest = open(&frontend_spec(&name, 0));
    let mut memif = client(&name, 1);
    until_up(&engine, &name, 1);
    let call = eventfd().unwrap();
    for round in 0..200 {
        let sent = frame(round, 64);
        put(&mut guest.queues.senders[0], &sent, None);
        put(&mut memif.queues.senders[0], &sent, None);
        let ring = VringFile { index: (round % 2) as u8, has_file: true };
        guest.tell(&VhostUserRequest::SetVringCall(ring), &[call.as_fd()]).unwrap();
        assert!(take(&mut memif.queues.receivers[0]).0 == sent);
        assert!(take(&mut guest.queues.receivers[0]).0 == sent);
    }
    let frames = status(&engine, &name).directions.map(|traffic| (traffic.frames, traffic.dropped()));
    assert_eq!(frames, [(200, 0), (200, 0)]);
}

#[test]
fn a_stopped_ring_is_not_touched_once_the_backend_has_said_so() {
    let engine = engine();
    let (name, wire) = mixed_wire("barrier", Role::Server, 1);
    engine.add(wire).unwrap();
    let mut guest = open(&frontend_spec(&name, 0));
    let mut memif = client(&name, 1);
    until_up(&engine, &name, 1);
    for number in 0..100 {
        put(&mut guest.queues.senders[0], &frame(number, 64), None);
    }
    let base = guest.stop(1).unwrap();
    let taken = u64::from(base);
    assert_eq!(status(&engine, &name).directions[0].frames, taken);
    put(&mut guest.queues.senders[0], &frame(100, 64), None);
    // Also the ring of the other direction waits: a pair runs or does not.
    eventually("its pair is shown as stopped", || status(&engine, &name).queues == 0);
    let base = guest.stop(0).unwrap();
    assert_eq!(base, 0);
    for number in 0..taken as usize {
        assert!(take(&mut memif.queues.receivers[0]).0 == frame(number, 64), "frame {number}");
    }
    assert_eq!(poll(&mut memif.queues.receivers[0]), None);
    let state = |index, num| VringState { index, num };
    let kick = eventfd().unwrap();
    for index in 0..2 {
        guest
            .tell(&VhostUserRequest::SetVringBase(state(index, if index == 1 { taken as u32 } else { 0 })), &[])
            .unwrap();
        let ring = VringFile { index: index as u8, has_file: true };
        guest.tell(&VhostUserRequest::SetVringKick(ring), &[kick.as_fd()]).unwrap();
    }
    for number in taken as usize..=100 {
        assert!(take(&mut memif.queues.receivers[0]).0 == frame(number, 64), "frame {number}");
    }
}

#[test]
fn a_ring_that_is_not_enabled_is_drained_or_given_nothing() {
    let engine = engine();
    let (name, wire) = mixed_wire("disabled", Role::Server, 2);
    engine.add(wire).unwrap();
    let mut guest = open(&FrontendSpec { queues: 2, ..frontend_spec(&name, 0) });
    let mut memif = Endpoint::open(&MemifSpec { queues: 2, ..client_spec(&name, 1) }, DEADLINE).unwrap();
    until_up(&engine, &name, 2);
    for index in [2, 3] {
        guest.tell(&VhostUserRequest::SetVringEnable(VringState { index, num: 0 }), &[]).unwrap();
    }
    until_up(&engine, &name, 1);
    for number in 0..300 {
        put(&mut guest.queues.senders[1], &frame(number, 64), None);
    }
    let dropped = || status(&engine, &name).directions[0].drops[DropReason::Disabled as usize];
    eventually("its frames are dropped and counted", || dropped() == 300);
    // What comes for it goes to the ring that is left.
    cross(&mut memif.queues.senders[1], &mut guest.queues.receivers[0], &SIZES[..5]);
    cross(&mut guest.queues.senders[0], &mut memif.queues.receivers[0], &SIZES[..5]);
    for index in [2, 3] {
        guest.tell(&VhostUserRequest::SetVringEnable(VringState { index, num: 1 }), &[]).unwrap();
    }
    until_up(&engine, &name, 2);
    cross(&mut guest.queues.senders[1], &mut memif.queues.receivers[1], &SIZES[..5]);
    cross(&mut memif.queues.senders[1], &mut guest.queues.receivers[1], &SIZES[..5]);
}

#[test]
fn memory_comes_and_goes_while_frames_flow() {
    let engine = engine();
    let (name, wire) = mixed_wire("hotplug", Role::Server, 1);
    engine.add(wire).unwrap();
    let mut guest = open(&frontend_spec(&name, 0));
    let mut memif = client(&name, 1);
    until_up(&engine, &name, 1);
    let protocol = ProtocolFeatures::REPLY_ACK.with(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
    guest.tell(&VhostUserRequest::SetProtocolFeatures(protocol.0), &[]).unwrap();
    let more = Region::create("more", 1 << 20, &Arc::default()).unwrap();
    let row = MemoryRegion { guest: 1 << 40, size: 1 << 20, user: 1 << 45, offset: 0 };
    for _ in 0..5 {
        guest.tell(&VhostUserRequest::AddMemReg(row), &[more.file()]).unwrap();
        cross(&mut guest.queues.senders[0], &mut memif.queues.receivers[0], &SIZES[..5]);
        cross(&mut memif.queues.senders[0], &mut guest.queues.receivers[0], &SIZES[..5]);
        guest.tell(&VhostUserRequest::RemMemReg(row), &[]).unwrap();
        cross(&mut guest.queues.senders[0], &mut memif.queues.receivers[0], &SIZES[..5]);
    }
    let both = vec![guest.memory().row(), row];
    let file = guest.memory().file().try_clone_to_owned().unwrap();
    guest.tell(&VhostUserRequest::SetMemTable(both), &[file.as_fd(), more.file()]).unwrap();
    cross(&mut guest.queues.senders[0], &mut memif.queues.receivers[0], &SIZES[..5]);
}

#[test]
fn a_guest_that_moved_is_announced_at_the_other_end() {
    let engine = engine();
    let (name, wire) = mixed_wire("rarp", Role::Server, 1);
    engine.add(wire).unwrap();
    let mut guest = open(&frontend_spec(&name, 0));
    guest
        .tell(&VhostUserRequest::SetProtocolFeatures(ProtocolFeatures::REPLY_ACK.with(ProtocolFeatures::RARP).0), &[])
        .unwrap();
    // Nobody is there who could hear it.
    guest.tell(&VhostUserRequest::SendRarp([2, 0, 0, 0, 0, 8]), &[]).unwrap();
    let mut memif = client(&name, 1);
    until_up(&engine, &name, 1);
    guest.tell(&VhostUserRequest::SendRarp([2, 0, 0, 0, 0, 9]), &[]).unwrap();
    let (announcement, _) = take(&mut memif.queues.receivers[0]);
    assert_eq!(
        (announcement.len(), &announcement[..14]),
        (60, &[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 9, 0x80, 0x35][..])
    );
    assert_eq!(status(&engine, &name).directions[0].frames, 1);
}

#[test]
fn what_is_written_is_logged_for_a_migration() {
    let engine = engine();
    let (name, wire) = mixed_wire("log", Role::Server, 1);
    engine.add(wire).unwrap();
    let mut guest = open(&frontend_spec(&name, 0));
    let mut memif = client(&name, 1);
    until_up(&engine, &name, 1);
    let log = guest.start_log().unwrap();
    let dirty = || (0..log.len() as u64 / 4).filter(|word| log.read_u32(word * 4) != Some(0)).count();
    cross(&mut memif.queues.senders[0], &mut guest.queues.receivers[0], &SIZES[..5]);
    assert!(dirty() > 0);
}

/// A TCP segment of `payload` bytes, as a guest leaves it that has the device cut it into parts of `size` bytes.
fn large_segment(payload: u16, size: u16) -> (Vec<u8>, VnetHeader) {
    let mut bytes = vec![0; 54];
    bytes[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    bytes[16..18].copy_from_slice(&(40 + payload).to_be_bytes());
    bytes[22..24].copy_from_slice(&[64, 6]);
    bytes[46] = 0x50;
    bytes.extend((0..payload).map(|at| (at / size) as u8));
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        hdr_len: 54,
        gso_size: size,
        csum_start: 34,
        csum_offset: 16,
        ..VnetHeader::default()
    };
    (bytes, header)
}

#[test]
fn a_segment_that_is_being_cut_goes_on_where_it_was_when_its_rings_are_made_anew() {
    const SEGMENTS: usize = 10;
    for layout in [Features::default(), Features::RING_PACKED] {
        let engine = engine();
        let (name, wire) = vhost_wire("cut");
        engine.add(wire).unwrap();
        let offloads = Features::CSUM | Features::HOST_TSO4;
        let mut sender =
            open(&FrontendSpec { features: Features::VERSION_1 | offloads | layout, ..frontend_spec(&name, 0) });
        assert!(sender.features.has(offloads));
        // Room for a part of it.
        let rings = DriverSpec { size: 4, ..DriverSpec::default() };
        let mut receiver = open(&FrontendSpec { rings, features: Features::VERSION_1, ..frontend_spec(&name, 1) });
        until_up(&engine, &name, 1);
        let (bytes, header) = large_segment(100 * SEGMENTS as u16, 100);
        put(&mut sender.queues.senders[0], &bytes, Some(&header));
        eventually("a part of it has crossed", || status(&engine, &name).directions[0].frames == 4);
        sender.tell(&VhostUserRequest::SetVringEnable(VringState { index: 0, num: 1 }), &[]).unwrap();
        for number in 0..SEGMENTS {
            let (segment, offload) = take(&mut receiver.queues.receivers[0]);
            assert_eq!((segment.len(), offload), (154, None));
            let sequence = u32::from_be_bytes(segment[38..42].try_into().unwrap());
            assert_eq!((sequence, segment[54]), (100 * number as u32, number as u8), "{layout:?}");
        }
        cross(&mut sender.queues.senders[0], &mut receiver.queues.receivers[0], &SIZES[..2]);
        assert_eq!(status(&engine, &name).directions[0].frames, SEGMENTS as u64 + 2);
    }
}

#[test]
fn memory_that_is_announced_before_the_rings_have_moved_parts_nobody() {
    const FURTHER: u64 = 1 << 40;
    let engine = engine();
    let (name, wire) = mixed_wire("moved", Role::Server, 1);
    engine.add(wire).unwrap();
    let mut guest = open(&frontend_spec(&name, 0));
    let mut memif = client(&name, 1);
    until_up(&engine, &name, 1);
    let row = guest.memory().row();
    let file = guest.memory().file().try_clone_to_owned().unwrap();
    // Each is waited for: the backend has nothing else to do meanwhile than to make rings.
    guest
        .tell(&VhostUserRequest::SetMemTable(vec![MemoryRegion { user: row.user + FURTHER, ..row }]), &[file.as_fd()])
        .unwrap();
    for index in 0..2 {
        eventually("the rings are shown as stopped", || status(&engine, &name).queues == 0);
        let at = guest.memory().addresses(index as usize);
        let [desc, used, avail] = [at.desc, at.used, at.avail].map(|address| address + FURTHER);
        let address = VringAddress { index, log: false, desc, used, avail, log_guest: 0 };
        guest.tell(&VhostUserRequest::SetVringAddr(address), &[]).unwrap();
    }
    until_up(&engine, &name, 1);
    cross(&mut guest.queues.senders[0], &mut memif.queues.receivers[0], &SIZES[..5]);
    cross(&mut memif.queues.senders[0], &mut guest.queues.receivers[0], &SIZES[..5]);
}

#[test]
fn a_guest_that_sleeps_is_notified_by_the_eventfd_that_it_named_last() {
    let engine = engine();
    let (name, wire) = mixed_wire("exchange", Role::Server, 1);
    engine.add(wire).unwrap();
    let mut guest = open(&frontend_spec(&name, 0));
    let mut memif = client(&name, 1);
    until_up(&engine, &name, 1);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for round in 0..200 {
        guest.queues.receivers[0].enable_notify(true);
        put(&mut memif.queues.senders[0], &frame(round, 64), None);
        let (call, kick) = (eventfd().unwrap(), eventfd().unwrap());
        guest.tell(&VhostUserRequest::SetVringCall(VringFile { index: 0, has_file: true }), &[call.as_fd()]).unwrap();
        guest.tell(&VhostUserRequest::SetVringKick(VringFile { index: 1, has_file: true }), &[kick.as_fd()]).unwrap();
        // Whenever the frame came: if the former eventfd was told, so is this one.
        let mut waiting = [PollFd::new(call.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll_fds(&mut waiting, PollTimeout::try_from(DEADLINE).unwrap()), Ok(1), "round {round}");
        assert!(take(&mut guest.queues.receivers[0]).0 == frame(round, 64));
        put(&mut guest.queues.senders[0], &frame(round, 65), None);
        notify(Some(kick.as_fd()));
        assert!(take(&mut memif.queues.receivers[0]).0 == frame(round, 65));
    }
    // Those that were replaced are closed, but for the last ones. Other tests run beside this one.
    assert!(descriptors() < before + 200, "{before} descriptors became {}", descriptors());
}

#[test]
fn an_eventfd_that_is_named_while_no_worker_has_the_ring_is_notified() {
    let engine = engine();
    let (name, wire) = mixed_wire("renamed", Role::Server, 1);
    engine.add(wire).unwrap();
    // Nobody is at the other end.
    let mut guest = open(&frontend_spec(&name, 0));
    eventually("its rings are there", || matches!(status(&engine, &name).ends[0], EndState::Connected { .. }));
    for index in 0..2 {
        let call = eventfd().unwrap();
        guest.tell(&VhostUserRequest::SetVringCall(VringFile { index, has_file: true }), &[call.as_fd()]).unwrap();
        let mut waiting = [PollFd::new(call.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll_fds(&mut waiting, PollTimeout::try_from(DEADLINE).unwrap()), Ok(1), "vring {index}");
    }
}

#[test]
fn two_guests_share_an_unfinished_checksum_and_memif_gets_it_finished() {
    let engine = engine();
    let (name, wire) = vhost_wire("offload");
    engine.add(wire).unwrap();
    let offloads = Features::CSUM | Features::GUEST_CSUM;
    let features = Features::VERSION_1 | offloads;
    let mut first = open(&FrontendSpec { features, ..frontend_spec(&name, 0) });
    let mut second = open(&FrontendSpec { features, ..frontend_spec(&name, 1) });
    assert!(first.features.has(offloads));
    until_up(&engine, &name, 1);
    let header = VnetHeader { flags: VnetHeader::NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..VnetHeader::default() };
    let sent = frame(0, 100);
    put(&mut first.queues.senders[0], &sent, Some(&header));
    let (received, offload) = take(&mut second.queues.receivers[0]);
    assert!(received == sent);
    assert_eq!(offload.map(|header| (header.flags, header.csum_start, header.csum_offset)), Some((1, 34, 6)));
    drop(second);
    // The successor wants finished frames: what is missing is done on the way.
    let mut second = open(&FrontendSpec { features: Features::VERSION_1, ..frontend_spec(&name, 1) });
    until_up(&engine, &name, 1);
    put(&mut first.queues.senders[0], &sent, Some(&header));
    let (received, offload) = take(&mut second.queues.receivers[0]);
    assert_eq!((received.len(), offload), (sent.len(), None));
    assert!(received[40..42] != sent[40..42] && received[..40] == sent[..40] && received[42..] == sent[42..]);
    let (name, wire) = mixed_wire("finished", Role::Server, 1);
    engine.add(wire).unwrap();
    let guest = open(&FrontendSpec { features, ..frontend_spec(&name, 0) });
    assert_eq!(guest.features & offloads, Features::default());
}

#[test]
fn a_request_that_fails_is_answered_and_the_wire_goes_on() {
    let engine = engine();
    let (name, wire) = mixed_wire("failure", Role::Server, 1);
    engine.add(wire).unwrap();
    let mut guest = open(&frontend_spec(&name, 0));
    let mut memif = client(&name, 1);
    until_up(&engine, &name, 1);
    for request in [
        VhostUserRequest::SetVringNum(VringState { index: 0, num: 64 }),
        VhostUserRequest::SetVringEnable(VringState { index: 99, num: 1 }),
        VhostUserRequest::Other(22),
    ] {
        assert!(matches!(guest.tell(&request, &[]), Err(FrontendError::Refused { .. })));
    }
    cross(&mut guest.queues.senders[0], &mut memif.queues.receivers[0], &SIZES[..5]);
}

#[test]
fn a_flood_of_requests_costs_nobody_but_its_own_wire() {
    let engine = engine();
    let (name, wire) = mixed_wire("flood", Role::Server, 1);
    engine.add(wire).unwrap();
    let (quiet, wire) = mixed_wire("quiet", Role::Server, 1);
    engine.add(wire).unwrap();
    let mut guest = open(&frontend_spec(&quiet, 0));
    let mut memif = client(&quiet, 1);
    until_up(&engine, &quiet, 1);
    let mut hostile = VhostUserChannel::connect(&frontend_spec(&name, 0).socket).unwrap();
    let enable = VhostUserRequest::SetVringEnable(VringState { index: 0, num: 1 }).emit(false);
    let features = VhostUserRequest::GetFeatures.emit(false);
    let mut answers = 0;
    for number in 0..20_000 {
        let bytes = if number % 2 == 0 { &enable } else { &features };
        // It reads its answers: one that does not is parted from.
        answers += drain(&mut hostile);
        while let Err(VhostUserChannelError::NotRead) = hostile.send(bytes, &[]) {
            answers += drain(&mut hostile);
            thread::yield_now();
        }
        if number % 100 == 0 {
            cross(&mut guest.queues.senders[0], &mut memif.queues.receivers[0], &[64]);
        }
    }
    let deadline = Instant::now() + DEADLINE;
    while answers < 10_000 && Instant::now() < deadline {
        answers += drain(&mut hostile);
        thread::yield_now();
    }
    assert_eq!(answers, 10_000);
}

fn drain(channel: &mut VhostUserChannel) -> usize {
    std::iter::from_fn(|| channel.receive().unwrap()).count()
}

#[test]
fn a_wire_is_removed_while_its_frontend_waits_for_an_answer() {
    let engine = engine();
    for _ in 0..20 {
        let (name, wire) = mixed_wire("removal", Role::Server, 1);
        engine.add(wire).unwrap();
        let _guest = open(&frontend_spec(&name, 0));
        let _memif = client(&name, 1);
        until_up(&engine, &name, 1);
        engine.remove(&name).unwrap();
        assert!(engine.wire(&name).is_none());
    }
}

#[test]
fn replies_have_the_flags_that_dpdk_compares_with() {
    let engine = engine();
    let (name, wire) = mixed_wire("flags", Role::Server, 1);
    engine.add(wire).unwrap();
    let mut channel = VhostUserChannel::connect(&frontend_spec(&name, 0).socket).unwrap();
    channel.send(&VhostUserRequest::GetFeatures.emit(true), &[]).unwrap();
    let mut answer = None;
    eventually("an answer comes", || {
        answer = channel.receive().unwrap();
        answer.is_some()
    });
    let answer = answer.unwrap();
    assert_eq!(answer.header, Header { request: 1, flags: 5, size: 8 });
    let ReplyBody::Value(features) = VhostUserReply::parse(1, &answer.payload).unwrap().body else { panic!("a value") };
    assert!(Features(features).has(Features::VERSION_1));
}
