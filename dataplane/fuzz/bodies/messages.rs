//! Any conversation with a server or a client of ours: steps of a byte that says which files come along,
//! and a message.

use std::os::fd::OwnedFd;

use ferrule_dataplane::port::memif::handshake::{Client, MemifOffer, Outbox, Server};
use ferrule_dataplane::port::memif::message::{
    AddRegion, AddRing, Direction, Hello, Init, MESSAGE_LEN, MemifMessage, VERSION,
};
use ferrule_dataplane::port::{FRAME_MAX, Source, Target};
use ferrule_dataplane::spec::{MemifSpec, Mode, QUEUES_MAX, Role};
use ferrule_ffi::memory_budget::MemoryBudget;
use ferrule_ffi::notifier::eventfd;
use ferrule_ffi::peer_file::PeerFile;
use ferrule_ffi::region::Region;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

/// Leads the conversation. The first byte says with whom.
pub fn run(data: &[u8]) {
    let Some((&who, steps)) = data.split_first() else { return };
    let steps = steps.chunks(1 + MESSAGE_LEN).take(STEPS_MAX);
    if who.is_multiple_of(2) { with_server(steps) } else { with_client(steps) }
}

/// Conversations that succeed, for a fuzzer to spoil.
pub fn seeds() -> Vec<Vec<u8>> {
    let ring = |direction, offset| AddRing { direction, index: 0, region: 0, offset, log2_size: 4, private_header: 0 };
    let init = Init { version: VERSION, id: 0, mode: 0, secret: [0; 24], name: "seed".to_owned() };
    let to_server = [
        (NO_FILE, MemifMessage::Init(init)),
        (MEMORY, MemifMessage::AddRegion(AddRegion { index: 0, size: MEMORY_LEN })),
        (EVENTFD, MemifMessage::AddRing(ring(Direction::S2M, 0))),
        (EVENTFD, MemifMessage::AddRing(ring(Direction::M2S, 4096))),
        (NO_FILE, MemifMessage::Connect { name: "seed".to_owned() }),
        (NO_FILE, MemifMessage::Disconnect { code: 0, reason: "seed".to_owned() }),
    ];
    let hello = Hello {
        name: "seed".to_owned(),
        min_version: VERSION,
        max_version: VERSION,
        max_region: 1,
        max_m2s_ring: 1,
        max_s2m_ring: 1,
        max_log2_ring_size: 5,
    };
    let acks = std::iter::repeat_n((NO_FILE, MemifMessage::Ack), 6);
    let to_client = std::iter::once((NO_FILE, MemifMessage::Hello(hello)))
        .chain(acks)
        .chain([(NO_FILE, MemifMessage::Connected { name: "seed".to_owned() }), (NO_FILE, MemifMessage::Ack)]);
    let written = |who: u8, steps: Vec<(u8, MemifMessage)>| {
        let steps = steps.into_iter().flat_map(|(files, message)| std::iter::once(files).chain(message.emit()));
        std::iter::once(who).chain(steps).collect()
    };
    vec![written(0, to_server.to_vec()), written(1, to_client.collect())]
}

fn with_server<'a>(steps: impl Iterator<Item = &'a [u8]>) {
    let mut server = Server::greet(QUEUES_MAX, &mut Outbox::default());
    let memory = &MemoryBudget::new(MEMORY_LEN);
    let offer = |_| Ok(MemifOffer { mode: Mode::Ethernet, secret: None, queues: QUEUES_MAX, memory });
    for step in steps {
        let Some((files, message)) = taken(step) else { return };
        match server.handle(message, files, offer, &mut Outbox::default()) {
            Ok(Server::Connected(mut connection)) => return touch(&mut connection.queues),
            Ok(next) => server = next,
            Err(refusal) => return assert!(!refusal.to_string().is_empty()),
        }
    }
}

fn with_client<'a>(steps: impl Iterator<Item = &'a [u8]>) {
    let address = "@fuzz".parse().expect("an address");
    let spec = MemifSpec { queues: 1, ring: 32, ..MemifSpec::new(address, Role::Client) };
    let mut client = Client::ExpectHello(None, MemoryBudget::unlimited());
    for step in steps {
        let Some((files, message)) = taken(step) else { return };
        match client.handle(message, &files, &spec, &mut Outbox::default()) {
            Ok(Client::Connected(mut connection)) => return touch(&mut connection.queues),
            Ok(next) => client = next,
            Err(refusal) => return assert!(!refusal.to_string().is_empty()),
        }
    }
}

/// The files and the message of a step.
fn taken(step: &[u8]) -> Option<(Vec<PeerFile>, MemifMessage)> {
    let (&files, packet) = step.split_first()?;
    let message = MemifMessage::parse(packet).ok()?;
    // What cannot be shown was replaced, so the bytes may differ; but only once.
    let emitted = message.emit();
    assert_eq!(MemifMessage::parse(&emitted).map(|again| again.emit()), Ok(emitted));
    let files = match files % 5 {
        MEMORY => vec![memory()],
        EVENTFD => vec![OwnedFd::from(eventfd().ok()?).into()],
        3 => vec![memory(), memory()],
        4 => vec![OwnedFd::from(std::fs::File::open("/dev/null").ok()?).into()],
        _ => vec![],
    };
    Some((files, message))
}

/// A file with a ring's cookie at the start of each page.
fn memory() -> PeerFile {
    let file = memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("a memfd can be made");
    ftruncate(&file, MEMORY_LEN.cast_signed()).expect("it can be made longer");
    let copy = file.try_clone().expect("a descriptor is left");
    let region = Region::map(copy, MEMORY_LEN, &<_>::default()).expect("it can be mapped");
    for page in 0..MEMORY_LEN / 4096 {
        region.write_u32(page * 4096, 0x03E3_1F20).expect("a page lies inside");
    }
    file.into()
}

/// Looks at everything once.
fn touch(queues: &mut ferrule_dataplane::port::memif::layout::Queues) {
    let mut gather = vec![0; FRAME_MAX];
    for receiver in &mut queues.receivers {
        if receiver.refresh() == Ok(true) {
            let _ = receiver.peek(&mut gather).map(|frame| frame.map(|frame| frame.bytes.len()));
        }
        receiver.release();
    }
    for sender in &mut queues.senders {
        let _ = sender.refresh();
        sender.publish();
    }
}

const NO_FILE: u8 = 0;
const MEMORY: u8 = 1;
const EVENTFD: u8 = 2;
const MEMORY_LEN: u64 = 65_536;
const STEPS_MAX: usize = 100;
