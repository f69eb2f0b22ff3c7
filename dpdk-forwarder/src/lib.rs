//! dpdk-forwarder
