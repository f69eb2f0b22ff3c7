//! What has to hold whatever clients and endpoints do, and however the forwarder ends.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferrule_nsm::proto::connection::{Connection, Mechanism};
use ferrule_nsm::proto::connectioncontext::{ConnectionContext, IpContext, PolicyRoute, Route};
use ferrule_nsm::transport::Address;

use super::cases::{NsmCase, Run, wait_until};
use super::driver::{DrivenClient, DrivenEndpoint, Driver, EndpointScript, kernel, mechanism, open};
use super::mesh::{INTERFACE, Mesh, MeshOptions};
use super::pod::MeshPod;
use super::programs::Cast;
use crate::TIMEOUT;
use crate::netns::TestNetNs;

/// All of them, with our own programs.
pub fn all() -> Vec<NsmCase> {
    let plain = MeshOptions::default();
    let two_clients = MeshOptions { clients: 2, ..plain };
    let short = MeshOptions { tokens: Duration::from_secs(20), ..plain };
    let cases: [(&str, MeshOptions, Run); 11] = [
        ("what_a_killed_forwarder_left_goes_when_nobody_asks_for_it", short, leftovers_are_removed),
        ("a_close_reaches_what_a_killed_forwarder_left", plain, close_of_leftovers),
        ("a_stop_leaves_nothing_in_pods", plain, stop_leaves_nothing),
        ("a_client_that_was_killed_has_its_interface_again", plain, client_killed),
        ("routes_of_the_pod_work_again_after_close", plain, routes_of_the_pod),
        ("a_refresh_mends_what_an_interface_lost_that_went_down_and_up", plain, down_and_up),
        ("connections_of_a_pod_with_the_same_policy_have_a_rule_each", two_clients, rules_of_two),
        ("a_refresh_that_fails_leaves_the_link_that_was_there", plain, failed_refreshes),
        ("a_tunnel_whose_number_is_taken_gets_another_one", plain, numbers_taken),
        ("what_both_ends_have_arranged_is_left_to_them", plain, noop),
        ("sockets_are_made_only_where_others_than_root_may_write", plain, passed_directories),
    ];
    cases
        .into_iter()
        .map(|(name, options, run)| NsmCase { name, cast: Cast::default(), options, needs: &[], run })
        .collect()
}

/// A client and an endpoint that a case drives, each in its namespace.
pub(super) struct Driven {
    driver: Driver,
    client: DrivenClient,
    pub(super) endpoint: DrivenEndpoint,
    pub(super) client_pod: MeshPod,
    pub(super) endpoint_pod: MeshPod,
    netns: Arc<OwnedFd>,
    wanted: Mechanism,
}

impl Driven {
    /// A client that wants an interface, and an endpoint that has one, with a context that is made of the usual one.
    pub(super) fn new(mesh: &mut Mesh, change: impl FnOnce(&mut IpContext)) -> Result<Self> {
        let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
        let driver = Driver::new(mesh)?;
        let mut script = EndpointScript::kernel(&endpoint_pod.netns().path(), FAR, [OWN_ADDRESS, FAR_ADDRESS])?;
        change(script.context.ip_context.get_or_insert_default());
        let endpoint = driver.endpoint("nse-1", &Address::Unix(mesh.path("nse-1.sock")), script)?;
        let netns = open(&client_pod.netns().path())?;
        let wanted = kernel(&netns, INTERFACE)?;
        let client = driver.client(0)?;
        Ok(Self { driver, client, endpoint, client_pod, endpoint_pod, netns, wanted })
    }

    /// The connection, asked for once the forwarder is registered.
    pub(super) fn first(&self) -> Result<Connection> {
        self.asked_soon(&self.client, &self.wanted)
    }

    fn asked_soon(&self, client: &DrivenClient, wanted: &Mechanism) -> Result<Connection> {
        let until = Instant::now() + TIMEOUT;
        loop {
            match self.driver.ask(client, client.first()?, wanted, &self.netns) {
                Err(status) if status.message().contains("no candidates found") && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                asked => return asked.map_err(Into::into),
            }
        }
    }

    /// The same once a forwarder is there that was started again.
    pub(super) fn again_soon(&self, known: &Connection) -> Result<Connection> {
        let until = Instant::now() + TIMEOUT;
        loop {
            match self.again(known) {
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                asked => return Ok(asked?),
            }
        }
    }

    /// The same connection once more.
    pub(super) fn again(&self, known: &Connection) -> Result<Connection, tonic::Status> {
        self.driver.ask(&self.client, known.clone(), &self.wanted, &self.netns)
    }

    pub(super) fn close(&self, known: Connection) -> Result<()> {
        Ok(self.driver.close(&self.client, known, &self.netns)?)
    }

    fn ping(&self) {
        self.client_pod.netns().ping_all(FAR_IP, 3, 64);
    }

    pub(super) fn has_nothing_left(&self) -> Result<()> {
        self.client_pod.wait_interfaces(0, TIMEOUT)?;
        self.endpoint_pod.wait_interfaces(0, TIMEOUT)?;
        // They go after the interfaces.
        wait_until("its rules are gone", || Ok(self.client_pod.netns().ip("rule show").lines().count() == 3))
    }
}

fn leftovers_are_removed(mesh: &mut Mesh) -> Result<()> {
    let driven = Driven::new(mesh, with_policy)?;
    let pod = driven.client_pod.netns();
    // Of others: one with the number of our protocol and another table, one with a table of ours that is empty, and another protocol.
    let strangers = ["from 10.6.0.1 lookup 200 protocol 254", "from 10.6.0.2 lookup 2000 protocol 99"];
    for rule in strangers {
        pod.ip(&format!("rule add {rule}"));
    }
    driven.first()?;
    driven.ping();
    // Nobody who knows the connection is left: neither the forwarder nor the manager.
    mesh.near().kill("forwarder")?;
    mesh.near().kill("manager")?;
    mesh.near().start_manager()?;
    mesh.near().start_forwarder()?;
    driven.ping();
    let began = Instant::now();
    wait_until("the rule of the connection is gone", || Ok(!pod.ip("rule show").contains(POLICY_SOURCE)))?;
    for rule in strangers {
        // As many as there are: a rule that is not there is an error.
        pod.ip(&format!("rule del {rule}"));
    }
    driven.has_nothing_left()?;
    mesh.figure("what was left is gone after", began.elapsed().as_secs_f64(), "s");
    Ok(())
}

fn close_of_leftovers(mesh: &mut Mesh) -> Result<()> {
    let driven = Driven::new(mesh, with_policy)?;
    let known = driven.first()?;
    mesh.near().kill("forwarder")?;
    mesh.near().start_forwarder()?;
    driven.close(known)?;
    driven.has_nothing_left()?;
    ensure!(driven.endpoint.script().closed == 1, "the endpoint was not told");
    Ok(())
}

fn stop_leaves_nothing(mesh: &mut Mesh) -> Result<()> {
    let driven = Driven::new(mesh, with_policy)?;
    driven.first()?;
    driven.ping();
    mesh.near().stop("forwarder")?;
    driven.has_nothing_left()
}

fn client_killed(mesh: &mut Mesh) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    mesh.near().start_endpoint(&endpoint_pod, "172.16.1.0/24", "ETHERNET")?;
    let mut client = mesh.near().start_client(&client_pod, 0)?;
    mesh.wait_connected(&client);
    client.kill();
    let client = mesh.near().start_client(&client_pod, 0)?;
    mesh.wait_connected(&client);
    let routes = client_pod.netns().ip(&format!("route show dev {INTERFACE}"));
    let to = routes.split_whitespace().next().context("the client has no route")?.to_owned();
    client_pod.netns().ping_all(&to, 3, 64);
    client.stop();
    client_pod.wait_interfaces(0, TIMEOUT)?;
    endpoint_pod.wait_interfaces(0, TIMEOUT)
}

fn routes_of_the_pod(mesh: &mut Mesh) -> Result<()> {
    let driven = Driven::new(mesh, |ip| {
        ip.src_ip_addrs.push("2001:db8::1/128".to_owned());
        ip.dst_ip_addrs.push("2001:db8::2/128".to_owned());
        ip.src_routes = vec![route("10.9.0.0/16"), route("2001:db8:9::/48")];
    })?;
    let pod = driven.client_pod.netns();
    for order in [
        "link add own type veth peer name beside",
        "link set beside up",
        "address add 192.0.2.1/24 dev own",
        "address add 2001:db8:7::1/64 dev own nodad",
        "link set own up",
        "route add 10.9.0.0/16 via 192.0.2.2",
        "-6 route add 2001:db8:9::/48 via 2001:db8:7::2",
    ] {
        pod.ip(order);
    }
    let ways = |interface: &str| -> Result<()> {
        for to in ["route get 10.9.0.1", "-6 route get 2001:db8:9::1"] {
            let way = pod.ip(to);
            ensure!(way.contains(&format!("dev {interface} ")), "{to}: {way}, not by {interface}");
        }
        Ok(())
    };
    ways("own")?;
    let known = driven.first()?;
    ways(INTERFACE)?;
    let known = driven.again(&known)?;
    ways(INTERFACE)?;
    // The connection gives one of them up, and has it again.
    let before = driven.endpoint.script().context.clone();
    driven.endpoint.script().context.ip_context.get_or_insert_default().src_routes.clear();
    let known = driven.again(&known)?;
    ways("own")?;
    driven.endpoint.script().context = before;
    let known = driven.again(&known)?;
    ways(INTERFACE)?;
    driven.close(known)?;
    ways("own")
}

fn down_and_up(mesh: &mut Mesh) -> Result<()> {
    let driven = Driven::new(mesh, |ip| {
        with_policy(ip);
        ip.src_routes = vec![route("10.9.0.0/16")];
    })?;
    let known = driven.first()?;
    let pod = driven.client_pod.netns();
    let rules = pod.ip("rule show");
    let rule = rules.lines().find(|rule| rule.contains(POLICY_SOURCE)).context("the policy has no rule")?;
    let table = rule.split_once("lookup ").and_then(|(_, table)| table.split_whitespace().next());
    let table = format!("route show table {}", table.context("the rule has no table")?);
    let ways =
        || [pod.ip(&table), pod.ip("route show 10.9.0.0/16")].map(|way| way.contains(&format!("dev {INTERFACE}")));
    ensure!(ways() == [true, true], "it has no routes");
    pod.ip(&format!("link set {INTERFACE} down"));
    pod.ip(&format!("link set {INTERFACE} up"));
    ensure!(ways() == [false, false], "the kernel has kept its routes, and there is nothing to mend");
    let known = driven.again(&known)?;
    ensure!(ways() == [true, true], "it has not got its routes back");
    let after = pod.ip("rule show");
    ensure!(after == rules, "the rules are others: {after}, {rules}");
    driven.ping();
    driven.close(known)?;
    driven.has_nothing_left()
}

fn rules_of_two(mesh: &mut Mesh) -> Result<()> {
    let driven = Driven::new(mesh, with_policy)?;
    // The endpoint gives each connection an interface.
    let far = open(&driven.endpoint_pod.netns().path())?;
    let of_endpoint = [kernel(&far, FAR)?, kernel(&far, "far-2")?];
    driven.endpoint.script().mechanisms = of_endpoint.into();
    let first = driven.first()?;
    let (client, wanted) = (driven.driver.client(1)?, kernel(&driven.netns, "nsm-2")?);
    let second = driven.asked_soon(&client, &wanted)?;
    let tables = || -> Vec<String> {
        let rules = driven.client_pod.netns().ip("rule show");
        let ours = rules.lines().filter(|rule| rule.contains(&format!("from {POLICY_SOURCE} ")));
        ours.filter_map(|rule| Some(rule.split_once("lookup ")?.1.split_whitespace().next()?.to_owned())).collect()
    };
    let both = tables();
    ensure!(both.len() == 2 && both[0] != both[1], "the tables of the rules are {both:?}");
    driven.close(first)?;
    let one = tables();
    ensure!(one.len() == 1, "the tables of the rules are {one:?}");
    let way = driven.client_pod.netns().ip(&format!("route show table {}", one[0]));
    ensure!(way.contains("dev nsm-2"), "the rule that is left leads to {way}");
    driven.driver.close(&client, second, &driven.netns)?;
    driven.has_nothing_left()
}

fn failed_refreshes(mesh: &mut Mesh) -> Result<()> {
    let driven = Driven::new(mesh, with_policy)?;
    let known = driven.first()?;
    driven.ping();
    let good = driven.endpoint.script().context.clone();
    let with = |change: &dyn Fn(&mut ConnectionContext)| {
        let mut context = good.clone();
        change(&mut context);
        driven.endpoint.script().context = context;
        driven.again(&known)
    };
    // The kernel takes no next hop of the other family: what was changed before is taken back, the link that was made anew too.
    let wrong = |context: &mut ConnectionContext| {
        let route = Route { prefix: "10.9.0.0/16".to_owned(), next_hop: "2001:db8::9".to_owned() };
        context.ip_context.get_or_insert_default().src_routes.push(route);
    };
    let another_mac = |context: &mut ConnectionContext| {
        "02:00:00:00:00:99".clone_into(&mut context.ethernet_context.get_or_insert_default().src_mac);
        wrong(context);
    };
    let too_small = |context: &mut ConnectionContext| context.mtu = 50;
    for (what, change) in [
        ("a route", &wrong as &dyn Fn(&mut ConnectionContext)),
        ("another MAC address", &another_mac),
        ("an MTU", &too_small),
    ] {
        ensure!(with(change).is_err(), "{what}: it was done");
        driven.ping();
        ensure!(driven.client_pod.netns().ip("rule show").contains(POLICY_SOURCE), "{what}: the rule is gone");
    }
    with(&|_| {})?;
    // Another endpoint, in whose namespace the name is taken.
    let elsewhere = MeshPod::new();
    elsewhere.netns().ip("link add taken type veth peer name beside");
    let netns = open(&elsewhere.netns().path())?;
    let script = EndpointScript::kernel(&elsewhere.netns().path(), "taken", [OWN_ADDRESS, FAR_ADDRESS])?;
    let other = driven.driver.endpoint("nse-2", &Address::Unix(mesh.path("nse-2.sock")), script)?;
    let moved = || Connection { network_service_endpoint_name: "nse-2".to_owned(), ..known.clone() };
    ensure!(driven.again(&moved()).is_err(), "another endpoint, whose name is taken");
    driven.ping();
    ensure!(other.script().closed == 1 && driven.endpoint.script().closed == 0, "the wrong one was closed");
    other.script().mechanisms = vec![kernel(&netns, "free")?];
    let known = driven.again(&moved())?;
    driven.ping();
    ensure!(driven.endpoint.script().closed == 1, "the endpoint of before was not closed");
    driven.endpoint_pod.wait_interfaces(0, TIMEOUT)?;
    driven.close(known)?;
    elsewhere.wait_interfaces(2, TIMEOUT)?;
    driven.has_nothing_left()
}

fn numbers_taken(mesh: &mut Mesh) -> Result<()> {
    let driven = Driven::new(mesh, |_| {})?;
    let known = driven.first()?;
    // Tunnels of somebody else, which leave by this namespace too.
    let strangers = TestNetNs::new();
    for vni in TAKEN {
        let device = format!("link add name v{vni} netns {} type vxlan id {vni}", strangers.name());
        mesh.near().place().netns().ip(&format!("{device} dstport 4789 remote 10.255.0.3"));
    }
    let far = |vni: u32| Mechanism {
        cls: "REMOTE".to_owned(),
        r#type: "VXLAN".to_owned(),
        parameters: [
            ("dst_ip", "10.255.0.2".to_owned()),
            ("dst_port", "4789".to_owned()),
            ("vni", vni.to_string()),
            ("MTU", "1400".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into(),
    };
    let context = driven.endpoint.script().context.clone();
    let script = EndpointScript { mechanisms: vec![far(TAKEN[0])], context, ..EndpointScript::default() };
    let address = Address::Tcp(format!("{}:5009", mesh.near().address()));
    let other = driven.driver.endpoint("nse-far", &address, script)?;
    let moved = Connection { network_service_endpoint_name: "nse-far".to_owned(), ..known };
    let refused = driven.again(&moved).err().context("a number that is taken was used")?;
    ensure!(refused.message().contains("is that of another one"), "{refused}");
    driven.ping();
    let EndpointScript { asked, closed, .. } = other.script().clone();
    ensure!(asked > 1 && asked == closed, "it was asked {asked} times, and closed {closed} times");
    ensure!(driven.endpoint.script().closed == 0, "the endpoint of before was closed");
    // The third number is free.
    let mut mechanisms = vec![far(TAKEN[0]); asked];
    mechanisms.extend([far(TAKEN[1]), far(FREE)]);
    other.script().mechanisms = mechanisms;
    let known = driven.again(&moved)?;
    let device = driven.client_pod.netns().ip(&format!("-d link show {INTERFACE}"));
    ensure!(device.contains(&format!("vxlan id {FREE} ")), "the client's interface is {device}");
    ensure!(driven.endpoint.script().closed == 1, "the endpoint of before was not closed");
    // A refresh sets what the device may have anew without being another one.
    let index = driven.client_pod.index(INTERFACE)?;
    {
        let mut script = other.script();
        script.context.mtu = 1300;
        "02:00:00:00:00:77".clone_into(&mut script.context.ethernet_context.get_or_insert_default().src_mac);
    }
    let known = driven.again(&known)?;
    let device = driven.client_pod.netns().ip(&format!("link show {INTERFACE}"));
    ensure!(device.contains(" mtu 1300 ") && device.contains(" 02:00:00:00:00:77 "), "the interface is {device}");
    ensure!(driven.client_pod.index(INTERFACE)? == index, "the interface was made anew");
    driven.close(known)?;
    driven.has_nothing_left()
}

fn passed_directories(mesh: &mut Mesh) -> Result<()> {
    let driven = Driven::new(mesh, |_| {})?;
    let directory = tempfile::tempdir()?;
    let set = |mode| fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode));
    let file = open(directory.path())?;
    let wanted = mechanism("VHOST_USER", &file, &[("socketfile", "vm.sock")])?;
    let ask = || driven.driver.ask(&driven.client, driven.client.first()?, &wanted, &file).map_err(anyhow::Error::from);
    set(0o755)?;
    wait_until("a directory of root's own is refused", || {
        let refused = ask().err().context("a socket was made in a directory of root's own")?.to_string();
        Ok(refused.contains("only root may write in"))
    })?;
    set(0o777)?;
    let known = ask()?;
    let socket = fs::symlink_metadata(directory.path().join("vm.sock"))?;
    ensure!(socket.file_type().is_socket() && socket.mode() & 0o777 == 0o777, "the socket is {socket:?}");
    driven.driver.close(&driven.client, known, &file)?;
    ensure!(fs::read_dir(directory.path())?.count() == 0, "something is left in the directory");
    driven.has_nothing_left()
}

fn noop(mesh: &mut Mesh) -> Result<()> {
    let driven = Driven::new(mesh, |_| {})?;
    let wanted = Mechanism { cls: "LOCAL".to_owned(), r#type: "NOOP".to_owned(), ..Mechanism::default() };
    let refused = driven.asked_soon(&driven.client, &wanted).err().context("an interface was joined with nothing")?;
    ensure!(refused.to_string().contains("arranged without us"), "{refused}");
    ensure!(driven.endpoint.script().closed == 1, "the endpoint was not told");
    ensure!(driven.endpoint.script().preferences == [wanted.clone()], "the endpoint was asked for something else");
    driven.has_nothing_left()?;
    driven.endpoint.script().mechanisms = vec![wanted.clone()];
    let known = driven.asked_soon(&driven.client, &wanted)?;
    ensure!(
        known.mechanism.as_ref().is_some_and(|mechanism| mechanism.r#type == "NOOP"),
        "it is {:?}",
        known.mechanism
    );
    driven.has_nothing_left()?;
    driven.close(known)?;
    ensure!(driven.endpoint.script().closed == 2, "the endpoint was not told of the close");
    Ok(())
}

fn with_policy(ip: &mut IpContext) {
    ip.policies.push(PolicyRoute { from: POLICY_SOURCE.to_owned(), ..PolicyRoute::default() });
}

fn route(prefix: &str) -> Route {
    Route { prefix: prefix.to_owned(), ..Route::default() }
}

/// The endpoint's interface.
const FAR: &str = "far-1";
const OWN_ADDRESS: &str = "172.16.1.1/32";
const FAR_ADDRESS: &str = "172.16.1.2/32";
pub(super) const FAR_IP: &str = "172.16.1.2";
const POLICY_SOURCE: &str = "10.5.0.1";
/// Numbers of tunnels.
const TAKEN: [u32; 2] = [7_000_001, 7_000_002];
const FREE: u32 = 7_000_003;
