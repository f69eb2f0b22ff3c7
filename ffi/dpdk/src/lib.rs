//! DPDK behind safe types: started when somebody asks for it, never linked.
//!
//! It is *not* a wrapper of everything: it has what an end of a wire needs. It knows nothing of wires.
//!
//! ```text
//!   Eal::start --> Port::open(devargs) --> (Port, [(RxQueue, TxQueue)])
//!   once in a      probe, configure,         control       one worker each
//!   process        queues, start
//! ```
//! In reading order:
//! - [`eal`]: DPDK's environment, started once in a process, when it is needed.
//! - [`port`]: a device, from its devargs to its end. [`open`]: how it is made, with its queues; [`config`]: what it is made of; [`stats`]: what it tells; [`watch`]: what it says of its own end.
//! - [`queue`]: its queues: frames as slices. [`finish`]: frames whose checksums and segments are left to the device.
//! - [`error`]: which call failed on which device, and why.
//! - `library`, `log`, `pool`, `announce`, `close`: how libdpdk is loaded, where its log goes, what frames lie in, which ports a device has, how
//!   one ends. `stall`: when a frame is given up that a device never takes. `interrupt`: what an idle worker waits for.
//! - `interface`, `packet_sockets`: what drivers of software devices leave to others.
//!
//! Where this was built without libdpdk, nothing of that is there, and [`MISSING`] says why.

#![cfg_attr(no_dpdk, allow(rustdoc::broken_intra_doc_links, reason = "what the overview names is not there"))]

/// What was missing when this was built, if anything was.
pub use ferrule_dpdk_sys::MISSING;
/// The version of libdpdk that this was built for.
#[cfg(not(no_dpdk))]
pub use ferrule_dpdk_sys::VERSION;

#[cfg(not(no_dpdk))]
mod announce;
#[cfg(not(no_dpdk))]
mod close;
#[cfg(not(no_dpdk))]
pub mod config;
#[cfg(not(no_dpdk))]
pub mod eal;
#[cfg(not(no_dpdk))]
pub mod error;
#[cfg(not(no_dpdk))]
pub mod finish;
#[cfg(not(no_dpdk))]
mod interface;
#[cfg(not(no_dpdk))]
mod interrupt;
#[cfg(not(no_dpdk))]
mod library;
#[cfg(not(no_dpdk))]
mod log;
#[cfg(not(no_dpdk))]
pub mod open;
#[cfg(not(no_dpdk))]
mod packet_sockets;
#[cfg(not(no_dpdk))]
mod pool;
#[cfg(not(no_dpdk))]
pub mod port;
#[cfg(not(no_dpdk))]
pub mod queue;
#[cfg(all(test, not(no_dpdk)))]
mod replaced;
#[cfg(not(no_dpdk))]
mod stall;
#[cfg(not(no_dpdk))]
pub mod stats;
#[cfg(not(no_dpdk))]
pub mod watch;
