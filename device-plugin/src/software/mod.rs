//! Endpoints without a NIC: sockets of `dpdk-forwarder`, which joins them two by two, for pods that would have VFs elsewhere.
//!
//! Which two are joined is said by the configuration, by number, and not by who comes when. A wire is there while a pod has one of its
//! ends; it is what a lease is for a VF: a plugin that starts learns from the wires what pods have.
//!
//! Modules: `pairs` (which endpoints there are and how they are joined: no I/O), `place` (where their sockets are), `wire` (a pair as
//! the forwarder knows it), `forwarder` (asked for wires), `choice` (which go first).

mod choice;
mod forwarder;
mod pairs;
mod place;
mod wire;

pub use choice::{FreeEndpoint, prefer};
pub use forwarder::{Forwarder, WireError};
pub use pairs::{Holder, Pair, PairState, Pairs, SoftwareEndpoint, is_endpoint};
pub use place::{Place, container_path, container_socket, eal_argument};
