//! Wires with DPDK devices that need no NIC: what goes in at one end comes out at the other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../../dataplane/tests/common/mod.rs"]
mod common;
mod devices;
mod idle;
mod link;
mod offload;
mod site;
mod wires;
