//! Connections that leave the mesh into a VLAN: the device of the node is a TAP, at whose other end frames have their tags.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferrule_dataplane::spec::MacAddress;
use ferrule_endpoints::Responder;
use ferrule_ffi::netns::NetNs;
use ferrule_ffi::tap::{HEADER_LEN, Tap};
use ferrule_nsm::proto::connection::{Connection, Mechanism};
use ferrule_nsm::transport::Address;

use super::cases::{NsmCase, Run, wait_until};
use super::driver::{DrivenClient, Driver, EndpointScript, context, kernel, mechanism, open};
use super::mesh::{INTERFACE, Mesh, MeshOptions};
use super::pod::MeshPod;
use super::programs::Cast;
use crate::TIMEOUT;
use crate::frames::Server;

/// All of them, with our own programs.
pub fn all() -> Vec<NsmCase> {
    let options = MeshOptions { clients: 2, device_selector: Some(SELECTOR), ..MeshOptions::default() };
    let case = |name, run| NsmCase { name, cast: Cast::default(), options, needs: &[], run };
    vec![
        case("connections_leave_into_a_vlan_of_a_device", into_a_vlan as Run),
        case("a_connection_of_packets_leaves_into_a_vlan_of_a_device", packets_into_a_vlan),
    ]
}

fn into_a_vlan(mesh: &mut Mesh) -> Result<()> {
    let node = mesh.near().place().netns();
    let before = node.interfaces();
    let device = NetNs::open(&node.path())?.run(|| Tap::create(DEVICE))??;
    node.ip(&format!("link set {DEVICE} up mtu {MTU}"));
    let (station, seen) = Station::start(device);
    let driver = Driver::new(mesh)?;
    let script = EndpointScript { mechanisms: vec![vlan()], ..EndpointScript::default() };
    let address = Address::Tcp(format!("{}:5010", mesh.near().address()));
    let endpoint = driver.endpoint("nse-vlan", &address, script)?;
    let pods = [MeshPod::new(), MeshPod::new()];
    let mut made = Vec::new();
    for (number, pod) in pods.iter().enumerate() {
        // Each has its address from the endpoint, which has none itself.
        endpoint.script().context = context([&format!("172.16.9.{}/24", number + 2), "172.16.9.1/24"]);
        let (client, netns) = (driver.client(number)?, open(&pod.netns().path())?);
        let wanted = kernel(&netns, INTERFACE)?;
        let known = asked_soon(&driver, &client, &wanted, &netns)?;
        ensure!(known.context.as_ref().is_some_and(|context| context.mtu == MTU), "the device carries {MTU} bytes");
        pod.netns().ping_all("172.16.9.1", 20, 1372);
        made.push((client, netns, wanted, known));
    }
    ensure!(seen.tagged() > 40 && seen.others() == 0, "of the frames that have left {seen:?}");
    alone(&pods)?;
    // A refresh changes nothing.
    let (client, netns, wanted, known) = made.pop().context("there are two")?;
    let index = pods[1].index(INTERFACE)?;
    let known = driver.ask(&client, known, &wanted, &netns)?;
    ensure!(pods[1].index(INTERFACE)? == index, "a refresh has made the interface anew");
    pods[1].netns().ping_all("172.16.9.1", 3, 64);
    driver.close(&client, known, &netns)?;
    pods[1].wait_interfaces(0, TIMEOUT)?;
    // The other one stays.
    pods[0].netns().ping_all("172.16.9.1", 3, 64);
    let (client, netns, wanted, known) = made.pop().context("there was another one")?;
    // Somebody else leaves by nothing, and is told so.
    let stranger = Connection { labels: [("via".to_owned(), "gw7".to_owned())].into(), ..known.clone() };
    let refused = driver.ask(&client, stranger, &wanted, &netns).err().context("a device that nobody has was used")?;
    ensure!(refused.message().contains("via"), "{refused}");
    // A pod of the node was asked for an end, and chooses a VLAN.
    let script = EndpointScript { mechanisms: vec![vlan()], ..EndpointScript::default() };
    let _local = driver.endpoint("nse-local", &Address::Unix(mesh.path("nse-local.sock")), script)?;
    let chosen = Connection { network_service_endpoint_name: "nse-local".to_owned(), ..known.clone() };
    let refused = driver.ask(&client, chosen, &wanted, &netns).err().context("any endpoint has chosen a VLAN")?;
    ensure!(refused.message().contains("not asked for"), "{refused}");
    pods[0].netns().ping_all("172.16.9.1", 3, 64);
    driver.close(&client, known, &netns)?;
    pods[0].wait_interfaces(0, TIMEOUT)?;
    drop(station);
    let node = mesh.near().place().netns();
    wait_until("nothing of it is left on the node", || Ok(node.interfaces() == before))
}

/// Payload IP: an interface of the kernel has Ethernet all the same, and asks whoever is there for MAC addresses. A memif has none.
fn packets_into_a_vlan(mesh: &mut Mesh) -> Result<()> {
    let node = mesh.near().place().netns();
    let device = NetNs::open(&node.path())?.run(|| Tap::create(DEVICE))??;
    node.ip(&format!("link set {DEVICE} up mtu {MTU}"));
    let (_station, seen) = Station::start(device);
    let driver = Driver::new(mesh)?;
    let context = context(["172.16.9.2/24", "172.16.9.1/24"]);
    let script = EndpointScript { mechanisms: vec![vlan()], context, ..EndpointScript::default() };
    let address = Address::Tcp(format!("{}:5010", mesh.near().address()));
    let endpoint = driver.endpoint_of("IP", "nse-vlan", &address, script)?;
    let (pod, client) = (MeshPod::new(), driver.client(0)?);
    let netns = open(&pod.netns().path())?;
    let known = asked_soon(&driver, &client, &kernel(&netns, INTERFACE)?, &netns)?;
    ensure!(
        known.payload == "IP" && endpoint.script().preferences.iter().any(|wanted| wanted.r#type == "VLAN"),
        "{known:?}"
    );
    pod.netns().ping_all("172.16.9.1", 20, 1372);
    ensure!(seen.tagged() > 20 && seen.others() == 0, "of the frames that have left {seen:?}");
    driver.close(&client, known, &netns)?;
    pod.wait_interfaces(0, TIMEOUT)?;
    let memif = mechanism("MEMIF", &netns, &[])?;
    let refused = asked_soon(&driver, &client, &memif, &netns).err().context("packets were put into a VLAN")?;
    ensure!(refused.to_string().contains("not asked for"), "{refused}");
    Ok(())
}

/// A connection that leaves by the device, asked for once the forwarder is registered.
fn asked_soon(driver: &Driver, client: &DrivenClient, wanted: &Mechanism, netns: &Arc<OwnedFd>) -> Result<Connection> {
    let until = Instant::now() + TIMEOUT;
    loop {
        let labels = [("via".to_owned(), "gw0".to_owned())].into();
        match driver.ask(client, Connection { labels, ..client.first()? }, wanted, netns) {
            Err(status) if status.message().contains("no candidates found") && Instant::now() < until => {
                thread::sleep(Duration::from_millis(20));
            }
            asked => return Ok(asked?),
        }
    }
}

/// Clients of one VLAN do not reach each other, not even by what is for all.
fn alone([first, second]: &[MeshPod; 2]) -> Result<()> {
    let received = || {
        let shown = second.netns().ip(&format!("-s -o link show {INTERFACE}"));
        let counters = shown.split("RX:").nth(1).and_then(|rest| rest.split('\\').nth(1)).map(str::to_owned);
        counters.context("no counters")
    };
    let before = received()?;
    // Nobody knows who has it: the question goes to all.
    let mut ping = first.netns().ping("-c 3 -i 0.2 -W 1 172.16.9.200");
    ping.output().context("run ping")?;
    let after = received()?;
    ensure!(before == after, "a client has received what another one sent: {before}, {after}");
    Ok(())
}

/// Whoever is behind the device, at the VLAN.
struct Station;

/// What has left by the device.
#[derive(Debug, Default)]
struct Seen {
    tagged: AtomicU64,
    others: AtomicU64,
}

impl Seen {
    fn tagged(&self) -> u64 {
        self.tagged.load(Ordering::Relaxed)
    }

    fn others(&self) -> u64 {
        self.others.load(Ordering::Relaxed)
    }
}

impl Station {
    /// Answers pings with the tag, as long as what this returns lives.
    fn start(device: Tap) -> (Server, Arc<Seen>) {
        let brain = Responder::new(MacAddress([2, 0, 0, 0, 0, 0xfe]), Vec::new());
        let seen = Arc::new(Seen::default());
        let counted = Arc::clone(&seen);
        let (mut buffer, mut reply) = (vec![0; 4096], vec![0; 4096]);
        let server = Server::start(move || {
            let Ok(len) = device.read(&mut buffer) else {
                thread::sleep(Duration::from_millis(1));
                return true;
            };
            let mut frame = buffer[HEADER_LEN..len].to_vec();
            // Both say which: the kernel of the node says things by its device as well.
            let tag: Vec<u8> = frame.splice(12..16, []).collect();
            if tag != TAG {
                let is_of_node = tag[..2] == [0x86, 0xdd];
                counted.others.fetch_add(u64::from(!is_of_node), Ordering::Relaxed);
                return true;
            }
            counted.tagged.fetch_add(1, Ordering::Relaxed);
            if let Some(len) = brain.answer(&frame, &mut reply) {
                let mut answer = reply[..len].to_vec();
                answer.splice(12..12, TAG);
                // One that is lost is a ping lost, which the test sees.
                let _ = device.write(&[0; HEADER_LEN], &[answer.as_slice().into()]);
            }
            true
        });
        (server, seen)
    }
}

fn vlan() -> Mechanism {
    let parameters = [("vlan-id".to_owned(), VLAN.to_string())].into();
    Mechanism { cls: "REMOTE".to_owned(), r#type: "VLAN".to_owned(), parameters }
}

const SELECTOR: &str = "interfaces: [{name: nic-vlan, matches: [{labelSelector: [{via: gw0}]}]}]\n";
const DEVICE: &str = "nic-vlan";
const MTU: u32 = 1400;
const VLAN: u16 = 100;
const TAG: [u8; 4] = [0x81, 0, 0, 100];
