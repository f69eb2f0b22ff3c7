//! Software endpoints: the plugin and a whole forwarder, a kubelet stand-in, and where pods would be, their memif and vhost-user peers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use device_plugin::config::ConfigFile;
use device_plugin_client::Report;
use dpdk_forwarder::config::WiresFile;
use dpdk_forwarder::{Forwarder, Options};
use dpdk_forwarder_client::{connect, v1};
use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{MemifSpec, Role, SocketAddress};
use ferrule_endpoints::memif::Endpoint;
use ferrule_endpoints::vhost_user::{Frontend, FrontendSpec};
use ferrule_ffi::unix::{Kind, UnixSocket};
use ferrule_kubelet::stand_in::{Refusal, Release};
use ferrule_kubelet::v1beta1::ContainerAllocateResponse;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use sriov_manager::fake::FakeNode;

mod common;

use common::{DEADLINE, Site, is_there};

/// A node without a NIC and without a manager.
struct Node {
    site: Site,
    forwarder: Option<Forwarder>,
}

impl Node {
    fn new(config: &str) -> Self {
        let mut site = Site::new(FakeNode::new(1, 7), config);
        site.start_kubelet(Release::V1_37);
        Self { site, forwarder: None }
    }

    async fn start(config: &str) -> Self {
        let mut node = Self::new(config);
        node.start_forwarder().await;
        node.site.start_plugin().await;
        node
    }

    async fn start_forwarder(&mut self) {
        let path = self.site.directory.path().join("wires.yaml");
        fs::write(&path, format!("admin: {}\nwires: []\n", self.site.options.forwarder.display())).unwrap();
        let file = WiresFile::load(&path).unwrap();
        let drain_grace = Duration::from_millis(100);
        let options = Options { config: file.config.clone(), file: Some(file), by_flag: Vec::new(), drain_grace };
        self.forwarder = Some(Forwarder::start(options).await.unwrap());
    }

    async fn stop_forwarder(&mut self) {
        self.forwarder.take().unwrap().stop().await;
    }

    /// The next plugin reads the configuration anew, and finds no forwarder. Returns where it is.
    fn hide_forwarder(&mut self) -> PathBuf {
        let path = self.site.options.file.path.clone();
        self.site.options.file = ConfigFile::load(&path, "intel.com").unwrap();
        let hidden = self.site.directory.path().join("hidden.sock");
        std::mem::replace(&mut self.site.options.forwarder, hidden)
    }

    fn show_forwarder(&self, admin: &Path) {
        std::os::unix::fs::symlink(admin, &self.site.options.forwarder).unwrap();
    }

    /// A pod with one endpoint, whose container starts.
    async fn run(&self, pod: &str, resource: &str) -> ContainerAllocateResponse {
        let answer = self.site.kubelet().admit(pod, "main", resource, 1).await.unwrap();
        self.until_started(pod).await;
        answer
    }

    /// As a kubelet does, again and again.
    async fn until_started(&self, pod: &str) {
        let deadline = Instant::now() + DEADLINE;
        while let Err(error) = self.site.kubelet().start_container(pod, "main").await {
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn wires(&self) -> Vec<v1::Wire> {
        let mut client = connect(&self.site.options.forwarder).await.unwrap();
        client.list_wires(v1::ListWiresRequest::default()).await.unwrap().into_inner().wires
    }

    async fn until_wires(&self, what: &str, holds: impl Fn(&[v1::Wire]) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let wires = self.wires().await;
            if holds(&wires) {
                return;
            }
            assert!(Instant::now() < deadline, "not in time: {what}: {wires:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Until the labels of the wires name these, by whom the kubelet lists them: a pod that was never listed may be one that starts.
    async fn until_named(&self, pods: &[&str]) {
        let wanted: BTreeSet<String> = pods.iter().map(|pod| format!("default/{pod}")).collect();
        let named = |wire: &v1::Wire| {
            let labels = wire.spec.iter().flat_map(|spec| &spec.labels);
            labels.filter(|(key, _)| key.starts_with("pod-")).map(|(_, pod)| pod.clone()).collect::<Vec<_>>()
        };
        let what = format!("the wires name {wanted:?}");
        self.until_wires(&what, |wires| wires.iter().flat_map(named).collect::<BTreeSet<_>>() == wanted).await;
    }

    async fn stop(mut self) {
        self.site.stop_plugin().await;
        if self.forwarder.is_some() {
            self.stop_forwarder().await;
        }
    }
}

/// What a container finds in the directory that is mounted into it.
fn socket(answer: &ContainerAllocateResponse, name: &str) -> PathBuf {
    let [mount] = answer.mounts.as_slice() else { panic!("{answer:?}") };
    assert!(mount.read_only, "a pod cannot remove its socket");
    Path::new(&mount.host_path).join(name)
}

fn memif(answer: &ContainerAllocateResponse) -> Endpoint {
    let spec = MemifSpec::new(SocketAddress::Path(socket(answer, "memif.sock")), Role::Client);
    Endpoint::open(&spec, DEADLINE).unwrap()
}

/// Frames of several sizes cross both ways, byte for byte.
fn cross(a: &mut Endpoint, b: &mut Endpoint) {
    carry(&mut a.queues.senders[0], &mut b.queues.receivers[0]);
    carry(&mut b.queues.senders[0], &mut a.queues.receivers[0]);
}

fn carry(from: &mut impl Target, to: &mut impl Source) {
    for (number, size) in [64, 1518, 60, 1000].into_iter().enumerate() {
        let sent: Vec<u8> = (0..size).map(|at| (at * 7 + number * 31 + size) as u8).collect();
        put(from, &sent);
        assert!(take(to) == sent, "frame {number} of {size} bytes is another one");
    }
}

fn put(target: &mut impl Target, bytes: &[u8]) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        target.refresh().unwrap();
        if target.put(&Frame { bytes: bytes.into(), offload: None, slots: 0 }).unwrap() == Put::Stored {
            break;
        }
        assert!(Instant::now() < deadline, "no room to send a frame");
        thread::yield_now();
    }
    if target.publish() {
        nix::unistd::write(target.notify_fd().unwrap(), &1u64.to_ne_bytes()).unwrap();
    }
}

fn take(source: &mut impl Source) -> Vec<u8> {
    let deadline = Instant::now() + DEADLINE;
    let mut gather = vec![0; FRAME_MAX];
    loop {
        if source.refresh().unwrap()
            && let Some(frame) = source.peek(&mut gather).unwrap()
        {
            let mut bytes = vec![0; frame.bytes.len()];
            assert!(frame.bytes.copy_out(&mut bytes));
            let slots = frame.slots;
            source.advance(slots);
            source.release();
            return bytes;
        }
        assert!(Instant::now() < deadline, "no frame came");
        thread::yield_now();
    }
}

const FOUR: &str = r#"{"resourceList": [{"resourceName": "port", "software": 4}]}"#;
const PORT: &str = "intel.com/port";
const VARIABLE: &str = "PCIDEVICE_INTEL_COM_PORT";

#[tokio::test(flavor = "multi_thread")]
async fn two_pods_are_joined_and_what_they_had_comes_back() {
    let node = Node::start(FOUR).await;
    node.site.until_healthy(PORT, 4).await;
    node.site.until_page("/readyz", "200 OK").await;
    let one = node.run("one", PORT).await;
    let two = node.run("two", PORT).await;
    assert_eq!((one.envs[VARIABLE].as_str(), two.envs[VARIABLE].as_str()), ("soft-port-0", "soft-port-1"));
    assert_eq!(one.mounts[0].container_path, "/run/ferrule/soft-port-0");
    let info = &two.envs[&format!("{VARIABLE}_INFO")];
    assert!(info.contains("\"path\":\"/run/ferrule/soft-port-1/memif.sock\""), "{info}");
    assert!(one.devices.is_empty());
    let file = node.site.options.files.device_info.join("intel.com-port-soft-port-0-device.json");
    assert!(fs::read_to_string(&file).unwrap().contains("\"type\":\"memif\""));

    let (mut a, mut b) = (memif(&one), memif(&two));
    cross(&mut a, &mut b);
    node.until_named(&["one", "two"]).await;
    let wires = node.wires().await;
    assert_eq!((wires.len(), wires[0].name.as_str()), (1, "soft-port-0"));
    node.site.until_page("/metrics", "ferrule_resource_held{resource=\"intel.com/port\"} 2").await;

    // One goes, and the other keeps its socket and whoever comes next.
    node.site.kubelet().end_pod("one");
    drop(a);
    node.site.until_page("/metrics", "ferrule_resource_held{resource=\"intel.com/port\"} 1").await;
    assert!(!is_there(&file), "its device-info file goes with it");
    b.check_peer().unwrap();
    let three = node.run("three", PORT).await;
    assert_eq!(three.envs[VARIABLE], "soft-port-0", "whose other end a pod has goes first");
    cross(&mut memif(&three), &mut b);

    node.until_named(&["two", "three"]).await;
    node.site.kubelet().end_pod("two");
    node.site.kubelet().end_pod("three");
    node.until_wires("no pod has it", <[_]>::is_empty).await;
    node.site.until_page("/metrics", "ferrule_resource_held{resource=\"intel.com/port\"} 0").await;
    assert_eq!(fs::read_dir(&node.site.options.software).unwrap().count(), 0, "no directory is left");
    assert_eq!(node.site.kubelet().healthy(PORT).len(), 4);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_of_the_plugin_are_not_felt_and_those_of_the_forwarder_heal() {
    let mut node = Node::start(FOUR).await;
    node.site.until_healthy(PORT, 4).await;
    let (one, two) = (node.run("one", PORT).await, node.run("two", PORT).await);
    let (mut a, mut b) = (memif(&one), memif(&two));
    cross(&mut a, &mut b);

    node.site.stop_plugin().await;
    cross(&mut a, &mut b);
    node.site.start_plugin().await;
    node.site.until_healthy(PORT, 4).await;
    node.site.until_page("/metrics", "ferrule_resource_held{resource=\"intel.com/port\"} 2").await;
    cross(&mut a, &mut b);
    a.check_peer().unwrap();

    // It forgets every wire of the API, and is told again.
    node.stop_forwarder().await;
    node.start_forwarder().await;
    drop((a, b));
    let (mut a, mut b) = (memif(&one), memif(&two));
    cross(&mut a, &mut b);

    // The plugin starts while it is away: the kubelet knows what pods have.
    node.stop_forwarder().await;
    node.site.stop_plugin().await;
    node.site.start_plugin().await;
    node.site.until_healthy(PORT, 4).await;
    node.start_forwarder().await;
    drop((a, b));
    cross(&mut memif(&one), &mut memif(&two));

    // A pod that goes while the plugin is away is noticed when it is back: the wire remembers it.
    node.site.stop_plugin().await;
    node.site.kubelet().end_pod("one");
    node.site.kubelet().end_pod("two");
    assert_eq!(node.wires().await.len(), 1);
    node.site.start_plugin().await;
    node.until_wires("nobody has it", <[_]>::is_empty).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_that_is_away_costs_no_pod() {
    let mut node = Node::new(FOUR);
    node.site.start_plugin().await;
    node.site.until_healthy(PORT, 4).await;
    node.site.until_page("/readyz", "no software endpoint is joined: no forwarder answers on").await;
    let one = node.site.kubelet().admit("one", "main", PORT, 1).await.unwrap();
    let error = node.site.kubelet().start_container("one", "main").await.unwrap_err();
    assert!(matches!(error, Refusal::PreStart(_)), "{error}");
    assert!(error.to_string().contains("start one with `dpdk-forwarder"), "{error}");
    node.site.until_page("/metrics", "ferrule_allocations_postponed_total{resource=\"intel.com/port\"} 1").await;
    let told = Report::read(&node.site.options.socket).await.unwrap().problems.join("\n");
    assert!(told.contains("do not start until dpdk-forwarder joins them: no forwarder answers on"), "{told}");

    node.start_forwarder().await;
    node.until_started("one").await;
    let two = node.run("two", PORT).await;
    cross(&mut memif(&one), &mut memif(&two));
    node.site.until_page("/readyz", "200 OK").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_leaves_pods_what_they_have() {
    let node = Node::start(FOUR).await;
    node.site.until_healthy(PORT, 4).await;
    for pod in ["one", "two"] {
        node.run(pod, PORT).await;
    }
    let (three, four) = (node.run("three", PORT).await, node.run("four", PORT).await);
    let (mut a, mut b) = (memif(&three), memif(&four));
    node.until_named(&["one", "two", "three", "four"]).await;
    node.site.kubelet().end_pod("one");

    node.site.write_config(&FOUR.replace('4', "2"));
    node.site.until_page("/metrics", "ferrule_resource_held{resource=\"intel.com/port\"} 3").await;
    cross(&mut a, &mut b);
    node.site.kubelet().admit_again("three").unwrap();
    // Its process ends with it.
    drop(a);
    node.site.kubelet().end_pod("three");
    node.site.until_healthy(PORT, 3).await;
    b.check_peer().unwrap();

    // The resource itself goes: it is served while a pod has something of it.
    node.site.write_config(r#"{"resourceList": []}"#);
    node.site.until_healthy(PORT, 2).await;
    node.site.kubelet().start_container("four", "main").await.unwrap();
    b.check_peer().unwrap();
    for pod in ["two", "four"] {
        node.site.kubelet().end_pod(pod);
    }
    node.until_wires("no pod has any", <[_]>::is_empty).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_keep_what_they_have_when_software_is_turned_off_and_the_plugin_starts_again() {
    let mut node = Node::start(FOUR).await;
    node.site.until_healthy(PORT, 4).await;
    let (one, two) = (node.run("one", PORT).await, node.run("two", PORT).await);
    node.until_named(&["one", "two"]).await;
    node.site.stop_plugin().await;
    node.site.write_config(r#"{"resourceList": []}"#);
    let file = node.site.options.file.path.clone();
    node.site.options.file = ConfigFile::load(&file, "intel.com").unwrap();
    node.site.start_plugin().await;
    node.site.until_healthy(PORT, 2).await;
    node.until_started("one").await;
    node.site.kubelet().admit_again("one").unwrap();
    cross(&mut memif(&one), &mut memif(&two));
    node.site.kubelet().end_pod("one");
    node.site.kubelet().end_pod("two");
    node.until_wires("no pod has it", <[_]>::is_empty).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pods_have_is_served_once_it_is_known_without_a_reload() {
    let mut node = Node::start(FOUR).await;
    node.site.until_healthy(PORT, 4).await;
    let (one, two) = (node.run("one", PORT).await, node.run("two", PORT).await);
    node.until_named(&["one", "two"]).await;
    node.site.stop_plugin().await;
    node.site.write_config(r#"{"resourceList": []}"#);
    let admin = node.hide_forwarder();
    node.site.start_plugin().await;
    node.site.until_page("/readyz", "200 OK").await;
    node.show_forwarder(&admin);
    node.site.until_healthy(PORT, 2).await;
    node.until_started("one").await;
    node.site.until_page("/readyz", "200 OK").await;
    cross(&mut memif(&one), &mut memif(&two));
    node.site.kubelet().end_pod("one");
    node.site.kubelet().end_pod("two");
    node.until_wires("no pod has it", <[_]>::is_empty).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_stay_joined_as_they_were_when_one_starts_again_before_the_forwarder_was_asked() {
    let mut node = Node::start(FOUR).await;
    node.site.until_healthy(PORT, 4).await;
    let (one, two) = (node.run("one", PORT).await, node.run("two", PORT).await);
    node.until_named(&["one", "two"]).await;
    let (mut a, mut b) = (memif(&one), memif(&two));
    cross(&mut a, &mut b);
    node.site.stop_plugin().await;
    node.site.write_config(
        r#"{"resourceList": [
            {"resourceName": "port", "software": {"count": 4, "peer": "zone"}},
            {"resourceName": "zone", "software": {"count": 4}}]}"#,
    );
    let admin = node.hide_forwarder();
    node.site.start_plugin().await;
    node.site.kubelet().until("it is served", |kubelet| kubelet.open_lists(PORT) == 1).await;
    node.site.kubelet().start_container("one", "main").await.unwrap_err();
    node.show_forwarder(&admin);
    node.until_started("one").await;
    b.check_peer().unwrap();
    cross(&mut a, &mut b);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_outlives_its_pod_is_cut_for_the_next() {
    let node = Node::start(FOUR).await;
    node.site.until_healthy(PORT, 4).await;
    let (one, two) = (node.run("one", PORT).await, node.run("two", PORT).await);
    node.until_named(&["one", "two"]).await;
    let _kept_by_somebody = memif(&one);
    node.site.kubelet().end_pod("one");
    node.until_named(&["two"]).await;
    let three = node.run("three", PORT).await;
    assert_eq!(three.envs[VARIABLE], "soft-port-0");
    cross(&mut memif(&three), &mut memif(&two));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_outlives_its_pod_leads_to_nobody_and_the_other_pod_is_not_cut() {
    // The next pod comes when the endpoint is free, or before it was given back.
    for is_given_back in [true, false] {
        let node = Node::start(FOUR).await;
        node.site.until_healthy(PORT, 4).await;
        let (one, two) = (node.run("one", PORT).await, node.run("two", PORT).await);
        let (mut a, mut b) = (memif(&one), memif(&two));
        cross(&mut a, &mut b);
        node.until_named(&["one", "two"]).await;
        // What a pod may hand to another one.
        let path = socket(&one, "memif.sock");
        let kept = [path.clone(), path.parent().unwrap().to_owned()].map(|path| keep(&path));
        assert!(connects(&through(&kept[0])) && connects(&through(&kept[1]).join("memif.sock")));
        drop(a);
        node.site.kubelet().end_pod("one");
        if is_given_back {
            node.until_named(&["two"]).await;
        }
        let three = node.run("three", PORT).await;
        assert_eq!(three.envs[VARIABLE], "soft-port-0");
        assert!(!connects(&through(&kept[0])) && !connects(&through(&kept[1]).join("memif.sock")));
        b.check_peer().unwrap();
        cross(&mut memif(&three), &mut b);
        node.stop().await;
    }
}

fn keep(path: &Path) -> OwnedFd {
    open(path, OFlag::O_PATH, Mode::empty()).unwrap()
}

fn through(kept: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", kept.as_raw_fd()))
}

/// Whether somebody listens there.
fn connects(path: &Path) -> bool {
    UnixSocket::connect_path(Kind::SeqPacket, path).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_a_killed_plugin_left_are_removed_and_those_of_pods_are_not() {
    let mut node = Node::start(FOUR).await;
    node.site.until_healthy(PORT, 4).await;
    let one = node.run("one", PORT).await;
    node.until_named(&["one"]).await;
    node.site.stop_plugin().await;
    let software = node.site.options.software.clone();
    let directory = |id: &str| software.join(id);
    let left = ["soft-port-2", "soft-other-7"].map(directory);
    for left in &left {
        fs::create_dir(left).unwrap();
        fs::write(left.join("memif.sock"), "").unwrap();
    }
    node.site.start_plugin().await;
    let deadline = Instant::now() + DEADLINE;
    while left.iter().any(|left| is_there(left)) {
        assert!(Instant::now() < deadline, "they are left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_there(&directory("soft-port-0")) && is_there(&directory("soft-port-1")), "both ends of a pod's wire");
    let two = node.run("two", PORT).await;
    cross(&mut memif(&one), &mut memif(&two));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn device_info_files_of_endpoints_are_removed_once_it_is_known_that_no_pod_has_them() {
    let mut node = Node::start(FOUR).await;
    node.site.until_healthy(PORT, 4).await;
    node.run("one", PORT).await;
    node.until_named(&["one"]).await;
    let infos = node.site.options.files.device_info.clone();
    let file = |id: &str| infos.join(format!("intel.com-port-{id}-device.json"));
    let (held, left) = (file("soft-port-0"), file("soft-port-3"));
    fs::write(&left, "{}").unwrap();
    node.site.stop_plugin().await;
    node.site.write_config(r#"{"resourceList": []}"#);
    let admin = node.hide_forwarder();
    node.site.start_plugin().await;
    node.site.until_page("/readyz", "200 OK").await;
    assert!(is_there(&held), "a CNI plugin may ask for it when the sandbox is made again");
    node.show_forwarder(&admin);
    node.site.kubelet().until("it is served", |kubelet| kubelet.open_lists(PORT) == 1).await;
    let deadline = Instant::now() + DEADLINE;
    while is_there(&left) {
        assert!(Instant::now() < deadline, "what no pod has is left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_there(&held));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_joined_with_one_that_waits_and_not_with_one_that_has_gone() {
    let node = Node::start(FOUR).await;
    node.site.until_healthy(PORT, 4).await;
    for (pod, endpoint) in [("one", "soft-port-0"), ("two", "soft-port-1"), ("waits", "soft-port-2")] {
        assert_eq!(node.run(pod, PORT).await.envs[VARIABLE], endpoint);
    }
    node.site.kubelet().end_pod("one");
    node.site.kubelet().end_pod("two");
    let partner = node.site.kubelet().admit("partner", "main", PORT, 1).await.unwrap();
    assert_eq!(partner.envs[VARIABLE], "soft-port-3");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_resources_of_two_kinds_are_joined_by_number() {
    let config = r#"{"resourceList": [
        {"resourceName": "left", "software": {"count": 2, "peer": "right"}},
        {"resourceName": "right", "software": {"count": 2, "kind": "vhost-user"}}]}"#;
    let node = Node::start(config).await;
    node.site.until_healthy("intel.com/left", 2).await;
    node.site.until_healthy("intel.com/right", 2).await;
    let (left, right) = (node.run("one", "intel.com/left").await, node.run("two", "intel.com/right").await);
    assert_eq!(right.envs["PCIDEVICE_INTEL_COM_RIGHT"], "soft-right-0");
    let frontend = FrontendSpec::new(SocketAddress::Path(socket(&right, "vhost-user.sock")));
    let mut guest = Frontend::open(&frontend, DEADLINE).unwrap();
    let mut client = memif(&left);
    carry(&mut client.queues.senders[0], &mut guest.queues.receivers[0]);
    carry(&mut guest.queues.senders[0], &mut client.queues.receivers[0]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_somebody_removes_is_there_again_when_a_container_starts() {
    let node = Node::start(FOUR).await;
    node.site.until_healthy(PORT, 4).await;
    let (one, two) = (node.run("one", PORT).await, node.run("two", PORT).await);
    let mut b = memif(&two);
    fs::remove_file(socket(&one, "memif.sock")).unwrap();
    node.until_started("one").await;
    assert!(is_there(&socket(&one, "memif.sock")));
    cross(&mut memif(&one), &mut b);
    b.check_peer().unwrap();
    for id in ["soft-port-4", "soft-other-0", "../../etc"] {
        let error = node.site.kubelet().allocate_ids(PORT, &[id]).await.unwrap_err().to_string();
        assert!(error.contains("has no device"), "{error}");
    }
    node.stop().await;
}
