//! Frames that a device never takes: some drivers stop at one that the kernel refuses, and what is behind it would wait for ever.

use std::time::{Duration, Instant};

/// How long a device has taken none of the frames that it was offered.
#[derive(Default)]
pub(crate) struct Stall {
    tries: u32,
    since: Option<Instant>,
}

impl Stall {
    /// It took a frame, or has none to take.
    #[inline]
    pub fn end(&mut self) {
        self.tries = 0;
    }

    /// It took nothing once more. `true`: that has lasted too long, and the first frame is to be dropped.
    #[cold]
    pub fn took_nothing(&mut self) -> bool {
        if self.tries == 0 {
            self.since = Some(Instant::now());
        }
        self.tries = self.tries.saturating_add(1);
        self.tries >= TRIES_MIN && self.since.is_some_and(|since| since.elapsed() >= STALL_MAX)
    }
}

/// A ring that is full has room again sooner, unless nobody takes what is in it.
const STALL_MAX: Duration = Duration::from_millis(100);
/// A worker that did not run meanwhile has not offered anything.
const TRIES_MIN: u32 = 64;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, OnceLock};
    use std::time::{Duration, Instant};

    use ferrule_dpdk_sys::{Dpdk, ferrule_frame, ferrule_moved, ferrule_path};
    use ferrule_ffi::span::Span;

    use crate::library;
    use crate::port::Port;
    use crate::queue::{RxQueue, TxQueue};
    use crate::replaced::{eal_with, open, turn};

    #[test]
    fn a_frame_that_the_device_refuses_is_dropped_and_counted_and_those_behind_it_go() {
        let _turn = turn();
        let (port, mut rx, mut tx) = refusing("net_ring5");
        assert_eq!(tx.store_run(&frames().each_ref().map(|frame| Span::from(&**frame))), LENGTHS.len());
        assert!(!tx.flush(), "it is not dropped at once");
        until(|| tx.flush());
        assert_eq!(received(&mut rx), [60, 61, 62]);
        assert_eq!(port.counters().unwrap()["tx_refused"], 2);
    }

    #[test]
    fn the_same_of_a_frame_that_is_moved() {
        let _turn = turn();
        let (source, mut from, mut filler) = refusing("net_ring6");
        let (port, mut rx, mut tx) = refusing("net_ring5");
        for frame in frames() {
            // A burst of its own is taken whatever its length.
            assert_eq!(filler.store_run(&[Span::from(&*frame)]), 1);
            IS_REFUSING.set(false);
            assert!(filler.flush());
            IS_REFUSING.set(true);
        }
        let mut moved = 0;
        until(|| {
            moved += tx.move_from(&mut from).count;
            moved == 3
        });
        assert_eq!(received(&mut rx), [60, 61, 62]);
        assert_eq!(port.counters().unwrap()["tx_refused"], 2);
        assert_eq!(source.counters().unwrap()["tx_refused"], 0);
    }

    const LENGTHS: [usize; 5] = [60, LONG, LONG, 61, 62];
    const LONG: usize = 1518;

    thread_local! {
        static IS_REFUSING: std::cell::Cell<bool> = const { std::cell::Cell::new(true) };
    }

    fn frames() -> [Vec<u8>; 5] {
        LENGTHS.map(|len| vec![7; len])
    }

    /// A port of a device that sends what it receives, and stops at each long frame.
    fn refusing(device: &str) -> (Arc<Port>, RxQueue, TxQueue) {
        let eal = eal_with(|dpdk| {
            (dpdk.ferrule_tx_burst, dpdk.ferrule_tx_move, dpdk.ferrule_move) = (tx_burst, tx_move, receive_only);
        });
        let (port, queues) = open(eal, device).unwrap();
        let (rx, tx) = queues.into_iter().next().unwrap();
        (port, rx, tx)
    }

    fn received(rx: &mut RxQueue) -> Vec<usize> {
        let mut lengths = Vec::new();
        while rx.poll() {
            lengths.push(rx.plain().next().unwrap().len());
            rx.take(1);
        }
        lengths
    }

    fn until(mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < deadline);
        }
    }

    /// The functions that are not replaced.
    fn real() -> &'static Dpdk {
        static REAL: OnceLock<Dpdk> = OnceLock::new();
        REAL.get_or_init(|| library::load().unwrap())
    }

    unsafe extern "C" fn tx_burst(port: u16, queue: u16, frames: *mut ferrule_frame, count: u16) -> u16 {
        // SAFETY: as the caller was told.
        unsafe { real().ferrule_tx_burst(port, queue, frames, taken(frames, count)) }
    }

    unsafe extern "C" fn tx_move(port: u16, queue: u16, frames: *mut ferrule_frame, count: u16) -> u16 {
        // SAFETY: as the caller was told.
        unsafe { real().ferrule_tx_move(port, queue, frames, taken(frames, count)) }
    }

    /// The device takes none of what was received.
    unsafe extern "C" fn receive_only(
        path: *const ferrule_path,
        frames: *mut ferrule_frame,
        moved: *mut ferrule_moved,
    ) -> u16 {
        // SAFETY: as the caller was told.
        unsafe {
            *moved = ferrule_moved { frames: 0, bytes: 0, refused: 0 };
            let mut refused = 0;
            let dpdk = real();
            dpdk.ferrule_rx_burst(
                (*path).rx_port,
                (*path).rx_queue,
                frames,
                crate::config::BURST as u16,
                &raw mut refused,
            )
        }
    }

    /// As many frames as there are before the first long one.
    fn taken(frames: *mut ferrule_frame, count: u16) -> u16 {
        // SAFETY: so many frames, which the caller owns.
        let frames = unsafe { std::slice::from_raw_parts(frames, usize::from(count)) };
        let is_taken = |frame: &&ferrule_frame| !IS_REFUSING.get() || (frame.len as usize) < LONG;
        frames.iter().take_while(is_taken).count() as u16
    }
}
