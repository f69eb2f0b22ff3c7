//! The kubelet's view of a node's VFs: they are advertised, bound when a pod gets them, and given back when it has gone.
//!
//! It writes nothing into sysfs and does not link `sriov-manager`: it borrows VFs from that as everybody does. What pods have is in
//! the manager's journal and in the kubelet's checkpoint; the plugin keeps no state that cannot be lost.
//!
//! Modules in reading order:
//! - [`config`]: the Go plugin's configuration, and our own keys
//! - [`host`], [`inventory`], [`pools`]: what there is, and which resource has it: a pure function
//! - [`health`], [`grants`]: what may be given away, what pods have
//! - [`software`]: endpoints of the forwarder for pods of nodes without a NIC
//! - [`resources`]: all of it together, as the kubelet is to see it
//! - [`lease_name`], [`leases`], [`allocate`]: a pod gets devices; [`release`]: they come back; [`wires`]: software endpoints are
//!   joined
//! - [`kubelet`], [`pod_resources`]: the kubelet's protocols
//! - [`networks_file`]: what a CNI plugin is told
//! - [`daemon`], [`news`], [`duty`], [`checkpoint`], `reload`, [`metrics`], [`counters`]: the daemon around it
//! - [`explain`]: everything that is known, for people who ask why
//! - [`flags`]: its command line, which takes that of the Go plugin

pub mod allocate;
pub mod checkpoint;
pub mod config;
pub mod counters;
pub mod daemon;
pub mod device_locks;
pub mod duty;
pub mod explain;
pub mod flags;
pub mod grants;
pub mod health;
pub mod host;
pub mod inventory;
pub mod kubelet;
pub mod lease_name;
pub mod leases;
pub mod metrics;
pub mod networks_file;
pub mod news;
pub mod pod_resources;
pub mod pools;
pub mod release;
mod reload;
pub mod resources;
pub mod software;
pub mod under_way;
pub mod wires;
