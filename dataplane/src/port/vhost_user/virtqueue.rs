//! Our ends of a virtqueue, of either layout.

use std::os::fd::BorrowedFd;

use ferrule_ffi::span::Span;

use crate::offload::Accepts;
use crate::port::vhost_user::eventfd::EventfdExchange;
use crate::port::vhost_user::packed::{PackedRx, PackedTx};
use crate::port::vhost_user::split::{SplitRx, SplitTx};
use crate::port::vhost_user::vring::{VringError, VringLayout, VringSetup};
use crate::port::{Fault, Frame, Put, Run, Source, Target};

/// Our end of a ring of which the guest transmits.
pub enum GuestTx {
    /// Of the split layout.
    Split(Box<SplitTx>),
    /// Of the packed layout.
    Packed(Box<PackedTx>),
}

/// Our end of a ring of which the guest receives.
pub enum GuestRx {
    /// Of the split layout.
    Split(Box<SplitRx>),
    /// Of the packed layout.
    Packed(Box<PackedRx>),
}

impl GuestTx {
    /// Takes hold of a ring.
    pub fn new(setup: &VringSetup) -> Result<Self, VringError> {
        Ok(match setup.layout()? {
            VringLayout::Split => Self::Split(Box::new(SplitTx::new(setup)?)),
            VringLayout::Packed => Self::Packed(Box::new(PackedTx::new(setup)?)),
        })
    }

    /// Takes another eventfd, if it is for this ring.
    pub(crate) fn exchange(&mut self, exchange: &EventfdExchange) {
        match self {
            Self::Split(ring) => ring.exchange(exchange),
            Self::Packed(ring) => ring.exchange(exchange),
        }
    }

    /// Where a successor begins: the answer to GET_VRING_BASE.
    pub fn base(&self) -> u32 {
        match self {
            Self::Split(ring) => ring.base(),
            Self::Packed(ring) => ring.base(),
        }
    }

    /// Whether its frames go anywhere; if not, whoever has it drops them.
    pub fn is_enabled(&self) -> bool {
        match self {
            Self::Split(ring) => ring.is_enabled(),
            Self::Packed(ring) => ring.is_enabled(),
        }
    }

    fn any(&mut self) -> &mut dyn Source {
        match self {
            Self::Split(ring) => &mut **ring,
            Self::Packed(ring) => &mut **ring,
        }
    }
}

impl GuestRx {
    /// Takes hold of a ring.
    pub fn new(setup: &VringSetup) -> Result<Self, VringError> {
        Ok(match setup.layout()? {
            VringLayout::Split => Self::Split(Box::new(SplitRx::new(setup)?)),
            VringLayout::Packed => Self::Packed(Box::new(PackedRx::new(setup)?)),
        })
    }

    /// Takes another eventfd, if it is for this ring.
    pub(crate) fn exchange(&mut self, exchange: &EventfdExchange) {
        match self {
            Self::Split(ring) => ring.exchange(exchange),
            Self::Packed(ring) => ring.exchange(exchange),
        }
    }

    /// Where a successor begins: the answer to GET_VRING_BASE.
    pub fn base(&self) -> u32 {
        match self {
            Self::Split(ring) => ring.base(),
            Self::Packed(ring) => ring.base(),
        }
    }

    fn any(&mut self) -> &mut dyn Target {
        match self {
            Self::Split(ring) => &mut **ring,
            Self::Packed(ring) => &mut **ring,
        }
    }
}

/// For whoever has no need of speed: links look inside.
impl Source for GuestTx {
    fn refresh(&mut self) -> Result<bool, Fault> {
        self.any().refresh()
    }

    fn run<'a>(&'a mut self, run: &mut Run<'a>) {
        self.any().run(run);
    }

    fn advance_run(&mut self, count: usize) {
        self.any().advance_run(count);
    }

    fn peek<'a>(&'a mut self, gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        self.any().peek(gather)
    }

    fn cost(&self, length: usize, slots: u32) -> u64 {
        match self {
            Self::Split(ring) => ring.cost(length, slots),
            Self::Packed(ring) => ring.cost(length, slots),
        }
    }

    fn advance(&mut self, slots: u32) {
        self.any().advance(slots);
    }

    fn release(&mut self) {
        self.any().release();
    }

    fn release_notify_fd(&mut self) -> Option<BorrowedFd<'_>> {
        self.any().release_notify_fd()
    }

    fn enable_notify(&mut self, wanted: bool) {
        self.any().enable_notify(wanted);
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Split(ring) => ring.notify_fd(),
            Self::Packed(ring) => ring.notify_fd(),
        }
    }

    fn is_enabled(&self) -> bool {
        GuestTx::is_enabled(self)
    }
}

/// For whoever has no need of speed: links look inside.
impl Target for GuestRx {
    fn refresh(&mut self) -> Result<(), Fault> {
        self.any().refresh()
    }

    fn put_run(&mut self, run: &[Span<'_>]) -> usize {
        self.any().put_run(run)
    }

    fn put(&mut self, frame: &Frame<'_>) -> Result<Put, Fault> {
        self.any().put(frame)
    }

    fn cost(&mut self) -> u64 {
        self.any().cost()
    }

    fn publish(&mut self) -> bool {
        self.any().publish()
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Split(ring) => ring.notify_fd(),
            Self::Packed(ring) => ring.notify_fd(),
        }
    }

    fn accepts(&self) -> Accepts {
        match self {
            Self::Split(ring) => ring.accepts(),
            Self::Packed(ring) => ring.accepts(),
        }
    }
}
