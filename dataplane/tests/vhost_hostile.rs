//! Bad vhost-user frontends: each is parted from or refused, keeps nothing of ours, and costs nobody else anything.
//!
//! The classes are those of the incidents of other backends (CVE numbers at the cases). What a hostile guest does inside
//! of its rings is in `virtqueues`.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{DEADLINE, client, client_spec, engine, eventually, poll, receive, send, unique};
use ferrule_dataplane::Engine;
use ferrule_dataplane::port::vhost_user::channel::{VhostUserChannel, VhostUserChannelError};
use ferrule_dataplane::port::vhost_user::memory::MemoryRegion;
use ferrule_dataplane::port::vhost_user::message::{
    Header, Inflight, LogArea, PAYLOAD_MAX, VhostUserRequest, VringAddress, VringFile, VringState,
};
use ferrule_dataplane::spec::{EndSpec, Full, MemifSpec, Role, VhostUserSpec, WireSpec};
use ferrule_endpoints::memif::Endpoint;
use ferrule_endpoints::vhost_user::{Frontend, FrontendSpec};
use ferrule_ffi::notifier::eventfd;
use ferrule_ffi::region::Region;
use ferrule_ffi::unix::{Kind, UnixListener, UnixSocket};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{UnixAddr, setsockopt};
use nix::unistd::{ftruncate, pipe};

/// An attacked wire, and another one whose frames must not notice.
struct Testbed {
    engine: Engine,
    name: String,
    bystander: [Endpoint; 2],
    /// Descriptors are counted, so one test runs at a time.
    _alone: MutexGuard<'static, ()>,
}

impl Testbed {
    fn new() -> Self {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let engine = engine();
        let (bystander, wire) = common::memif_wire("bystander", Role::Server, Role::Server, Full::Hold);
        engine.add(wire).unwrap();
        let name = unique("hostile");
        let vhost = VhostUserSpec { queues: 2, ..VhostUserSpec::new(socket(&name), Role::Server) };
        let memif = MemifSpec { role: Role::Server, ..client_spec(&name, 1) };
        let ends = [EndSpec::VhostUser(vhost), EndSpec::Memif(memif)];
        engine.add(WireSpec::new(name.clone(), ends)).unwrap();
        let bystander = [client(&bystander, 0), client(&bystander, 1)];
        let mut testbed = Self { engine, name, bystander, _alone: alone };
        testbed.witness_moves();
        testbed
    }

    fn spec(&self) -> FrontendSpec {
        FrontendSpec::new(socket(&self.name))
    }

    /// Another frontend is let in at once, and its wire carries frames.
    fn honest_frontend_is_served(&self) {
        let _guest = Frontend::open(&self.spec(), DEADLINE).unwrap();
        let _memif = client(&self.name, 1);
        eventually("the wire is up", || self.engine.wire(&self.name).unwrap().queues == 1);
    }

    fn witness_moves(&mut self) {
        let [a, b] = &mut self.bystander;
        for number in 0..10u8 {
            send(a, 0, &[number; 60]);
            assert_eq!(receive(b, 0), [number; 60]);
        }
        assert_eq!(poll(b, 0), None);
    }
}

fn socket(name: &str) -> ferrule_dataplane::spec::SocketAddress {
    format!("@{name}").parse().unwrap()
}

/// A frontend that says what it likes.
struct RawFrontend(VhostUserChannel);

impl RawFrontend {
    fn say(&self, request: &VhostUserRequest, files: &[BorrowedFd<'_>]) {
        // One that was already shown out says nothing more.
        let _ = self.0.send(&request.emit(false), files);
    }

    /// Waits until it is shown out.
    fn is_parted_from(&mut self) -> bool {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            match self.0.receive() {
                Err(VhostUserChannelError::Closed | VhostUserChannelError::Socket(_)) => return true,
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        false
    }

    /// Chooses every protocol feature, and describes memory of so many pages.
    fn settle_in(&self, pages: u64) -> Region {
        self.say(&VhostUserRequest::SetProtocolFeatures(PROTOCOL), &[]);
        let memory = Region::create("guest", pages * PAGE, &Arc::default()).unwrap();
        let row = MemoryRegion { guest: 0, size: pages * PAGE, user: 0, offset: 0 };
        self.say(&VhostUserRequest::SetMemTable(vec![row]), &[memory.file()]);
        memory
    }

    /// Starts a pair of rings at these addresses.
    fn start_rings(&self, size: u32, desc: u64, avail: u64, used: u64) {
        let eventfd = eventfd().unwrap();
        for index in 0..2 {
            self.say(&VhostUserRequest::SetVringNum(VringState { index, num: size }), &[]);
            let address = VringAddress { index, log: false, desc, used, avail, log_guest: 0 };
            self.say(&VhostUserRequest::SetVringAddr(address), &[]);
            let ring = VringFile { index: index as u8, has_file: true };
            self.say(&VhostUserRequest::SetVringKick(ring), &[eventfd.as_fd()]);
        }
    }
}

type Case = (&'static str, fn(&RawFrontend));

/// What ends a conversation.
const CASES: [Case; 34] = [
    ("a header of another version", |v| raw(v, &Header { request: 1, flags: 2, size: 0 }.emit())),
    ("a payload without end", |v| raw(v, &Header { request: 5, flags: 1, size: PAYLOAD_MAX as u32 + 1 }.emit())),
    ("a payload of 4 GiB", |v| raw(v, &Header { request: 5, flags: 1, size: u32::MAX }.emit())),
    ("a reply", |v| raw(v, &Header { request: 1, flags: 5, size: 0 }.emit())),
    ("a request that is not for a net device", |v| v.say(&VhostUserRequest::Other(26), &[])),
    ("a request that nobody knows", |v| v.say(&VhostUserRequest::Other(u32::MAX), &[])),
    ("a payload that is too short", |v| {
        raw(v, &[&Header { request: 2, flags: 1, size: 4 }.emit()[..], &[0; 4]].concat());
    }),
    ("files where none belong", |v| v.say(&VhostUserRequest::GetFeatures, &[eventfd().unwrap().as_fd()])),
    ("more files than any message has", |v| v.say(&VhostUserRequest::SetOwner, &[eventfd().unwrap().as_fd(); 60])),
    ("a memory table without files (CVE-2019-14818)", |v| v.say(&VhostUserRequest::SetMemTable(vec![row(1)]), &[])),
    ("a memory table with too many files", |v| {
        let memory = memory(1);
        v.say(&VhostUserRequest::SetMemTable(vec![row(1)]), &[memory.as_fd(); 3]);
    }),
    ("a memory table of no regions", |v| v.say(&VhostUserRequest::SetMemTable(vec![]), &[])),
    ("memory that is larger than its file", |v| {
        v.say(&VhostUserRequest::SetMemTable(vec![row(2)]), &[memory(1).as_fd()]);
    }),
    ("memory of no bytes", |v| v.say(&VhostUserRequest::SetMemTable(vec![row(0)]), &[memory(1).as_fd()])),
    ("memory that wraps around", |v| {
        v.say(&VhostUserRequest::SetMemTable(vec![MemoryRegion { guest: u64::MAX, ..row(1) }]), &[memory(1).as_fd()]);
    }),
    ("an offset that wraps around", |v| {
        v.say(&VhostUserRequest::SetMemTable(vec![MemoryRegion { offset: u64::MAX, ..row(1) }]), &[memory(1).as_fd()]);
    }),
    ("regions that overlap", |v| {
        let memory = memory(2);
        v.say(
            &VhostUserRequest::SetMemTable(vec![row(2), MemoryRegion { guest: PAGE, ..row(1) }]),
            &[memory.as_fd(); 2],
        );
    }),
    ("memory that is a pipe", |v| v.say(&VhostUserRequest::SetMemTable(vec![row(1)]), &[pipe().unwrap().0.as_fd()])),
    ("a kick that is a pipe", |v| kick(v, pipe().unwrap().1.as_fd())),
    ("a kick that is a file", |v| kick(v, memory(1).as_fd())),
    ("a ring index beyond all rings (CVE-2020-10723)", |v| {
        v.say(&VhostUserRequest::SetVringNum(VringState { index: 4, num: 64 }), &[]);
    }),
    ("a ring index that is truncated (CVE-2020-10723)", |v| {
        v.say(&VhostUserRequest::GetVringBase(VringState { index: 0x1_0000, num: 0 }), &[]);
    }),
    ("a ring of no descriptors", |v| v.say(&VhostUserRequest::SetVringNum(VringState { index: 0, num: 0 }), &[])),
    ("a ring of 65536 descriptors", |v| {
        v.say(&VhostUserRequest::SetVringNum(VringState { index: 0, num: 65_536 }), &[]);
    }),
    ("a split ring of 100 descriptors", |v| {
        v.settle_in(16);
        v.start_rings(100, 0, 0x2000, 0x3000);
    }),
    ("a ring that reaches out of the memory (CVE-2018-1059)", |v| {
        v.settle_in(16);
        v.start_rings(256, 15 * PAGE + 16, 0x2000, 0x3000);
    }),
    ("a ring in memory that nobody announced", |v| {
        v.settle_in(16);
        v.start_rings(256, 0, u64::MAX - 1, 0x3000);
    }),
    ("a ring that is not aligned", |v| {
        v.settle_in(16);
        v.start_rings(256, 8, 0x2000, 0x3000);
    }),
    ("a ring that is resized while it runs (CVE-2019-14818)", |v| {
        v.settle_in(16);
        v.start_rings(256, 0, 0x2000, 0x3000);
        v.say(&VhostUserRequest::SetVringNum(VringState { index: 0, num: 32_768 }), &[]);
    }),
    ("a log that wraps around (CVE-2020-10722)", |v| {
        v.settle_in(1);
        v.say(&VhostUserRequest::SetLogBase(LogArea { size: u64::MAX, offset: 2 }), &[memory(1).as_fd()]);
    }),
    ("a log larger than its file (CVE-2020-10722)", |v| {
        v.settle_in(1);
        v.say(&VhostUserRequest::SetLogBase(LogArea { size: PAGE + 1, offset: 0 }), &[memory(1).as_fd()]);
    }),
    ("inflight memory for too many queues (CVE-2021-3839)", |v| {
        v.settle_in(1);
        let told = Inflight { mmap_size: PAGE, mmap_offset: 0, queues: u16::MAX, queue_size: u16::MAX };
        v.say(&VhostUserRequest::SetInflightFd(told), &[memory(1).as_fd()]);
    }),
    ("inflight memory without its file (CVE-2022-0669)", |v| {
        v.settle_in(1);
        let told = Inflight { mmap_size: PAGE, mmap_offset: 0, queues: 1, queue_size: 64 };
        v.say(&VhostUserRequest::SetInflightFd(told), &[]);
    }),
    ("features that were not offered", |v| v.say(&VhostUserRequest::SetFeatures(u64::MAX), &[])),
];

#[test]
fn every_lie_ends_its_own_connection_and_nothing_else() {
    let mut testbed = Testbed::new();
    // What the engine keeps for good is there after the first.
    testbed.honest_frontend_is_served();
    eventually("it is gone", || testbed.engine.wire(&testbed.name).unwrap().ends[0].word() == "listening");
    let before = open_files();
    for (name, attack) in CASES {
        let mut frontend = RawFrontend(VhostUserChannel::connect(&testbed.spec().socket).unwrap());
        attack(&frontend);
        assert!(frontend.is_parted_from(), "{name}: the connection stays");
        drop(frontend);
        testbed.honest_frontend_is_served();
        testbed.witness_moves();
    }
    eventually("every descriptor is closed", || open_files() <= before);
}

#[test]
fn inflight_memory_asked_for_again_and_again_is_not_kept() {
    let testbed = Testbed::new();
    let frontend = &mut RawFrontend(VhostUserChannel::connect(&testbed.spec().socket).unwrap());
    frontend.settle_in(1);
    let asked = Inflight { mmap_size: 0, mmap_offset: 0, queues: 4, queue_size: 1024 };
    let mut before = None;
    for round in 0..200 {
        frontend.say(&VhostUserRequest::GetInflightFd(asked), &[]);
        eventually("it is answered", || frontend.0.receive().unwrap().is_some());
        if round == 10 {
            before = Some(open_files());
        }
    }
    // CVE-2020-10726.
    assert!(open_files() <= before.unwrap() + 2);
}

#[test]
fn memory_that_is_cut_while_in_use_costs_its_owner_the_wire() {
    let mut testbed = Testbed::new();
    let file = memfd_create(c"cut", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&file, 16 * 4096).unwrap();
    let mut frontend = RawFrontend(VhostUserChannel::connect(&testbed.spec().socket).unwrap());
    frontend.say(&VhostUserRequest::SetMemTable(vec![row(16)]), &[file.as_fd()]);
    frontend.start_rings(256, 0, 0x2000, 0x3000);
    let _memif = client(&testbed.name, 1);
    eventually("the wire is up", || testbed.engine.wire(&testbed.name).unwrap().queues == 1);
    ftruncate(&file, 0).unwrap();
    assert!(frontend.is_parted_from());
    testbed.witness_moves();
}

#[test]
fn half_a_message_and_a_crowd_of_silent_ones_keep_nobody_out() {
    let mut testbed = Testbed::new();
    let half = RawFrontend(VhostUserChannel::connect(&testbed.spec().socket).unwrap());
    raw(&half, &VhostUserRequest::SetFeatures(0).emit(false)[..15]);
    let crowd: Vec<_> = (0..100).map(|_| VhostUserChannel::connect(&testbed.spec().socket).unwrap()).collect();
    testbed.honest_frontend_is_served();
    testbed.witness_moves();
    drop((half, crowd));
}

#[test]
fn bytes_without_sense_end_the_connection_or_wait_for_more() {
    let mut testbed = Testbed::new();
    let mut rng = common::TestRng(7);
    for _ in 0..300 {
        let address = UnixAddr::new_abstract(testbed.name.as_bytes()).unwrap();
        let mut socket = None;
        eventually("there is room to wait at the door", || {
            socket = UnixSocket::connect(Kind::Stream, &address).ok();
            socket.is_some()
        });
        let mut bytes: Vec<u8> = (0..rng.roll() % 200).map(|_| rng.roll() as u8).collect();
        if let Some(head) = bytes.get_mut(..12) {
            // A header that could be one, mostly.
            head.copy_from_slice(&Header { request: (rng.roll() % 46) as u32, flags: 1, size: 8 }.emit());
        }
        let _ = socket.unwrap().send(&bytes, &[]);
    }
    testbed.honest_frontend_is_served();
    testbed.witness_moves();
}

#[test]
fn a_frontend_that_we_connect_to_holds_up_no_more_closers_by_having_us_connect_again() {
    let testbed = Testbed::new();
    let name = unique("charged");
    let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
    let listener = UnixListener::bind(Kind::Stream, &address, 5).unwrap();
    let memif = MemifSpec { role: Role::Server, ..client_spec(&name, 1) };
    let ends = [EndSpec::VhostUser(VhostUserSpec::new(socket(&name), Role::Client)), EndSpec::Memif(memif)];
    testbed.engine.add(WireSpec::new(name, ends)).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let message = VhostUserRequest::SetLogFd.emit(true);
    let mut far_ends = Vec::new();
    // Four threads close the descriptors of one account, and there are 64 in all.
    for _ in 0..17 {
        wait_for(&listener);
        let mut frontend = VhostUserChannel::from(listener.accept().unwrap());
        for _ in 0..4 {
            let (near, far) = stuck_socket(&tcp);
            // It comes with the first byte. Whoever closes it last waits: that must not be this thread.
            frontend.send(&message[..4], &[near.as_fd()]).unwrap();
            drop(near);
            frontend.send(&message[4..], &[]).unwrap();
            eventually("it is answered", || frontend.receive().unwrap().is_some());
            far_ends.push(far);
        }
    }
    let mut honest = VhostUserChannel::connect(&testbed.spec().socket).unwrap();
    let (reader, writer) = pipe().unwrap();
    honest.send(&message, &[writer.as_fd()]).unwrap();
    drop(writer);
    eventually("it is answered", || honest.receive().unwrap().is_some());
    // The other end of the pipe is closed.
    wait_for(&reader);
}

/// A socket whose close waits for as long as its far end does not read.
fn stuck_socket(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    near.set_nonblocking(true).unwrap();
    while (&near).write(&[0; 16_384]).is_ok() {}
    near.set_nonblocking(false).unwrap();
    setsockopt(&near, Linger, &libc::linger { l_onoff: 1, l_linger: 1000 }).unwrap();
    (near, far)
}

fn wait_for(descriptor: &impl AsFd) {
    let mut waiting = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut waiting, PollTimeout::try_from(DEADLINE).unwrap()), Ok(1), "nothing happens");
}

/// Bytes that need not be a message.
fn raw(frontend: &RawFrontend, bytes: &[u8]) {
    let _ = frontend.0.send(bytes, &[]);
}

fn kick(frontend: &RawFrontend, file: BorrowedFd<'_>) {
    frontend.say(&VhostUserRequest::SetVringKick(VringFile { index: 0, has_file: true }), &[file]);
}

fn row(pages: u64) -> MemoryRegion {
    MemoryRegion { guest: 0, size: pages * PAGE, user: 0, offset: 0 }
}

fn memory(pages: u64) -> OwnedFd {
    let region = Region::create("guest", pages * PAGE, &Arc::default()).unwrap();
    region.file().try_clone_to_owned().unwrap()
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

const PAGE: u64 = 4096;
/// LOG_SHMFD, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS.
const PROTOCOL: u64 = 1 << 1 | 1 << 12 | 1 << 15;
