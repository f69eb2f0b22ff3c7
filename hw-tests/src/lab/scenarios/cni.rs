//! VFs of a real NIC into pods and back, by the CNI plugin.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ferrule_cni::interface::Namespace;
use serde_json::{Value, json};
use sriov_manager::attributes::{VfChange, Vlan, VlanProtocol};
use sriov_manager::kernel::{Interface, Kernel as _, LiveKernel};

use crate::eventually;
use crate::lab::manager::{Manager, ManagerOptions};
use crate::lab::pci::Function;
use crate::lab::scenario::Lab;

use super::{ip, vf_states};

/// A VF with MAC, VLAN and trust goes into a pod and comes back as it was; also when the pod's namespace has gone first, and when the
/// next pod has it already.
pub fn into_pods_and_back(lab: &Lab) -> Result<()> {
    let site = CniSite::start(lab)?;
    let (_, before) = site.now()?;
    // With another address its driver starts again, so the interface that comes back is a new one, as `igbvf` makes it.
    let with_mac = json!({ "vlan": 100, "mac": MAC, "trust": "on" });
    let pod = PodNetns::new("pod")?;
    let result = site.must("ADD", "c1", &pod, &with_mac)?;
    ensure!(result["interfaces"][0]["mac"] == MAC, "{result}");
    let during = site.states()?;
    ensure!(during[0]["vlan_list"][0]["vlan"] == 100 && during[0]["trust"] == true, "{during:?}");
    ensure!(during[0]["address"] == MAC && during[1] == before[1], "{during:?}");
    let inside = ip(&["-n", "pod", "link", "show", "net1"])?;
    ensure!(inside.contains(MAC) && inside.contains(",UP"), "{inside}");
    ensure!(site.at_home().is_err(), "it is not on the host any more");
    site.must("DEL", "c1", &pod, &with_mac)?;
    let was = site.now()?;
    ensure!(was.1 == before && was.0[1] != MAC, "the PF tells of it otherwise: {was:?}, and before {before:?}");

    let wanted = json!({ "vlan": 100, "trust": "on" });
    site.must("ADD", "c1", &pod, &wanted)?;
    for _ in 0..2 {
        site.must("DEL", "c1", &pod, &wanted)?;
        site.is_as_before(&was)?;
    }
    site.left_nothing()?;

    // The namespace ends, and the kernel brings the VF home under the pod's name.
    site.must("ADD", "c1", &pod, &wanted)?;
    let path = pod.path();
    drop(pod);
    site.must_at("DEL", "c1", &path, &wanted)?;
    site.is_as_before(&was)?;

    // The DEL of an old pod comes when the next one has the VF.
    let old = PodNetns::new("old")?;
    site.must("ADD", "c1", &old, &wanted)?;
    let path = old.path();
    drop(old);
    site.vf.wait_for_interface();
    let next = PodNetns::new("next")?;
    site.must("ADD", "c2", &next, &json!({ "vlan": 200 }))?;
    let states = site.states()?;
    site.must_at("DEL", "c1", &path, &wanted)?;
    ensure!(site.states()? == states && states[0]["vlan_list"][0]["vlan"] == 200, "{states:?}, {:?}", site.states());
    ip(&["-n", "next", "link", "show", "net1"])?;
    site.must("DEL", "c2", &next, &json!({}))?;
    site.is_as_before(&was)?;
    site.left_nothing()
}

/// What the NIC cannot do is refused, and nothing of the ADD is left.
pub fn refused(lab: &Lab) -> Result<()> {
    let site = CniSite::start(lab)?;
    let was = site.now()?;
    let pod = PodNetns::new("pod")?;
    let service_tag = json!({ "vlan": 100, "vlanProto": "802.1ad" });
    let (is_done, answer) = site.ask("ADD", "c1", &pod.path(), &service_tag)?;
    let said = answer["msg"].as_str().unwrap_or_default();
    let names_all =
        said.contains(&site.vf.address) && said.contains("ask for the VF without it") && !said.contains('\n');
    ensure!(!is_done && names_all, "{answer}");
    site.is_as_before(&was)?;
    let links = ip(&["-n", "pod", "-o", "link", "show"])?;
    ensure!(links.lines().count() == 1, "in the pod is more than its loopback: {links}");
    site.left_nothing()?;
    site.must("ADD", "c1", &pod, &json!({ "vlan": 100 }))?;
    site.must("DEL", "c1", &pod, &json!({}))?;
    site.left_nothing()
}

/// ADD and DEL beside what the kernel takes for the same, and what a program takes to start.
pub fn times(lab: &Lab) -> Result<()> {
    const ROUNDS: usize = 20;
    let site = CniSite::start(lab)?;
    let pf = &lab.pfs[0];
    let index = pf.read(&format!("net/{}/ifindex", site.pf))?.parse()?;
    let of_pf = Interface { index, device: pf.address.parse()? };
    let pod = PodNetns::new("pod")?;
    let [mut into, mut back, mut starts, mut adds, mut dels] = [(); 5].map(|()| Vec::new());
    let tell = |id| {
        let vlan = Vlan { id, qos: 0, protocol: VlanProtocol::Dot1Q };
        LiveKernel.set_vf(of_pf, 0, VfChange::Vlan(vlan)).map_err(|refusal| anyhow!("{refusal}"))
    };
    for round in 0..ROUNDS {
        rest();
        let vlan = 1 + round as u16;
        let began = Instant::now();
        tell(vlan)?;
        let (mut host, mut inside) = (Namespace::host()?, Namespace::open(&pod.path())?);
        let home = site.vf.interface().context("a VF has an interface")?;
        let link = host.named(&home)?.context("it is on the host")?;
        host.move_to(&link, &inside, "net1")?;
        let moved = inside.named("net1")?.context("it is in the pod")?;
        inside.set_up(&moved)?;
        into.push(began.elapsed());
        rest();
        let began = Instant::now();
        inside.set_down(&moved, moved.mac, moved.mtu)?;
        inside.move_to(&moved, &host, &home)?;
        tell(0)?;
        back.push(began.elapsed());
        drop((host, inside));
        for (command, times) in [("VERSION", &mut starts), ("ADD", &mut adds), ("DEL", &mut dels)] {
            rest();
            let began = Instant::now();
            site.must(command, "c1", &pod, &json!({ "vlan": vlan }))?;
            times.push(began.elapsed());
        }
    }
    lab.times("kernel: VLAN, into a namespace, up", &mut into);
    lab.times("kernel: down, back, no VLAN", &mut back);
    lab.times("the program starts and ends (VERSION)", &mut starts);
    lab.times("ADD", &mut adds);
    lab.times("DEL", &mut dels);
    site.left_nothing()
}

/// A manager, and a VF that the device plugin has borrowed for a pod.
struct CniSite<'a> {
    lab: &'a Lab,
    _manager: Manager,
    /// The interface of the PF.
    pf: String,
    vf: Function,
}

impl<'a> CniSite<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        let pf = lab.pfs[0].interface().context("a PF has an interface")?;
        let manager = Manager::start(lab, &ManagerOptions { quiet: true, ..ManagerOptions::default() })?;
        manager.create(&lab.pfs[..1], 2)?;
        let vf = lab.pfs[0].vfs().remove(0);
        manager.acquire(&format!("intel.com/net@{}", vf.address), &vf, "kernel", None)?;
        vf.wait_for_interface();
        Ok(Self { lab, _manager: manager, pf, vf })
    }

    /// Runs the plugin's program as a runtime does.
    fn ask(&self, command: &str, container: &str, netns: &Path, more: &Value) -> Result<(bool, Value)> {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "sriov",
            "deviceID": self.vf.address,
            "ferrule": { "manager": ManagerOptions::default().socket(self.lab), "state": self.records() },
        });
        let more = more.as_object().cloned().unwrap_or_default();
        config.as_object_mut().context("a configuration is an object")?.extend(more);
        let mut plugin = Command::new("ferrule-cni");
        plugin.env("CNI_COMMAND", command).env("CNI_CONTAINERID", container).env("CNI_IFNAME", "net1");
        plugin.env("CNI_NETNS", netns).env("CNI_PATH", "/bin");
        let mut child = plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("run ferrule-cni")?;
        child.stdin.take().context("it reads its input")?.write_all(config.to_string().as_bytes())?;
        let output = child.wait_with_output().context("wait for ferrule-cni")?;
        Ok((output.status.success(), serde_json::from_slice(&output.stdout).unwrap_or_default()))
    }

    fn must(&self, command: &str, container: &str, pod: &PodNetns, more: &Value) -> Result<Value> {
        self.must_at(command, container, &pod.path(), more)
    }

    fn must_at(&self, command: &str, container: &str, netns: &Path, more: &Value) -> Result<Value> {
        let (is_done, answer) = self.ask(command, container, netns, more)?;
        ensure!(is_done, "{command} {container}: {answer}");
        Ok(answer)
    }

    /// The VF's interface, as `ip` shows it on the host.
    fn at_home(&self) -> Result<(Value, Value, Value)> {
        let name = self.vf.interface().context("the VF has no interface on the host")?;
        let links: Value = serde_json::from_str(&ip(&["-j", "link", "show", &name])?).context("understand ip")?;
        let [name, address, mtu] = ["ifname", "address", "mtu"].map(|key| links[0][key].clone());
        Ok((name, address, mtu))
    }

    /// The VF's interface, and what the PF says of its VFs.
    fn now(&self) -> Result<(Value, Vec<Value>)> {
        let (name, address, mtu) = self.at_home()?;
        Ok((json!([name, address, mtu]), self.states()?))
    }

    fn is_as_before(&self, was: &(Value, Vec<Value>)) -> Result<()> {
        let now = self.now()?;
        ensure!(now == *was, "it is not as it was: {now:?}, and before {was:?}");
        Ok(())
    }

    /// What the PF says of its VFs.
    fn states(&self) -> Result<Vec<Value>> {
        vf_states(&self.pf)
    }

    fn records(&self) -> PathBuf {
        self.lab.state().join("cni")
    }

    fn left_nothing(&self) -> Result<()> {
        let records = fs::read_dir(self.records().join("vf")).context("list the records")?.flatten();
        let records: Vec<_> = records.map(|entry| entry.path()).collect();
        ensure!(records.is_empty(), "left behind: {records:?}");
        Ok(())
    }
}

/// A network namespace that is deleted with this value.
struct PodNetns {
    name: &'static str,
}

impl PodNetns {
    fn new(name: &'static str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        Ok(Self { name })
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(self.name)
    }
}

impl Drop for PodNetns {
    fn drop(&mut self) {
        let deleted = ip(&["netns", "del", self.name]);
        if !std::thread::panicking() {
            eventually("its file is gone", || deleted.is_ok() && !self.path().exists());
        }
    }
}

const MAC: &str = "02:00:00:00:00:07";

/// All of the machine is a single thread, and the manager looks at every device when the last operation's uevents have come.
fn rest() {
    std::thread::sleep(Duration::from_millis(60));
}
