//! Sockets for pods: a whole forwarder, and where pods would be, their memif and vhost-user peers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dpdk_forwarder::config::WiresFile;
use dpdk_forwarder::{Forwarder, Options};
use dpdk_forwarder_client::{connect, v1};
use ferrule_cni::plugin::{Answer, serve_observed};
use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{MemifSpec, Role, SocketAddress};
use ferrule_endpoints::memif::Endpoint;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use common::run_killed;

/// A node with a forwarder.
struct Node {
    directory: TempDir,
    runtime: Runtime,
    forwarder: Option<Forwarder>,
}

impl Node {
    fn start() -> Self {
        let mut node = Self { directory: TempDir::new().unwrap(), runtime: Runtime::new().unwrap(), forwarder: None };
        fs::create_dir_all(node.at("shared")).unwrap();
        node.start_forwarder();
        node
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start_forwarder(&mut self) {
        let path = self.at("wires.yaml");
        fs::write(&path, format!("admin: {}\nwires: []\n", self.at("admin.sock").display())).unwrap();
        let file = WiresFile::load(&path).unwrap();
        let drain_grace = Duration::from_millis(100);
        let options = Options { config: file.config.clone(), file: Some(file), by_flag: Vec::new(), drain_grace };
        // A program that another test starts at this moment keeps the lock of the forwarder before until it runs.
        let deadline = Instant::now() + Duration::from_secs(10);
        self.forwarder = loop {
            match self.runtime.block_on(Forwarder::start(options.clone())) {
                Ok(forwarder) => break Some(forwarder),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        };
    }

    fn stop_forwarder(&mut self) {
        let forwarder = self.forwarder.take().unwrap();
        self.runtime.block_on(forwarder.stop());
    }

    fn config(&self, host: &Value, more: &Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "userspace",
            "sharedDir": self.at("shared"),
            "host": host,
            "ferrule": { "forwarder": self.at("admin.sock"), "state": self.at("cni") },
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    }

    /// Asks the plugin about a container, whose namespace is a file here.
    fn ask(&self, command: &str, container: &str, config: &Value) -> Answer {
        self.ask_observed(command, container, config, &|_| ())
    }

    fn ask_observed(&self, command: &str, container: &str, config: &Value, observer: &dyn Fn(&str)) -> Answer {
        let variables = self.variables(command, container);
        let variable = |name: &str| variables.get(name).cloned();
        serve_observed(variable, config.to_string().as_bytes(), observer)
    }

    fn variables(&self, command: &str, container: &str) -> BTreeMap<&'static str, String> {
        let netns = self.at(container);
        match command {
            "ADD" => fs::write(&netns, "").unwrap(),
            "DEL" => drop(fs::remove_file(&netns)),
            _ => {}
        }
        BTreeMap::from([
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", container.to_owned()),
            ("CNI_IFNAME", "net1".to_owned()),
            ("CNI_NETNS", netns.display().to_string()),
        ])
    }

    fn must(&self, command: &str, container: &str, config: &Value) -> Value {
        let answer = self.ask(command, container, config);
        assert!(answer.is_done, "{command} {container}: {answer:?}");
        answer.document.unwrap_or_default()
    }

    fn wires(&self) -> Vec<v1::Wire> {
        self.runtime.block_on(async {
            let mut client = connect(&self.at("admin.sock")).await.unwrap();
            client.list_wires(v1::ListWiresRequest::default()).await.unwrap().into_inner().wires
        })
    }

    fn labels(&self) -> Vec<String> {
        let wires = self.wires().into_iter().filter_map(|wire| wire.spec);
        let mut labels: Vec<_> = wires.flat_map(|spec| spec.labels.into_values()).collect();
        labels.sort();
        labels
    }

    /// Whether nothing is left of any pod.
    fn leftovers(&self) -> Vec<String> {
        let files = fs::read_dir(self.at("shared")).unwrap().chain(fs::read_dir(self.at("cni/socket")).unwrap());
        let names = files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|name| name != ".ferrule").chain(self.wires().into_iter().map(|wire| wire.name)).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.forwarder.is_some() {
            self.stop_forwarder();
        }
    }
}

fn memif(socket: &Value, role: Role) -> Endpoint {
    let path = PathBuf::from(socket.as_str().unwrap());
    Endpoint::open(&MemifSpec::new(SocketAddress::Path(path), role), DEADLINE).unwrap()
}

/// A frame crosses.
fn carry(from: &mut Endpoint, to: &mut Endpoint, byte: u8) {
    let sent = vec![byte; 100];
    let (target, source) = (&mut from.queues.senders[0], &mut to.queues.receivers[0]);
    let deadline = Instant::now() + DEADLINE;
    loop {
        target.refresh().unwrap();
        if target.put(&Frame { bytes: sent.as_slice().into(), offload: None, slots: 0 }).unwrap() == Put::Stored {
            break;
        }
        assert!(Instant::now() < deadline, "no room to send a frame");
        thread::yield_now();
    }
    if target.publish() {
        nix::unistd::write(target.notify_fd().unwrap(), &1u64.to_ne_bytes()).unwrap();
    }
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
            assert!(bytes == sent, "it is another frame");
            return;
        }
        assert!(Instant::now() < deadline, "no frame came");
        thread::yield_now();
    }
}

#[test]
fn two_pods_of_a_network_are_joined_and_what_they_had_goes() {
    let node = Node::start();
    let info = node.at("info.json");
    let host = json!({ "engine": "vpp", "iftype": "memif", "netType": "interface", "memif": { "role": "master" } });
    let config = node.config(&host, &json!({ "container": { "engine": "vpp", "netType": "interface" } }));
    let first = node.config(&host, &json!({ "runtimeConfig": { "CNIDeviceInfoFile": info } }));
    let one = node.must("ADD", "0123456789abcdef", &first);
    let socket = &one["interfaces"][0]["socketPath"];
    assert_eq!(socket, &json!(node.at("shared/memif-0123456789ab-net1.sock")));
    let described: Value = serde_json::from_slice(&fs::read(&info).unwrap()).unwrap();
    assert_eq!(described["memif"], json!({ "role": "slave", "path": socket, "mode": "ethernet" }));
    // It is in use before the second one comes, and is not parted then.
    let mut a = memif(socket, Role::Client);
    let two = node.must("ADD", "two", &config);
    let told = fs::read(node.at("shared/configData-two-net1.json")).unwrap();
    let told: Value = serde_json::from_slice(&told).unwrap();
    assert_eq!((&told["containerId"], &told["config"]["netType"]), (&json!("two"), &json!("interface")));
    let memif_told = json!({ "role": "slave", "mode": "ethernet", "socketfile": "memif-two-net1.sock" });
    assert_eq!(told["config"]["memif"], memif_told);
    let mut b = memif(&two["interfaces"][0]["socketPath"], Role::Client);
    carry(&mut a, &mut b, 1);
    carry(&mut b, &mut a, 2);
    assert_eq!(node.labels(), ["0123456789ab/net1", "two/net1"]);
    let mut checked = config.clone();
    checked["prevResult"] = two.clone();
    node.must("CHECK", "two", &checked);

    // One goes, the other keeps its end, and whoever comes next is joined with it.
    drop(a);
    node.must("DEL", "0123456789abcdef", &first);
    assert!(!info.exists());
    let three = node.must("ADD", "three", &config);
    let mut c = memif(&three["interfaces"][0]["socketPath"], Role::Client);
    carry(&mut b, &mut c, 3);
    for container in ["two", "three", "three"] {
        node.must("DEL", container, &config);
    }
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn a_pod_may_listen_itself() {
    let node = Node::start();
    let host = json!({ "iftype": "memif", "memif": { "role": "slave" } });
    let config = node.config(&host, &json!({}));
    let sockets = ["one", "two"].map(|pod| node.must("ADD", pod, &config)["interfaces"][0]["socketPath"].clone());
    // Each waits for the forwarder.
    let [mut a, mut b] = thread::scope(|scope| {
        sockets.each_ref().map(|socket| scope.spawn(|| memif(socket, Role::Server))).map(|peer| peer.join().unwrap())
    });
    carry(&mut a, &mut b, 1);
    drop((a, b));
    for pod in ["one", "two"] {
        node.must("DEL", pod, &config);
    }
    assert!(!Path::new(sockets[0].as_str().unwrap()).exists());
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn a_link_that_a_pod_put_in_the_shared_directory_is_not_followed() {
    let node = Node::start();
    let config = node.config(&json!({ "iftype": "memif" }), &json!({}));
    let host = node.at("a-file-of-the-host");
    fs::write(&host, "the host's").unwrap();
    fs::create_dir_all(node.at("shared")).unwrap();
    for name in ["configData-one-net1.new", "configData-one-net1.json"] {
        symlink(&host, node.at("shared").join(name)).unwrap();
    }
    node.must("ADD", "one", &config);
    assert_eq!(fs::read_to_string(&host).unwrap(), "the host's");
    let told = node.at("shared/configData-one-net1.json");
    assert!(fs::symlink_metadata(told).unwrap().is_file());
    node.must("DEL", "one", &config);
    // And the forwarder listens in no directory of somebody else's choice.
    fs::remove_dir_all(node.at("shared/.ferrule")).unwrap();
    symlink(node.at("cni"), node.at("shared/.ferrule")).unwrap();
    let answer = node.ask("ADD", "two", &config);
    assert!(!answer.is_done && answer.document.unwrap().to_string().contains("no directory of the plugin's own"));
}

#[test]
fn vhost_user_ends_are_named_as_userspace_cni_names_them() {
    let node = Node::start();
    let host =
        json!({ "engine": "ovs-dpdk", "iftype": "vhostuser", "netType": "interface", "vhost": { "mode": "server" } });
    let config = node.config(&host, &json!({}));
    let one = node.must("ADD", "one", &config);
    let path = node.at("shared/one-net1");
    assert_eq!(one["interfaces"][0]["socketPath"], json!(path));
    std::os::unix::net::UnixStream::connect(&path).unwrap();
    let told: Value = serde_json::from_slice(&fs::read(node.at("shared/configData-one-net1.json")).unwrap()).unwrap();
    assert_eq!(told["config"]["vhost"], json!({ "mode": "client", "socketfile": "one-net1" }));
    node.must("DEL", "one", &config);
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn killed_at_any_step_it_is_taken_back_and_the_next_add_works() {
    let node = Node::start();
    let config = node.config(&json!({ "iftype": "memif" }), &json!({}));
    let steps = AtomicUsize::new(0);
    let count = |_: &str| {
        steps.fetch_add(1, Ordering::Relaxed);
    };
    assert!(node.ask_observed("ADD", "one", &config, &count).is_done);
    let in_add = steps.swap(0, Ordering::Relaxed);
    assert!(node.ask_observed("DEL", "one", &config, &count).is_done);
    let in_del = steps.into_inner();
    assert_eq!((in_add, in_del), (5, 2));
    let die_at = |command, at| run_killed(&node.variables(command, "one"), &config.to_string(), at);
    for at in 0..in_add {
        die_at("ADD", at);
        node.must("DEL", "one", &config);
        assert_eq!(node.leftovers(), [""; 0], "{at}");
        die_at("ADD", at);
        node.must("ADD", "one", &config);
        assert_eq!(node.wires().len(), 1, "{at}");
        node.must("DEL", "one", &config);
        assert_eq!(node.leftovers(), [""; 0], "{at}");
    }
    for at in 0..in_del {
        node.must("ADD", "one", &config);
        die_at("DEL", at);
        node.must("DEL", "one", &config);
        assert_eq!(node.leftovers(), [""; 0], "{at}");
    }
}

#[test]
fn a_pod_ends_while_the_forwarder_is_away_and_its_end_is_free_for_the_next_one() {
    let mut node = Node::start();
    let config = node.config(&json!({ "iftype": "memif" }), &json!({}));
    node.must("ADD", "one", &config);
    node.stop_forwarder();
    node.must("DEL", "one", &config);
    let refused = node.ask("ADD", "two", &config).document.unwrap();
    let message = refused["msg"].as_str().unwrap();
    assert!(refused["code"] == 11 && message.contains("no forwarder answers on"), "{refused}");
    assert_eq!(node.ask("STATUS", "", &config).document.unwrap()["code"], 50);
    node.start_forwarder();
    node.must("STATUS", "", &config);
    node.must("ADD", "two", &config);
    assert_eq!(node.labels(), ["two/net1"]);
    node.must("GC", "", &config);
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn a_seat_of_a_pod_that_is_gone_is_the_next_one_s() {
    let node = Node::start();
    let config = node.config(&json!({ "iftype": "memif" }), &json!({}));
    // It ended, and nobody said so.
    node.must("ADD", "one", &config);
    fs::remove_file(node.at("one")).unwrap();
    node.must("ADD", "two", &config);
    assert_eq!(node.labels(), ["two/net1"]);
    // The machine has started again since, and somebody else's namespace has the name of its own.
    let path = node.at("cni/socket/two:net1.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["boot"] = json!("another");
    fs::write(&path, record.to_string()).unwrap();
    node.must("ADD", "three", &config);
    assert_eq!(node.labels(), ["three/net1"]);
    node.must("DEL", "three", &config);
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn gc_after_a_lost_state_parts_nobody_who_is_valid() {
    let node = Node::start();
    let config = node.config(&json!({ "iftype": "memif" }), &json!({}));
    for container in ["one", "two", "three"] {
        node.must("ADD", container, &config);
    }
    fs::remove_dir_all(node.at("cni")).unwrap();
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": "two", "ifname": "net1" }] });
    node.must("GC", "", &node.config(&json!({ "iftype": "memif" }), &valid));
    assert_eq!(node.labels(), ["one/net1", "two/net1"]);
    node.must("GC", "", &config);
    assert_eq!(node.labels(), [""; 0]);
}

#[test]
fn a_bridge_is_refused_by_name() {
    let node = Node::start();
    let host = json!({ "engine": "vpp", "iftype": "memif", "netType": "bridge", "bridge": { "bridgeName": "4" } });
    let refused = node.ask("ADD", "one", &node.config(&host, &json!({}))).document.unwrap();
    let wanted = "network `net`: host.netType: `bridge 4` cannot be had: a wire joins two pods and is no bridge: say `interface`";
    assert_eq!((&refused["code"], refused["msg"].as_str().unwrap()), (&json!(2), wanted));
}

const DEADLINE: Duration = Duration::from_secs(30);
