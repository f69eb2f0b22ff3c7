//! Connections of Network Service Mesh through our forwarder: real processes, real namespaces, real frames (`make nsm`).
//!
//! - [`programs`]: whose program plays which role: ours, or one in Go out of the directory that `NSM_BIN` names
//! - [`node`]: the processes of one node, with a directory and identities
//! - [`pod`]: a namespace with a client or an endpoint in it
//! - [`cases`]: what has to hold
//! - [`runner`]: runs them, several at a time

pub mod cases;
pub mod node;
pub mod pod;
pub mod programs;
pub mod runner;
