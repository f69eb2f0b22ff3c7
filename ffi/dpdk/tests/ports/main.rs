//! Ports of devices that need no NIC: what goes in comes out, and what is closed is gone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(not(no_dpdk))]
mod devices;
#[cfg(not(no_dpdk))]
mod limits;
#[cfg(not(no_dpdk))]
mod link;
#[cfg(not(no_dpdk))]
mod moves;
#[cfg(not(no_dpdk))]
mod refusals;
#[cfg(not(no_dpdk))]
mod waits;

#[cfg(no_dpdk)]
#[test]
fn without_dpdk() {
    println!("skipped: ferrule-dpdk/ports: {}", ferrule_dpdk::MISSING.unwrap_or_default());
}
