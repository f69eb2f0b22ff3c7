//! What a wires file may say, and what is said about a wrong one.

use ferrule_dataplane::spec::{
    EndSpec, Full, KernelSpec, MemifSpec, Mode, NetNs, Prealloc, Process, Role, SocketAccess, SocketAddress,
    VhostUserSpec,
};
use ferrule_ethdev::{EthdevSpec, VfAttributes, VfSpec};
use proptest::prelude::*;

use super::*;
use crate::admin::{Secrets, spec_from_proto, spec_to_proto};

#[test]
fn the_file_of_the_issue_is_read_exactly_like_it_is_written() {
    let config = Config::parse(
        "wires.yaml",
        r#"
workers: [0]                    # CPUs of the polling threads
idle: adaptive                  # or: poll (never sleep)
wires:
  - name: a-b
    ends:
      - memif: { socket: /run/ferrule/m.sock, id: 0, role: server }
      - memif: { socket: "@abstract", id: 1, role: client, secret: s3cret, queues: 2, ring: 2048, prealloc: huge-pages }
  - name: pod-vm
    full: drop
    ends:
      - kernel: { netns: /run/netns/pod, name: nsm-1, addresses: [10.0.0.1/30], routes: [{ to: 10.1.0.0/16 }], mtu: 1500 }
      - kernel: { netns: { pid: 42 }, name: nsm-1, mac: "02:00:00:00:00:01", routes: [{ to: ::/0, via: fd00::1 }] }
"#,
    )
    .unwrap();

    let client = MemifSpec {
        id: 1,
        secret: Some("s3cret".parse().unwrap()),
        queues: 2,
        ring: 2048,
        prealloc: Prealloc::HugePages,
        ..MemifSpec::new(SocketAddress::Abstract("abstract".into()), Role::Client)
    };
    let server = MemifSpec::new("/run/ferrule/m.sock".parse().unwrap(), Role::Server);
    assert_eq!(config.wires[0].ends, [EndSpec::Memif(server), EndSpec::Memif(client)]);
    assert_eq!(config.wires[0].full, Full::Hold);
    assert_eq!(config.wires[1].full, Full::Drop);
    let [EndSpec::Kernel(pod), EndSpec::Kernel(vm)] = &config.wires[1].ends else { panic!("two kernel ends") };
    assert_eq!(pod.netns, Some(NetNs::Path("/run/netns/pod".into())));
    assert_eq!(pod.addresses, ["10.0.0.1/30".parse().unwrap()]);
    assert_eq!(pod.mtu, Some(1500));
    assert_eq!(vm.netns, Some(NetNs::Process(Process { pid: 42, start_time: None })));
    assert_eq!(vm.routes[0].via, Some("fd00::1".parse().unwrap()));
    assert_eq!((config.workers, config.idle, config.metrics), (vec![0], Idle::Adaptive, None));
}

#[test]
fn the_sample_of_the_docs_is_a_good_file() {
    let config = Config::parse("docs/wires.yaml", include_str!("../../../docs/wires.yaml")).unwrap();
    assert!(config.wires.len() >= 3);
    assert_eq!(config.metrics, Some("127.0.0.1:9090".parse().unwrap()));
}

#[test]
fn the_chain_of_the_docs_is_composed() {
    let text = include_str!("../../../docs/chains.yaml");
    let config = Config::parse("../docs/chains.yaml", text).unwrap();
    let names: Vec<_> = config.wires.iter().map(|wire| wire.name.as_str()).collect();
    assert_eq!(names, ["nsc:firewall", "firewall:passthrough-1", "passthrough-1:vpn-gateway"]);
    assert!(config.chains.unwrap().warnings().is_empty());
}

#[test]
fn what_is_wrong_with_a_chain_is_said_at_its_place() {
    let text = include_str!("../../../docs/chains.yaml");
    for (old, new, problem) in [
        (
            "name: vpn-gateway ",
            "name: firewall ",
            "services.functions[2].name: `firewall` has that name already, on line 6",
        ),
        (
            "name: nsc\n",
            "name: 'n:c'\n",
            "services.clients[0].name: `n:c`; a name of 1 to 31 bytes without `:` is wanted",
        ),
        ("[secure-intranet.yaml]", "[none.yaml]", "services.files[0]: read ../docs/none.yaml: No such file"),
        ("[secure-intranet.yaml]", "[chains.yaml]", "services.files[0]: ../docs/chains.yaml:2:1: workers: unknown key"),
        (
            "[secure-intranet.yaml]",
            "[secure-intranet.yaml, secure-intranet.yaml]",
            "two documents have the network service",
        ),
        (
            "app: vpn-gateway",
            "app: gateway",
            "services.clients[0]: nobody comes behind `passthrough-1` (app=passthrough-1): no function of",
        ),
        (
            "vpn-gateway.sock",
            "firewall-client.sock",
            "services.clients[0]: the wire `passthrough-1:vpn-gateway`: ends[1].memif.id: ",
        ),
        ("172.16.1.1/30", "172.16.1.1/40", "services.clients[0].end.kernel.addresses[0]: `172.16.1.1/40`"),
        (
            "workers: [0]",
            "wires: [{ name: 'nsc:firewall', ends: [{ kernel: { name: a } }, { kernel: { name: b } }] }]",
            "the wire `nsc:firewall`: name: the name `nsc:firewall` is in use, by the wire `nsc:firewall` on line 2",
        ),
    ] {
        assert!(text.contains(old), "{old}");
        let told = Config::parse("../docs/chains.yaml", &text.replacen(old, new, 1)).unwrap_err().to_string();
        assert!(told.contains(problem), "{new}: {told}");
    }
}

#[test]
fn dpdk_and_its_devices_are_read_and_checked() {
    let text = "\
dpdk: { memory: 2GiB, hugepages: true }
wires: [{ name: a, ends: [{ ethdev: { device: net_null0, queues: 2, mtu: 9000 } }, { kernel: { name: a } }] }]
";
    let config = Config::parse("f", text).unwrap();
    assert_eq!(config.dpdk, DpdkSettings { memory_mib: 2048, hugepages: true });
    let wanted = EthdevSpec { queues: 2, mtu: Some(9000), ..EthdevSpec::new("net_null0") };
    assert_eq!(config.wires[0].ends[0], EndSpec::External(wanted.into()));
    assert_eq!(Config::default().needs_restart(&config, &[]).len(), 2);

    let text = "\
dpdk: { memory: 1MiB, hugepages: x }
wires:
  - { name: a, ends: [{ ethdev: { device: 'net_null0,size=64', mtu: 1 } }, { kernel: { name: a } }] }
  - { name: b, ends: [{ ethdev: { device: net_null0 } }, { ethdev: { queues: 0 } }] }
";
    let told = Config::parse("f", text).unwrap_err().to_string();
    let told: Vec<_> = told.lines().map(|line| line.split_once(": ").unwrap().1).collect();
    let wanted = [
        "dpdk.memory: 1MiB; 64MiB to 1024GiB are possible",
        "dpdk.hugepages: `x`; `true` or `false` is wanted",
        "wires[0].ends[0].ethdev.mtu: 1; 68 to 65000 are possible",
        "wires[1].ends[0].ethdev: DPDK device net_null0 is taken already, by the wire `a` on line 3; choose another device for one of them",
        "wires[1].ends[1].ethdev.device: missing; a text of devargs as in `net_af_packet0,iface=eth1` is wanted",
        "wires[1].ends[1].ethdev.queues: 0 queues; 1 to 256 are possible",
    ];
    let missing: Vec<_> = wanted.iter().filter(|line| !told.contains(line)).collect();
    assert!(missing.is_empty() && told.len() == wanted.len(), "{missing:?} of {told:?}");
}

#[test]
fn vfs_are_read_and_checked() {
    let text = "\
sriov_manager: /run/vf.sock
wires:
  - { name: a, ends: [{ vf: { pool: fast } }, { vf: { pool: [fast, spare], queues: 2, mtu: 9000 } }] }
  - name: b
    ends:
      - vf: { address: '0000:3b:02.1', mac: '02:00:00:00:00:01', vlan: 7, trust: true, spoof_check: false }
      - kernel: { name: a }
";
    let config = Config::parse("f", text).unwrap();
    assert_eq!(config.lease_settings(None).manager.to_str(), Some("/run/vf.sock"));
    assert_eq!(Config::default().needs_restart(&config, &[]).len(), 1);
    let two = VfSpec { queues: 2, mtu: Some(9000), ..VfSpec::of_pool("fast") };
    let two = VfSpec { pools: vec!["fast".into(), "spare".into()], ..two };
    assert_eq!(
        config.wires[0].ends,
        [EndSpec::External(VfSpec::of_pool("fast").into()), EndSpec::External(two.into())]
    );
    let mac = Some("02:00:00:00:00:01".parse().unwrap());
    let attributes = VfAttributes { mac, vlan: Some(7), trust: Some(true), spoof_check: Some(false) };
    let at = VfSpec { attributes, ..VfSpec::at("0000:3b:02.1") };
    assert_eq!(config.wires[1].ends[0], EndSpec::External(at.into()));
    for wire in config.wires {
        assert_eq!(spec_from_proto(&spec_to_proto(&wire, Secrets::Shown)), Ok(wire));
    }

    let text = "\
wires:
  - { name: a, ends: [{ vf: { address: '0000:3b:02.1' } }, { vf: { address: '0000:3b:02.1' } }] }
  - { name: b, ends: [{ vf: { address: '0000:3b:02.1' } }, { vf: { trust: maybe, vlan: 4095 } }] }
";
    let told = Config::parse("f", text).unwrap_err().to_string();
    let told: Vec<_> = told.lines().map(|line| line.split_once(": ").unwrap().1).collect();
    let wanted = [
        "wires[0].ends: both ends are PCI device 0000:3b:02.1",
        "wires[1].ends[0].vf: PCI device 0000:3b:02.1 is taken already, by the wire `a` on line 2; choose another device for one of them",
        "wires[1].ends[1].vf.trust: `maybe`; `true` or `false` is wanted",
        "wires[1].ends[1].vf.pool: missing; a pool of sriov-manager is wanted, or the `address` of a VF",
        "wires[1].ends[1].vf.vlan: 4095; 1 to 4094 are possible",
    ];
    let missing: Vec<_> = wanted.iter().filter(|line| !told.contains(line)).collect();
    assert!(missing.is_empty() && told.len() == wanted.len(), "{missing:?} of {told:?}");
}

#[test]
fn an_empty_file_means_the_defaults_and_no_wires() {
    for text in ["", "# nothing yet\n", "wires:\n", "wires: []\n", "---\n"] {
        assert_eq!(Config::parse("f", text), Ok(Config::default()), "{text:?}");
    }
}

#[test]
fn every_error_is_reported_at_once_each_with_line_column_and_field() {
    let text = "\
workers: [0, 0, x]
idle: lazy
admin: admin.sock
metrics: localhost
wiers: []
wires:
  - name: a
    full: block
    ends:
      - memif: { socket: m.sock, role: master, rnig: 4, queues: 17 }
      - vhost-user: { socket: vm.sock, mode: master, queues: 99, packed: no, mtu: 20 }
  - ends:
      - kernel: { name: a/b, mac: 1, mtu: 10, addresses: [10.0.0.1], routes: [{ via: x }] }
      - memif: { socket: /run/m.sock, role: client, ring: 1000, mode: ip, buffer: 100 }
  - name: c
    ends: [{ memif: {} }]
  - name: d
    ends: [{ tap: {} }, 5]
    colour: red
";
    let expected = "\
wires.yaml:1:14: workers[1]: CPU 0 is in the list already; one worker has it
wires.yaml:1:17: workers[2]: `x`; a number from 0 to 1023 is wanted, or a range as in `0-3`
wires.yaml:2:7: idle: `lazy`; `adaptive` or `poll` is wanted
wires.yaml:3:8: admin: `admin.sock`; an absolute path of at most 107 bytes is wanted
wires.yaml:4:10: metrics: `localhost`; an address as in `127.0.0.1:9090` is wanted
wires.yaml:5:1: wiers: unknown key; did you mean `wires`?
wires.yaml:8:11: wires[0].full: `block`; `hold` or `drop` is wanted
wires.yaml:10:26: wires[0].ends[0].memif.socket: `m.sock`: a path must be absolute (an abstract name begins with `@`)
wires.yaml:10:40: wires[0].ends[0].memif.role: `master` is `server` here
wires.yaml:10:48: wires[0].ends[0].memif.rnig: unknown key; did you mean `ring`?
wires.yaml:10:65: wires[0].ends[0].memif.queues: 17 queues; 1 to 16 are possible
wires.yaml:11:31: wires[0].ends[1].vhost-user.socket: `vm.sock`: a path must be absolute (an abstract name begins with `@`)
wires.yaml:11:46: wires[0].ends[1].vhost-user.mode: `master` is `server` here
wires.yaml:11:62: wires[0].ends[1].vhost-user.queues: 99 queue pairs; 1 to 16 are possible
wires.yaml:11:74: wires[0].ends[1].vhost-user.packed: `no`; `true` or `false` is wanted
wires.yaml:11:83: wires[0].ends[1].vhost-user.mtu: 20 bytes; 68 to 65521 are possible
wires.yaml:12:5: wires[1].name: missing; a name that no other wire has is wanted
wires.yaml:13:7: wires[1].ends: one end carries ethernet frames and the other ip; both must be the same
wires.yaml:13:25: wires[1].ends[0].kernel.name: `a/b`: the kernel takes no `/`, `:`, space, `.` or `..`
wires.yaml:13:35: wires[1].ends[0].kernel.mac: `1`: six hexadecimal bytes with colons are wanted, as in 02:00:00:00:00:01
wires.yaml:13:43: wires[1].ends[0].kernel.mtu: 10 bytes; 68 to 65521 are possible
wires.yaml:13:59: wires[1].ends[0].kernel.addresses[0]: `10.0.0.1`; an address with its prefix as in `10.0.0.1/30` or `fd00::1/64` is wanted
wires.yaml:13:79: wires[1].ends[0].kernel.routes[0].to: missing; an address with its prefix as in `10.0.0.1/30` or `fd00::1/64` is wanted
wires.yaml:13:86: wires[1].ends[0].kernel.routes[0].via: `x`; an address as in `10.0.0.1` or `fd00::1` is wanted
wires.yaml:14:59: wires[1].ends[1].memif.ring: 1000 descriptors; a power of two from 32 to 16384 is wanted
wires.yaml:14:83: wires[1].ends[1].memif.buffer: 100 bytes; a multiple of 64 from 128 to 65536 is wanted
wires.yaml:16:11: wires[2].ends: a wire has exactly two ends, not 1
wires.yaml:16:21: wires[2].ends[0].memif.socket: missing; a path or an abstract name as in `\"@name\"` is wanted
wires.yaml:16:21: wires[2].ends[0].memif.role: missing; `server` or `client` is wanted
wires.yaml:18:14: wires[3].ends[0].tap: unknown key; the keys here are memif, vhost-user, kernel, ethdev, vf
wires.yaml:18:25: wires[3].ends[1]: a mapping is wanted, with the keys memif, vhost-user, kernel, ethdev, vf
wires.yaml:19:5: wires[3].colour: unknown key; the keys here are name, full, trusted, owner, labels, ends";
    assert_eq!(Config::parse("wires.yaml", text).unwrap_err().to_string(), expected);
}

#[test]
fn a_wrong_ring_reads_like_this_at_three_in_the_morning() {
    let text = "wires:\n  - name: a\n    ends:\n      - memif:\n          socket: /run/m.sock\n          role: client\n          ring: 1000\n      - memif: { socket: \"@b\", role: server }\n";
    assert_eq!(
        Config::parse("wires.yaml", text).unwrap_err().to_string(),
        "wires.yaml:7:17: wires[0].ends[0].memif.ring: 1000 descriptors; a power of two from 32 to 16384 is wanted"
    );
}

#[test]
fn wires_that_want_the_same_thing_are_told_about_each_other() {
    let text = "\
wires:
  - name: a
    ends:
      - memif: { socket: /run/m.sock, id: 7, role: server }
      - kernel: { netns: pid:9, name: eth0 }
  - name: b
    ends:
      - memif: { socket: /run/m.sock, netns: /run/netns/x, id: 7, role: server }
      - kernel: { netns: /proc/9/ns/net, name: eth0 }
  - name: a
    ends:
      - memif: { socket: /run/m.sock, id: 8, role: client }
      - memif: { socket: \"@x\", netns: /run/netns/x, role: server }
  - name: d
    ends:
      - memif: { socket: \"@x\", role: server }
      - memif: { socket: \"@y\", role: server }
";
    assert_eq!(
        Config::parse("f", text).unwrap_err().to_string(),
        "\
f:8:64: wires[1].ends[0].memif.id: /run/m.sock id 7 is served already, by the wire `a` on line 4; give one of them another id
f:9:48: wires[1].ends[1].kernel.name: interface eth0 of the same namespace is made already, by the wire `a` on line 5; rename one of them
f:10:11: wires[2].name: the name `a` is in use, by the wire `a` on line 2; rename one of them
f:12:52: wires[2].ends[0].memif.role: /run/m.sock is used with role server already, by the wire `a` on line 4; a socket has one role in a forwarder"
    );
}

#[test]
fn ends_behind_one_socket_have_one_group_and_mode() {
    let text = "\
wires:
  - name: a
    ends: [{ memif: { socket: /run/m, id: 0, role: server, group: vpp } }, { kernel: { name: a } }]
  - name: b
    ends: [{ memif: { socket: /run/m, id: 1, role: server } }, { kernel: { name: b } }]
";
    assert_eq!(
        Config::parse("f", text).unwrap_err().to_string(),
        "f:5:31: wires[1].ends[0].memif.socket: /run/m has another `socket_owner`, `socket_group` or `socket_mode`, by the wire `a` on line 3; give both the same"
    );
}

#[test]
fn a_wire_that_would_connect_to_itself_is_refused() {
    let text = "{ name: a, ends: [{ memif: { socket: /m, id: 0, role: server } }, { memif: { socket: /m, id: 1, role: client } }] }";
    assert!(parse_wire(text).unwrap_err().to_string().contains("one role"));
}

#[test]
fn one_wire_alone_is_read_from_yaml_and_from_json() {
    let yaml = "name: w\nends:\n  - memif: { socket: \"@a\", role: server, mode: ip }\n  - memif: { socket: \"@b\", role: client, mode: ip }\n";
    let json = r#"{"name": "w", "ends": [{"memif": {"socket": "@a", "role": "server", "mode": "ip"}}, {"memif": {"socket": "@b", "role": "client", "mode": "ip"}}]}"#;
    let wire = parse_wire(yaml).unwrap();
    assert_eq!(wire, parse_wire(json).unwrap());
    assert_eq!(wire.ends[0].mode(), Mode::Ip);
    assert_eq!(
        parse_wire("name: w\nend: []\n").unwrap_err().to_string(),
        "wire:2:1: end: unknown key; did you mean `ends`?"
    );
    assert_eq!(
        parse_wire("").unwrap_err().to_string(),
        "wire:1:1: name: missing; a name that no other wire has is wanted\nwire:1:1: ends: missing; a list of two ends is wanted"
    );
}

#[test]
fn a_secret_is_shown_by_no_error() {
    let text = format!("ends: [{{ memif: {{ socket: /m, role: server, secret: hunter2{} }} }}]", "x".repeat(24));
    let errors = parse_wire(&text).unwrap_err().to_string();
    assert!(errors.contains("memif.secret: `(hidden)`: 31 bytes") && !errors.contains("hunter2"), "{errors}");
}

#[test]
fn a_key_given_twice_names_both_lines() {
    assert_eq!(
        Config::parse("f", "idle: poll\nidle: adaptive\n").unwrap_err().to_string(),
        "f:2:1: idle: given twice; it is on line 1 already"
    );
}

#[test]
fn what_only_a_restart_can_change_is_listed() {
    let old = Config::default();
    let new = Config::parse("f", "workers: [1]\nidle: poll\nmetrics: 127.0.0.1:1\nadmin: /a\n").unwrap();
    assert_eq!(old.needs_restart(&old, &[]), Vec::<String>::new());
    assert_eq!(
        old.needs_restart(&new, &[]),
        [
            "workers: [0] is in use, [1] in the file; a restart changes it",
            "idle: adaptive is in use, poll in the file; a restart changes it",
            "socket: /run/ferrule/admin.sock is in use, /a in the file; a restart changes it",
            "metrics: nothing is in use, 127.0.0.1:1 in the file; a restart changes it",
        ]
    );
    assert_eq!(old.needs_restart(&new, &["workers", "idle", "socket", "metrics"]), Vec::<String>::new());
}

#[test]
fn a_vhost_user_end_says_who_listens_and_what_the_guest_may_use() {
    let vhost = "{ socket: /run/vm.sock, role: client, queues: 4, mtu: 9000, mac: 02:00:00:00:00:07, packed: false }";
    let wire = parse_wire(&format!(
        "name: w\nends: [{{ vhost-user: {vhost} }}, {{ vhost-user: {{ socket: '@b', role: server }} }}]"
    ));
    let [EndSpec::VhostUser(first), EndSpec::VhostUser(second)] = &wire.unwrap().ends else { panic!("two guests") };
    let mut wanted = VhostUserSpec::new("/run/vm.sock".parse().unwrap(), Role::Client);
    (wanted.queues, wanted.mtu) = (4, Some(9000));
    wanted.mac = Some("02:00:00:00:00:07".parse().unwrap());
    wanted.features.packed = false;
    assert_eq!(*first, wanted);
    assert_eq!(*second, VhostUserSpec::new("@b".parse().unwrap(), Role::Server));
}

#[test]
fn old_names_of_keys_are_still_read_but_not_beside_the_new_ones() {
    let wire = |vhost| parse_wire(&format!("name: w\nends: [{{ vhost-user: {vhost} }}, {{ kernel: {{ name: a }} }}]"));
    let new = wire("{ socket: /run/vm.sock, role: server }").unwrap();
    assert_eq!(new, wire("{ socket: /run/vm.sock, mode: server }").unwrap());
    let both = wire("{ socket: /run/vm.sock, role: server, mode: server }").unwrap_err().to_string();
    assert!(both.contains("`mode` is its old name: remove it"), "{both}");
    let both = wire("{ socket: /run/vm.sock, role: server, group: a, socket_group: b }").unwrap_err().to_string();
    assert!(both.contains("`group` is its old name: remove it"), "{both}");
    let none = wire("{ socket: /run/vm.sock }").unwrap_err().to_string();
    assert!(none.contains("vhost-user.role: missing"), "{none}");
}

#[test]
fn a_wire_has_an_owner_and_labels_and_its_sockets_a_group_a_mode_and_a_limit_of_memory() {
    let wire = parse_wire(
        "{name: w, owner: nsm, labels: {app: nat, tier/x: \"7\"}, ends: [\
         {memif: {socket: /m, role: server, socket_group: qemu, socket_mode: '0660', memory: 512MiB}}, \
         {vhost-user: {socket: /v, role: server, socket_owner: 64055, group: 107, socket_mode: '600', memory: 4096}}]}",
    )
    .unwrap();
    assert_eq!((wire.owner.as_str(), wire.labels["app"].as_str(), wire.labels["tier/x"].as_str()), ("nsm", "nat", "7"));
    let [EndSpec::Memif(memif), EndSpec::VhostUser(vhost)] = &wire.ends else { panic!("memif and vhost-user") };
    let access = |owner: &str, group: &str, mode: &str| SocketAccess {
        owner: owner.parse().ok(),
        group: group.parse().ok(),
        mode: mode.parse().ok(),
    };
    assert_eq!(memif.access, access("", "qemu", "0660"));
    assert_eq!(vhost.access, access("64055", "107", "0600"));
    assert_eq!((memif.memory.as_bytes(), vhost.memory.as_bytes()), (512 << 20, 4096));
}

#[test]
fn an_interface_name_that_the_kernel_would_change_or_refuse_is_refused_at_its_line() {
    for (name, cause) in
        [("nsm%d", "picks a name of its own"), ("all", "every interface"), ("default", "every interface")]
    {
        let text = format!("name: w\nends:\n- kernel: {{ name: '{name}' }}\n- kernel: {{ name: b }}\n");
        let error = parse_wire(&text).unwrap_err().to_string();
        assert!(error.starts_with("wire:3:19: ends[0].kernel.name: ") && error.contains(cause), "{error}");
    }
}

#[test]
fn a_socket_that_a_guest_comes_to_is_nobody_else_s() {
    let text = "\
wires:
  - name: a
    ends: [{ vhost-user: { socket: /run/x, role: server } }, { kernel: { name: a } }]
  - name: b
    ends: [{ vhost-user: { socket: /run/x, role: server } }, { memif: { socket: /run/x, role: server } }]
";
    let expected = "\
f:5:36: wires[1].ends[0].vhost-user.socket: /run/x is listened on already, by the wire `a` on line 3; give one of them another socket
f:5:81: wires[1].ends[1].memif.socket: /run/x is listened on already, by the wire `a` on line 3; give one of them another socket";
    assert_eq!(Config::parse("f", text).unwrap_err().to_string(), expected);
}

#[test]
fn workers_are_numbers_ranges_or_a_list_as_the_kernel_writes_it() {
    let workers = |text: &str| Config::parse("f", &format!("workers: {text}\n")).map(|config| config.workers);
    for (text, expected) in
        [("0-1", &[0, 1][..]), ("2", &[2]), ("0-2,5", &[0, 1, 2, 5]), ("[0-1, 4]", &[0, 1, 4]), ("[3]", &[3])]
    {
        assert_eq!(workers(text).unwrap(), expected, "{text}");
    }
    for text in ["1-0", "0-1024", "0-", "-1", "0,0", "[0-2, 1]", "[]", "a", "0,", "{ a: 1 }"] {
        assert!(workers(text).is_err(), "{text}");
    }
}

#[test]
fn a_kernel_interface_is_complete_with_its_name_alone() {
    let wire =
        parse_wire("name: w\nends: [{ kernel: { name: a } }, { kernel: { name: b, netns: /run/netns/b } }]").unwrap();
    let plain = KernelSpec::new("a".parse().unwrap());
    assert_eq!(wire.ends[0], EndSpec::Kernel(plain));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "[ -~\n]{0,200}") {
        let _ = Config::parse("f", &text);
    }

    #[test]
    fn no_mangled_file_makes_the_reader_panic(at in 0..2000_usize, cut in 0..40_usize, filler in "[a-z0-9:{}\\[\\],\n -]{0,8}") {
        let sample = include_str!("../../../docs/wires.yaml");
        let at = sample.floor_char_boundary(at);
        let end = sample.floor_char_boundary(at + cut);
        let _ = Config::parse("f", &format!("{}{filler}{}", &sample[..at], &sample[end..]));
    }
}
