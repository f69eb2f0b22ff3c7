//! Connections of Network Service Mesh through our forwarder: real processes, real namespaces, real frames (`make nsm`).
//!
//! - [`programs`]: whose program plays which role: ours, or one in Go out of the directory that `NSM_BIN` names
//! - [`mesh`]: one node or two, with identities and a registry; [`node`]: the processes of one; `settings`: what all
//!   of them are told
//! - [`pod`]: a namespace with a client or an endpoint in it
//! - [`chain`]: functions in a row, which a mesh composes
//! - [`caller`]: calls a process by hand
//! - [`cases`]: what has to hold
//! - [`driver`]: a client and endpoints that do what a case says; [`forwarder_cases`]: what has to hold whatever they do
//! - [`trace_cases`]: what a collector is told
//! - [`nat_cases`]: addresses that an endpoint has translated; [`vlan_cases`]: connections that leave the mesh into a VLAN;
//!   [`neighbour_cases`]: whose MAC addresses nobody is asked for
//! - [`runner`]: runs them, several at a time

pub mod caller;
pub mod cases;
pub mod chain;
pub mod driver;
pub mod forwarder_cases;
pub mod mesh;
pub mod nat_cases;
pub mod neighbour_cases;
pub mod node;
pub mod pod;
pub mod programs;
pub mod runner;
mod settings;
pub mod trace_cases;
pub mod vlan_cases;
