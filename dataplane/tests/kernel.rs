//! Interfaces of the kernel in real network namespaces. Needs root, `/dev/net/tun`, `ip` and `ping`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::port::FRAME_MAX;
use ferrule_dataplane::port::any::LaneEnd;
use ferrule_dataplane::port::kernel::restore::SavedTap;
use ferrule_dataplane::port::kernel::{InterfaceOwner, KernelError, PairEnd, TapInterface, VethPair};
use ferrule_dataplane::port::saved::SavedFiles;
use ferrule_dataplane::spec::{KernelSpec, NetNs, Route};
use ferrule_dataplane::status::DropReason;
use ferrule_ffi::netns;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

#[test]
fn a_tap_has_everything_its_specification_asks_for() {
    let Some([pod]) = namespaces() else { return };
    let mut spec = pod.spec("nsm-1");
    spec.mac = Some("02:00:00:00:00:07".parse().unwrap());
    spec.mtu = Some(9000);
    spec.addresses = ["10.0.0.1/30", "fd00::1/64"].map(|text| text.parse().unwrap()).to_vec();
    spec.routes = vec![
        route("10.1.0.0/16", None),
        route("10.2.0.0/16", Some("10.0.0.2")),
        route("10.0.0.0/30", None),
        route("fd01::/64", Some("fd00::2")),
        route("fd02::5/64", None),
    ];
    let interface = TapInterface::create(&spec).unwrap();

    let link = pod.ip("link show nsm-1");
    for part in ["nsm-1: <NO-CARRIER,BROADCAST,MULTICAST,UP>", "mtu 9000", "link/ether 02:00:00:00:00:07"] {
        assert!(link.contains(part), "{part}: {link}");
    }
    assert!(link.starts_with(&format!("{}: ", interface.index)), "{link}");

    interface.tap.set_carrier(true).unwrap();
    until("the carrier is up", || pod.ip("link show nsm-1").contains("LOWER_UP"));
    let addresses = pod.ip("addr show nsm-1");
    assert!(addresses.contains("inet 10.0.0.1/30 scope global"), "{addresses}");
    assert!(addresses.contains("inet6 fd00::1/64 scope global nodad"), "{addresses}");
    assert!(!pod.ip("-6 addr show nsm-1 scope global").contains("tentative"));
    let routes = format!("{}{}", pod.ip("route"), pod.ip("-6 route"));
    for part in [
        "10.0.0.0/30 dev nsm-1",
        "10.1.0.0/16 dev nsm-1 proto static scope link",
        "10.2.0.0/16 via 10.0.0.2 dev nsm-1",
        "fd00::/64 dev nsm-1",
        "fd01::/64 via fd00::2 dev nsm-1",
        "fd02::/64 dev nsm-1",
    ] {
        assert!(routes.contains(part), "{part}: {routes}");
    }
    assert!(!routes.contains("linkdown"), "{routes}");
}

#[test]
fn frames_that_the_kernel_sends_come_out_of_the_tap() {
    let Some([pod]) = namespaces() else { return };
    let mut spec = pod.spec("nsm-1");
    spec.mac = Some("02:00:00:00:00:07".parse().unwrap());
    spec.addresses = vec!["10.0.0.1/30".parse().unwrap()];
    let interface = TapInterface::create(&spec).unwrap();
    interface.tap.set_offloads(true).unwrap();
    interface.tap.set_carrier(true).unwrap();
    until("the carrier is up", || pod.ip("link show nsm-1").contains("LOWER_UP"));
    assert!(!pod.ping("10.0.0.2"), "nobody answers");
    let arp_request = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 7, 8, 6]].concat();
    until("the ARP request arrives", || {
        let mut buffer = [0; 2048];
        let length = interface.tap.read(&mut buffer).unwrap();
        length >= 12 + 42 && buffer[12..].starts_with(&arp_request)
    });
}

#[test]
fn a_plain_tap_has_1500_bytes_and_goes_with_its_value() {
    let Some([pod]) = namespaces() else { return };
    let interface = TapInterface::create(&pod.spec("nsm-1")).unwrap();
    assert!(pod.ip("link show nsm-1").contains("mtu 1500"));
    drop(interface);
    // A program that another test is just starting has a copy of its descriptor for a moment.
    until("the interface is gone", || pod.links() == ["lo"]);
}

#[test]
fn a_taken_name_is_refused_and_its_interface_left_alone() {
    let Some([pod, peer]) = namespaces() else { return };
    pod.ip("tuntap add dev taken mode tap");
    let spec = pod.spec("taken");
    for error in [
        TapInterface::create(&spec).unwrap_err(),
        veth(&spec, &peer.spec("b")).unwrap_err(),
        veth(&peer.spec("b"), &spec).unwrap_err(),
    ] {
        let expected = format!("create interface `taken` in {}: the name is taken", pod.path().display());
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    assert_eq!((pod.links(), peer.links()), (vec!["lo".to_owned(), "taken".to_owned()], vec!["lo".to_owned()]));
}

#[test]
fn a_namespace_that_is_none_is_refused() {
    let Some([pod]) = namespaces() else { return };
    let mut spec = pod.spec("nsm-1");
    for (netns, reason) in [
        (NetNs::Path("/run/netns/ferrule-no-such".into()), "No such file"),
        (NetNs::Path("/proc/self/ns/mnt".into()), "not a network namespace"),
        (NetNs::Path("/dev/null".into()), "not a network namespace"),
        (NetNs::of_process(u32::MAX), "No such file"),
    ] {
        spec.netns = Some(netns);
        for error in [TapInterface::create(&spec).unwrap_err(), veth(&pod.spec("a"), &spec).unwrap_err()] {
            assert!(matches!(error, KernelError::Namespace { .. }) && error.to_string().contains(reason), "{error}");
        }
    }
    assert_eq!(pod.links(), ["lo"]);
}

#[test]
fn what_the_kernel_refuses_is_named_and_leaves_nothing_behind() {
    let Some([pod, peer]) = namespaces() else { return };
    let plain = pod.spec("nsm-1");
    let twice = vec!["10.0.0.1/30".parse().unwrap(); 2];
    let cases = [
        (KernelSpec { addresses: twice, ..plain.clone() }, "give address 10.0.0.1/30 to interface `nsm-1`"),
        (KernelSpec { mtu: Some(70_000), ..plain.clone() }, "set MTU 70000 of interface `nsm-1`"),
        (
            KernelSpec { routes: vec![route("10.1.0.0/16", Some("10.0.0.2"))], ..plain.clone() },
            "add the route to 10.1.0.0/16 via 10.0.0.2 through interface `nsm-1`",
        ),
    ];
    for (spec, message) in cases {
        for error in [
            TapInterface::create(&spec).unwrap_err(),
            veth(&spec, &peer.spec("b")).unwrap_err(),
            veth(&peer.spec("b"), &spec).unwrap_err(),
        ] {
            assert!(error.to_string().starts_with(message), "{error}");
        }
        until("nothing is left behind", || pod.links() == ["lo"] && peer.links() == ["lo"]);
    }
}

#[test]
fn a_held_tap_does_not_keep_a_deleted_namespace_alive() {
    let Some([pod]) = namespaces() else { return };
    let interface = TapInterface::create(&pod.spec("nsm-1")).unwrap();
    drop(pod);
    let mut events = [PollFd::new(interface.tap.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut events, PollTimeout::from(10_000u16)).unwrap(), 1, "the poll ends");
    assert!(events[0].revents().unwrap().contains(PollFlags::POLLERR));
    let error = interface.tap.read(&mut [0; 64]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EBADFD as i32));
}

#[test]
fn a_veth_pair_carries_pings_and_counts_them() {
    let Some([left, right]) = namespaces() else { return };
    let (mut a, mut b) = (left.spec("same"), right.spec("same"));
    a.mac = Some("02:00:00:00:00:0a".parse().unwrap());
    a.mtu = Some(4000);
    a.addresses = ["10.0.0.1/30", "fd00::1/64"].map(|text| text.parse().unwrap()).to_vec();
    a.routes = vec![route("10.9.0.0/24", Some("10.0.0.2"))];
    b.addresses = ["10.0.0.2/30", "fd00::2/64", "10.9.0.1/32"].map(|text| text.parse().unwrap()).to_vec();
    let pair = veth(&a, &b).unwrap();
    let link = left.ip("link show same");
    assert!(link.contains("mtu 4000") && link.contains("02:00:00:00:00:0a"), "{link}");
    assert!(right.ip("link show same").contains("mtu 1500"));

    let before = pair.status().traffic;
    for address in ["10.0.0.2", "fd00::2", "10.9.0.1"] {
        assert!(left.ping(address), "{address}");
    }
    let after = pair.status().traffic;
    for (before, after) in before.iter().zip(after) {
        assert!(after.frames >= before.frames + 3 && after.bytes >= before.bytes + 3 * 98, "{before:?} {after:?}");
        assert_eq!(after.dropped(), before.dropped());
    }

    drop(pair);
    assert_eq!((left.links(), right.links()), (vec!["lo".to_owned()], vec!["lo".to_owned()]));
}

#[test]
fn frames_too_long_for_the_far_end_count_as_refused() {
    let Some([left, right]) = namespaces() else { return };
    let (mut a, mut b) = (left.spec("a"), right.spec("b"));
    (a.mtu, b.mtu) = (Some(4000), Some(1500));
    a.addresses = vec!["10.0.0.1/30".parse().unwrap()];
    b.addresses = vec!["10.0.0.2/30".parse().unwrap()];
    let pair = veth(&a, &b).unwrap();
    assert!(left.ping("10.0.0.2 -s 1000") && !left.ping("10.0.0.2 -s 3000"));
    let [to_b, to_a] = pair.status().traffic;
    // The kernel tells ping, and some versions of ping try again.
    assert!(to_b.drops[DropReason::Refused as usize] >= 1, "{to_b:?}");
    assert_eq!(to_a.dropped(), 0);
}

#[test]
fn a_pair_whose_namespace_was_deleted_says_so_and_drops_quietly() {
    let Some([left, right]) = namespaces() else { return };
    let pair = veth(&left.spec("a"), &right.spec("b")).unwrap();
    drop(right);
    until("the namespace is gone", || left.links() == ["lo"]);
    for (end, name) in pair.status().ends.iter().zip(["a", "b"]) {
        let PairEnd::Gone(error) = end else { panic!("{end:?}") };
        assert!(error.to_string().starts_with(&format!("read the counters of interface `{name}`")), "{error}");
        assert!(error.to_string().contains("it is gone"), "{error}");
    }
}

#[test]
fn a_stale_pair_does_not_touch_its_successor() {
    let Some([left, right]) = namespaces() else { return };
    let name = right.name.clone();
    let stale = veth(&left.spec("a"), &right.spec("b")).unwrap();
    drop(right);
    until("the namespace is gone", || left.links() == ["lo"]);
    let right = TestNamespace::create(name);
    let successor = veth(&left.spec("a"), &right.spec("b")).unwrap();
    assert!(matches!(stale.status().ends, [PairEnd::Gone(_), PairEnd::Gone(_)]));
    drop(stale);
    assert!(is_up(&successor));
    assert_eq!(right.links(), ["lo", "b"]);
}

#[test]
fn an_error_says_which_end_of_a_pair_it_is_about() {
    let Some([left, right]) = namespaces() else { return };
    let bad = KernelSpec { mtu: Some(70_000), ..right.spec("b") };
    let create = |a: &KernelSpec, b: &KernelSpec| VethPair::create(&Arc::new(InterfaceOwner::process()), "w", [a, b]);
    let good = left.spec("a");
    assert!(matches!(create(&good, &bad), Err((1, KernelError::Mtu { .. }))));
    assert!(matches!(create(&bad, &good), Err((0, KernelError::Mtu { .. }))));
    right.ip("tuntap add dev b mode tap");
    assert!(matches!(create(&good, &right.spec("b")), Err((1, KernelError::NameTaken { .. }))));
    assert_eq!(left.links(), ["lo"]);
}

#[test]
fn routes_may_be_listed_in_any_order() {
    let Some([pod]) = namespaces() else { return };
    let mut spec = pod.spec("nsm-1");
    spec.addresses = ["10.0.0.1/32", "fd00::1/128"].map(|text| text.parse().unwrap()).to_vec();
    spec.routes = vec![
        route("10.3.0.0/16", Some("10.2.0.1")),
        route("10.2.0.0/16", None),
        route("10.4.0.0/16", Some("10.2.0.1")),
        route("fd03::/64", Some("fd02::1")),
        route("fd02::/64", None),
    ];
    for _ in 0..2 {
        let interface = TapInterface::create(&spec).unwrap();
        interface.tap.set_carrier(true).unwrap();
        let routes = || format!("{}{}", pod.ip("route"), pod.ip("-6 route"));
        for part in ["10.3.0.0/16 via 10.2.0.1", "10.4.0.0/16 via 10.2.0.1", "fd03::/64 via fd02::1"] {
            until(part, || routes().contains(part));
        }
        drop(interface);
        until("the interface is gone", || pod.links() == ["lo"]);
        spec.routes.reverse();
    }
    // One that has no way at all is still refused, by its own name.
    spec.routes.push(route("10.9.0.0/16", Some("10.8.0.1")));
    let error = TapInterface::create(&spec).unwrap_err();
    assert!(error.to_string().starts_with("add the route to 10.9.0.0/16 via 10.8.0.1"), "{error}");
}

#[test]
fn ipv6_is_switched_on_for_an_interface_that_needs_it() {
    let Some([pod, peer]) = namespaces() else { return };
    for namespace in [&pod, &peer] {
        namespace.exec("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    }
    let with = |mut spec: KernelSpec, address: &str| {
        spec.addresses = vec![address.parse().unwrap()];
        spec
    };
    let _tap = TapInterface::create(&with(pod.spec("nsm-1"), "fd00::1/64")).unwrap();
    let pair = veth(&with(pod.spec("a"), "fd01::1/64"), &with(peer.spec("b"), "fd01::2/64")).unwrap();
    assert!(pod.ip("-6 addr show nsm-1").contains("fd00::1/64"));
    // The kernel loses the first question while the link-local address is tentative.
    until("it answers", || pod.ping("fd01::2"));
    // Nobody else's interface, and none that needs no IPv6.
    let _plain = TapInterface::create(&with(pod.spec("nsm-2"), "10.0.0.1/30")).unwrap();
    for interface in ["all", "default", "nsm-2"] {
        let off = pod.exec(&format!("sysctl -n net.ipv6.conf.{interface}.disable_ipv6"));
        assert_eq!(off.trim(), "1", "{interface}");
    }
    drop(pair);
}

#[test]
fn the_counters_of_a_pair_that_is_gone_are_what_they_were() {
    let Some([left, right]) = namespaces() else { return };
    let (mut a, mut b) = (left.spec("a"), right.spec("b"));
    a.addresses = vec!["10.0.0.1/30".parse().unwrap()];
    b.addresses = vec!["10.0.0.2/30".parse().unwrap()];
    let pair = veth(&a, &b).unwrap();
    assert!(left.ping("10.0.0.2"));
    let before = pair.status();
    assert!(is_up(&pair) && before.traffic[0].frames > 0);
    drop(right);
    until("the namespace is gone", || left.links() == ["lo"]);
    let after = pair.status();
    assert!(matches!(after.ends, [PairEnd::Gone(_), PairEnd::Gone(_)]));
    for (before, after) in before.traffic.iter().zip(after.traffic) {
        assert!(after.frames >= before.frames && after.bytes >= before.bytes, "{before:?} {after:?}");
    }
}

#[test]
fn a_pair_that_was_let_go_of_is_the_next_one_s_of_the_same_owner() {
    let Some([left, right]) = namespaces() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (a, b, file) = (left.spec("a"), right.spec("b"), folder.path().join("id"));
    let create = || {
        let owner = Arc::new(InterfaceOwner::open(&file).unwrap());
        VethPair::create(&owner, "w", [&a, &b]).unwrap()
    };
    let first = create();
    let number = left.ip("-o link show a").split(':').next().map(str::to_owned);
    first.leave();
    let second = create();
    assert_eq!(left.ip("-o link show a").split(':').next().map(str::to_owned), number, "not made again");
    assert!(is_up(&second));
    drop(second);
    assert_eq!((left.links(), right.links()), (vec!["lo".to_owned()], vec!["lo".to_owned()]));
}

#[test]
fn a_tap_goes_on_with_the_frame_that_was_read_ahead() {
    let Some([pod]) = namespaces() else { return };
    let mut spec = pod.spec("nsm-1");
    spec.addresses = vec!["10.0.0.1/30".parse().unwrap()];
    let tap = Arc::new(TapInterface::create(&spec).unwrap().tap);
    let mut rings = LaneEnd::tap(&tap);
    tap.set_carrier(true).unwrap();
    until("the carrier is up", || pod.ip("link show nsm-1").contains("LOWER_UP"));
    assert!(!pod.ping("10.0.0.2"), "nobody answers");
    let next = |rings: &mut LaneEnd| {
        let source = rings.sources[0].source.as_dyn_mut();
        let mut gather = vec![0; FRAME_MAX];
        let frame = source.peek(&mut gather).unwrap()?;
        let mut bytes = vec![0; frame.bytes.len()];
        assert!(frame.bytes.copy_out(&mut bytes));
        Some(bytes)
    };
    let ahead = next(&mut rings).unwrap();
    let mut files = SavedFiles::default();
    let saved = serde_json::to_string(&SavedTap::new(&rings, &mut files).unwrap()).unwrap();
    drop((rings, tap));
    let mut files = SavedFiles::from(files.into_inner());
    let saved: SavedTap = serde_json::from_str(&saved).unwrap();
    let (_tap, mut rings) = saved.restore(&mut files).unwrap();
    assert_eq!(next(&mut rings), Some(ahead));
    assert!(pod.ip("link show nsm-1").contains("LOWER_UP"), "the interface has noticed nothing");
}

#[test]
fn interfaces_of_our_own_namespace_need_no_moving() {
    let Some([pod]) = namespaces() else { return };
    // A thread in a private namespace stands for a forwarder: this machine's own one stays clean.
    netns::NetNs::private()
        .unwrap()
        .run(|| {
            let here = KernelSpec { netns: None, ..pod.spec("here") };
            let _tap = TapInterface::create(&KernelSpec { name: "tap".parse().unwrap(), ..here.clone() }).unwrap();
            let taken = TapInterface::create(&KernelSpec { name: "tap".parse().unwrap(), ..here.clone() });
            assert!(matches!(taken, Err(KernelError::NameTaken { .. })));
            for (a, b) in [(&here, &pod.spec("b")), (&pod.spec("b"), &here)] {
                assert!(is_up(&veth(a, b).unwrap()));
            }
            let both = veth(&here, &KernelSpec { name: "there".parse().unwrap(), ..here.clone() });
            assert!(is_up(&both.unwrap()));
            let itself = NetNs::Path("/proc/thread-self/ns/net".into());
            TapInterface::create(&KernelSpec { netns: Some(itself), ..here.clone() }).unwrap();
        })
        .unwrap();
    assert_eq!(pod.links(), ["lo"]);
}

/// A namespace by `ip netns add`, removed when dropped.
struct TestNamespace {
    name: String,
}

impl TestNamespace {
    fn create(name: String) -> Self {
        run("ip", &["netns", "add", &name]);
        Self { name }
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// An interface here with nothing but a name.
    fn spec(&self, name: &str) -> KernelSpec {
        KernelSpec {
            netns: Some(NetNs::Path(self.path())),
            name: name.parse().unwrap(),
            mac: None,
            mtu: None,
            addresses: vec![],
            routes: vec![],
        }
    }

    /// What `ip` prints inside.
    fn ip(&self, arguments: &str) -> String {
        let arguments: Vec<_> = ["-n", &self.name].into_iter().chain(arguments.split(' ')).collect();
        String::from_utf8(run("ip", &arguments).stdout).unwrap()
    }

    /// What a program prints inside.
    fn exec(&self, command: &str) -> String {
        let arguments: Vec<_> = ["netns", "exec", &self.name].into_iter().chain(command.split(' ')).collect();
        String::from_utf8(run("ip", &arguments).stdout).unwrap()
    }

    /// The names of the interfaces inside, in the order of their numbers.
    fn links(&self) -> Vec<String> {
        let name = |line: &str| line.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
        self.ip("-o link show").lines().map(name).collect()
    }

    /// Whether one ping from inside is answered.
    fn ping(&self, arguments: &str) -> bool {
        let ping = ["netns", "exec", &self.name, "ping", "-c", "1", "-W", "1"];
        Command::new("ip").args(ping).args(arguments.split(' ')).output().unwrap().status.success()
    }
}

impl Drop for TestNamespace {
    fn drop(&mut self) {
        // Not `run`: a panic while a failed test unwinds would hide why it failed.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// A pair that nobody takes over.
fn veth(a: &KernelSpec, b: &KernelSpec) -> Result<VethPair, KernelError> {
    VethPair::create(&Arc::new(InterfaceOwner::process()), "wire", [a, b]).map_err(|(_, error)| error)
}

fn is_up(pair: &VethPair) -> bool {
    pair.status().ends == [PairEnd::Up, PairEnd::Up]
}

/// Fresh namespaces, or none when something lacks, which is printed.
fn namespaces<const N: usize>() -> Option<[TestNamespace; N]> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    if let Some(lack) = lack() {
        println!("skipped: {lack}");
        return None;
    }
    Some([(); N].map(|()| {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        TestNamespace::create(format!("ferrule-{}-{number}", std::process::id()))
    }))
}

fn lack() -> Option<&'static str> {
    let missing = |program| Command::new(program).arg("-V").output().is_err();
    match () {
        () if !nix::unistd::geteuid().is_root() => Some("root"),
        () if fs::metadata("/dev/net/tun").is_err() => Some("/dev/net/tun"),
        () if missing("ip") => Some("ip (package iproute2)"),
        () if missing("ping") => Some("ping (package iputils-ping)"),
        () => None,
    }
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    output
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn route(to: &str, via: Option<&str>) -> Route {
    Route { to: to.parse().unwrap(), via: via.map(|via| via.parse().unwrap()) }
}
