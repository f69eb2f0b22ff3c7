//! The interrupt of a receive queue: what an idle worker waits for, where the driver has it, in place of looking all the time.
//!
//! ```text
//!   disarmed --- arm: the driver is told ---> armed --- readable: look, disarm ---> disarmed
//!                                               |
//!                                               `-- frames are there, and nobody said so, again and again --> useless
//! ```

use std::ffi::c_int;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ferrule_dpdk_sys::Dpdk;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::log;

/// Whether this driver has interrupts of receive queues. Others are not asked: some have vectors set up that nothing ever raises
/// (net_e1000_igb_vf), or do not start.
pub(crate) fn has_interrupts(driver: &str) -> bool {
    DRIVERS.contains(&driver)
}

/// Those whose code has them in DPDK 22.11.
const DRIVERS: [&str; 15] = [
    "mlx5_pci",
    "net_e1000_em",
    "net_e1000_igb",
    "net_hns3",
    "net_hns3_vf",
    "net_i40e",
    "net_iavf",
    "net_ice",
    "net_igc",
    "net_ixgbe",
    "net_ixgbe_vf",
    "net_tap",
    "net_txgbe",
    "net_txgbe_vf",
    "net_virtio",
];

/// The interrupt of one receive queue.
pub(crate) struct RxInterrupt {
    dpdk: &'static Dpdk,
    port: u16,
    queue: u16,
    /// Ours: several queues may share DPDK's.
    fd: OwnedFd,
    /// It counts interrupts, and is read; if not, it is the queue itself, readable as long as there are frames.
    is_eventfd: bool,
    /// The driver is told when it is wanted.
    is_switched: bool,
    armed: Armed,
    /// Frames that were there without an interrupt, one after the other.
    missed: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Armed {
    No,
    /// It was not looked since: what is found then came before.
    JustNow,
    Yes,
}

impl RxInterrupt {
    /// That of a queue of a port that was started with interrupts, if it has one.
    pub fn of(dpdk: &'static Dpdk, port: u16, queue: u16) -> Option<Self> {
        // SAFETY: it reads a table, for any port and queue.
        let (fd, _) = log::collect(|| unsafe { dpdk.rte_eth_dev_rx_intr_ctl_q_get_fd(port, queue) });
        if fd < 0 {
            return None;
        }
        // SAFETY: the port is started, and its driver closes the descriptor when it is stopped.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok()?;
        let kind = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
        let mut interrupt = Self {
            dpdk,
            port,
            queue,
            fd,
            is_eventfd: kind.to_str() == Some(EVENTFD),
            is_switched: true,
            armed: Armed::No,
            missed: 0,
        };
        interrupt.is_switched = interrupt.switch(false) != -(Errno::ENOTSUP as c_int);
        // An eventfd that nobody is told to write to stays silent.
        (interrupt.is_switched || !interrupt.is_eventfd).then_some(interrupt)
    }

    /// What becomes readable.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether it comes when it should, as far as is known.
    pub fn is_useful(&self) -> bool {
        self.missed < MISSED_MAX
    }

    /// Asks for it from now on, or not any more. After asking, look once more before waiting.
    pub fn arm(&mut self, wanted: bool) {
        if self.is_switched && self.switch(wanted) < 0 && wanted {
            self.missed = MISSED_MAX;
        }
        self.armed = if wanted { Armed::JustNow } else { Armed::No };
        if !wanted && self.is_eventfd && self.is_readable() {
            // What woke us: the next one is news again.
            let _ = nix::unistd::read(&self.fd, &mut [0; 8]);
        }
    }

    /// Whether it is asked for.
    #[inline]
    pub fn is_armed(&self) -> bool {
        self.armed != Armed::No
    }

    /// It was looked for frames while it was asked for. If there were some: it should have come.
    #[cold]
    pub fn looked(&mut self, has_frames: bool) {
        let is_first = std::mem::replace(&mut self.armed, Armed::Yes) == Armed::JustNow;
        if !has_frames || is_first {
            return;
        }
        // The queue itself has nothing to say once its frames were taken.
        self.missed = if !self.is_eventfd || self.is_readable() { 0 } else { self.missed + 1 };
    }

    fn is_readable(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    fn switch(&self, on: bool) -> c_int {
        let (dpdk, port, queue) = (self.dpdk, self.port, self.queue);
        // SAFETY: the port is started while one of its queues is there, and this is the only owner of the queue.
        unsafe {
            if on {
                dpdk.rte_eth_dev_rx_intr_enable(port, queue)
            } else {
                dpdk.rte_eth_dev_rx_intr_disable(port, queue)
            }
        }
    }
}

const EVENTFD: &str = "anon_inode:[eventfd]";
/// One may be on its way when it is looked.
const MISSED_MAX: u32 = 3;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

    use nix::sys::eventfd::EventFd;

    use super::*;
    use crate::config::PortConfig;
    use crate::open::QueuePairs;
    use crate::port::Port;
    use crate::queue::RxQueue;
    use crate::replaced::{eal_with, turn};
    use ferrule_ffi::span::Span;

    /// What the replaced functions answer with.
    static FD: AtomicI32 = AtomicI32::new(-1);
    static IS_ON: AtomicBool = AtomicBool::new(false);
    static STATUS: AtomicI32 = AtomicI32::new(0);

    unsafe extern "C" fn get_fd(_port: u16, _queue: u16) -> c_int {
        FD.load(Ordering::SeqCst)
    }

    unsafe extern "C" fn enable(_port: u16, _queue: u16) -> c_int {
        IS_ON.store(true, Ordering::SeqCst);
        STATUS.load(Ordering::SeqCst)
    }

    unsafe extern "C" fn disable(_port: u16, _queue: u16) -> c_int {
        IS_ON.store(false, Ordering::SeqCst);
        STATUS.load(Ordering::SeqCst)
    }

    /// A ring whose receive queue has an interrupt, as far as it knows.
    fn ring(fd: c_int, status: i32) -> (Arc<Port>, QueuePairs) {
        FD.store(fd, Ordering::SeqCst);
        STATUS.store(status, Ordering::SeqCst);
        let eal = eal_with(|dpdk| {
            dpdk.rte_eth_dev_rx_intr_ctl_q_get_fd = get_fd;
            (dpdk.rte_eth_dev_rx_intr_enable, dpdk.rte_eth_dev_rx_intr_disable) = (enable, disable);
        });
        let (port, mut queues) = Port::open(eal, "net_ring8", &PortConfig::default(), Arc::new(|_| {})).unwrap();
        queues[0].0.interrupt = RxInterrupt::of(port.dpdk(), port.id(), 0);
        (port, queues)
    }

    /// What is looked finds a frame.
    fn look(queues: &mut QueuePairs, has_frame: bool) {
        let (rx, tx) = &mut queues[0];
        if has_frame {
            assert!(tx.store_run(&[Span::from(&[7; 64][..])]) == 1 && tx.flush());
        }
        assert_eq!(rx.poll(), has_frame);
        rx.take(1);
    }

    fn is_useful(rx: &RxQueue) -> bool {
        rx.has_interrupt()
    }

    #[test]
    fn it_is_asked_for_read_and_given_up_when_frames_come_without_it() {
        let _turn = turn();
        let event = EventFd::new().unwrap();
        let (_port, mut queues) = ring(event.as_raw_fd(), 0);
        assert!(is_useful(&queues[0].0) && !IS_ON.load(Ordering::SeqCst));
        queues[0].0.arm(true);
        assert!(IS_ON.load(Ordering::SeqCst));
        // It came before it was asked for.
        look(&mut queues, true);
        for _ in 0..2 {
            look(&mut queues, true);
            look(&mut queues, false);
        }
        event.write(1).unwrap();
        look(&mut queues, true);
        queues[0].0.arm(false);
        assert!(!IS_ON.load(Ordering::SeqCst), "and what woke us is read");
        let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(0));
        queues[0].0.arm(true);
        look(&mut queues, false);
        for _ in 0..3 {
            assert!(is_useful(&queues[0].0), "three in a row, not less");
            look(&mut queues, true);
        }
        assert!(!is_useful(&queues[0].0) && queues[0].0.interrupt_fd().is_some());
        queues[0].0.arm(false);
    }

    #[test]
    fn an_eventfd_that_nobody_writes_to_is_none_and_one_that_cannot_be_asked_for_is_given_up() {
        let _turn = turn();
        let event = EventFd::new().unwrap();
        let (port, queues) = ring(event.as_raw_fd(), -(Errno::ENOTSUP as i32));
        assert!(queues[0].0.interrupt_fd().is_none());
        drop((queues, port));
        let (port, mut queues) = ring(event.as_raw_fd(), -(Errno::EIO as i32));
        assert!(is_useful(&queues[0].0));
        queues[0].0.arm(true);
        assert!(!is_useful(&queues[0].0));
        drop((queues, port));
        let (_port, queues) = ring(-1, 0);
        assert!(queues[0].0.interrupt_fd().is_none());
    }
}
