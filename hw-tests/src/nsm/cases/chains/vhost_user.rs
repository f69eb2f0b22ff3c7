//! A client by vhost-user, as a virtual machine is one, of a chain whose functions have memif.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use ferrule_dataplane::spec::{Mode, SocketAddress};
use ferrule_endpoints::end::EndSpec;
use ferrule_endpoints::vhost_user::FrontendSpec;
use ferrule_nsm::proto::connection::Connection;

use super::bed::{ChainExample, FirewallChain, SECURE_INTRANET};
use crate::TIMEOUT;
use crate::nsm::cases::ends::{open, responder};
use crate::nsm::chain::{ChainPlan, until};
use crate::nsm::driver::{self, Driver, mechanism};
use crate::nsm::mesh::Mesh;

/// The end of the chain pings such a client through a firewall, before a refresh and after it.
pub(super) fn client(mesh: &mut Mesh) -> Result<()> {
    let chain = FirewallChain::start(mesh, &PERMITTED, &[])?;
    let (driver, directory) = (Driver::new(mesh)?, tempfile::tempdir().context("make a directory")?);
    // A socket is made only where others than root may write.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).context("open a directory to all")?;
    let (client, passed) = (driver.client(0)?, driver::open(directory.path())?);
    let wanted = mechanism("VHOST_USER", &passed, &[])?;
    let ask = |connection| Ok(driver.ask(&client, connection, &wanted, &passed)?);
    let network_service = PERMITTED.plan.service.to_owned();
    let first = Connection { network_service, ..client.first()? };
    let (known, _) = until("a chain is made", || ask(first.clone()))?;
    let chosen = known.mechanism.as_ref().context("no mechanism is answered")?;
    ensure!(chosen.r#type == "VHOST_USER", "the client has {chosen:?}");
    let name = chosen.parameters.get("socketfile").context("the answer names no socket")?;
    let ip = known.context.as_ref().and_then(|context| context.ip_context.as_ref()).context("no addresses")?;
    let own = ip.src_ip_addrs.first().and_then(|address| address.split('/').next()).context("no address")?.to_owned();
    let end = open(&EndSpec::Vhost(FrontendSpec::new(SocketAddress::Path(directory.path().join(name)))))?;
    let answering = responder(end, Mode::Ethernet);
    chain.end_pod.wait_ping(&own, TIMEOUT)?;
    chain.end_pod.netns().ping_all(&own, 20, 1400);
    let known = ask(known)?;
    chain.end_pod.netns().ping_all(&own, 20, 1400);
    driver.close(&client, known, &passed)?;
    drop(answering);
    let left: Vec<_> = fs::read_dir(directory.path())?.collect();
    ensure!(left.is_empty(), "{left:?} is left in the client's directory");
    chain.wait_empty(mesh)
}

/// What answers the end's pings passes its firewall.
const PERMITTED: ChainExample = ChainExample {
    plan: ChainPlan { apps: &["firewall", "gateway"], ..SECURE_INTRANET.plan },
    firewall: "firewall:\n  rules: [{ name: pings, action: permit, from: either, protocol: icmp }]",
    ..SECURE_INTRANET
};
