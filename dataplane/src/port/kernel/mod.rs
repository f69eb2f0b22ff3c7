//! Interfaces of the kernel, made inside a network namespace.
//!
//! A [`TapInterface`] hands its [`Tap`](ferrule_ffi::tap::Tap) to a worker's [`ring`]; the frames of
//! a [`VethPair`] never leave the kernel. Making and removing an interface waits for the kernel
//! (up to some 20 ms each), so neither belongs on a worker.
//!
//! **Invariant: nothing here keeps a namespace alive.** An open namespace file, a netlink socket
//! and a TAP opened inside a pod's namespace would each pin it, and with it the pod's other
//! devices, long after the pod is gone. So namespaces are entered only while an interface is made.
//!
//! In reading order:
//! - [`spec`]: what an interface should be; `port_spec`: what is asked of it like of every end.
//! - `tap`: interfaces whose other end is a file descriptor; `device`: the same as control sees it.
//! - `veth`: a pair of interfaces, joined by the kernel.
//! - [`ring`]: the data path of a TAP interface.
//! - [`message`]: what is said to the kernel about interfaces.
//! - `setup`: what a specification asks of an interface, as netlink requests.
//! - `namespace`: where an interface is to live.
//! - `owner`: whose a veth pair is, so that a killed forwarder's is found again.
//! - [`restore`]: what a successor process is given of a TAP interface.
//! - `error`: what can go wrong, and the cure.

mod device;
mod error;
pub mod message;
mod namespace;
mod owner;
mod port_spec;
pub mod restore;
pub mod ring;
mod setup;
pub mod spec;
mod tap;
mod veth;

pub use error::{InterfaceId, KernelError};
pub use owner::{InterfaceOwner, InterfaceOwnerError};
pub use tap::{TapInterface, create_tun};
pub use veth::{PairEnd, PairStatus, VethPair};
