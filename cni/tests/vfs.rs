//! VFs into pods and back, with a manager on a made-up node and interfaces that stand for those of its VFs.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use sriov_manager_client::v1;

use common::{Asked, Pod, Site, has, ip};

fn vlan(id: u32) -> v1::Vlan {
    v1::Vlan { id, qos: 0, protocol: v1::VlanProtocol::Dot1q.into() }
}

#[test]
fn a_vf_is_the_container_s_interface_and_then_as_it_was() {
    let Some(site) = Site::start("a_vf_is_the_container_s_interface", 1) else { return };
    let netdev = site.netdev(0);
    let before = v1::Attributes { trust: Some(false), ..Default::default() };
    site.lend(0, v1::Driver::Kernel, before.clone());
    let was = ip(&site.host, &format!("-br link show {netdev}"));
    let pod = Pod::new();
    let config = site.config(0, json!({ "vlan": 100, "trust": "on", "ipam": site.with_ipam() }));
    let answer = site.ask(&pod.asked("ADD", "c1", &config));
    assert!(answer.is_done, "{answer:?}");
    let result = answer.document.unwrap();
    let interface = &result["interfaces"][0];
    assert_eq!((&interface["name"], &interface["mtu"]), (&json!("net1"), &json!(1500)));
    assert_eq!(interface["pciID"], json!(site.address(0)));
    assert_eq!(result["ips"][0]["interface"], json!(0));
    let asked = site.asked_of(0);
    assert_eq!((asked.vlan, asked.trust), (Some(vlan(100)), Some(true)));
    assert!(!has(&site.host, &netdev));
    let shown = ip(&pod.netns, "addr show net1");
    for part in ["10.9.0.5/24", "2001:db8::5/64", "state U"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(ip(&pod.netns, "route").contains("10.10.0.0/16 via 10.9.0.1"), "{}", ip(&pod.netns, "route"));

    let mut checked = config.clone();
    checked["prevResult"] = result;
    let answer = site.ask(&pod.asked("CHECK", "c1", &checked));
    assert!(answer.is_done, "{answer:?}");
    ip(&pod.netns, "addr del 10.9.0.5/24 dev net1");
    let answer = site.ask(&pod.asked("CHECK", "c1", &checked));
    assert!(answer.document.unwrap()["msg"].as_str().unwrap().contains("net1 has lost 10.9.0.5/24"));

    for _ in 0..2 {
        let answer = site.ask(&pod.asked("DEL", "c1", &config));
        assert!(answer.is_done && answer.document.is_none(), "{answer:?}");
        assert_eq!(ip(&site.host, &format!("-br link show {netdev}")), was);
        assert_eq!(site.asked_of(0), before);
        assert_eq!(site.leftovers(), [""; 0]);
    }
}

#[test]
fn a_vf_on_vfio_gets_its_attributes_and_no_interface() {
    let Some(site) = Site::start("a_vf_on_vfio", 1) else { return };
    site.lend(0, v1::Driver::VfioPci, v1::Attributes::default());
    let pod = Pod::new();
    let info = site.directory.path().join("devinfo/c1.json");
    let config = json!({ "vlan": 7, "mac": "02:00:00:00:00:09", "runtimeConfig": { "CNIDeviceInfoFile": info } });
    let config = site.config(0, config);
    let result = site.ask(&pod.asked("ADD", "c1", &config)).document.unwrap();
    assert_eq!(result["interfaces"][0], json!({ "name": "net1", "pciID": site.address(0) }));
    let asked = site.asked_of(0);
    assert_eq!((asked.vlan, asked.mac.as_deref()), (Some(vlan(7)), Some("02:00:00:00:00:09")));
    let written: serde_json::Value = serde_json::from_slice(&fs::read(&info).unwrap()).unwrap();
    assert_eq!(written["pci"]["pci-address"], json!(site.address(0)));
    assert!(site.ask(&pod.asked("DEL", "c1", &config)).is_done);
    assert!(site.asked_of(0).vlan.is_none() && !info.exists());
    assert_eq!(site.leftovers(), [""; 0]);
}

#[test]
fn a_vf_that_nobody_has_lent_is_lent_for_as_long_as_the_attachment() {
    let Some(site) = Site::start("a_vf_that_nobody_has_lent", 1) else { return };
    let pod = Pod::new();
    let config = site.config(0, json!({}));
    assert!(site.ask(&pod.asked("ADD", "c1", &config)).is_done);
    assert_eq!(site.vf(0).lease.unwrap().id, "cni/c1/net1");
    assert!(site.ask(&pod.asked("DEL", "c1", &config)).is_done);
    assert!(site.vf(0).lease.is_none());
}

#[test]
fn a_del_beside_an_add_that_was_given_up_waits_for_it_and_undoes_it() {
    let Some(site) = Site::start("a_del_beside_an_add", 1) else { return };
    let config = site.config(0, json!({ "vlan": 100, "ipam": site.with_ipam() }));
    let lock = site.at("cni/locks/c1:net1");
    let steps = AtomicUsize::new(usize::MAX);
    for at in 0.. {
        if at >= steps.load(Ordering::Relaxed) {
            break;
        }
        let pod = Pod::new();
        let (add, del) = (pod.asked("ADD", "c1", &config), pod.asked("DEL", "c1", &config));
        thread::scope(|scope| {
            let (count, deleting) = (AtomicUsize::new(0), Mutex::new(None));
            let observer = |_: &str| {
                if count.fetch_add(1, Ordering::Relaxed) == at {
                    let running = scope.spawn(|| site.ask(&del));
                    eventually(|| running.is_finished() || is_waited_for(&lock));
                    *deleting.lock().unwrap() = Some(running);
                }
            };
            site.ask_observed(&add, &observer);
            let deleted = deleting.into_inner().unwrap().unwrap().join().unwrap();
            assert!(deleted.is_done, "{at}: {deleted:?}");
            steps.store(count.into_inner(), Ordering::Relaxed);
        });
        assert!(has(&site.host, &site.netdev(0)) && !has(&pod.netns, "net1"), "{at}");
        assert_eq!(site.leftovers(), [""; 0], "{at}");
    }
    assert!(steps.into_inner() > 3 && !lock.exists());
}

/// Whether somebody waits for a lock of this file (`proc_locks(5)`).
fn is_waited_for(lock: &Path) -> bool {
    let Ok(file) = fs::metadata(lock) else { return false };
    let (inode, locks) = (format!(":{} ", file.ino()), fs::read_to_string("/proc/locks").unwrap_or_default());
    locks.lines().any(|line| line.contains("-> FLOCK") && line.contains(&inode))
}

fn eventually(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "it does not become so");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_fails_leaves_nothing_and_says_why_in_one_line() {
    let Some(site) = Site::start("what_fails_leaves_nothing", 2) else { return };
    let pod = Pod::new();
    site.manager(async |mut client| {
        let vfs = vec![site.address(1)];
        client.claim(v1::ClaimRequest { owner: "device-plugin".into(), vfs, ..Default::default() }).await
    });
    let missing = json!({ "deviceID": "0000:ff:1f.7" });
    let cases = [
        (
            0,
            json!({ "ipam": site.with_ipam(), "args": "refuse" }),
            11,
            "plugin `ledger` of ipam: ADD: no address is left; in 10.9.0.0/24",
        ),
        (0, json!({ "ipam": { "type": "nobody" } }), 5, "there is none of that name in"),
        (0, json!({ "ipam": { "type": "../ledger" } }), 7, "the name of a plugin is wanted"),
        (0, json!({ "mtu": 1, "ipam": site.with_ipam(), "deviceID": missing["deviceID"] }), 7, "knows no such VF"),
        (1, json!({ "ipam": site.with_ipam() }), 11, "device-plugin owns it and has lent it to nobody"),
        (0, json!({ "vlan": 4095 }), 7, "vlan: 4095"),
        (0, json!({ "cniVersion": "0.2.0" }), 1, "cniVersion `0.2.0`"),
    ];
    let was = site.node.fingerprint();
    for (vf, keys, code, part) in cases {
        let answer = site.ask(&pod.asked("ADD", "c1", &site.config(vf, keys)));
        let document = answer.document.unwrap();
        let message = document["msg"].as_str().unwrap();
        assert!(!answer.is_done && document["code"] == code && message.contains(part), "{part}: {document}");
        assert!(!message.contains('\n'));
        assert_eq!(site.leftovers(), [""; 0], "{part}");
    }
    // The kernel refuses the name only when the interface is there.
    ip(&pod.netns, "link add net1 type veth peer name other");
    let answer = site.ask(&pod.asked("ADD", "c1", &site.config(0, json!({}))));
    assert!(answer.document.unwrap()["msg"].as_str().unwrap().contains("has an interface net1 already"));
    let lost =
        Asked { netns: Some("/run/netns/not-there".as_ref()), ..pod.asked("ADD", "c1", &site.config(0, json!({}))) };
    assert_eq!(site.ask(&lost).document.unwrap()["code"], 3);
    assert_eq!(site.node.fingerprint(), was);
}

#[test]
fn killed_at_any_step_it_is_taken_back_and_the_next_add_works() {
    let Some(site) = Site::start("killed_at_any_step", 1) else { return };
    let netdev = site.netdev(0);
    let before = v1::Attributes { vlan: Some(vlan(5)), ..Default::default() };
    site.lend(0, v1::Driver::Kernel, before.clone());
    let config = site.config(0, json!({ "vlan": 100, "ipam": site.with_ipam() }));
    let steps = AtomicUsize::new(0);
    let count = |_: &str| {
        steps.fetch_add(1, Ordering::Relaxed);
    };
    let pod = Pod::new();
    assert!(site.ask_observed(&pod.asked("ADD", "c1", &config), &count).is_done);
    let in_add = steps.swap(0, Ordering::Relaxed);
    assert!(site.ask_observed(&pod.asked("DEL", "c1", &config), &count).is_done);
    let in_del = steps.into_inner();
    assert!(in_add >= 6 && in_del == 2, "{in_add} {in_del}");

    let die_at = |command, at| site.ask_killed(&pod.asked(command, "c1", &config), at);
    for at in 0..in_add {
        die_at("ADD", at);
        assert!(site.ask(&pod.asked("DEL", "c1", &config)).is_done, "{at}");
        assert!(has(&site.host, &netdev) && !has(&pod.netns, "net1"), "{at}");
        assert_eq!((site.asked_of(0), site.leftovers()), (before.clone(), Vec::new()), "{at}");
        // The next sandbox of the pod, without a DEL of this one.
        die_at("ADD", at);
        let next = Pod::new();
        let answer = site.ask(&next.asked("ADD", "c2", &config));
        // Where it is in a container that is there it is that one's.
        let message = answer.document.unwrap()["msg"].as_str().unwrap_or_default().to_owned();
        assert!(answer.is_done || message.contains("container c1 still has it"), "{at}: {message}");
        assert!(site.ask(&pod.asked("DEL", "c1", &config)).is_done);
        assert!(answer.is_done || site.ask(&next.asked("ADD", "c2", &config)).is_done, "{at}");
        assert!(has(&next.netns, "net1") && site.asked_of(0).vlan == Some(vlan(100)), "{at}");
        assert!(site.ask(&next.asked("DEL", "c2", &config)).is_done);
        assert_eq!((site.asked_of(0), site.leftovers()), (before.clone(), Vec::new()), "{at}");
    }
    for at in 0..in_del {
        assert!(site.ask(&pod.asked("ADD", "c1", &config)).is_done);
        die_at("DEL", at);
        assert!(site.ask(&pod.asked("DEL", "c1", &config)).is_done, "{at}");
        assert!(has(&site.host, &netdev));
        assert_eq!((site.asked_of(0), site.leftovers()), (before.clone(), Vec::new()), "{at}");
    }
}

#[test]
fn a_pod_ends_while_the_manager_is_away_and_the_next_one_finds_the_vf_as_it_was() {
    let Some(mut site) = Site::start("a_pod_ends_while_the_manager_is_away", 1) else { return };
    let before = v1::Attributes { vlan: Some(vlan(5)), ..Default::default() };
    site.lend(0, v1::Driver::Kernel, before.clone());
    let (pod, next) = (Pod::new(), Pod::new());
    let config = site.config(0, json!({ "vlan": 100, "ipam": site.with_ipam() }));
    assert!(site.ask(&pod.asked("ADD", "c1", &config)).is_done);
    site.stop_manager();
    assert!(site.ask(&pod.asked("DEL", "c1", &config)).is_done);
    assert!(has(&site.host, &site.netdev(0)));
    assert_eq!(site.taken(), 0);
    let answer = site.ask(&next.asked("ADD", "c2", &config));
    assert_eq!(answer.document.unwrap()["code"], 11, "it is tried again");
    let answer = site.ask(&next.asked("STATUS", "c2", &config)).document.unwrap();
    assert_eq!(answer["code"], 50, "{answer}");
    site.start_manager(1);
    assert!(site.ask(&next.asked("STATUS", "c2", &config)).is_done);
    assert!(site.ask(&next.asked("ADD", "c2", &site.config(0, json!({ "trust": "on" })))).is_done);
    assert_eq!(site.asked_of(0).vlan, before.vlan);
    assert!(site.ask(&next.asked("DEL", "c2", &config)).is_done);
    assert_eq!((site.asked_of(0), site.leftovers()), (before, Vec::new()));
}

#[test]
fn the_del_of_an_old_pod_leaves_the_next_pod_s_vf_alone() {
    let Some(site) = Site::start("the_del_of_an_old_pod", 1) else { return };
    site.lend(0, v1::Driver::Kernel, v1::Attributes::default());
    let (old, next) = (Pod::new(), Pod::new());
    let config = site.config(0, json!({ "vlan": 100 }));
    assert!(site.ask(&old.asked("ADD", "c1", &config)).is_done);
    // Its namespace ends, and the interface is home as the kernel leaves it.
    ip(&old.netns, "link del net1");
    site.make_stand_in(0);
    drop(old);
    assert!(site.ask(&next.asked("ADD", "c2", &config)).is_done);
    let late = Asked { netns: None, ..next.asked("DEL", "c1", &config) };
    assert!(site.ask(&late).is_done);
    assert!(has(&next.netns, "net1"));
    assert_eq!(site.asked_of(0).vlan, Some(vlan(100)));
}

#[test]
fn a_device_plugin_that_lags_behind_undoes_nothing() {
    let Some(site) = Site::start("a_device_plugin_that_lags_behind", 1) else { return };
    let before = v1::Attributes { vlan: Some(vlan(5)), spoof_check: Some(true), ..Default::default() };
    site.lend(0, v1::Driver::Kernel, before.clone());
    let pod = Pod::new();
    let config = site.config(0, json!({ "vlan": 100, "trust": "on" }));
    assert!(site.ask(&pod.asked("ADD", "c1", &config)).is_done);
    let attached = site.asked_of(0);
    assert_eq!((attached.vlan, attached.trust), (Some(vlan(100)), Some(true)));
    site.lend_again(0, before.clone());
    assert_eq!(site.asked_of(0), attached);
    assert!(site.ask(&pod.asked("DEL", "c1", &config)).is_done);
    assert_eq!(site.asked_of(0), before);
    // And the other way: what it has heard of last is of the pod that had the VF.
    site.lend_again(0, attached);
    assert_eq!(site.asked_of(0), before);
}

#[test]
fn a_del_after_a_reboot_gives_the_lease_back_and_leaves_the_interface() {
    let Some(site) = Site::start("a_del_after_a_reboot", 1) else { return };
    site.lend(0, v1::Driver::Kernel, v1::Attributes::default());
    let pod = Pod::new();
    let config = site.config(0, json!({ "vlan": 100 }));
    assert!(site.ask(&pod.asked("ADD", "c1", &config)).is_done);
    fs::write(site.node.sysfs().path("proc/sys/kernel/random/boot_id"), "another\n").unwrap();
    ip(&pod.netns, "link del net1");
    let late = Asked { netns: None, ..pod.asked("DEL", "c1", &config) };
    assert!(site.ask(&late).is_done);
    assert_eq!((site.asked_of(0).vlan, site.leftovers()), (None, Vec::new()));
}

#[test]
fn gc_takes_back_what_the_runtime_has_forgotten() {
    let Some(site) = Site::start("gc_takes_back", 2) else { return };
    let (one, two) = (Pod::new(), Pod::new());
    assert!(site.ask(&one.asked("ADD", "c1", &site.config(0, json!({})))).is_done);
    assert!(site.ask(&two.asked("ADD", "c2", &site.config(1, json!({})))).is_done);
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": "c2", "ifname": "net1" }] });
    let gc = one.asked("GC", "", &site.config(0, valid));
    let answer = site.ask(&gc);
    assert!(answer.is_done, "{answer:?}");
    assert!(has(&site.host, &site.netdev(0)) && site.vf(0).lease.is_none());
    assert!(has(&two.netns, "net1") && site.vf(1).lease.is_some());
}

#[test]
fn gc_after_a_lost_state_gives_back_what_was_borrowed_for_this_network_alone() {
    let Some(site) = Site::start("gc_after_a_lost_state", 3) else { return };
    let pods = [Pod::new(), Pod::new(), Pod::new()];
    for (index, name) in [(0, "net"), (1, "net"), (2, "other")] {
        let config = site.config(index, json!({ "name": name }));
        assert!(site.ask(&pods[index as usize].asked("ADD", &format!("c{index}"), &config)).is_done);
    }
    // With its namespace the interface of the first comes home.
    ip(&pods[0].netns, "link del net1");
    fs::remove_dir_all(site.at("cni")).unwrap();
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": "c1", "ifname": "net1" }] });
    let answer = site.ask(&pods[0].asked("GC", "", &site.config(0, valid)));
    assert!(answer.is_done, "{answer:?}");
    let leases = (0..3).map(|index| site.vf(index).lease.map(|lease| lease.id)).collect::<Vec<_>>();
    assert_eq!(leases, [None, Some("cni/c1/net1".to_owned()), Some("cni/c2/net1".to_owned())]);
}

#[test]
fn a_hundred_come_and_go_side_by_side() {
    let Some(site) = Site::start("a_hundred_come_and_go", 100) else { return };
    let was = site.node.fingerprint();
    let pods: Vec<_> = (0..100).map(|_| Pod::new()).collect();
    for command in ["ADD", "DEL"] {
        thread::scope(|scope| {
            for (index, pod) in pods.iter().enumerate() {
                let config = site.config(index as u32, json!({ "vlan": index + 1 }));
                let site = &site;
                scope.spawn(move || {
                    let answer = site.ask(&pod.asked(command, &format!("c{index}"), &config));
                    assert!(answer.is_done, "{index}: {answer:?}");
                });
            }
        });
        if command == "ADD" {
            let told = (0..100).all(|index| site.asked_of(index).vlan == Some(vlan(index + 1)));
            assert!(told && pods.iter().all(|pod| has(&pod.netns, "net1")));
        }
    }
    assert_eq!((site.leftovers(), site.node.fingerprint()), (Vec::new(), was));
    assert!((0..100).all(|index| has(&site.host, &site.netdev(index))));
}
