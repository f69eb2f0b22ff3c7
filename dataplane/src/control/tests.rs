//! Control without its thread: a test says when which message is handled.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use super::end::End;
use super::events::{Event, Subscription, WireChange};
use super::health::{HealthCell, ThreadGuard};
use super::inbox::{ControlMessage, EngineRequest, Inbox};
use super::jobs::{Jobs, REAPED_MAX};
use super::keys::{EndId, ListenerKey, WireKey};
use super::log_limit::LogLimit;
use super::poller::Poller;
use super::snapshot::{Snapshot, WorkerCell};
use super::state::State;
use super::wire::{Body, Wire, WorkerWire};
use crate::engine::Applied;
use crate::mailbox::Mailbox;
use crate::port::any::LaneEnd;
use crate::port::kernel::InterfaceOwner;
use crate::port::memif::channel::MemifChannel;
use crate::port::memif::handshake::Outbox;
use crate::port::memif::message as memif;
use crate::port::{Fault, Frame, Put, Source, Target};
use crate::settings::Settings;
use crate::spec::{EndSpec, MemifSpec, Role, WireSpec};
use crate::worker::WorkerHandle;

/// All state of control, and what other threads tell it.
pub struct TestControl {
    /// The state.
    pub state: State,
    messages: Receiver<ControlMessage>,
}

impl TestControl {
    /// Without workers.
    pub fn new() -> Self {
        Self::with(|_, _| Vec::new())
    }

    /// With one worker.
    pub fn with_worker() -> Self {
        Self::with(|health, inbox| {
            let guard = ThreadGuard::new(health, inbox);
            let returned = Arc::new(Mailbox::new(16).unwrap());
            vec![WorkerHandle::start(0, 0, &Settings::new(vec![0]), returned, guard).unwrap()]
        })
    }

    fn with(workers: impl FnOnce(&HealthCell, &Inbox) -> Vec<WorkerHandle>) -> Self {
        let (inbox, messages) = Inbox::new().unwrap();
        let health = HealthCell::default();
        let workers = workers(&health, &inbox);
        let cell = |worker: &WorkerHandle| {
            let (cpu, busy) = worker.meter();
            WorkerCell { cpu, busy, queues: <_>::default() }
        };
        let snapshot = Arc::new(Snapshot::new(workers.iter().map(cell).collect()));
        let jobs = Jobs::new(inbox, InterfaceOwner::process(), &health).unwrap();
        Self { state: State::new(Poller::new(&[]).unwrap(), jobs, workers, snapshot).unwrap(), messages }
    }

    /// A wire that is made, whose ends have no peers.
    pub fn add_wire(&mut self, name: &str) -> WireKey {
        let end = |number| EndSpec::Memif(MemifSpec::new(format!("@{name}-{number}").parse().unwrap(), Role::Server));
        let mut wire = Wire::new(WireSpec::new(name.to_owned(), [end(0), end(1)]), Applied::Made);
        wire.body = Body::Workers(Box::new(WorkerWire::new([End::server(), End::server()])));
        let key = self.state.wires.insert(wire);
        self.state.names.insert(name.to_owned(), key);
        key
    }

    /// Handles the next message.
    pub fn handle_next(&mut self) {
        let message = self.messages.recv_timeout(TIMEOUT).expect("somebody tells something");
        let _ = self.state.handle(message);
        self.state.publish();
    }

    /// Handles messages until `what` is there.
    pub fn handle_until<T>(&mut self, mut what: impl FnMut(&mut State) -> Option<T>) -> T {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(what) = what(&mut self.state) {
                return what;
            }
            assert!(Instant::now() < deadline, "it does not come");
            self.handle_next();
        }
    }
}

/// A port that breaks the thread which looks at it.
struct Broken;

impl Source for Broken {
    fn refresh(&mut self) -> Result<bool, Fault> {
        panic!("on purpose")
    }

    fn peek<'a>(&'a mut self, _: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        Ok(None)
    }

    fn advance(&mut self, _: u32) {}

    fn release(&mut self) {}

    fn enable_notify(&mut self, _: bool) {}

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Target for Broken {
    fn refresh(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn put(&mut self, _: &Frame<'_>) -> Result<Put, Fault> {
        Ok(Put::Full)
    }

    fn publish(&mut self) -> bool {
        false
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn a_wire_whose_worker_has_panicked_is_removed_all_the_same() {
    let mut control = TestControl::with_worker();
    let key = control.add_wire("broken");
    let served = control.state.wires[key].workers_mut().unwrap();
    for end in &mut served.ends {
        end.set_rings(LaneEnd::external([(Box::new(Broken) as _, Box::new(Broken) as _)]));
    }
    control.state.join(key);
    assert_eq!(control.state.served.len(), 1);
    let (reply, answer) = sync_channel(1);
    let request = EngineRequest::Remove { name: "broken".to_owned(), timeout: Duration::ZERO, reply };
    let _ = control.state.handle(ControlMessage::Request(request));
    let removed = control.handle_until(|_| answer.try_recv().ok());
    assert!(removed.is_ok(), "{removed:?}");
    assert!(control.state.wires.is_empty() && control.state.served.is_empty());
}

#[test]
fn clients_wait_while_what_those_before_them_gave_is_not_dropped_and_go_on_afterwards() {
    let mut control = TestControl::new();
    let (name, address) = ("reaping", "@reaping-0".parse().unwrap());
    let (reply, answer) = sync_channel(1);
    let ends =
        [0, 1].map(|number| EndSpec::Memif(MemifSpec::new(format!("@{name}-{number}").parse().unwrap(), Role::Server)));
    control.state.apply(WireSpec::new(name.to_owned(), ends), true, reply);
    control.handle_until(|_| answer.try_recv().ok()).unwrap();
    let wire = control.state.names[name];
    let (&_, &listener) = control.state.addresses.iter().find(|(place, _)| place.address == address).unwrap();
    let state = &mut control.state;
    let client = |state: &mut State| {
        let client = MemifChannel::connect(&address, None).unwrap();
        state.accept(listener);
        client
    };

    // At the listening socket.
    let account = state.listeners[listener].reaping.clone();
    let held: Vec<_> = (0..REAPED_MAX).map(|_| account.hold()).collect();
    let waiting = client(state);
    assert!(waiting.receive().unwrap().is_none());
    drop(held);
    state.accept_again(listener);
    state.accept(listener);
    assert!(matches!(waiting.receive(), Ok(Some((memif::MemifMessage::Hello(_), _)))));

    // At an end: others at its socket are served.
    let held: Vec<_> = (0..REAPED_MAX).map(|_| state.wires[wire].reaping[0].hold()).collect();
    let next = client(state);
    let refused = answer_to_init(state, listener, &next);
    assert!(
        matches!(&refused, memif::MemifMessage::Disconnect { reason, .. } if reason.contains("still being released")),
        "{refused:?}"
    );
    drop(held);
    let next = client(state);
    let answer = answer_to_init(state, listener, &next);
    assert!(matches!(answer, memif::MemifMessage::Ack), "{answer:?}");
}

/// What a client that has just come hears when it says which interface it wants.
fn answer_to_init(state: &mut State, listener: ListenerKey, client: &MemifChannel) -> memif::MemifMessage {
    let mut out = Outbox::default();
    let init = memif::Init { version: memif::VERSION, id: 0, mode: 0, secret: [0; 24], name: "test".to_owned() };
    out.0.push_back((memif::MemifMessage::Init(init), None));
    client.send(&mut out).unwrap();
    let (&token, _) = state.listeners[listener].handshakes.iter().last().unwrap();
    state.continue_handshake(listener, token);
    assert!(matches!(client.receive(), Ok(Some((memif::MemifMessage::Hello(_), _)))));
    client.receive().unwrap().unwrap().0
}

#[test]
fn a_subscription_is_there_once_readers_see_what_it_does_not_tell() {
    let mut control = TestControl::new();
    let (subscription, subscriber) = Subscription::new(8);
    let (reply, answer) = sync_channel(1);
    control.state.events.note("before", WireChange::Made);
    let _ = control.state.handle(ControlMessage::Request(EngineRequest::Subscribe { subscriber, reply }));
    assert!(answer.try_recv().is_err(), "nothing is published yet");
    control.state.publish();
    assert!(answer.try_recv().is_ok());
    control.state.events.note("after", WireChange::Made);
    control.state.publish();
    let told: Vec<_> = std::iter::from_fn(|| subscription.try_next_event()).collect();
    assert_eq!(told.last(), Some(&Event::Wire { wire: "after".to_owned(), change: WireChange::Made }));
}

#[test]
fn a_reason_that_the_log_had_no_room_for_is_told_when_it_has() {
    let mut control = TestControl::new();
    let wire = control.add_wire("log");
    let id = EndId { wire, end: 0 };
    let state = &mut control.state;
    let logged = |state: &State| state.wires[wire].workers().unwrap().ends[0].logged.clone();
    while state.wires[wire].log_limit.allow(Instant::now()).is_some() {}
    state.not_connected(id, "no room");
    assert_eq!(logged(state), None);
    // Its time is over.
    state.wires[wire].log_limit = LogLimit::default();
    state.not_connected(id, "no room");
    assert_eq!(logged(state).as_deref(), Some("no room"));
    assert_eq!(state.wires[wire].allow_line(0, "no room"), None);
}

#[test]
fn only_wires_that_have_been_there_are_remembered_when_they_cannot_be_made() {
    let mut control = TestControl::new();
    let folder = tempfile::tempdir().unwrap();
    // A directory is no place for a socket.
    let bad = format!("{}", folder.path().display());
    let mut apply = |name: &str, socket: &str| {
        let end = |socket: String| EndSpec::Memif(MemifSpec::new(socket.parse().unwrap(), Role::Server));
        let (reply, answer) = sync_channel(1);
        let ends = [end(socket.to_owned()), end(format!("@{name}-1"))];
        control.state.apply(WireSpec::new(name, ends), false, reply);
        let made = control.handle_until(|_| answer.try_recv().ok());
        (made, control.state.not_made.len())
    };
    for number in 0..20 {
        let (made, remembered) = apply(&format!("never-{number}"), &bad);
        assert!(made.is_err());
        assert_eq!(remembered, 0);
    }
    assert!(apply("once", "@once-0").0.is_ok());
    for _ in 0..2 {
        let (made, remembered) = apply("once", &bad);
        assert!(made.is_err());
        assert_eq!(remembered, 1);
    }
    assert!(apply("once", "@once-0").0.is_ok());
    assert!(control.state.not_made.is_empty());
}

/// Long enough for a machine that does much else.
const TIMEOUT: Duration = Duration::from_secs(30);
