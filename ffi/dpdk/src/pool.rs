//! What frames lie in.

use std::ptr::NonNull;

use ferrule_dpdk_sys::RTE_PKTMBUF_HEADROOM;

use crate::eal::{Control, Eal, PoolPointer};
use crate::error::{PortError, cause};
use crate::log;

/// A pool of mbufs. When it is dropped, it is freed once all of them are back.
pub(crate) struct Mempool {
    eal: &'static Eal,
    pub pointer: PoolPointer,
}

impl Mempool {
    /// `count` mbufs with room for `room` bytes each, near `node`.
    pub fn create(
        eal: &'static Eal,
        control: &mut Control,
        device: &str,
        count: u32,
        room: u16,
        node: i32,
    ) -> Result<Self, PortError> {
        let name = control.pool_name();
        let room = room + RTE_PKTMBUF_HEADROOM as u16;
        let create = |node| {
            let made = log::collect(|| {
                // SAFETY: the name is a string, which DPDK copies; every number is checked by DPDK.
                unsafe { eal.dpdk.rte_pktmbuf_pool_create(name.as_ptr(), count, CACHE, 0, room, node) }
            });
            (NonNull::new(made.0), made.1)
        };
        // Memory that is not in hugepages is of no known node.
        let (pointer, said) = match create(if eal.has_hugepages { node } else { ANY_NODE }) {
            (None, _) if node != ANY_NODE => create(ANY_NODE),
            made => made,
        };
        let Some(pointer) = pointer else {
            // SAFETY: it reads a variable of this thread.
            let errno = unsafe { eal.dpdk.ferrule_errno() };
            let cause = format!("{count} buffers of {room} bytes: {}", cause(-errno, &said));
            return Err(PortError::new(device, "rte_pktmbuf_pool_create", cause));
        };
        Ok(Self { eal, pointer: PoolPointer(pointer) })
    }

    /// Gives it back. Its port is closed, and has no queue any more.
    pub fn retire(self, control: &mut Control) {
        control.retire(self.eal, self.pointer);
    }
}

/// Mbufs that each thread has at hand.
pub(crate) const CACHE: u32 = 256;
const ANY_NODE: i32 = -1;
