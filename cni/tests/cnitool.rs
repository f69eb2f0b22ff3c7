//! The program itself, called by `cnitool` of the module `github.com/containernetworking/cni`, with the addresses of `host-local` and
//! `static`: all three are those of their authors.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use serde_json::{Value, json};
use sriov_manager_client::v1;

use common::{Pod, Site, has, ip};

/// The programs in Go, by name; none: they were not built, which has been said.
fn programs(test: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/node/bin");
    if ["cnitool", "host-local", "static"].iter().all(|name| folder.join(name).is_file()) {
        return Some(folder);
    }
    eprintln!("skipped: {test}: lacks cnitool, host-local and static (hw-tests/node/build target/node cni)");
    None
}

/// A node on which a runtime finds the plugin as `sriov`.
struct Runtime {
    site: Site,
    programs: PathBuf,
}

impl Runtime {
    fn start(test: &str, vfs: u32) -> Option<Self> {
        let programs = programs(test)?;
        let site = Site::start(test, vfs)?;
        symlink(env!("CARGO_BIN_EXE_ferrule-cni"), site.bin().join("sriov")).unwrap();
        fs::create_dir(site.directory.path().join("net.d")).unwrap();
        Some(Self { site, programs })
    }

    /// Writes a list of one network for a VF.
    fn write(&self, name: &str, vf: u32, more: Value) {
        let mut plugin = self.site.config(vf, more);
        let version = plugin["cniVersion"].take();
        let list = json!({ "cniVersion": version, "name": name, "plugins": [plugin] });
        let file = self.site.directory.path().join("net.d").join(format!("{name}.conflist"));
        fs::write(file, list.to_string()).unwrap();
    }

    fn tool(&self, command: &str, name: &str, pod: &Path) -> Output {
        let mut tool = Command::new(self.programs.join("cnitool"));
        tool.args([command, name]).arg(pod).env("CNI_IFNAME", "net1");
        tool.env("NETCONFPATH", self.site.directory.path().join("net.d"));
        tool.env("CNI_PATH", format!("{}:{}", self.site.bin().display(), self.programs.display()));
        self.site.host.run(|| tool.output()).unwrap().unwrap()
    }

    fn must(&self, command: &str, name: &str, pod: &Path) -> Value {
        let output = self.tool(command, name, pod);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command} {name}: {said}{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&said).unwrap_or_default()
    }
}

fn host_local(site: &Site) -> Value {
    let state = site.directory.path().join("host-local");
    json!({ "type": "host-local", "dataDir": state, "ranges": [[{ "subnet": "10.9.0.0/24" }]], "routes": [{ "dst": "10.10.0.0/16" }] })
}

#[test]
fn every_release_is_served_as_the_authors_tool_asks_for_it() {
    let Some(runtime) = Runtime::start("every_release_is_served", 1) else { return };
    let site = &runtime.site;
    site.lend(0, v1::Driver::Kernel, v1::Attributes::default());
    let fixed = json!({ "type": "static", "addresses": [{ "address": "10.9.0.7/24", "gateway": "10.9.0.1" }, { "address": "2001:db8::7/64" }] });
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        for (name, ipam) in [("range", host_local(site)), ("fixed", fixed.clone())] {
            let pod = Pod::new();
            runtime.write(name, 0, json!({ "cniVersion": version, "vlan": 100, "ipam": ipam }));
            let result = runtime.must("add", name, &pod.path);
            assert_eq!((&result["cniVersion"], &result["interfaces"][0]["name"]), (&json!(version), &json!("net1")));
            let address = result["ips"][0]["address"].as_str().unwrap();
            assert!(ip(&pod.netns, "addr show net1").contains(address), "{version} {name}: {result}");
            assert_eq!(site.asked_of(0).vlan.unwrap().id, 100);
            if version != "0.3.1" {
                runtime.must("check", name, &pod.path);
            }
            if version == "1.1.0" {
                runtime.must("status", name, &pod.path);
            }
            runtime.must("del", name, &pod.path);
            runtime.must("del", name, &pod.path);
            assert!(has(&site.host, &site.netdev(0)) && site.asked_of(0).vlan.is_none(), "{version} {name}");
            assert_eq!(site.leftovers(), [""; 0]);
        }
    }
}

#[test]
fn the_tool_shows_why_not_in_one_line_and_addresses_are_given_back() {
    let Some(runtime) = Runtime::start("the_tool_shows_why_not", 1) else { return };
    let site = &runtime.site;
    let pod = Pod::new();
    runtime.write("net", 0, json!({ "deviceID": "0000:ff:1f.7", "ipam": host_local(site) }));
    let output = runtime.tool("add", "net", &pod.path);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let wanted = "network `net`: device 0000:ff:1f.7: sriov-manager knows no such VF: look at `ferrule vf list` for those that there are";
    assert!(!output.status.success() && said.contains(wanted), "{said}");
    let taken = fs::read_dir(site.directory.path().join("host-local/net")).unwrap();
    let taken: Vec<_> = taken.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(!taken.iter().any(|name| name.starts_with("10.9.")), "{taken:?}");
}

#[test]
fn gc_of_the_tool_takes_back_everything_that_it_does_not_know() {
    let Some(runtime) = Runtime::start("gc_of_the_tool", 1) else { return };
    let site = &runtime.site;
    let pod = Pod::new();
    runtime.write("net", 0, json!({}));
    runtime.must("add", "net", &pod.path);
    runtime.must("gc", "net", &pod.path);
    assert!(has(&site.host, &site.netdev(0)));
    assert_eq!(site.leftovers(), [""; 0]);
}

#[test]
fn a_hundred_programs_come_and_go_side_by_side() {
    const COUNT: u32 = 100;
    let Some(runtime) = Runtime::start("a_hundred_programs", COUNT) else { return };
    let site = &runtime.site;
    let pods: Vec<_> = (0..COUNT).map(|_| Pod::new()).collect();
    for index in 0..COUNT {
        // One network, and so one range of addresses.
        let keys = json!({ "vlan": index + 1, "ipam": host_local(site) });
        runtime.write(&format!("net{index}"), index, keys);
    }
    for command in ["add", "del"] {
        thread::scope(|scope| {
            for (index, pod) in pods.iter().enumerate() {
                let runtime = &runtime;
                scope.spawn(move || runtime.must(command, &format!("net{index}"), &pod.path));
            }
        });
        let attached = pods.iter().filter(|pod| has(&pod.netns, "net1")).count();
        assert_eq!(attached, if command == "add" { pods.len() } else { 0 });
    }
    assert!((0..COUNT).all(|index| has(&site.host, &site.netdev(index))));
    assert_eq!(site.leftovers(), [""; 0]);
}
