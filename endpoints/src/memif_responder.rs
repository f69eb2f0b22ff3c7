//! A responder on a memif interface: it answers what comes, sleeps when nothing does, and takes the next peer when
//! one goes.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ferrule_dataplane::port::memif::handshake::HandshakeError;
use ferrule_dataplane::port::memif::layout::Queues;
use ferrule_dataplane::port::{BURST, FRAME_MAX, Fault, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_ffi::notifier::Notifier;
use thiserror::Error;

use crate::Responder;
use crate::memif::{Endpoint, EndpointError};

/// A responder and the counts of what it was sent and sent back. Any thread may ask it while another one serves.
#[derive(Debug)]
pub struct MemifResponder {
    responder: Responder,
    frames: AtomicU64,
    replies: AtomicU64,
    no_room: AtomicU64,
}

impl MemifResponder {
    /// A responder that answers as `responder` does.
    pub fn new(responder: Responder) -> Self {
        let [frames, replies, no_room] = Default::default();
        Self { responder, frames, replies, no_room }
    }

    /// Serves one peer after the other until `stop`, and tells `say` what happens.
    ///
    /// # Errors
    /// Our own side can never work: as a server, the socket cannot be listened on.
    pub fn run(&self, spec: &MemifSpec, stop: &AtomicBool, mut say: impl FnMut(Event)) -> Result<(), ResponderError> {
        let mut problem = String::new();
        while !stop.load(Relaxed) {
            match Endpoint::open(spec, TIMEOUT) {
                Ok(mut endpoint) => {
                    say(Event::Connected { peer: endpoint.peer.clone() });
                    problem.clear();
                    if let Err(gone) = self.serve(&mut endpoint, stop) {
                        say(Event::Gone { peer: endpoint.peer.clone(), reason: gone.to_string() });
                    }
                }
                Err(EndpointError::Timeout | EndpointError::NoClient(_)) => {}
                Err(error @ EndpointError::Socket(_)) if spec.role == Role::Server => return Err(error.into()),
                Err(error) => {
                    let text = error.to_string();
                    if text != problem {
                        say(Event::Waiting { reason: text.clone() });
                        problem = text;
                    }
                }
            }
        }
        Ok(())
    }

    /// Answers this peer until `stop`. It may take [`NAP`] to notice that.
    ///
    /// # Errors
    /// The peer has gone, and why.
    pub fn serve(&self, endpoint: &mut Endpoint, stop: &AtomicBool) -> Result<(), ResponderError> {
        let mut notifier = Notifier::new().map_err(ResponderError::Notifier)?;
        let mut scratch = Scratch::new();
        while !stop.load(Relaxed) {
            if !self.round(&mut endpoint.queues, &mut scratch, &mut notifier)? {
                endpoint.check_peer()?;
                endpoint.sleep(NAP);
            }
        }
        Ok(())
    }

    /// The counts so far.
    pub fn tally(&self) -> Tally {
        Tally {
            frames: self.frames.load(Relaxed),
            replies: self.replies.load(Relaxed),
            no_room: self.no_room.load(Relaxed),
        }
    }

    /// The responder, which counts its replies by kind.
    pub fn responder(&self) -> &Responder {
        &self.responder
    }

    /// A burst from each queue. Whether there was any frame.
    fn round(
        &self,
        queues: &mut Queues,
        scratch: &mut Scratch,
        notifier: &mut Notifier,
    ) -> Result<bool, ResponderError> {
        let mut moved = false;
        for (index, receiver) in queues.receivers.iter_mut().enumerate() {
            // A peer that is a client chooses how many queues go each way.
            let index = index.min(queues.senders.len().saturating_sub(1));
            moved |= self.burst(receiver, queues.senders.get_mut(index), scratch, notifier)?;
        }
        Ok(moved)
    }

    fn burst(
        &self,
        receiver: &mut impl Source,
        mut sender: Option<&mut impl Target>,
        scratch: &mut Scratch,
        notifier: &mut Notifier,
    ) -> Result<bool, ResponderError> {
        if !receiver.refresh()? {
            return Ok(false);
        }
        if let Some(sender) = &mut sender {
            sender.refresh()?;
        }
        for _ in 0..BURST {
            let Some(frame) = receiver.peek(&mut scratch.gather)? else { break };
            let (length, slots) = (frame.bytes.len(), frame.slots);
            // A frame is never longer than FRAME_MAX; memory that went away is noticed at the next look.
            let copied = frame.bytes.copy_out(&mut scratch.request);
            receiver.advance(slots);
            self.frames.fetch_add(1, Relaxed);
            let request = if copied { &scratch.request[..length] } else { &[] };
            let Some(length) = self.responder.answer(request, &mut scratch.reply) else { continue };
            let reply = Frame { bytes: scratch.reply[..length].into(), offload: None, slots: 0 };
            let put = sender.as_mut().map(|sender| sender.put(&reply)).transpose()?;
            let count = if put == Some(Put::Stored) { &self.replies } else { &self.no_room };
            count.fetch_add(1, Relaxed);
        }
        receiver.release();
        if let Some(sender) = sender
            && sender.publish()
            && let Some(eventfd) = sender.notify_fd()
        {
            notifier.notify(eventfd).map_err(ResponderError::Notifier)?;
        }
        Ok(true)
    }
}

/// What a responder has seen and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames that came.
    pub frames: u64,
    /// Replies that were sent.
    pub replies: u64,
    /// Replies that found no room in the peer's ring.
    pub no_room: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frames, replies, no_room } = self;
        write!(f, "{frames} frames received, {replies} answered, {no_room} answers without room")
    }
}

/// What a person should know of a responder.
#[derive(Clone, Debug)]
pub enum Event {
    /// A peer is there.
    Connected {
        /// What it calls itself.
        peer: String,
    },
    /// The peer went; the next one is waited for.
    Gone {
        /// What it called itself.
        peer: String,
        /// Why it went.
        reason: String,
    },
    /// There is no peer yet. Told again only with another reason.
    Waiting {
        /// Why the last try failed.
        reason: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { peer } => write!(f, "connected to {peer}"),
            Self::Gone { peer, reason } => write!(f, "{peer} has gone ({reason}); waiting for the next peer"),
            Self::Waiting { reason } => write!(f, "no peer yet: {reason}; trying again"),
        }
    }
}

/// Why a responder cannot serve, or cannot serve this peer any more.
#[derive(Debug, Error)]
pub enum ResponderError {
    /// No peer could be had.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The peer went.
    #[error(transparent)]
    Gone(#[from] HandshakeError),
    /// The peer broke the protocol.
    #[error("it broke the rules: {0}")]
    Fault(#[from] Fault),
    /// No notifier could be rung.
    #[error("notify the peer: {0}")]
    Notifier(#[source] std::io::Error),
}

/// Where frames are put together.
struct Scratch {
    gather: Box<[u8]>,
    request: Box<[u8]>,
    reply: Box<[u8]>,
}

impl Scratch {
    fn new() -> Self {
        let [gather, request, reply] = std::array::from_fn(|_| vec![0; FRAME_MAX].into_boxed_slice());
        Self { gather, request, reply }
    }
}

/// How long one sleep lasts at most: so often `stop` is looked at.
pub const NAP: Duration = Duration::from_millis(100);
/// How long to wait for a peer before `stop` is looked at.
const TIMEOUT: Duration = Duration::from_millis(500);
