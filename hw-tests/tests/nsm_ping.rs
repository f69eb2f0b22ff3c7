//! A client of Network Service Mesh looks at its data path, out of a network namespace.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use ferrule_hw_tests::need::{Need, lacks};
use ferrule_hw_tests::netns::TestNetNs;
use ferrule_nsm::client::{Liveness, Ping};
use ferrule_nsm::proto::connection::Connection;
use ferrule_nsm::proto::connectioncontext::{ConnectionContext, IpContext};
use nix::fcntl::OFlag;

/// A connection whose endpoint has these addresses.
fn to(addresses: &[&str]) -> Connection {
    let dst_ip_addrs = addresses.iter().map(|&address| address.to_owned()).collect();
    let ip_context = Some(IpContext { dst_ip_addrs, ..IpContext::default() });
    let context = Some(ConnectionContext { ip_context, ..ConnectionContext::default() });
    Connection { context, ..Connection::default() }
}

#[tokio::test]
async fn a_data_path_is_alive_if_each_address_answers() {
    if lacks("a_data_path_is_alive_if_each_address_answers", &[Need::Root]) {
        return;
    }
    let netns = TestNetNs::new();
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(netns.path()).unwrap();
    let ping = Ping::new(Arc::new(OwnedFd::from(file)), Duration::from_secs(1));
    assert!(ping.is_alive(&to(&["127.0.0.1/32", "::1/128"])).await);
    assert!(!ping.is_alive(&to(&["127.0.0.1/32", "192.0.2.1/32"])).await, "there is no way to the second one");
    // Nobody is at the other end of this one.
    netns.ip("link add here type veth peer name there");
    netns.ip("address add 192.0.2.2/24 dev here");
    netns.ip("link set here up");
    netns.ip("link set there up");
    assert!(!ping.is_alive(&to(&["192.0.2.1/32"])).await);
    assert!(ping.is_alive(&to(&["192.0.2.2/32"])).await);
    netns.ip("link set lo down");
    assert!(!ping.is_alive(&to(&["127.0.0.1/32"])).await);
}
