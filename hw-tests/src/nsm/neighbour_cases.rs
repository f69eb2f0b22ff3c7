//! Neighbours that a connection's context names: nobody has to be asked for their MAC addresses.

use std::fs;

use anyhow::{Context, Result, ensure};
use ferrule_nsm::proto::connection::Connection;
use ferrule_nsm::proto::connectioncontext::{EthernetContext, IpNeighbor};

use super::cases::NsmCase;
use super::forwarder_cases::Driven;
use super::mesh::{INTERFACE, Mesh, MeshOptions};
use super::programs::Cast;

/// All of them, with our own programs.
pub fn all() -> Vec<NsmCase> {
    vec![NsmCase {
        name: "neighbours_of_a_connection_are_known_without_being_asked",
        cast: Cast::default(),
        options: MeshOptions::default(),
        needs: &[],
        run: neighbours,
    }]
}

fn neighbours(mesh: &mut Mesh) -> Result<()> {
    // In one prefix, so that nothing but a neighbour tells where the other one is.
    let driven = Driven::new(mesh, |ip| {
        ip.src_ip_addrs = vec!["10.6.0.1/24".to_owned(), "2001:db8:6::1/64".to_owned()];
        ip.dst_ip_addrs = vec!["10.6.0.2/24".to_owned(), "2001:db8:6::2/64".to_owned()];
    })?;
    driven.endpoint.script().context.ethernet_context =
        Some(EthernetContext { dst_mac: FAR_MAC.to_owned(), ..EthernetContext::default() });
    let known = driven.first()?;
    let near = driven.client_pod.netns();
    // The endpoint answers no question of who has its address.
    driven.endpoint_pod.netns().run(|| fs::write("/proc/sys/net/ipv4/conf/all/arp_ignore", "8"))?;
    let answer = near.ping(&format!("-c 1 -W 1 {FAR_V4}")).output().context("run ping")?;
    ensure!(!answer.status.success(), "{FAR_V4} has answered, whose MAC address nobody knows");
    let refreshed = |known: &Connection, neighbours: &[&str]| -> Result<Connection> {
        let neighbour = |ip: &&str| IpNeighbor { ip: (*ip).to_owned(), hardware_address: FAR_MAC.to_owned() };
        let told = neighbours.iter().map(neighbour).collect();
        driven.endpoint.script().context.ip_context.get_or_insert_default().ip_neighbors = told;
        Ok(driven.again(known)?)
    };
    let has = || near.ip(&format!("neigh show dev {INTERFACE} nud permanent")).lines().count();
    let known = refreshed(&known, &[FAR_V4, FAR_V6])?;
    ensure!(has() == 2, "it has {} neighbours", has());
    near.ping_all(FAR_V4, 10, 1000);
    near.ip(&format!("link set {INTERFACE} down"));
    near.ip(&format!("link set {INTERFACE} up"));
    ensure!(has() == 0, "the kernel has kept its neighbours, and there is nothing to mend");
    let known = refreshed(&known, &[FAR_V4, FAR_V6])?;
    for to in [FAR_V4, FAR_V6] {
        near.ping_all(to, 10, 1000);
    }
    let known = refreshed(&known, &[FAR_V6])?;
    ensure!(has() == 1, "it has {} neighbours", has());
    driven.close(known)?;
    driven.has_nothing_left()
}

const FAR_MAC: &str = "02:00:00:00:06:02";
const FAR_V4: &str = "10.6.0.2";
const FAR_V6: &str = "2001:db8:6::2";
