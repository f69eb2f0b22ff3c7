//! Virtual machines: a Debian kernel, an initramfs of our own, QEMU without KVM.
//!
//! `hw-tests/vm-pieces target/lab` brings what they are made of. What runs inside is the program `vm-guest`
//! (see [`crate::guest`]), which starts programs for the host and sends back what they print.
//!
//! - [`pieces`]: QEMU, kernel and busybox on this machine;
//! - [`initramfs`]: programs with their libraries, kernel modules with theirs, as one archive;
//! - [`image`]: what every guest has inside;
//! - [`protocol`]: what host and guest say to each other;
//! - [`machine`]: a running machine;
//! - [`job`]: a program that runs inside one;
//! - [`migration`]: a guest that moves to another machine; [`qmp`]: QEMU's monitor.

pub mod image;
pub mod initramfs;
pub mod job;
pub mod machine;
pub mod migration;
pub mod pieces;
pub mod protocol;
pub mod qmp;
