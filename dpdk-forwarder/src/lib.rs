//! dpdk-forwarder
pub mod config;
pub mod plan;
