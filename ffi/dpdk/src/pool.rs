//! What frames lie in.

use std::ptr::NonNull;

use ferrule_dpdk_sys::{RTE_PKTMBUF_HEADROOM, rte_mempool};

use crate::eal::{Control, Eal};
use crate::error::{PortError, cause};
use crate::log;

/// A pool of mbufs. It is never freed, but used again ([`Control`]).
pub(crate) struct Mempool {
    pub pointer: NonNull<rte_mempool>,
    shape: Shape,
}

// SAFETY: DPDK's pools may be used from any thread.
unsafe impl Send for Mempool {}
// SAFETY: as above; what threads do to a pool at the same time is made for it.
unsafe impl Sync for Mempool {}

/// What makes pools equal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// How many mbufs.
    pub count: u32,
    /// Bytes that a frame has room for in each.
    pub room: u16,
    /// The NUMA node that they are wanted on.
    pub node: i32,
}

impl Mempool {
    /// A pool of that shape, new or used before.
    pub fn get(eal: &Eal, control: &mut Control, device: &str, shape: Shape) -> Result<Self, PortError> {
        // One of which most is still with others would starve the port. The count may be wrong while they give some back.
        let is_wanted = |pool: &Self| {
            // SAFETY: pools are never freed.
            let in_use = unsafe { eal.dpdk.rte_mempool_in_use_count(pool.pointer.as_ptr()) };
            pool.shape == shape && in_use <= shape.count / 4
        };
        match control.reuse(is_wanted) {
            Some(pool) => Ok(pool),
            None => Self::create(eal, control, device, shape),
        }
    }

    fn create(eal: &Eal, control: &mut Control, device: &str, shape: Shape) -> Result<Self, PortError> {
        let Shape { count, room, node } = shape;
        let name = control.pool_name();
        let room = room.saturating_add(RTE_PKTMBUF_HEADROOM as u16);
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
        Ok(Self { pointer, shape })
    }
}

/// Mbufs that each thread has at hand.
pub(crate) const CACHE: u32 = 256;
const ANY_NODE: i32 = -1;
