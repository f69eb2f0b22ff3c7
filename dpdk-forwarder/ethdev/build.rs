//! Tells the crate whether it has DPDK.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(no_dpdk)");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("DEP_FERRULE_DPDK_FOUND").is_none() {
        println!("cargo::rustc-cfg=no_dpdk");
    }
}
