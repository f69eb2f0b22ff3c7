//! A hop is killed: its chain heals.

use anyhow::{Context, Result, ensure};

use super::bed::{ChainClient, FirewallChain, LIMIT, PASSTHROUGHS, SECURE_INTRANET, ms, way_of};
use crate::TIMEOUT;
use crate::nsm::chain::{PAGE, get, serve_page, until};
use crate::nsm::mesh::{INTERFACE, Mesh};
use crate::nsm::pod::MeshPod;

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

/// The firewall is killed and started again, then the gateway, then the forwarder between all of them: new connections come through each
/// time, and nobody keeps the neighbour of before.
pub(super) fn each_in_turn(mesh: &mut Mesh) -> Result<()> {
    let mut chain = FirewallChain::start(mesh, &SECURE_INTRANET, &PASSTHROUGHS)?;
    let clients = chain.connect(mesh, 2)?;
    let server = serve_page(&chain.end_pod, OPEN)?;
    for client in &clients {
        until("the chain carries connections", || client.is_served(&chain.end_pod))?;
    }
    for who in ["firewall", "gateway", "forwarder"] {
        match who {
            "forwarder" => {
                mesh.near().kill(who)?;
                mesh.near().start_forwarder()?;
            }
            "gateway" => {
                chain.kill_end()?;
                chain.start_end(mesh)?;
            }
            _ => {
                chain.kill(who)?;
                chain.start_function(mesh, who)?;
            }
        }
        for client in &clients {
            let what = format!("the {who} is another one: the chain carries connections after its start");
            let ((), took) = until(&what, || client.is_served(&chain.end_pod))?;
            mesh.figure(&what, ms(took), "ms");
        }
    }
    drop(server);
    chain.close(mesh, clients)
}

impl ChainClient {
    /// Whether it pings the end, opens a connection to it, and has the end's own address of the link for both.
    fn is_served(&self, end: &MeshPod) -> Result<()> {
        let target = self.target()?;
        self.ping_once(target)?;
        let page = get(&self.pod, target, OPEN, LIMIT)?;
        ensure!(page == PAGE, "port {OPEN} of {target} gives {page:?}");
        let known = self.pod.netns().ip(&format!("neigh show {target} dev {INTERFACE}"));
        let (_, known) =
            known.split_once("lladdr ").with_context(|| format!("the client's neighbours are {known:?}"))?;
        let mac = known.split_whitespace().next().unwrap_or_default();
        let own = end.netns().ip(&format!("-o address show to {target}"));
        let name = own.split_whitespace().nth(1).with_context(|| format!("nobody has {target} at the end"))?;
        let link = end.netns().ip(&format!("-o link show {name}"));
        ensure!(
            link.contains(&format!("link/ether {mac} ")),
            "{target} is {mac} for the client, and {link} at the end"
        );
        Ok(())
    }
}

const OPEN: u16 = 80;
