//! DPDK devices as ends of wires: any Ethernet device by its devargs, and VFs.
//!
//! It does *not* make or bind VFs: `sriov-manager` does, and lends them.
//!
//! In reading order:
//! - [`spec`]: what a wire says of such an end; `devargs`: what it may say. [`port`]: what the engine asks of it.
//! - [`vf`]: the same for a VF, with the lease that it is borrowed by.
//! - [`settings`]: how DPDK is started.
//! - `device`: the port, made when its wire is made.
//! - `queue`: what workers do with its queues.
//!
//! Where this was built without DPDK, `device` and `queue` are not there: an end can be read and shown, and is refused when it is made.

mod address;
mod devargs;
#[cfg(not(no_dpdk))]
mod device;
pub mod port;
#[cfg(not(no_dpdk))]
pub mod queue;
pub mod settings;
pub mod spec;
pub mod vf;

pub use port::MISSING;
pub use settings::{DpdkSettings, configure};
pub use spec::EthdevSpec;
pub use vf::leases::{LeaseSettings, configure_leases, lease_name, leases};
pub use vf::spec::{VfAttributes, VfSpec};
