//! `ferrule-cni`: a CNI plugin that gives pods their VFs and sockets. A runtime runs it once for each thing that it asks, and it asks
//! `sriov-manager` and `dpdk-forwarder` for the work.
//!
//! It is *not* a daemon, and it speaks to no API server. It writes nothing into sysfs and tells no PF anything: it moves interfaces
//! between namespaces, and what it has to know later is in a file for each attachment.
//!
//! In reading order:
//! - [`protocol`]: what a runtime and a plugin say to each other;
//! - [`network`]: a network's configuration;
//! - [`plugin`]: a call from beginning to end; [`call`]: what it is about;
//! - [`pod`]: all devices of a pod, without Multus;
//! - [`sriov`]: what a pod has of a VF;
//! - [`userspace`]: memif and vhost-user sockets;
//! - [`endpoint`]: interfaces for the device plugin's software endpoints;
//! - [`ipam`]: addresses, which another plugin has;
//! - [`store`]: what has to be known later;
//! - [`interface`]: interfaces in namespaces;
//! - [`manager`]: `sriov-manager`; [`forwarder`]: `dpdk-forwarder`; [`asking`]: both, one thing after the other;
//! - [`device_info`]: what programs in the pod are told;
//! - [`socket_kind`]: what speaks over sockets.

pub mod asking;
pub mod call;
pub mod device_info;
pub mod endpoint;
pub mod forwarder;
pub mod interface;
pub mod ipam;
pub mod manager;
pub mod network;
pub mod plugin;
pub mod pod;
pub mod protocol;
pub mod socket_kind;
pub mod sriov;
pub mod store;
pub mod userspace;
