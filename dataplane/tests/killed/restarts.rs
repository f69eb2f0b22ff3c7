//! An engine killed again and again while frames cross between two guests that keep their rings.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ferrule_dataplane::port::vhost_user::channel::{VhostUserChannel, VhostUserChannelError};
use ferrule_dataplane::port::vhost_user::features::{Features, ProtocolFeatures};
use ferrule_dataplane::port::vhost_user::message::{
    Inflight, ReplyBody, VhostUserReply, VhostUserRequest, VringAddress, VringFile, VringState,
};
use ferrule_dataplane::port::{BURST, FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{EndSpec, Role, VhostUserSpec, WireSpec};
use ferrule_dataplane::{Engine, Settings};
use ferrule_endpoints::virtio::{DriverMemory, DriverRx, DriverSpec, DriverTx, Eventfds};
use ferrule_ffi::unix::{Kind, UnixListener};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::UnixAddr;

use crate::child::Killed;

pub const ROLE: &str = "restarts";

const KILLS: usize = 8;
/// Frames that arrive at either guest between two kills: another number each time, so that they are all over the rings.
const BETWEEN: usize = 777;
const DEADLINE: Duration = Duration::from_secs(20);

pub fn a_backend_killed_under_traffic_is_succeeded() {
    let base = Features::VERSION_1.with(Features::PROTOCOL_FEATURES).with(Features::MRG_RXBUF);
    let packed = base.with(Features::RING_PACKED);
    for (name, features) in [
        ("split", base),
        ("split, in order", base.with(Features::IN_ORDER)),
        ("packed", packed),
        ("packed, in order", packed.with(Features::IN_ORDER)),
    ] {
        let names = [0, 1].map(|end| format!("ferrule-killed-{}-{end}-{}", std::process::id(), features.0));
        let mut guests = names.each_ref().map(|name| Guest::new(name, features));
        let mut arrived = [0, 0];
        for kill in 0..=KILLS {
            let engine = Killed::start(ROLE, names.clone());
            guests.iter_mut().for_each(Guest::accept);
            let enough = arrived.map(|arrived| arrived + BETWEEN + 37 * kill);
            let deadline = Instant::now() + DEADLINE;
            while arrived.iter().zip(enough).any(|(arrived, enough)| *arrived < enough) {
                assert!(Instant::now() < deadline, "{name}, after {kill} kills: {arrived:?} of {enough:?} frames");
                let [a, b] = &mut guests;
                arrived[0] = a.work(b.sent);
                arrived[1] = b.work(a.sent);
            }
            drop(engine);
        }
        let repeated: usize = guests.iter().map(|guest| guest.repeated).sum();
        println!("{name}: {KILLS} kills, {arrived:?} frames arrived, {repeated} came once more, none was lost");
    }
}

/// The process that is killed: an engine with a wire between two frontends that listen.
pub fn serve(arguments: &[String]) {
    let end = |name: &String| EndSpec::VhostUser(VhostUserSpec::new(format!("@{name}").parse().unwrap(), Role::Client));
    let engine = Engine::start(&Settings::new(vec![0])).unwrap();
    let ends = [end(&arguments[0]), end(&arguments[1])];
    engine.add(WireSpec::new("killed", ends)).unwrap();
    loop {
        std::thread::park();
    }
}

/// A guest whose frontend listens, and keeps rings and in-flight memory over its backends.
struct Guest {
    listener: UnixListener,
    memory: DriverMemory,
    tx: DriverTx,
    rx: DriverRx,
    eventfds: [Eventfds; 2],
    features: Features,
    inflight: Option<(Inflight, OwnedFd)>,
    /// Kept open as long as the backend lives.
    channel: Option<VhostUserChannel>,
    sent: usize,
    /// The number of the next frame that is no repetition.
    next: usize,
    repeated: usize,
}

impl Guest {
    fn new(name: &str, features: Features) -> Self {
        let spec = DriverSpec { size: 64, buffer: 256, header_apart: false };
        let memory = DriverMemory::create(spec, 2).unwrap();
        let eventfds = [Eventfds::new().unwrap(), Eventfds::new().unwrap()];
        Self {
            listener: UnixListener::bind(Kind::Stream, &UnixAddr::new_abstract(name.as_bytes()).unwrap(), 5).unwrap(),
            rx: DriverRx::new(&memory, 0, features, eventfds[0].clone()),
            tx: DriverTx::new(&memory, 1, features, eventfds[1].clone()),
            memory,
            eventfds,
            features,
            inflight: None,
            channel: None,
            sent: 0,
            next: 0,
            repeated: 0,
        }
    }

    /// Waits for the next backend, and tells it everything but where the rings were left, which nobody knows.
    fn accept(&mut self) {
        wait(&self.listener);
        let mut frontend = RawFrontend(self.listener.accept().unwrap().into());
        let protocol = ProtocolFeatures::INFLIGHT_SHMFD;
        frontend.say(&VhostUserRequest::SetOwner, &[]);
        frontend.say(&VhostUserRequest::SetProtocolFeatures(protocol.0), &[]);
        frontend.say(&VhostUserRequest::SetFeatures(self.features.0), &[]);
        frontend.say(&VhostUserRequest::SetMemTable(vec![self.memory.row()]), &[self.memory.file()]);
        if let Some((area, file)) = &self.inflight {
            frontend.say(&VhostUserRequest::SetInflightFd(*area), &[file.as_fd()]);
        } else {
            let asked = Inflight { mmap_size: 0, mmap_offset: 0, queues: 2, queue_size: 64 };
            self.inflight = Some(frontend.make_inflight(asked));
        }
        for index in 0..2u32 {
            let state = |num| VringState { index, num };
            let at = self.memory.addresses(index as usize);
            let file = VringFile { index: index as u8, has_file: true };
            let eventfds = &self.eventfds[index as usize];
            frontend.say(&VhostUserRequest::SetVringNum(state(64)), &[]);
            let start = if self.features.has(Features::RING_PACKED) { 0x8000_8000 } else { 0 };
            frontend.say(&VhostUserRequest::SetVringBase(state(start)), &[]);
            let (desc, avail, used) = (at.desc, at.avail, at.used);
            frontend.say(
                &VhostUserRequest::SetVringAddr(VringAddress { index, log: false, desc, used, avail, log_guest: 0 }),
                &[],
            );
            frontend.say(&VhostUserRequest::SetVringCall(file), &[eventfds.call.as_fd()]);
            // First: what a ring sends that is started and not enabled goes nowhere.
            frontend.say(&VhostUserRequest::SetVringEnable(state(1)), &[]);
            frontend.say(&VhostUserRequest::SetVringKick(file), &[eventfds.kick.as_fd()]);
        }
        self.channel = Some(frontend.0);
    }

    /// Sends what there is room for, and receives what is there. How many frames have come, of `sent`.
    fn work(&mut self, sent: usize) -> usize {
        self.tx.refresh().unwrap();
        loop {
            // Every eighth one takes several buffers.
            let bytes = frame(self.sent, if self.sent % 8 == 3 { 700 } else { 64 });
            match self.tx.put(&Frame { bytes: bytes[..].into(), offload: None, slots: 0 }).unwrap() {
                Put::Stored => self.sent += 1,
                put => break assert_eq!(put, Put::Full),
            }
        }
        if self.tx.publish() {
            let _ = nix::unistd::write(&*self.eventfds[1].kick, &1u64.to_ne_bytes());
        }
        let mut gather = vec![0; FRAME_MAX];
        while self.rx.refresh().unwrap() {
            while let Some(got) = self.rx.peek(&mut gather).unwrap() {
                let mut bytes = vec![0; got.bytes.len()];
                assert!(got.bytes.copy_out(&mut bytes));
                let slots = got.slots;
                self.rx.advance(slots);
                self.count(&bytes);
            }
            self.rx.release();
        }
        if let Some(eventfd) = self.rx.release_notify_fd() {
            let _ = nix::unistd::write(eventfd, &1u64.to_ne_bytes());
        }
        assert!(self.next <= sent);
        self.next
    }

    /// A frame is the next one, or one of the last burst once more: what its receiver could see when its sender had not
    /// got it back.
    fn count(&mut self, bytes: &[u8]) {
        let number = u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize;
        assert!(bytes == frame(number, bytes.len()), "frame {number} is whole");
        if number == self.next {
            self.next += 1;
        } else {
            let last = self.next.saturating_sub(BURST)..self.next;
            assert!(last.contains(&number), "frame {number} came in the place of {}", self.next);
            self.repeated += 1;
        }
    }
}

/// A conversation without answers, but for one.
struct RawFrontend(VhostUserChannel);

impl RawFrontend {
    fn say(&self, request: &VhostUserRequest, files: &[BorrowedFd<'_>]) {
        self.0.send(&request.emit(false), files).unwrap();
    }

    fn make_inflight(&mut self, asked: Inflight) -> (Inflight, OwnedFd) {
        let request = VhostUserRequest::GetInflightFd(asked);
        self.say(&request, &[]);
        loop {
            match self.0.receive() {
                Ok(Some(answer)) => {
                    let file = answer.files.into_iter().next().unwrap().into_memory().unwrap();
                    let ReplyBody::Inflight(area) =
                        VhostUserReply::parse(request.number(), &answer.payload).unwrap().body
                    else {
                        panic!("not what was asked for")
                    };
                    return (area, file);
                }
                Ok(None) => wait(&self.0),
                Err(VhostUserChannelError::Closed) => panic!("the backend has gone"),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn wait(socket: &impl AsFd) {
    let timeout = PollTimeout::try_from(DEADLINE).unwrap();
    let ready = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout).unwrap();
    assert_eq!(ready, 1, "nobody came");
}

/// A frame that tells its number.
fn frame(number: usize, length: usize) -> Vec<u8> {
    let mut bytes: Vec<_> = (0..length).map(|at| (at * 7 + number * 13) as u8).collect();
    bytes[..4].copy_from_slice(&(number as u32).to_ne_bytes());
    bytes
}
