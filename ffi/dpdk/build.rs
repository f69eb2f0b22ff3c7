//! Tells this crate, and those that depend on it, whether there are bindings.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(no_dpdk)");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("DEP_FERRULE_DPDK_SYS_FOUND").is_some() {
        println!("cargo::metadata=found=1");
    } else {
        println!("cargo::rustc-cfg=no_dpdk");
    }
}
