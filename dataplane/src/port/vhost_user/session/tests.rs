//! What a backend answers, and what a frontend's lies lead to.

#![allow(clippy::needless_pass_by_value, reason = "requests are written where they are said")]

use super::*;
use std::os::fd::AsRawFd;

use crate::port::vhost_user::eventfd::EventfdRole;
use crate::port::vhost_user::memory::MemoryRegion;
use crate::port::vhost_user::message::{Config, HEADER_LEN, Header, Inflight, VringAddress, VringFile, VringState};
use crate::spec::{EndSpec, Role, VhostUserSpec};
use ferrule_ffi::memory_budget::MemoryBudget;
use ferrule_ffi::notifier;
use ferrule_ffi::region::{Health, Region};

const RINGS: u32 = 4;
const MEMORY: u64 = 1 << 20;
const USER: u64 = 0x7f00_0000_0000;

fn spec() -> VhostUserSpec {
    let mut spec = VhostUserSpec::new("@v".parse().unwrap(), Role::Server);
    (spec.queues, spec.mtu) = (2, Some(9000));
    spec
}

/// A session of a frontend that took every protocol feature.
fn session() -> Session {
    let offer = VhostUserOffer::new(&spec(), &EndSpec::VhostUser(spec()));
    let protocol = offer.protocol;
    let mut session = Session::new(offer, &MemoryBudget::unlimited());
    done(&mut session, VhostUserRequest::SetProtocolFeatures(protocol.0), vec![]);
    session
}

fn memory_file(len: u64) -> PeerFile {
    let region = Region::create("guest", len, &Arc::new(Health::default())).unwrap();
    region.file().try_clone_to_owned().unwrap().into()
}

fn eventfd_file() -> PeerFile {
    OwnedFd::from(notifier::eventfd().unwrap()).into()
}

fn row() -> MemoryRegion {
    MemoryRegion { guest: 0, size: MEMORY, user: USER, offset: 0 }
}

/// The request as it would come over the socket.
fn message(request: &VhostUserRequest, need_reply: bool, files: Vec<PeerFile>) -> VhostUserMessage {
    let bytes = request.emit(need_reply);
    let (header, payload) = bytes.split_first_chunk::<HEADER_LEN>().unwrap();
    let header = Header::parse(header).unwrap();
    VhostUserMessage::new(RawMessage { header, payload: payload.to_vec(), files }).unwrap()
}

fn say(
    session: &mut Session,
    request: VhostUserRequest,
    files: Vec<PeerFile>,
) -> Result<Option<ReplyBody>, SessionError> {
    let answer = session.handle(message(&request, false, files))?;
    Ok(answer.reply.map(|(reply, _)| reply.body))
}

fn ask(session: &mut Session, request: VhostUserRequest) -> ReplyBody {
    say(session, request, vec![]).unwrap().unwrap()
}

fn done(session: &mut Session, request: VhostUserRequest, files: Vec<PeerFile>) {
    assert_eq!(say(session, request.clone(), files).unwrap(), None, "{}", request.word());
}

/// What the refusal of a request says, without a wish for a reply and with one.
fn refused(session: &mut Session, request: &VhostUserRequest, files: impl Fn() -> Vec<PeerFile>) -> String {
    let answer = session.handle(message(request, true, files())).unwrap();
    assert_eq!(
        answer.reply.map(|(reply, _)| reply),
        Some(VhostUserReply { request: request.number(), body: ReplyBody::Value(1) })
    );
    say(session, request.clone(), files()).unwrap_err().to_string()
}

/// Describes a ring of 64 descriptors, each in pages of its own.
fn describe(session: &mut Session, index: u32) {
    let place = USER + u64::from(index) * 0x4000;
    let (desc, avail, used) = (place, place + 0x1000, place + 0x2000);
    let state = |num| VringState { index, num };
    done(session, VhostUserRequest::SetVringNum(state(64)), vec![]);
    done(session, VhostUserRequest::SetVringBase(state(0)), vec![]);
    done(
        session,
        VhostUserRequest::SetVringAddr(VringAddress { index, log: false, desc, used, avail, log_guest: 0 }),
        vec![],
    );
    let ring = VringFile { index: index as u8, has_file: true };
    done(session, VhostUserRequest::SetVringCall(ring), vec![eventfd_file()]);
    done(session, VhostUserRequest::SetVringKick(ring), vec![eventfd_file()]);
}

fn enable(session: &mut Session, index: u32, on: bool) {
    done(session, VhostUserRequest::SetVringEnable(VringState { index, num: on.into() }), vec![]);
}

/// A session whose driver is ready, with both rings of so many pairs described and enabled.
fn running(pairs: u32) -> Session {
    let mut session = session();
    done(&mut session, VhostUserRequest::SetOwner, vec![]);
    let features = Features::VERSION_1 | Features::MRG_RXBUF | Features::PROTOCOL_FEATURES;
    done(&mut session, VhostUserRequest::SetFeatures(features.0), vec![]);
    done(&mut session, VhostUserRequest::SetMemTable(vec![row()]), vec![memory_file(MEMORY)]);
    for index in 0..2 * pairs {
        describe(&mut session, index);
        enable(&mut session, index, true);
    }
    done(&mut session, VhostUserRequest::SetStatus(15), vec![]);
    session
}

fn counts(session: &mut Session) -> Option<(usize, usize)> {
    session.rings().unwrap().map(|rings| (rings.sources.len(), rings.targets.len()))
}

#[test]
fn what_is_offered_is_told_and_nothing_else_can_be_chosen() {
    let mut session = session();
    let ReplyBody::Value(features) = ask(&mut session, VhostUserRequest::GetFeatures) else { panic!("a value") };
    assert!(Features(features).has(Features::VERSION_1 | Features::MQ | Features::LOG_ALL));
    assert_eq!(ask(&mut session, VhostUserRequest::GetQueueNum), ReplyBody::Value(2));
    assert_eq!(ask(&mut session, VhostUserRequest::GetMaxMemSlots), ReplyBody::Value(64));
    assert_eq!(ask(&mut session, VhostUserRequest::GetStatus), ReplyBody::Value(0));
    done(&mut session, VhostUserRequest::SetFeatures(features), vec![]);
    assert!(
        refused(&mut session, &VhostUserRequest::SetFeatures(1 << 33), Vec::new).contains("0x200000000 were chosen")
    );
    assert!(
        refused(&mut session, &VhostUserRequest::SetProtocolFeatures(1 << 5), Vec::new).contains("0x20 were chosen")
    );
}

#[test]
fn a_request_needs_the_protocol_feature_that_it_belongs_to() {
    let inflight = Inflight { mmap_size: 0, mmap_offset: 0, queues: 1, queue_size: 1 };
    let config = Config { offset: 0, flags: 0, data: vec![0; 4] };
    for (request, feature) in [
        (VhostUserRequest::SetLogBase(LogArea { size: 1, offset: 0 }), "LOG_SHMFD"),
        (VhostUserRequest::GetQueueNum, "MQ"),
        (VhostUserRequest::SendRarp([0; 6]), "RARP"),
        (VhostUserRequest::NetSetMtu(1500), "NET_MTU"),
        (VhostUserRequest::GetConfig(config), "CONFIG"),
        (VhostUserRequest::GetInflightFd(inflight), "INFLIGHT_SHMFD"),
        (VhostUserRequest::ResetDevice, "RESET_DEVICE"),
        (VhostUserRequest::GetMaxMemSlots, "CONFIGURE_MEM_SLOTS"),
        (VhostUserRequest::SetStatus(1), "STATUS"),
    ] {
        let mut session = session();
        done(&mut session, VhostUserRequest::SetProtocolFeatures(0), vec![]);
        let problem = refused(&mut session, &request, Vec::new);
        assert_eq!(problem, format!("refused: {} without the protocol feature {feature}", request.word()));
    }
}

#[test]
fn a_frontend_that_remembers_another_connection_may_speak_before_it_chooses() {
    let mut session =
        Session::new(VhostUserOffer::new(&spec(), &EndSpec::VhostUser(spec())), &MemoryBudget::unlimited());
    done(&mut session, VhostUserRequest::SetStatus(0), vec![]);
    assert_eq!(ask(&mut session, VhostUserRequest::GetStatus), ReplyBody::Value(0));
    let state = VringState { index: 3, num: 0 };
    assert_eq!(ask(&mut session, VhostUserRequest::GetVringBase(state)), ReplyBody::Vring(state));
}

#[test]
fn every_request_has_its_own_number_of_files() {
    let ring = |has_file| VringFile { index: 0, has_file };
    let file = || memory_file(4096);
    let mut session = session();
    for (request, count) in [
        (VhostUserRequest::GetFeatures, 1),
        (VhostUserRequest::SetMemTable(vec![row()]), 0),
        (VhostUserRequest::SetMemTable(vec![row()]), 2),
        (VhostUserRequest::SetLogBase(LogArea { size: 1, offset: 0 }), 0),
        (VhostUserRequest::SetVringKick(ring(true)), 0),
        (VhostUserRequest::SetVringKick(ring(false)), 1),
        (VhostUserRequest::SetVringCall(ring(true)), 2),
        (VhostUserRequest::SetVringErr(ring(true)), 0),
        (VhostUserRequest::AddMemReg(row()), 0),
        (VhostUserRequest::RemMemReg(row()), 2),
        (VhostUserRequest::SetVringNum(VringState { index: 0, num: 64 }), 1),
        (VhostUserRequest::Other(21), 1),
    ] {
        let problem = refused(&mut session, &request, || (0..count).map(|_| file()).collect());
        assert!(problem.contains(&format!("{count} descriptors came with")), "{problem}");
    }
}

#[test]
fn an_unknown_request_is_answered_with_failure_or_ends_the_conversation() {
    let mut session = session();
    for number in [0, 21, 22, 23, 26, 28, 33, 35, 41, 44, 45, u32::MAX] {
        assert!(refused(&mut session, &VhostUserRequest::Other(number), Vec::new).contains("no use for"), "{number}");
    }
}

#[test]
fn rings_run_when_both_of_a_pair_are_complete_and_the_driver_is_ready() {
    let mut session = running(1);
    assert_eq!(counts(&mut session), Some((1, 1)));
    assert_eq!(session.pairs(), 1);
    describe(&mut session, 2);
    assert_eq!(counts(&mut session), Some((1, 1)));
    describe(&mut session, 3);
    // Not enabled: one is drained, the other is given nothing.
    assert_eq!(counts(&mut session), Some((2, 1)));
    enable(&mut session, 2, true);
    assert_eq!(counts(&mut session), Some((2, 2)));
    done(&mut session, VhostUserRequest::SetStatus(3), vec![]);
    assert_eq!(counts(&mut session), None);
}

#[test]
fn without_protocol_features_rings_run_from_their_start() {
    let mut session = running(1);
    for index in 0..2 {
        enable(&mut session, index, false);
        ask(&mut session, VhostUserRequest::GetVringBase(VringState { index, num: 0 }));
    }
    done(&mut session, VhostUserRequest::SetFeatures(Features::VERSION_1.0), vec![]);
    describe(&mut session, 0);
    describe(&mut session, 1);
    assert_eq!(counts(&mut session), Some((1, 1)));
}

#[test]
fn a_stopped_ring_tells_where_a_successor_begins_and_needs_a_new_start() {
    let mut session = running(1);
    let rings = session.rings().unwrap().unwrap();
    session.park(rings);
    let state = VringState { index: 1, num: 0 };
    assert_eq!(ask(&mut session, VhostUserRequest::GetVringBase(state)), ReplyBody::Vring(state));
    assert_eq!(counts(&mut session), None);
    done(&mut session, VhostUserRequest::SetVringBase(VringState { num: 7, ..state }), vec![]);
    assert_eq!(
        ask(&mut session, VhostUserRequest::GetVringBase(state)),
        ReplyBody::Vring(VringState { num: 7, ..state })
    );
    let ring = VringFile { index: 1, has_file: false };
    done(&mut session, VhostUserRequest::SetVringKick(ring), vec![]);
    assert_eq!(counts(&mut session), Some((1, 1)));
}

#[test]
fn a_packed_ring_begins_with_both_wrap_counters_set() {
    let mut session = session();
    done(&mut session, VhostUserRequest::SetFeatures((Features::VERSION_1 | Features::RING_PACKED).0), vec![]);
    let state = VringState { index: 0, num: 0x8000_8000 };
    assert_eq!(
        ask(&mut session, VhostUserRequest::GetVringBase(VringState { num: 0, ..state })),
        ReplyBody::Vring(state)
    );
}

#[test]
fn what_stands_while_a_ring_runs_cannot_be_changed() {
    let mut session = running(1);
    let state = VringState { index: 0, num: 128 };
    for request in [VhostUserRequest::SetVringNum(state), VhostUserRequest::SetVringBase(state)] {
        assert!(refused(&mut session, &request, Vec::new).contains("vring 0: it is started"));
    }
    let features = session.features;
    done(&mut session, VhostUserRequest::SetFeatures((features | Features::LOG_ALL).0), vec![]);
    let more = VhostUserRequest::SetFeatures((features | Features::EVENT_IDX).0);
    assert!(refused(&mut session, &more, Vec::new).contains("change while rings are started"));
}

#[test]
fn an_index_beyond_the_rings_is_refused_wherever_it_stands() {
    let mut session = session();
    for index in [RINGS, 0xff, 0x100, u32::MAX] {
        let state = VringState { index, num: 64 };
        let address = VringAddress { index, log: false, desc: 0, used: 0, avail: 0, log_guest: 0 };
        for request in [
            VhostUserRequest::SetVringNum(state),
            VhostUserRequest::SetVringBase(state),
            VhostUserRequest::GetVringBase(state),
            VhostUserRequest::SetVringEnable(state),
            VhostUserRequest::SetVringAddr(address),
        ] {
            let problem = refused(&mut session, &request, Vec::new);
            assert!(problem.contains(&format!("vring {index}: there are {RINGS}")), "{problem}");
        }
    }
    let ring = VringFile { index: 4, has_file: true };
    for request in [
        VhostUserRequest::SetVringKick(ring),
        VhostUserRequest::SetVringCall(ring),
        VhostUserRequest::SetVringErr(ring),
    ] {
        assert!(refused(&mut session, &request, || vec![eventfd_file()]).contains("vring 4: there are 4"));
    }
}

#[test]
fn a_kick_that_is_no_eventfd_is_refused() {
    let ring = VringFile { index: 0, has_file: true };
    let mut session = session();
    for request in [
        VhostUserRequest::SetVringKick(ring),
        VhostUserRequest::SetVringCall(ring),
        VhostUserRequest::SetVringErr(ring),
    ] {
        assert!(refused(&mut session, &request, || vec![memory_file(4096)]).contains("not an eventfd"));
    }
}

#[test]
fn a_ring_that_lies_outside_of_the_memory_cannot_run() {
    let mut session = running(1);
    let lie = VringAddress { index: 1, log: false, desc: USER + MEMORY - 16, used: USER, avail: USER, log_guest: 0 };
    done(&mut session, VhostUserRequest::SetVringAddr(lie), vec![]);
    assert!(matches!(session.rings(), Err(VringError::Place { index: 1, .. })));
    done(&mut session, VhostUserRequest::RemMemReg(row()), vec![]);
    // Nothing to run in is not a lie.
    assert_eq!(counts(&mut session), None);
}

#[test]
fn memory_grows_and_shrinks_under_rings_that_stay() {
    let mut session = running(1);
    let more = MemoryRegion { guest: MEMORY, user: USER + MEMORY, ..row() };
    done(&mut session, VhostUserRequest::AddMemReg(more), vec![memory_file(MEMORY)]);
    assert_eq!(counts(&mut session), Some((1, 1)));
    done(&mut session, VhostUserRequest::RemMemReg(more), vec![]);
    done(
        &mut session,
        VhostUserRequest::SetMemTable(vec![row(), more]),
        vec![memory_file(MEMORY), memory_file(MEMORY)],
    );
    assert_eq!(counts(&mut session), Some((1, 1)));
}

#[test]
fn resets_stop_rings_and_leave_what_is_the_frontend_s() {
    let mut session = running(2);
    done(&mut session, VhostUserRequest::ResetOwner, vec![]);
    assert_eq!(counts(&mut session), Some((2, 0)));
    (0..4).for_each(|index| enable(&mut session, index, true));
    assert_eq!(counts(&mut session), Some((2, 2)));
    done(&mut session, VhostUserRequest::SetStatus(0), vec![]);
    done(&mut session, VhostUserRequest::SetStatus(15), vec![]);
    assert_eq!(counts(&mut session), None);
    let mut session = running(1);
    done(&mut session, VhostUserRequest::ResetDevice, vec![]);
    assert_eq!(ask(&mut session, VhostUserRequest::GetStatus), ReplyBody::Value(0));
    assert_eq!(session.features, Features::default());
    assert!(session.memory.memory().is_some());
    assert_eq!(counts(&mut session), None);
}

#[test]
fn a_driver_that_is_reset_begins_where_its_frontend_says_and_not_where_the_last_one_was() {
    let mut session = session();
    let features = Features::VERSION_1 | Features::PROTOCOL_FEATURES | Features::RING_PACKED;
    done(&mut session, VhostUserRequest::SetFeatures(features.0), vec![]);
    done(&mut session, VhostUserRequest::SetMemTable(vec![row()]), vec![memory_file(MEMORY)]);
    let asked = Inflight { mmap_size: 0, mmap_offset: 0, queues: 2, queue_size: 64 };
    assert!(matches!(ask(&mut session, VhostUserRequest::GetInflightFd(asked)), ReplyBody::Inflight(_)));
    for index in 0..2 {
        describe(&mut session, index);
        enable(&mut session, index, true);
        // The last driver's, in the middle of a frame.
        session.vrings[index as usize].left_at(0x8005_8005, 3);
    }
    done(&mut session, VhostUserRequest::SetStatus(15), vec![]);
    let rings = session.rings().unwrap().unwrap();
    session.park(rings);
    assert_eq!((session.vrings[1].base(features), session.vrings[1].segments()), (0x8005_8005, 3));
    done(&mut session, VhostUserRequest::SetStatus(0), vec![]);
    for index in 0..2 {
        let state = VringState { index, num: 0x8000_8000 };
        done(&mut session, VhostUserRequest::SetVringBase(state), vec![]);
        let ring = VringFile { index: index as u8, has_file: true };
        done(&mut session, VhostUserRequest::SetVringKick(ring), vec![eventfd_file()]);
    }
    done(&mut session, VhostUserRequest::SetStatus(15), vec![]);
    let rings = session.rings().unwrap().unwrap();
    assert_eq!(rings.sources[0].resume, 0);
    session.park(rings);
    let bases = [0, 1].map(|index: usize| session.vrings[index].base(features));
    assert_eq!(bases, [0x8000_8000; 2]);
}

#[test]
fn a_log_must_lie_in_its_file() {
    let mut session = session();
    let log = |size, offset| VhostUserRequest::SetLogBase(LogArea { size, offset });
    let good = session.handle(message(&log(4096, 0), true, vec![memory_file(4096)])).unwrap();
    let (reply, _) = good.reply.unwrap();
    assert_eq!(reply, VhostUserReply { request: 6, body: ReplyBody::Empty });
    for (size, offset) in [(4097, 0), (4096, 1), (u64::MAX, 1), (1, u64::MAX), (0, 0), (0, 4096)] {
        let problem = refused(&mut session, &log(size, offset), || vec![memory_file(4096)]);
        assert!(problem.contains("log "), "{problem}");
    }
}

#[test]
fn inflight_memory_is_made_once_more_as_often_as_it_is_asked_for() {
    let mut session = session();
    let asked = Inflight { mmap_size: 0, mmap_offset: 0, queues: 4, queue_size: 64 };
    let answer = |session: &mut Session| {
        let answer = session.handle(message(&VhostUserRequest::GetInflightFd(asked), false, vec![])).unwrap();
        let (reply, file) = answer.reply.unwrap();
        let ReplyBody::Inflight(inflight) = reply.body else { panic!("inflight memory") };
        (inflight, file.unwrap())
    };
    let (first, file) = answer(&mut session);
    assert_eq!((first.queues, first.mmap_offset), (4, 0));
    assert_eq!(answer(&mut session).0, first);
    done(&mut session, VhostUserRequest::SetInflightFd(first), vec![file.into()]);
    let lie = VhostUserRequest::GetInflightFd(Inflight { queues: 5, ..asked });
    assert!(refused(&mut session, &lie, Vec::new).contains("5 queues; this end has 4"));
}

#[test]
fn memory_that_a_request_replaces_stays_mapped_for_whoever_drops_it() {
    let mut session = session();
    let asked = Inflight { mmap_size: 0, mmap_offset: 0, queues: 4, queue_size: 64 };
    let requests = [
        (VhostUserRequest::SetMemTable(vec![row()]), Some(MEMORY)),
        (VhostUserRequest::SetLogBase(LogArea { size: 4096, offset: 0 }), Some(4096)),
        (VhostUserRequest::GetInflightFd(asked), None),
    ];
    for (request, file) in requests {
        for _ in 0..2 {
            let before = session.mapped();
            let files = file.map(memory_file).into_iter().collect();
            session.handle(message(&request, false, files)).unwrap();
            assert!(!before.is_same(&session.mapped()), "{}", request.word());
        }
        let before = session.mapped();
        ask(&mut session, VhostUserRequest::GetFeatures);
        assert!(before.is_same(&session.mapped()));
    }
    let before = session.mapped();
    done(&mut session, VhostUserRequest::ResetDevice, vec![]);
    assert!(!before.is_same(&session.mapped()), "without a log");
}

#[test]
fn the_configuration_is_read_and_not_written() {
    let mut session = session();
    let config = |offset, len| Config { offset, flags: 0, data: vec![0; len] };
    let ReplyBody::Config(mtu) = ask(&mut session, VhostUserRequest::GetConfig(config(10, 2))) else {
        panic!("configuration")
    };
    assert_eq!(mtu.data[..], 9000u16.to_le_bytes());
    let ReplyBody::Config(none) = ask(&mut session, VhostUserRequest::GetConfig(config(255, 2))) else {
        panic!("configuration")
    };
    assert!(none.data.is_empty());
    assert!(refused(&mut session, &VhostUserRequest::SetConfig(config(0, 6)), Vec::new).contains("read-only"));
}

#[test]
fn small_things_are_acknowledged() {
    let mut session = session();
    let mut acknowledged = |request| {
        let answer = session.handle(message(&request, true, vec![])).unwrap();
        assert_eq!(answer.reply.map(|(reply, _)| reply.body), Some(ReplyBody::Value(0)));
        answer.announce
    };
    assert_eq!(acknowledged(VhostUserRequest::NetSetMtu(1500)), None);
    assert_eq!(acknowledged(VhostUserRequest::SendRarp([2, 0, 0, 0, 0, 1])), Some([2, 0, 0, 0, 0, 1]));
    assert!(refused(&mut session, &VhostUserRequest::NetSetMtu(67), Vec::new).contains("MTU of 67"));
    assert!(refused(&mut session, &VhostUserRequest::SetStatus(256), Vec::new).contains("0x100"));
}

#[test]
fn a_reply_to_nothing_ends_the_conversation() {
    let header = Header { request: 1, flags: 5, size: 0 };
    let envelope = RawMessage { header, payload: vec![], files: vec![] };
    assert!(matches!(VhostUserMessage::new(envelope), Err(SessionError::NotAsked)));
}

#[test]
fn memory_that_comes_before_the_rings_new_addresses_is_no_lie() {
    const FURTHER: u64 = 1 << 32;
    let mut session = running(1);
    let moved = MemoryRegion { user: USER + FURTHER, ..row() };
    done(&mut session, VhostUserRequest::SetMemTable(vec![moved]), vec![memory_file(MEMORY)]);
    assert_eq!(counts(&mut session), None, "the rings wait for their addresses");
    for index in 0..2 {
        assert_eq!(counts(&mut session), None);
        let place = USER + FURTHER + u64::from(index) * 0x4000;
        let (desc, avail, used) = (place, place + 0x1000, place + 0x2000);
        done(
            &mut session,
            VhostUserRequest::SetVringAddr(VringAddress { index, log: false, desc, used, avail, log_guest: 0 }),
            vec![],
        );
    }
    assert_eq!(counts(&mut session), Some((1, 1)));
    let lie = VringAddress { index: 1, log: false, desc: USER, used: USER, avail: USER, log_guest: 0 };
    done(&mut session, VhostUserRequest::SetVringAddr(lie), vec![]);
    assert!(matches!(session.rings(), Err(VringError::Place { index: 1, .. })));
}

#[test]
fn eventfds_of_rings_that_are_out_are_exchanged_and_the_former_ones_kept_until_nobody_has_them() {
    let ring = |index, has_file| VringFile { index, has_file };
    let mut session = running(1);
    let call = VhostUserRequest::SetVringCall(ring(0, true));
    let kick = VhostUserRequest::SetVringKick(ring(1, true));
    let mut rings = session.rings().unwrap().unwrap();
    assert!(!session.needs_quiesce(&call) && !session.needs_quiesce(&kick));
    // Polling begins, or ends; a ring starts.
    for request in [VhostUserRequest::SetVringKick(ring(1, false)), VhostUserRequest::SetVringKick(ring(3, true))] {
        assert!(session.needs_quiesce(&request), "{request:?}");
    }
    for (request, vring, role) in [(&call, 0, EventfdRole::Call), (&kick, 1, EventfdRole::Kick)] {
        let mut last = None;
        for _ in 0..40 {
            assert!(!session.needs_quiesce(request));
            let response = session.handle(message(request, false, vec![eventfd_file()])).unwrap();
            let exchange = response.exchange.unwrap();
            assert_eq!((exchange.vring, exchange.role, exchange.position), (vring, role, 0));
            rings.exchange(&exchange);
            last = exchange.eventfd;
        }
        let used = match role {
            EventfdRole::Kick => rings.sources[0].source.as_dyn().notify_fd().unwrap().as_raw_fd(),
            EventfdRole::Call => rings.targets[0].as_dyn_mut().notify_fd().unwrap().as_raw_fd(),
        };
        assert_eq!(used, last.unwrap().as_raw_fd());
    }
    // A worker that does not come to it: after some, the rings are asked for.
    let mut kept = Vec::new();
    while !session.needs_quiesce(&call) {
        kept.push(session.handle(message(&call, false, vec![eventfd_file()])).unwrap().exchange);
        assert!(kept.len() < 100);
    }
    // Back, they have what was said meanwhile.
    let newest = kept.pop().flatten().and_then(|exchange| exchange.eventfd).unwrap();
    session.renew_eventfds(&mut rings);
    assert_eq!(rings.targets[0].as_dyn_mut().notify_fd().unwrap().as_raw_fd(), newest.as_raw_fd());
    drop(kept);
    session.park(rings);
    assert!(!session.needs_quiesce(&call), "nobody has the former ones any more");
    let response = session.handle(message(&call, false, vec![eventfd_file()])).unwrap();
    assert!(response.exchange.is_none(), "no ring is out");
}
