//! What runs inside a virtual machine of [`crate::vm`], in the program `vm-guest`.
//!
//! - [`boot`]: file systems and kernel modules, once;
//! - [`agent`]: starts programs for the host;
//! - [`tcp`]: a connection to another guest.

pub mod agent;
pub mod boot;
pub mod tcp;
