//! DPDK devices as ends of wires: any Ethernet device, by its devargs.
//!
//! It is *not* about VFs: who lends and binds them is `sriov-manager`.
//!
//! In reading order:
//! - [`spec`]: what a wire says of such an end. [`port`]: what the engine asks of it.
//! - [`settings`]: how DPDK is started.
//! - `device`: the port, made when its wire is made.
//! - `queue`: what workers do with its queues.
//!
//! Where this was built without DPDK, the last two are not there: an end can be read and shown, and is refused when it is made.

#[cfg(not(no_dpdk))]
mod device;
pub mod port;
#[cfg(not(no_dpdk))]
mod queue;
pub mod settings;
pub mod spec;

pub use port::MISSING;
pub use settings::{DpdkSettings, configure};
pub use spec::EthdevSpec;
