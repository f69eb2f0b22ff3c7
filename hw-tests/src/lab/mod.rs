//! The virtual SR-IOV lab (`make lab`): a machine with two emulated NICs of real VFs, an IOMMU and two NUMA nodes,
//! booted with a Debian kernel. `docs/lab.md` says how to use it.
//!
//! - [`scenario`]: what a scenario is, and what it has inside the machine;
//! - [`scenarios`]: all of them: this is where to add one;
//! - [`pci`]: PFs and VFs as the kernel shows them;
//! - [`manager`]: a running `sriov-manager`; [`forwarder`]: a running `dpdk-forwarder`; [`testpmd`]: DPDK on VFs;
//! - [`pods`]: a node that gives VFs to pods;
//! - [`xdp`]: an XDP program for an interface;
//! - [`topology`]: the machine;
//! - [`runner`]: boots it, runs scenarios, keeps the machine fresh;
//! - [`report`]: what is printed and left behind.

pub mod forwarder;
pub mod manager;
pub mod pci;
pub mod pods;
pub mod report;
pub mod runner;
pub mod scenario;
pub mod scenarios;
pub mod testpmd;
pub mod topology;
pub mod xdp;
