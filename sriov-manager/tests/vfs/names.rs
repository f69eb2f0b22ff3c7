//! PFs and VFs by the names that people and policies have for them.

use std::fs;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use sriov_manager::attributes::Attributes;
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::policy::{NumVfs, PeerCredentials, PfSelector, Policies, Pool};
use sriov_manager::vfs::{Choice, Place, Request};
use sriov_manager::{Driver, Options, PciAddress, Vfs};

fn pool(name: &str) -> Policies {
    let pfs = vec![PfSelector { name: Some(name.to_owned()), ..PfSelector::default() }];
    Policies { pools: vec![Pool { name: "all".to_owned(), pfs, num_vfs: Some(NumVfs::Exactly(3)), ..Pool::default() }] }
}

fn request(vf: PciAddress) -> Request {
    Request {
        id: "pod".to_owned(),
        tenant: "a test".to_owned(),
        choice: Choice::Vf(vf),
        place: Place::default(),
        owner: None,
        until: None,
        driver: Some(Driver::None),
        attributes: Attributes::default(),
        peer: PeerCredentials::myself(),
        force: false,
        again: None,
    }
}

/// Another interface below a PF, as the kernel shows it.
fn add_netdev(node: &FakeNode, pf: PciAddress, name: &str, files: &[(&str, &str)]) {
    let directory = node.sysfs().file(pf, "net").join(name);
    fs::create_dir(&directory).expect("a folder can be made");
    for (file, text) in [("mtu", "1500"), ("ifindex", "900")].iter().chain(files) {
        fs::write(directory.join(file), format!("{text}\n")).expect("a file can be written");
    }
}

#[test]
fn a_pf_is_known_by_every_name_and_address_that_people_have_for_it() {
    let node = FakeNode::new(2, 7);
    let vfs = node.open();
    node.add_altname(node.pf(1), "uplink-of-the-rack");
    for (name, pf) in [
        ("0000:03:00.0", node.pf(1)),
        ("03:00.0", node.pf(1)),
        ("ens1f1", node.pf(1)),
        ("uplink-of-the-rack", node.pf(1)),
        ("02:00.0", node.pf(0)),
    ] {
        assert_eq!(vfs.find_pf(name).unwrap(), pf, "{name}");
    }
    let error = vfs.find_pf("uplink").unwrap_err().to_string();
    assert!(error.starts_with("there is no PF uplink; name it by its address or its interface"), "{error}");
}

#[test]
fn a_vf_is_known_by_its_interface_and_by_an_address_without_the_domain() {
    let node = FakeNode::new(1, 7);
    let vfs = node.open();
    vfs.create(node.pf(0), 2).unwrap();
    let vf = node.vf(0, 1);
    fs::write(node.sysfs().file(vf, "driver_override"), "igbvf\n").unwrap();
    sriov_manager::kernel::Kernel::write(&*node.kernel(), &node.sysfs().probe_file(), &vf.to_string()).unwrap();
    vfs.rescan();
    let netdev = node.sysfs().netdevs(vf).pop().unwrap();
    for name in [vf.to_string(), vf.to_string().replace("0000:", ""), netdev] {
        assert_eq!(vfs.find_vf(&name).unwrap(), vf, "{name}");
    }
    let error = vfs.find_vf("ens1f0").unwrap_err().to_string();
    assert_eq!(error, "there is no VF ens1f0; `ferrule vf list` shows those that are there");
}

#[test]
fn policies_may_name_a_pf_by_another_name_of_its_interface_also_one_that_it_gets_later() {
    let node = FakeNode::new(2, 7);
    node.add_altname(node.pf(1), "uplink");
    let vfs = Vfs::open(Options { policies: pool("uplink"), ..node.options() }).unwrap();
    let counts = |vfs: &Vfs| vfs.view().pfs.iter().map(|pf| pf.pf.vfs.len()).collect::<Vec<_>>();
    assert_eq!(counts(&vfs), [0, 3]);
    assert!(vfs.view().warnings.is_empty(), "{:?}", vfs.view().warnings);
    drop(vfs);
    let vfs = Vfs::open(Options { policies: pool("later"), ..node.options() }).unwrap();
    assert!(vfs.view().warnings[0].contains("the pool all fits no PF"), "{:?}", vfs.view().warnings);
    node.add_altname(node.pf(0), "later");
    vfs.rescan();
    assert_eq!(counts(&vfs), [3, 3]);
}

#[test]
fn a_pf_is_spoken_to_through_its_own_port_and_not_through_a_representor_or_another_port() {
    let node = FakeNode::new(1, 7);
    let pf = node.pf(0);
    let own = node.sysfs().netdevs(pf);
    // Before it in the alphabet: the other ends of its VFs in its switch, and a second port.
    add_netdev(&node, pf, "a0", &[("phys_port_name", "pf0vf0"), ("phys_switch_id", "0102")]);
    add_netdev(&node, pf, "a1", &[("phys_port_name", "c1pf0sf7")]);
    add_netdev(&node, pf, "b", &[("dev_port", "1")]);
    assert_eq!(node.sysfs().netdevs(pf), [&own[0], "b", "a0", "a1"]);
    fs::write(node.sysfs().file(pf, "net").join(&own[0]).join("phys_port_name"), "p0\n").unwrap();
    assert_eq!(node.sysfs().interface(pf).unwrap().0, own[0]);
    let vfs = node.open();
    assert_eq!(vfs.view().pfs[0].pf.name(), own[0]);
    assert_eq!(vfs.find_pf("b").unwrap(), pf, "all of its names are its own");
}

#[test]
fn an_interface_that_does_not_tell_which_port_it_is_holds_up_nobody() {
    let node = Arc::new(FakeNode::new(1, 7));
    let (pf, vf) = (node.pf(0), node.vf(0, 0));
    let vfs = node.open();
    vfs.create(pf, 1).unwrap();
    // Nobody is at its other end, as while a driver hangs with the lock that the answer needs.
    add_netdev(&node, pf, "a0", &[]);
    let ports = ["ens1f0", "a0"].map(|netdev| node.sysfs().file(pf, "net").join(netdev).join("phys_port_name"));
    for port in &ports {
        mkfifo(port, Mode::S_IRWXU).unwrap();
    }
    let (done, asked) = mpsc::channel();
    let (asking, beside) = (vfs.clone(), Arc::clone(&node));
    thread::spawn(move || {
        asking.rescan();
        let refused = asking.acquire(&request(vf)).unwrap_err();
        let netdevs = beside.sysfs().netdevs(pf);
        done.send((refused, netdevs)).unwrap();
    });
    let (refused, netdevs) = asked.recv_timeout(Duration::from_secs(10)).expect("nobody waits for it");
    assert!(refused.to_string().contains("does not tell now which interface of 0000:02:00.0"), "{refused}");
    assert_eq!(netdevs.len(), 2, "it is shown all the same");
    // In any order.
    let telling =
        ports.into_iter().zip(["p0\n", "pf0vf0\n"]).map(|(port, name)| thread::spawn(move || fs::write(port, name)));
    for told in telling.collect::<Vec<_>>() {
        told.join().unwrap().unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while node.sysfs().interface(pf).is_none() {
        assert!(Instant::now() < deadline, "it has told");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(node.sysfs().interface(pf).unwrap().0, "ens1f0");
    vfs.acquire(&request(vf)).unwrap();
    vfs.rescan();
    assert_eq!(vfs.view().vfs[0].representor.as_deref(), Some("a0"));
}

#[test]
fn two_who_ask_for_a_name_at_the_same_moment_are_both_told() {
    let node = FakeNode::new(1, 1);
    let vfs = node.open();
    node.add_altname(node.pf(0), "a-long-name");
    node.set(Scenario::AltnamesHang);
    let ask = |name: &str| {
        let vfs = vfs.clone();
        let asking = thread::Builder::new().name(name.to_owned());
        asking.spawn(move || vfs.find_pf("a-long-name").map_err(|error| error.to_string())).unwrap()
    };
    let asked = ["asks-first", "asks-second"].map(|name| {
        let asked = ask(name);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_waiting(name) && !asked.is_finished() {
            assert!(Instant::now() < deadline, "{name} waits");
            thread::sleep(Duration::from_millis(1));
        }
        asked
    });
    node.heal();
    for asked in asked {
        assert_eq!(asked.join().unwrap(), Ok(node.pf(0)));
    }
}

#[test]
fn while_an_answer_is_late_nobody_else_waits_for_it_and_what_was_known_counts() {
    let node = FakeNode::new(1, 1);
    node.add_altname(node.pf(0), "first");
    let mut options = node.options();
    // Whoever waits for it a second time, or a third, is seen.
    options.timeouts.call = Duration::from_secs(2);
    let vfs = Vfs::open(options).unwrap();
    assert_eq!(vfs.find_pf("first").unwrap(), node.pf(0));
    node.set(Scenario::AltnamesHang);
    vfs.find_pf("second").unwrap_err();
    let began = Instant::now();
    for _ in 0..3 {
        vfs.find_pf("second").unwrap_err();
        assert_eq!(vfs.find_pf("first").unwrap(), node.pf(0), "as it was known");
    }
    assert!(began.elapsed() < Duration::from_secs(2), "somebody waited: {:?}", began.elapsed());
    node.add_altname(node.pf(0), "second");
    node.heal();
    let deadline = Instant::now() + Duration::from_secs(10);
    while vfs.find_pf("second").is_err() {
        assert!(Instant::now() < deadline, "it is asked again once the late answer is there");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_question_that_dies_is_put_again() {
    let node = FakeNode::new(1, 1);
    let vfs = node.open();
    node.add_altname(node.pf(0), "uplink");
    node.set(Scenario::AltnamesPanic);
    vfs.find_pf("uplink").unwrap_err();
    node.heal();
    let deadline = Instant::now() + Duration::from_secs(10);
    while vfs.find_pf("uplink").is_err() {
        assert!(Instant::now() < deadline, "it is asked again");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a thread of this process sleeps.
fn is_waiting(name: &str) -> bool {
    let threads = fs::read_dir("/proc/self/task").expect("a process has threads").filter_map(Result::ok);
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    let stat = format!("({name}) S ");
    stats.into_iter().any(|text| text.contains(&stat))
}
