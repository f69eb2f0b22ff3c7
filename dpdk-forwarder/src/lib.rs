//! The forwarder: wires from a YAML file, from a small gRPC admin API, and for connections of Network Service Mesh.
//!
//! It decides which wires there should be and tells what they do. It moves no frame: that is the work of
//! `ferrule-dataplane`. Kubernetes is not known here.
//!
//! Modules in reading order:
//! - [`forwarder`]: start, serve, stop: the spine
//! - [`config`]: the wires file, checked as a whole
//! - [`plan`]: from the wires that are to those that should be
//! - [`wires`]: the engine, and who wanted what
//! - [`journal`]: wires of the admin API that outlive the process
//! - [`identity`]: by what its leases of VFs are known
//! - `reload`: the file followed
//! - [`admin`]: the gRPC service and its client
//! - [`nsm`]: the forwarder as a process of Network Service Mesh
//! - [`metrics`]: what Prometheus reads
//!
//! Files of settings, the socket, health and the metrics page are those of every daemon here: `ferrule_daemon`.

pub mod admin;
pub mod config;
pub mod forwarder;
pub mod identity;
pub mod journal;
pub mod metrics;
pub mod nsm;
pub mod plan;
mod reload;
pub mod wires;

pub use forwarder::{Forwarder, Options, run};
