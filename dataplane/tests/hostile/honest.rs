//! The ends of honest peers, whatever they speak.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{MemifSpec, SocketAddress};
use ferrule_endpoints::memif::Endpoint;
use ferrule_endpoints::vhost_user::{Frontend, FrontendSpec};

/// An end that keeps to its protocol.
pub enum Honest {
    Memif(Box<Endpoint>),
    Vhost(Box<Frontend>),
}

impl Honest {
    pub fn memif(spec: &MemifSpec) -> Self {
        let opened = Endpoint::open(spec, DEADLINE);
        Self::Memif(Box::new(opened.unwrap_or_else(|error| panic!("no honest peer gets in: {error}"))))
    }

    /// A frontend that takes and gives whatever frame there is, with these features beside the usual ones.
    pub fn vhost(socket: &SocketAddress, listens: bool, features: Features) -> Self {
        let plain = FrontendSpec::new(socket.clone());
        let features = plain.features | Features::MRG_RXBUF | features;
        let opened = Frontend::open(&FrontendSpec { listens, features, ..plain }, DEADLINE);
        Self::Vhost(Box::new(opened.unwrap_or_else(|error| panic!("no honest frontend gets in: {error}"))))
    }

    /// Sends one frame on the first queue; `false`: there is no room.
    pub fn put(&mut self, bytes: &[u8]) -> bool {
        let target: &mut dyn Target = match self {
            Self::Memif(end) => &mut end.queues.senders[0],
            Self::Vhost(end) => &mut end.queues.senders[0],
        };
        target.refresh().unwrap();
        let stored = target.put(&Frame { bytes: bytes.into(), offload: None, slots: 0 }).unwrap();
        if target.publish() {
            notify(target.notify_fd());
        }
        stored == Put::Stored
    }

    /// Receives one frame on the first queue.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        thread_local!(static GATHER: RefCell<Vec<u8>> = RefCell::new(vec![0; FRAME_MAX]));
        let source: &mut dyn Source = match self {
            Self::Memif(end) => &mut end.queues.receivers[0],
            Self::Vhost(end) => &mut end.queues.receivers[0],
        };
        if !source.refresh().unwrap() {
            return None;
        }
        GATHER.with_borrow_mut(|gather| {
            let frame = source.peek(gather).unwrap()?;
            let mut bytes = vec![0; frame.bytes.len()];
            assert!(frame.bytes.copy_out(&mut bytes));
            let slots = frame.slots;
            source.advance(slots);
            source.release();
            notify(source.release_notify_fd());
            Some(bytes)
        })
    }
}

fn notify(eventfd: Option<BorrowedFd<'_>>) {
    if let Some(eventfd) = eventfd {
        // Full means that it rings already.
        let _ = nix::unistd::write(eventfd, &1u64.to_ne_bytes());
    }
}

/// How long an honest peer tries to get in.
pub const DEADLINE: Duration = Duration::from_secs(20);
