//! VFs of SR-IOV NICs as ends of wires: lent by `sriov-manager`, polled through `vfio-pci`.
//!
//! ```text
//!   wire --> lease `wire/NAME/A` --> VF on vfio-pci --> DPDK device --> queues
//!            stays while the wire is wanted,            closed when it is lost, or its wire is not served
//!            over restarts of the forwarder
//! ```
//! [`spec`]: what a wire says of such an end; `port`: how the engine sees it. [`leases`]: its VF, asked for and given back. `device`: the VF, made when its wire is; `link_watch`:
//! how a reset of its PF is noticed that nobody tells.

#[cfg(not(no_dpdk))]
mod device;
pub mod leases;
#[cfg(not(no_dpdk))]
mod link_watch;
mod port;
pub mod spec;
