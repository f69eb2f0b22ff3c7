//! Owns every SR-IOV VF of a node: finds, makes, binds, lends, cleans and restores them.
//!
//! It moves no packet and knows no pod: a client names its leases as it likes. It is the only writer of VF
//! state on its node, and refuses to run beside a second one. What its clients need is the crate `sriov-manager-client`.
//!
//! Modules in reading order:
//! - [`vfs`]: every VF and who has which: what everything else is for
//! - [`lease`], [`attributes`], [`address`]: the nouns
//! - [`inventory`], [`sysfs`], [`holders`]: what the node shows; `gone`: what it does not show any more
//! - [`plan`]: from a VF that is to a VF that is wanted, as steps
//! - [`executor`], [`watchdog`], [`kernel`]: the steps done, and nobody hanging with them
//! - [`journal`]: what must outlive a kill
//! - [`policy`]: what there is to be, and who may have it
//! - [`config`]: the policies file
//! - [`daemon`], `reload`, [`api`], [`metrics`], [`uevent`]: the daemon around it
//! - [`look`]: what a tree shows without a daemon
//! - `fake` (a feature): a node made of files, for tests
//!
//! Files of settings, the socket, health and the metrics page are those of every daemon here: `ferrule_daemon`.

pub mod address;
pub mod api;
pub mod attributes;
pub mod config;
pub mod daemon;
pub mod executor;
#[cfg(feature = "fake")]
pub mod fake;
mod gone;
pub mod holders;
pub mod inventory;
pub mod journal;
pub mod kernel;
pub mod lease;
pub mod look;
pub mod metrics;
pub mod num_vfs;
pub mod plan;
pub mod policy;
mod reload;
pub mod sysfs;
pub mod uevent;
pub mod vfs;
pub mod watchdog;

pub use address::{Driver, PciAddress};
pub use vfs::{Options, VfError, Vfs};
