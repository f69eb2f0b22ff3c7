//! Any conversation with a vhost-user backend of ours: steps of a byte that says which files come along, and a message.
//! Whenever rings can be made of what was said, they are, and a burst goes through them.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferrule_dataplane::counters::LinkCounters;
use ferrule_dataplane::link::Scratch;
use ferrule_dataplane::port::any::{LaneEnd, forward};
use ferrule_dataplane::port::vhost_user::channel::RawMessage;
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::vhost_user::memory::MemoryRegion;
use ferrule_dataplane::port::vhost_user::message::{
    HEADER_LEN, Header, LogArea, VhostUserRequest, VringAddress, VringFile, VringState,
};
use ferrule_dataplane::port::vhost_user::session::offer::VhostUserOffer;
use ferrule_dataplane::port::vhost_user::session::{Session, VhostUserMessage};
use ferrule_dataplane::spec::{EndSpec, Full, Role, VhostUserSpec};
use ferrule_ffi::memory_budget::MemoryBudget;
use ferrule_ffi::notifier::{Notifier, eventfd};
use ferrule_ffi::peer_file::PeerFile;
use ferrule_ffi::region::Region;

/// Leads the conversation.
pub fn run(data: &[u8]) {
    let spec = VhostUserSpec::new("@fuzz".parse().expect("an address"), Role::Server);
    let mut session =
        Session::new(VhostUserOffer::new(&spec, &EndSpec::VhostUser(spec.clone())), &MemoryBudget::new(MEMORY_LEN));
    let mut rest = data;
    for _ in 0..STEPS_MAX {
        let Some((message, behind)) = taken(rest) else { return };
        rest = behind;
        // What is no message ends the conversation, and so does a request that is refused.
        let Some(message) = message else { return };
        if session.handle(message).is_err() {
            return;
        }
        match session.rings() {
            Err(error) => return assert!(!error.to_string().is_empty()),
            Ok(None) => {}
            Ok(Some(mut rings)) => {
                let fine = visit(&mut rings);
                session.park(rings);
                if !fine {
                    return;
                }
            }
        }
    }
}

/// A conversation that leads to a running device of either layout, for a fuzzer to spoil.
pub fn seeds() -> Vec<Vec<u8>> {
    [Features::VERSION_1, Features::VERSION_1 | Features::RING_PACKED | Features::LOG_ALL].map(seed).into()
}

fn seed(features: Features) -> Vec<u8> {
    let row = MemoryRegion { guest: 0x1_0000, size: MEMORY_LEN, user: USER, offset: 0 };
    let log = LogArea { size: MEMORY_LEN, offset: 0 };
    let mut talk = vec![
        (NO_FILE, VhostUserRequest::GetFeatures),
        (NO_FILE, VhostUserRequest::GetProtocolFeatures),
        (NO_FILE, VhostUserRequest::SetProtocolFeatures(0xb)),
        (NO_FILE, VhostUserRequest::SetOwner),
        (NO_FILE, VhostUserRequest::SetFeatures((features | Features::PROTOCOL_FEATURES).0)),
        (MEMORY, VhostUserRequest::SetMemTable(vec![row])),
        (MEMORY, VhostUserRequest::SetLogBase(log)),
    ];
    for index in 0..2 {
        let state = |num| VringState { index, num };
        let place = USER + u64::from(index) * 0x4000;
        let (desc, used, avail) = (place, place + 0x1000, place + 0x2000);
        let address = VringAddress { index, log: true, desc, used, avail, log_guest: 0x1_1000 };
        let file = VringFile { index: index as u8, has_file: true };
        talk.extend([
            (NO_FILE, VhostUserRequest::SetVringNum(state(16))),
            (NO_FILE, VhostUserRequest::SetVringBase(state(0x8000))),
            (NO_FILE, VhostUserRequest::SetVringAddr(address)),
            (EVENTFD, VhostUserRequest::SetVringCall(file)),
            (EVENTFD, VhostUserRequest::SetVringKick(file)),
            (NO_FILE, VhostUserRequest::SetVringEnable(state(1))),
        ]);
    }
    talk.push((NO_FILE, VhostUserRequest::GetVringBase(VringState { index: 1, num: 0 })));
    let steps = talk.iter().flat_map(|(files, request)| std::iter::once(*files).chain(request.emit(false)));
    steps.collect()
}

/// The next step, if there is one, and what comes behind it; no message, if it is none.
fn taken(data: &[u8]) -> Option<(Option<VhostUserMessage>, &[u8])> {
    let (&files, rest) = data.split_first()?;
    let (header, rest) = rest.split_first_chunk::<HEADER_LEN>()?;
    let Ok(header) = Header::parse(header) else { return Some((None, rest)) };
    let (payload, rest) = rest.split_at_checked(header.size as usize)?;
    let envelope = RawMessage { header, payload: payload.to_vec(), files: come_along(files) };
    Some((VhostUserMessage::new(envelope).ok(), rest))
}

fn come_along(files: u8) -> Vec<PeerFile> {
    let file = || -> OwnedFd {
        if files & 1 == 0 {
            return eventfd().expect("an eventfd can be made").into();
        }
        let region = Region::create("fuzz", MEMORY_LEN, &Arc::default()).expect("memory can be made");
        region.file().try_clone_to_owned().expect("a descriptor is left")
    };
    (0..files >> 1 & 3).map(|_| file().into()).collect()
}

/// What a worker has, made once: giving it back takes the kernel some time.
fn with_tools<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    thread_local! {
        static TOOLS: RefCell<Scratch> =
            RefCell::new(Scratch::new(Notifier::new().expect("asynchronous I/O can be had")));
    }
    TOOLS.with_borrow_mut(|scratch| {
        let outcome = work(scratch);
        scratch.notifier.flush();
        outcome
    })
}

/// One burst from the guest to itself. Whether it kept to the protocol.
fn visit(rings: &mut LaneEnd) -> bool {
    let counters = LinkCounters::default().lane(0);
    rings.sources.iter_mut().zip(&mut rings.targets).all(|(source, target)| {
        with_tools(|scratch| forward(&mut source.source, target, Full::Drop, &mut 0, &counters, scratch)).is_ok()
    })
}

/// Files that come along: bit 0, memory instead of an eventfd; the bits above, how many.
const NO_FILE: u8 = 0;
const EVENTFD: u8 = 2;
const MEMORY: u8 = 3;
const MEMORY_LEN: u64 = 65_536;
const USER: u64 = 0x7000_0000_0000;
const STEPS_MAX: usize = 64;
