//! What a frame costs between two DPDK devices, on one core: a wire beside `dpdk-testpmd` in io mode, and a memif peer through DPDK's driver
//! beside our own memif.
//!
//! `cargo bench --workspace --bench ports`
//!
//! Nothing passes or fails here. The cost is the worker's CPU time for each frame, as the scheduler knows it, so that who else is on the machine counts as
//! little as can be. Turns of one and the other follow each other; medians of all rounds.

#[cfg(not(no_dpdk))]
mod cost;
#[cfg(not(no_dpdk))]
mod primed;
#[cfg(not(no_dpdk))]
mod testpmd;
#[cfg(not(no_dpdk))]
mod turn;

fn main() {
    // `cargo test --benches` only wants to know that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    #[cfg(not(no_dpdk))]
    if let Err(error) = cost::run() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
