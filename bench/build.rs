//! Tells the crate whether it can drive ports: whether libdpdk was found, and is wanted.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_dpdk)");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("DEP_FERRULE_DPDK_FOUND").is_some() {
        println!("cargo::rustc-cfg=has_dpdk");
    }
}
