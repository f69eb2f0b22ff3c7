//! `ferrule vf` against the real daemon, which owns a made-up node.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ferrule_daemon::ApiSocket;
use serde_json::Value;
use sriov_manager::daemon::{Daemon, DaemonOptions};
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::policy::{NumVfs, PfSelector, Policies, Pool};
use tempfile::TempDir;

/// A node with two PFs, and 3 VFs of each in the pools `fast` and `spare`.
struct Fixture {
    node: FakeNode,
    directory: TempDir,
    daemon: Daemon,
}

impl Fixture {
    async fn new() -> Self {
        let (node, directory) = (FakeNode::new(2, 7), tempfile::tempdir().unwrap());
        let pool = |name: &str, pf: &str| Pool {
            name: name.into(),
            pfs: vec![PfSelector { name: Some(pf.into()), ..PfSelector::default() }],
            num_vfs: Some(NumVfs::Exactly(3)),
            ..Pool::default()
        };
        let parts = node.options();
        let options = DaemonOptions {
            sysfs: parts.sysfs,
            kernel: parts.kernel,
            state: parts.state,
            socket: ApiSocket::at(directory.path().join("vf.sock")),
            metrics: None,
            rescan: Duration::from_millis(50),
            policies: Policies { pools: vec![pool("fast", "ens1f0"), pool("spare", "ens1f1")] },
            file: None,
            timeouts: parts.timeouts,
            observer: None,
        };
        let daemon = Daemon::start(options).await.unwrap();
        Self { node, directory, daemon }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("vf.sock")
    }

    /// Runs `ferrule vf` with arguments that white space divides.
    async fn run(&self, arguments: &str) -> Said {
        let mut command = command(&self.socket(), arguments);
        tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap().into()
    }

    /// What it prints when it succeeds.
    async fn told(&self, arguments: &str) -> String {
        let said = self.run(arguments).await;
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "vf {arguments}");
        said.out
    }

    async fn json(&self, arguments: &str) -> Value {
        let told = self.told(&format!("{arguments} --json")).await;
        serde_json::from_str(&told).unwrap_or_else(|error| panic!("vf {arguments}: {error}: {told}"))
    }

    async fn refused(&self, arguments: &str) -> String {
        let said = self.run(arguments).await;
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "vf {arguments}: {}", said.err);
        said.err
    }
}

fn command(socket: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrule"));
    command.arg("vf").args(arguments.split_whitespace()).env("FERRULE_VF_SOCKET", socket).stdin(Stdio::null());
    command
}

struct Said {
    out: String,
    err: String,
    code: Option<i32>,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { out: text(output.stdout), err: text(output.stderr), code: output.status.code() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_asked_for_changed_explained_and_given_back() {
    let fixture = Fixture::new().await;
    let vf = fixture.node.vf(0, 0);
    let plan = fixture.told("acquire pod/net1 --pool fast --driver vfio-pci --vlan 7 --dry-run").await;
    assert!(plan.starts_with(&format!("{vf}\n  ")) && plan.contains(&format!("bind {vf} to vfio-pci")), "{plan}");
    let lent = fixture.told("acquire pod/net1 --pool fast --driver vfio-pci --vlan 7").await;
    assert!(lent.starts_with(&format!("{vf} of the pool fast: yours, vfio-pci, IOMMU group ")), "{lent}");
    let again = fixture.told("acquire pod/net1 --pool fast --driver vfio-pci --vlan 7").await;
    assert!(again.ends_with(", nothing had to be done\n"), "{again}");
    let why = fixture.told(&format!("explain {vf} --driver vfio-pci")).await;
    assert!(why.contains("cannot be borrowed:\n- it is lent as pod/net1"), "{why}");

    let pid = 4242;
    let process = fixture.node.sysfs().path(&format!("proc/{pid}"));
    std::fs::create_dir_all(&process).unwrap();
    std::fs::write(process.join("stat"), format!("{pid} (pod) S {}7 0\n", "0 ".repeat(18))).unwrap();
    let updated = fixture.told(&format!("update pod/net1 --tenant pod-7 --until-pid {pid}")).await;
    assert_eq!(updated, format!("{vf}: lease pod/net1, for pod-7, until process {pid} has ended\n"));
    let list = fixture.json("list --pool fast").await;
    assert_eq!(list["vfs"].as_array().unwrap().len(), 3, "those of the other pool are left out");
    let lease = &list["vfs"][0]["lease"];
    assert_eq!((&lease["tenant"], &lease["until"]["pid"]), (&"pod-7".into(), &pid.into()));
    assert_eq!(lease["attributes"]["vlan"]["id"], 7);
    assert_eq!(lease["holder"], lease["tenant"], "by its old name as well");
    let updated = fixture.json("update pod/net1 --until-released").await;
    assert_eq!((&updated["lease"]["until"], &updated["lease"]["tenant"]), (&Value::Null, &"pod-7".into()));

    let handed = fixture.told("hand-over pod/net1 next --driver none").await;
    assert!(handed.starts_with(&format!("{vf} of the pool fast: yours, no driver")), "{handed}");
    let steps = fixture.told("release next --dry-run").await;
    assert!(steps.contains(&format!("reset {vf}")), "{steps}");
    assert_eq!(fixture.told("release next --wait 1s").await, format!("{vf}: given back\n"));
    fixture.told("acquire dirty --pool fast --driver vfio-pci --bound-to none").await;
    let unbound = fixture.refused(&format!("acquire x --vf {} --bound-to vfio-pci", fixture.node.vf(0, 1))).await;
    assert!(unbound.contains("it is not bound to vfio-pci"), "{unbound}");
    fixture.node.set(Scenario::MacRefused);
    assert!(fixture.refused("release dirty").await.contains("--accept"));
    assert_eq!(fixture.told("release dirty --accept").await, format!("{vf}: given back\n"));
    fixture.node.heal();
    assert!(fixture.refused("release next").await.starts_with("there is no lease next; "));
    fixture.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_pools_and_several_leases_are_named_by_repeating_them() {
    let fixture = Fixture::new().await;
    let three = fixture.told("acquire a b c --pool fast --driver none --same-pf").await;
    assert_eq!(three.lines().filter(|line| line.contains(" of the pool fast: yours")).count(), 3, "{three}");
    let either = fixture.told("acquire d --pool fast --pool spare --driver none").await;
    assert!(either.starts_with(&format!("{} of the pool spare: yours", fixture.node.vf(1, 0))), "{either}");
    let lent = fixture.json("acquire e f --pool fast --pool spare --driver none").await;
    assert_eq!(lent["leases"][1]["vf"]["lease"]["pool"], "spare");
    let group = fixture.json("list").await["vfs"][5]["iommu_group"].as_u64().unwrap();
    let other = fixture.refused(&format!("acquire g --pool fast --pool spare --iommu-group {group}")).await;
    let elsewhere = format!(
        "no VF of the pools fast, spare is available: fast has none of the place that is asked for, the first is {}: it is not of the \
         IOMMU group {group}; spare has 1 VF, ",
        fixture.node.vf(0, 0)
    );
    assert!(other.starts_with(&elsewhere), "{other}");
    let none = fixture.refused("acquire g --pool fast --pool spare").await;
    assert!(none.starts_with("no VF of the pools fast, spare is available: fast has 3 VFs, "), "{none}");
    fixture.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_cordons_numbers_and_policies_are_ruled() {
    let fixture = Fixture::new().await;
    let (vf, pf) = (fixture.node.vf(0, 1), fixture.node.pf(1));
    assert_eq!(fixture.told("claim plugin --pool fast").await, "plugin has claimed 3 VFs\n");
    let refused = fixture.refused(&format!("acquire x --vf {vf} --driver none")).await;
    assert!(refused.contains("is claimed by plugin"), "{refused}");
    fixture.told(&format!("acquire x --vf {vf} --owner plugin --driver none")).await;
    assert_eq!(fixture.json("unclaim plugin").await["unclaimed"], "plugin");

    assert_eq!(fixture.told("cordon ens1f1 --why firmware").await, "ens1f1: no VF is lent to anybody new\n");
    assert!(fixture.told("list").await.contains("cordoned, no VF of it is lent to anybody new: firmware"));
    assert_eq!(fixture.told("uncordon ens1f1").await, "ens1f1: VFs are lent again\n");
    let blockers = fixture.told("blockers ens1f0").await;
    assert!(blockers.starts_with(&format!("{vf}: it is lent as x")), "{blockers}");
    assert_eq!(fixture.told("blockers ens1f1").await, "ens1f1: nothing forbids another number of VFs\n");

    let plan = fixture.told("create ens1f1=5 --dry-run").await;
    assert!(plan.starts_with("ens1f1: 3 VFs, to be 5\n  "), "{plan}");
    assert_eq!(fixture.told("create ens1f1=5").await, "ens1f1: 5 VFs, 3 before\n");
    let file = fixture.directory.path().join("policies.yaml");
    std::fs::write(&file, "pools:\n- name: only\n  pfs: [{ name: ens1f1 }]\n  num_vfs: 2\n").unwrap();
    let applied = fixture.told(&format!("apply {}", file.display())).await;
    assert!(applied.starts_with(&format!("the policies hold as generation 1\n{pf}: 2 VFs, 5 before\n")), "{applied}");
    fixture.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn details_are_asked_for_and_a_watch_shows_each_change() {
    let fixture = Fixture::new().await;
    fixture.node.put_netdev_file(fixture.node.pf(0), "speed", "25000");
    let list = fixture.json("list --details").await;
    assert_eq!((&list["pfs"][0]["link_speed"], &list["pfs"][1]["link_speed"]), (&25000.into(), &Value::Null));
    assert_eq!(list["vfs"][0]["told"]["spoof_check"], true);
    assert_eq!(fixture.json("list").await["vfs"][0]["told"], Value::Null);

    let mut watching = command(&fixture.socket(), "list --watch --json").stdout(Stdio::piped()).spawn().unwrap();
    let out = std::io::BufReader::new(watching.stdout.take().unwrap());
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let reading = tokio::task::spawn_blocking(move || {
        use std::io::BufRead as _;
        out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    for id in ["one", "two"] {
        fixture.told(&format!("acquire {id} --pool fast --driver none")).await;
        let shown = async {
            loop {
                let line = lines.recv().await.expect("the watch goes on");
                let list: Value = serde_json::from_str(&line).unwrap();
                if list["vfs"].as_array().unwrap().iter().any(|vf| vf["lease"]["id"] == id) {
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), shown).await.unwrap();
    }
    fixture.daemon.stop().await;
    let status = tokio::task::spawn_blocking(move || watching.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(1), "it says that the manager has stopped");
    reading.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_read_by_the_managers_program_and_without_a_manager() {
    let program = Path::new(env!("CARGO_BIN_EXE_ferrule")).with_file_name("sriov-manager");
    if !program.exists() {
        ferrule_hw_tests::need::skip(
            "a_tree_is_read_by_the_managers_program_and_without_a_manager",
            &format!("{} (cargo build -p sriov-manager)", program.display()),
        );
        return;
    }
    let fixture = Fixture::new().await;
    fixture.told("acquire one --pool fast --driver none").await;
    let root = fixture.node.sysfs().path("").display().to_string();
    let list = fixture.json(&format!("--root {root} list")).await;
    assert_eq!(fixture.json(&format!("list --root {root}")).await, list);
    assert_eq!((list["vfs"].as_array().unwrap().len(), &list["vfs"][0]["lease"]), (6, &Value::Null));
    let vf = fixture.node.vf(0, 0);
    assert_eq!(fixture.told(&format!("--root {root} explain {vf}")).await, format!("{vf} can be borrowed\n"));
    let unknown = fixture.refused(&format!("--root {root} explain ens9")).await;
    assert_eq!(unknown, "there is no VF ens9; `ferrule vf list` shows those that are there\n");
    let nothing = fixture.refused("--root /nowhere list").await;
    assert!(nothing.starts_with("read the PCI devices below /nowhere/: "), "{nothing}");
    let said = fixture.run(&format!("--root {root} release one")).await;
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("only list and explain work"), "{}", said.err);
    fixture.daemon.stop().await;
}

/// A plugin that has one resource of one VF, and left an entry out.
fn plugin(path: &Path, vf: &str) {
    let member = device_plugin_client::Member { device: vf.to_owned(), ..Default::default() };
    let resource = device_plugin_client::Resource {
        name: "intel.com/dpdk".to_owned(),
        is_registered: true,
        members: vec![member],
        ..Default::default()
    };
    let report = device_plugin_client::Report {
        resources: vec![resource],
        devices: vec![device_plugin_client::Device { id: vf.to_owned(), ..Default::default() }],
        left_out: vec!["lost (line 2)".to_owned()],
        ..Default::default()
    };
    let listener = UnixListener::bind(path).unwrap();
    let text = serde_json::to_vec(&report).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            // Whoever goes away early does not want it.
            let _ = client.unwrap().write_all(&text);
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_is_of_what_was_meant_also_while_the_manager_is_away() {
    let fixture = Fixture::new().await;
    let (vf, path) = (fixture.node.vf(0, 0).to_string(), fixture.directory.path().join("plugin.sock"));
    plugin(&path, &vf);
    let asked = |what: &str| format!("explain {what} --plugin {}", path.display());
    let pf = fixture.refused(&asked("ens1f0")).await;
    assert!(pf.starts_with("ens1f0 is a PF: "), "{pf}");
    let unknown = fixture.refused(&asked("lost")).await;
    assert_eq!(
        unknown,
        "no VF and no resource is called lost; resources: intel.com/dpdk; left out of the configuration: lost (line 2)\n"
    );
    let resource = fixture.told(&asked("dpdk")).await;
    assert!(resource.starts_with("intel.com/dpdk: 1 device: 1 free, 0 in use, 0 unavailable\n"), "{resource}");
    fixture.told("claim device-plugin --pool fast").await;
    let free = fixture.told(&asked(&format!("{vf} --driver none"))).await;
    assert!(free.starts_with(&format!("{vf} is free for pods (intel.com/dpdk)\nby hand it cannot")), "{free}");
    let list = fixture.told("list").await;
    assert!(
        list.contains(" free (device-plugin) ") && list.contains("device-plugin has claimed the pool fast"),
        "{list}"
    );

    let (socket, run) = (fixture.socket(), asked(&vf));
    fixture.daemon.stop().await;
    let away: Said = command(&socket, &run).output().unwrap().into();
    let told = format!(
        "{vf}: whether it can be borrowed is not known: the manager is away\nintel.com/dpdk has it: it is free"
    );
    assert!(away.code == Some(0) && away.out.starts_with(&told), "{}{}", away.out, away.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_not_there_and_a_pod_without_a_namespace_are_refused() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.refused("list --pool typo").await, "there is no pool typo; there are: fast, spare\n");
    let pod = fixture.run("explain --pod one").await;
    assert!(pod.code == Some(2) && pod.err.contains("NAMESPACE/NAME is wanted"), "{}", pod.err);
    let help = fixture.told("create --help").await;
    assert!(!help.contains("--root") && help.contains("--manager"), "an option is where it works: {help}");
    assert!(fixture.told("list --help").await.contains("--root"));
    fixture.daemon.stop().await;
}

#[tokio::test]
async fn an_uninstall_gives_everything_back() {
    let fixture = Fixture::new().await;
    fixture.told("acquire pod-1/net1 --pool fast --driver vfio-pci").await;
    fixture.told("claim device-plugin --pool spare").await;
    let mut client = sriov_manager_client::connect(&fixture.socket()).await.unwrap();
    let done = ferrule::uninstall::give_back(&mut client, false, Duration::ZERO).await.unwrap();
    assert!(done.contains("given back, of ") && done.contains("device-plugin: claims nothing any more"), "{done}");
    let list = client.list(sriov_manager_client::v1::ListRequest::default()).await.unwrap().into_inner();
    assert!(list.vfs.iter().all(|vf| vf.lease.is_none()) && list.node.unwrap().owners.is_empty());
    assert_eq!(list.vfs.len(), 6, "VFs are left unless it is said");
    let done = ferrule::uninstall::give_back(&mut client, true, Duration::ZERO).await.unwrap();
    assert_eq!(done.matches(": no VFs, 3 before").count(), 2, "{done}");
}

#[tokio::test]
async fn an_uninstall_leaves_what_somebody_has() {
    let fixture = Fixture::new().await;
    let vf = fixture.node.vf(0, 0);
    fixture.told(&format!("acquire pod-1/net1 --vf {vf} --pool fast --driver vfio-pci")).await;
    let _open = fixture.node.open_vfio(vf, 4242, "testpmd");
    let mut client = sriov_manager_client::connect(&fixture.socket()).await.unwrap();
    let error = ferrule::uninstall::give_back(&mut client, true, Duration::ZERO).await.unwrap_err().to_string();
    assert!(error.contains("nothing was removed") && error.contains("testpmd"), "{error}");
}
