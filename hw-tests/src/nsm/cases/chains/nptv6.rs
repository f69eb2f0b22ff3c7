//! Clients whose IPv6 prefix is another one outside.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Result, ensure};

use super::bed::LIMIT;
use crate::TIMEOUT;
use crate::nsm::cases::wait_until;
use crate::nsm::chain::{ChainPlan, PAGE, get, serve_page_at, until};
use crate::nsm::mesh::{INTERFACE, Mesh};
use crate::nsm::pod::MeshPod;

/// Two clients reach a web server, which knows each by the counterpart of its address, and reaches it by that.
pub(super) fn counterparts(mesh: &mut Mesh) -> Result<()> {
    NPT.register(mesh)?;
    let web_pod = MeshPod::new();
    let web = NPT.start_end(mesh, "webserver", &web_pod, "2001:db8:ffff::10/124")?;
    let npt = NPT.start(mesh, "nptv6", "nptv6", SETTINGS)?;
    let server = serve_page_at(&web_pod, Ipv6Addr::UNSPECIFIED.into(), OPEN)?;
    let mut clients = Vec::new();
    for (number, (inside, outside, target)) in CLIENTS.into_iter().enumerate() {
        let pod = MeshPod::new();
        let process = NPT.start_client(mesh, &pod, number)?;
        mesh.wait_connected(&process);
        ensure!(pod.addresses(INTERFACE) == [inside], "client {number} has {:?}", pod.addresses(INTERFACE));
        let target: IpAddr = target.parse()?;
        let (page, _) = until("the page comes through", || Ok(get(&pod, target, OPEN, LIMIT)?))?;
        ensure!(page == PAGE, "the page is {page:?}");
        let seen = server.served().last().map(|served| served.client.ip().to_string());
        ensure!(seen.as_deref() == Some(outside), "the server has seen {seen:?} of client {number}");
        pod.netns().ping_all(&target.to_string(), 5, 1400);
        // Nothing is remembered: the server may begin as well.
        web_pod.netns().ping_all(outside, 5, 1400);
        clients.push((process, pod));
    }
    for (process, pod) in clients {
        process.stop();
        pod.wait_interfaces(0, TIMEOUT)?;
    }
    web_pod.wait_interfaces(0, TIMEOUT)?;
    wait_until("no wire is left", || Ok(!mesh.near().has_wire()?))?;
    drop((server, npt, web));
    Ok(())
}

const NPT: ChainPlan =
    ChainPlan { service: "prefix-example", apps: &["nptv6", "webserver"], client: Some("client"), payload: "ETHERNET" };
const SETTINGS: &str = "nptv6:\n  inside: { address: \"fd01:203:405:1::1/64\" }\n  \
                        outside: { address: \"2001:db8:ffff::2/64\" }\n  \
                        prefixes: { inside: \"fd01:203:405::/48\", outside: \"2001:db8:1::/48\" }";
/// What each has, what it is known by (RFC 6296, section 2.4, has the sum), and its end of the chain.
const CLIENTS: [(&str, &str, &str); 2] = [
    ("fd01:203:405:1::2/64", "2001:db8:1:d550::2", "2001:db8:ffff::10"),
    ("fd01:203:405:1::3/64", "2001:db8:1:d550::3", "2001:db8:ffff::12"),
];
const OPEN: u16 = 80;
