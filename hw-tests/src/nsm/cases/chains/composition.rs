//! nse-composition: the example of today, with the rules of `cmd-nse-firewall-vpp` in a file of their own.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::bed::{ChainExample, FirewallChain, PASSTHROUGHS, SECURE_INTRANET};
use crate::TIMEOUT;
use crate::nsm::chain::{ChainPlan, serve_page};
use crate::nsm::mesh::{INTERFACE, Mesh};

/// Its checks: pings both ways, port 8080 and not port 80.
pub(super) fn checks(mesh: &mut Mesh) -> Result<()> {
    fs::write(mesh.path("config.yaml"), RULES).context("write the rules")?;
    let chain = FirewallChain::start(mesh, &COMPOSITION, &PASSTHROUGHS)?;
    let clients = chain.connect(mesh, 1)?;
    let client = &clients[0];
    let own = client.pod.addresses(INTERFACE);
    ensure!(own == [format!("{CLIENT}/32")], "the client has {own:?}");
    client.pod.wait_ping(GATEWAY, TIMEOUT)?;
    client.pod.netns().ping_all(GATEWAY, 4, 56);
    chain.end_pod.netns().ping_all(CLIENT, 4, 56);
    let servers = COMPOSITION.ports.map(|port| serve_page(&chain.end_pod, port));
    client.check_ports(&chain.end_pod)?;
    drop(servers);
    chain.close(mesh, clients)
}

const COMPOSITION: ChainExample = ChainExample {
    plan: ChainPlan { service: "nse-composition", ..SECURE_INTRANET.plan },
    firewall: "firewall: { file: config.yaml }",
    prefix: "172.16.1.100/31",
    ports: [8080, 80],
};
/// `config-file.yaml` of the example.
const RULES: &str = "
allow icmp: {ispermit: 1, proto: 1, srcportoricmptypelast: 65535, dstportoricmpcodelast: 65535}
allow tcp8080: {ispermit: 1, proto: 6, srcportoricmptypelast: 65535, dstportoricmpcodefirst: 8080, dstportoricmpcodelast: 8080}
forbid tcp80: {proto: 6, srcportoricmptypelast: 65535, dstportoricmpcodefirst: 80, dstportoricmpcodelast: 80}
";
const GATEWAY: &str = "172.16.1.100";
const CLIENT: &str = "172.16.1.101";
