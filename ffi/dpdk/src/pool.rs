//! What frames lie in.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use ferrule_dpdk_sys::{Dpdk, RTE_PKTMBUF_HEADROOM, rte_mempool};

use crate::config::CACHE;
use crate::error::{PortError, cause};
use crate::log;

/// A pool of mbufs. It is never freed, but used again ([`Pools`]).
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
    /// Whether DPDK's memory is in hugepages.
    pub in_hugepages: bool,
}

/// Pools of ports that are closed. They are not freed but used again, by ports whose frames are as long: frames of them may still be
/// with other ports, and DPDK cannot tell for certain that none is while other threads give some back.
#[derive(Default)]
pub(crate) struct Pools {
    retired: Vec<Mempool>,
    made: usize,
}

impl Pools {
    /// How many were made.
    pub fn made(&self) -> usize {
        self.made
    }

    /// Keeps a pool for the next port that can use it.
    pub fn retire(&mut self, pool: Mempool) {
        self.retired.push(pool);
    }

    /// A pool of that shape, used before or new.
    pub fn get(&mut self, dpdk: &Dpdk, device: &str, shape: Shape) -> Result<Mempool, PortError> {
        // One of which much is with others, or in caches of threads that served a port before, would starve the port.
        let is_wanted = |pool: &Mempool| {
            // SAFETY: pools are never freed.
            let there = unsafe { dpdk.ferrule_pool_count(pool.pointer.as_ptr()) };
            pool.shape == shape && there >= shape.count - shape.count / 4
        };
        if let Some(place) = self.retired.iter().position(is_wanted) {
            return Ok(self.retired.swap_remove(place));
        }
        let pool = create(dpdk, device, shape)?;
        self.made += 1;
        Ok(pool)
    }
}

fn create(dpdk: &Dpdk, device: &str, shape: Shape) -> Result<Mempool, PortError> {
    /// No two pools of a process may have the same name.
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let Shape { count, room, node, in_hugepages } = shape;
    let name = format!("ferrule-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let name = CString::new(name).unwrap_or_default();
    let room = room.saturating_add(RTE_PKTMBUF_HEADROOM as u16);
    let create = |node| {
        let made = log::collect(|| {
            if in_hugepages {
                // SAFETY: the name is a string, which DPDK copies; every number is checked by DPDK.
                unsafe { dpdk.rte_pktmbuf_pool_create(name.as_ptr(), count, CACHE, 0, room, node) }
            } else {
                // SAFETY: as above; without hugepages the environment was started with IOVA as VA.
                unsafe { dpdk.ferrule_pool_create(name.as_ptr(), count, CACHE, room, node) }
            }
        });
        (NonNull::new(made.0), made.1)
    };
    // A node whose part of the memory is used up is worse than another one.
    let (pointer, said) = match create(node) {
        (None, _) if node != ANY_NODE => create(ANY_NODE),
        made => made,
    };
    let Some(pointer) = pointer else {
        // SAFETY: it reads a variable of this thread.
        let errno = unsafe { dpdk.ferrule_errno() };
        let cause = format!("{count} buffers of {room} bytes: {}", cause(-errno, &said));
        return Err(PortError::new(device, "rte_pktmbuf_pool_create", cause));
    };
    Ok(Mempool { pointer, shape })
}

pub(crate) const ANY_NODE: i32 = -1;
