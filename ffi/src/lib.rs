//! The kernel's C side behind safe, small types: the only crate of Ferrule that holds `unsafe`.
//!
//! It is *not* a wrapper of everything: what `nix` already offers safely (epoll, affinity, memfd) is
//! used from there. It knows nothing of memif, wires or Kubernetes.
//!
//! In reading order:
//! - [`region`]: memory shared with a peer that may lie: mapped, bounds-checked, never a Rust reference.
//! - [`mod@array`]: small values side by side in it;
//! - [`span`]: a checked piece of memory that frames are copied from and to.
//! - [`health`]: whether a peer's memory can still be used, and why not.
//! - [`memory_budget`]: how much of our memory a peer may make us pay for.
//! - `mapping`, `guard`, `meter`, `userfault`, `file_watch`: what a region stands on: the mapping, what happens when a page of it is missing
//!   (SIGBUS), and who tells when nobody has a file any more.
//! - [`notifier`]: notifies a peer's eventfd without ever blocking, whatever the peer did to it.
//! - [`unix`]: bytes and file descriptors over Unix sockets, of either `socket_kind`.
//! - [`socket_file`]: the files of listening sockets, which others must not swap for links; [`socket_access`]: who may connect.
//! - [`peer_file`]: descriptors that came that way, closed without waiting (by `closers`), and counted
//!   ([`descriptor_account`]).
//! - [`netns`]: network namespaces, entered by a short-lived thread.
//! - [`netlink`]: requests to rtnetlink, many in one system call.
//! - [`ethtool`]: what the driver of an interface says of itself.
//! - [`sysfs`]: device directories below any root.
//! - [`tap`]: TAP devices with a virtio-net header; [`tun`]: those without Ethernet.
//! - [`vlan_link`]: the frames of a VLAN, led between two interfaces by programs in the kernel.
//! - [`ticks`]: the CPU's own clock.
//! - [`private_files`]: threads that share no open file with their process.
//! - [`child`]: processes that do not outlive us.

pub mod array;
pub mod child;
mod closers;
pub mod descriptor_account;
pub mod ethtool;
mod file_watch;
mod guard;
pub mod health;
mod mapping;
pub mod memory_budget;
mod meter;
pub mod netlink;
pub mod netns;
pub mod notifier;
pub mod peer_file;
pub mod private_files;
pub mod region;
pub mod socket_access;
pub mod socket_file;
mod socket_kind;
pub mod span;
pub mod sysfs;
pub mod tap;
pub mod ticks;
pub mod tun;
pub mod unix;
mod userfault;
pub mod vlan_link;
