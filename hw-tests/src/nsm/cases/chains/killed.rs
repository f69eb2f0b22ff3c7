//! A hop is killed: its chain heals.

use anyhow::{Result, ensure};

use super::bed::{ChainClient, FirewallChain, SECURE_INTRANET, ms, way_of};
use crate::TIMEOUT;
use crate::nsm::chain::until;
use crate::nsm::mesh::Mesh;

/// A passthrough is killed: its chain heals when it is back, or by another one of its kind.
pub(super) fn passthrough(mesh: &mut Mesh) -> Result<()> {
    let names = ["passthrough-1", "passthrough-2", "passthrough-3", "passthrough-3-b"];
    let mut chain = FirewallChain::start(mesh, &SECURE_INTRANET, &names)?;
    let clients = chain.connect(mesh, 2)?;
    if let (Some(first), Some(second)) = (way_of(mesh, 0)?, way_of(mesh, 1)?) {
        let used = |name: &str| [&first, &second].iter().filter(|way| way.iter().any(|hop| hop == name)).count();
        let used = [used("passthrough-3"), used("passthrough-3-b")];
        ensure!(used == [1, 1], "of two passthroughs {used:?} clients are through each: {first:?}, {second:?}");
    }
    let targets = clients.iter().map(ChainClient::target).collect::<Result<Vec<_>>>()?;
    chain.kill("passthrough-2")?;
    chain.start_function(mesh, "passthrough-2")?;
    for (client, target) in clients.iter().zip(&targets) {
        let took = client.pod.wait_ping(&target.to_string(), TIMEOUT)?;
        mesh.figure("a passthrough that was killed is back: the chain carries pings after its start", ms(took), "ms");
    }
    chain.kill("passthrough-3")?;
    for client in &clients {
        let (target, took) = until("the chain carries pings again", || {
            // The way beyond is another one, and so may its address be.
            let target = client.target()?;
            client.ping_once(target)?;
            Ok(target)
        })?;
        ensure!(targets.contains(&target), "the client's end is {target} now, of {targets:?} before");
        mesh.figure("one of two passthroughs was killed: the chain carries pings by the other one", ms(took), "ms");
    }
    for number in 0..clients.len() {
        let way = way_of(mesh, number)?.unwrap_or_else(|| vec!["passthrough-3-b".to_owned()]);
        ensure!(way.iter().any(|hop| hop == "passthrough-3-b"), "client {number} goes through {way:?}");
    }
    chain.close(mesh, clients)
}
