//! Raw bindings of the libdpdk that was installed where this was built, made by bindgen at that time.
//!
//! Nothing is linked. [`Dpdk`] has a pointer to each function, and gets them from the *shim* ([`SHIM`]): a small shared
//! object, compiled from `c/shim.c`, that needs libdpdk and adds what is only in its headers. Who loads it finds in
//! it also what it needs: so functions of libdpdk itself are called without a detour.
//!
//! Where libdpdk, libclang or a C compiler was missing, only [`MISSING`] is there.

#![cfg_attr(no_dpdk, allow(rustdoc::broken_intra_doc_links, reason = "what the overview names is not there"))]

/// What was missing when this was built, if anything was: then it has no bindings.
pub const MISSING: Option<&str> = option_env!("FERRULE_DPDK_MISSING");

#[cfg(not(no_dpdk))]
pub use found::*;

#[cfg(not(no_dpdk))]
mod found {
    #[allow(
        missing_docs,
        non_camel_case_types,
        non_snake_case,
        non_upper_case_globals,
        unsafe_op_in_unsafe_fn,
        unused,
        clippy::all,
        clippy::pedantic,
        reason = "generated from the headers of DPDK, whose names and comments these are"
    )]
    mod bindings {
        include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
    }

    pub use bindings::*;

    /// The version of libdpdk that it was built for.
    pub const VERSION: &str = env!("FERRULE_DPDK_VERSION");

    /// The shim, an ELF shared object.
    pub static SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shim.so"));
}
