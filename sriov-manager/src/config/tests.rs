//! What a policies file may say, and what is said about a wrong one.

use std::collections::BTreeSet;

use super::*;
use crate::policy::{NumVfs, PfCount, PfSelector, Pool, Principal};

#[test]
fn our_own_form_is_read_as_it_is_written() {
    let config = Config::parse(
        "policies.yaml",
        r#"
state: /var/lib/x
socket: /run/x/vf.sock
metrics: 127.0.0.1:9091
rescan: 10s
pools:
  - name: fast
    pfs:
      - { name: ens1f0, vfs: "0-2,5" }
      - { vendor: "8086", device: "0x10c9", driver: igb }
    num_vfs: 7
    kernel_driver: igbvf
    who: [root, "1000", "@0"]
"#,
    )
    .unwrap();
    let pfs = vec![
        PfSelector { name: Some("ens1f0".into()), vfs: Some(BTreeSet::from([0, 1, 2, 5])), ..PfSelector::default() },
        PfSelector { vendor: Some(0x8086), device: Some(0x10c9), driver: Some("igb".into()), ..PfSelector::default() },
    ];
    let who = Some(vec![Principal::User(0), Principal::User(1000), Principal::Group(0)]);
    let pool =
        Pool { name: "fast".into(), pfs, num_vfs: Some(NumVfs::Exactly(7)), kernel_driver: Some("igbvf".into()), who };
    assert_eq!(config.policies.pools, [pool]);
    assert_eq!((config.rescan, config.state), (Duration::from_secs(10), PathBuf::from("/var/lib/x")));
}

#[test]
fn the_sample_of_the_docs_is_a_good_file() {
    let config = Config::parse("docs/vf-policies.yaml", include_str!("../../../docs/vf-policies.yaml")).unwrap();
    assert!(!config.policies.pools.is_empty());
}

#[test]
fn every_error_is_told_at_once_with_its_line_and_field() {
    let text = "\
stat: /x
rescan: soon
pools:
  - name: a
    pfs: [{ vfs: 0-3 }, { address: 3b:00.0 }]
    num_vfs: -1
  - name: a
    pfs: []
    kernel_driver: ../../x
    who: [nobody-of-this-name]
";
    let error = Config::parse("f", text).unwrap_err().to_string();
    let lines: Vec<_> = error.lines().collect();
    for (line, part) in [
        (0, "f:1:1: stat: unknown key; did you mean `state`?"),
        (1, "f:2:9: rescan: `soon`; a time of at least 100ms"),
        (2, "pools[0].pfs[0]: a PF is named by at least one of"),
        (3, "pools[0].pfs[1].address: `3b:00.0`; a PCI address as in `0000:3b:02.1`"),
        (4, "pools[0].num_vfs: `-1`; a number from 0 to 65535"),
        (5, "f:7:11: pools[1].name: the pool `a` is on line 4 already"),
        (6, "pools[1].pfs: at least one PF is wanted"),
        (7, "pools[1].kernel_driver: `../../x`; the name of a driver"),
        (8, "pools[1].who[0]: `nobody-of-this-name`: this machine knows no user"),
    ] {
        assert!(lines.get(line).is_some_and(|there| there.contains(part)), "{line} {part} in\n{error}");
    }
    assert_eq!(lines.len(), 9, "{error}");
}

#[test]
fn the_configuration_of_nsms_forwarder_is_read() {
    let config = Config::parse(
        "pci.config",
        r#"
physicalFunctions:
  "0000:01:00.0":
    pfKernelDriver: igb
    vfKernelDriver: igbvf
    capabilities: [intel, 10G]
    serviceDomains: [worker.domain]
  "0000:02:00.0":
    pfKernelDriver: igb
    vfKernelDriver: igbvf
    capabilities: [10G]
    serviceDomains: [worker.domain]
    virtualFunctions: [{ address: "0000:02:10.0", iommuGroup: 3 }]
"#,
    )
    .unwrap();
    let pools: Vec<_> = config.policies.pools.iter().map(|pool| (pool.name.as_str(), pool.pfs.len())).collect();
    assert_eq!(pools, [("worker.domain/10G", 2), ("worker.domain/intel", 1)]);
    assert_eq!(config.policies.pools[0].num_vfs, Some(NumVfs::AllIfNone));

    let text = "physicalFunctions: { \"01:00.0\": { pfKernelDriver: igb, capabilities: [], serviceDomains: [x] } }";
    let error = Config::parse("f", text).unwrap_err().to_string();
    for part in ["a PCI address", "vfKernelDriver: missing", "capabilities: at least one is wanted"] {
        assert!(error.contains(part), "{part} in\n{error}");
    }
}

#[test]
fn policies_of_the_operator_are_read_and_what_cannot_be_kept_is_refused() {
    let policy = |name: &str, spec: &str| {
        format!(
            "{{apiVersion: sriovnetwork.openshift.io/v1, kind: SriovNetworkNodePolicy, metadata: {{name: {name}}}, spec: {spec}}}"
        )
    };
    let first = policy(
        "a",
        r#"{resourceName: fast, nodeSelector: {x: "y"}, priority: 10, numVfs: 4, deviceType: vfio-pci, isRdma: false,
             nicSelector: {vendor: "8086", deviceID: "10c9", pfNames: ["ens1f0#0-1", ens1f1], rootDevices: ["0000:01:00.0"]}}"#,
    );
    let config = Config::parse("f", &first).unwrap();
    let [pool] = &config.policies.pools[..] else { panic!("{config:?}") };
    assert_eq!((pool.name.as_str(), pool.num_vfs), ("fast", None));
    assert!(pool.pfs.iter().all(|pf| pf.count == Some(PfCount { num_vfs: 4, priority: 10 })), "{pool:?}");
    assert_eq!(pool.pfs[0].vfs, Some(BTreeSet::from([0, 1])));
    assert_eq!((pool.pfs[1].name.as_deref(), pool.pfs[1].vendor), (Some("ens1f1"), Some(0x8086)));

    let second =
        policy("b", "{resourceName: other, numVfs: 4, externallyManaged: true, nicSelector: {vendor: '8086'}}");
    let list = format!("{{apiVersion: v1, kind: List, items: [{first}, {second}]}}");
    let pools = Config::parse("f", &list).unwrap().policies.pools;
    assert_eq!((pools.len(), pools[1].pfs[0].count), (2, None), "an externally managed PF is not changed");

    let bad = policy("c", "{resourceName: x, numVfs: many, eSwitchMode: switchdev, nicSelector: {netFilter: 'aws/x'}}");
    let error = Config::parse("f", &bad).unwrap_err().to_string();
    for part in
        ["spec.numVfs: `many`", "spec.eSwitchMode: `switchdev`: only `legacy`", "netFilter", "at least one of vendor"]
    {
        assert!(error.contains(part), "{part} in\n{error}");
    }
}

/// Two policies of the operator for one PF, as `priority`, `numVfs` and range.
fn merged(first: (u32, u32, &str), second: (u32, u32, &str), resources: [&str; 2]) -> Option<NumVfs> {
    let policy = |(priority, count, range): (u32, u32, &str), resource: &str| {
        format!(
            "{{kind: SriovNetworkNodePolicy, metadata: {{name: x}}, spec: {{resourceName: {resource}, priority: {priority}, \
             numVfs: {count}, nicSelector: {{pfNames: ['ens1f0{range}']}}}}}}"
        )
    };
    let list = format!("{{kind: List, items: [{}, {}]}}", policy(first, resources[0]), policy(second, resources[1]));
    let policies = Config::parse("f", &list).unwrap().policies;
    let node = crate::fake::FakeNode::new(1, 63);
    let inventory = crate::inventory::Inventory::read(&node.sysfs()).unwrap();
    policies.wanted_count(&inventory.pfs[&node.pf(0)])
}

#[test]
fn two_policies_of_the_operator_for_one_pf_are_merged_as_it_merges_them() {
    let count = |count| Some(NumVfs::Exactly(count));
    assert_eq!(merged((10, 8, "#0-3"), (20, 12, "#4-7"), ["a", "b"]), count(12), "shared: the higher number");
    assert_eq!(merged((10, 8, ""), (20, 12, ""), ["a", "b"]), count(8), "not shared: the more important one");
    assert_eq!(merged((20, 8, ""), (10, 12, ""), ["a", "b"]), count(12), "in any order");
    assert_eq!(merged((10, 8, ""), (10, 4, ""), ["a", "b"]), count(8), "as important: the higher number");
    assert_eq!(merged((10, 8, "#0-3"), (20, 12, "#4-7"), ["a", "a"]), count(8), "of one resource: the more important");
}

#[test]
fn one_resource_may_have_other_numbers_on_other_pfs_and_the_operators_own_policy_says_nothing() {
    let text = "
kind: List
items:
  - {kind: SriovNetworkNodePolicy, metadata: {name: default}, spec: {}}
  - {kind: SriovNetworkNodePolicy, metadata: {name: a}, spec: {resourceName: x, numVfs: 8, nicSelector: {pfNames: [ens1f0]}}}
  - {kind: SriovNetworkNodePolicy, metadata: {name: b}, spec: {resourceName: x, numVfs: 4, nicSelector: {pfNames: [ens1f1]}}}
";
    let policies = Config::parse("f", text).unwrap().policies;
    assert_eq!(policies.pools.len(), 1);
    let node = crate::fake::FakeNode::new(2, 63);
    let inventory = crate::inventory::Inventory::read(&node.sysfs()).unwrap();
    let counts: Vec<_> = inventory.pfs.values().map(|pf| policies.wanted_count(pf)).collect();
    assert_eq!(counts, [Some(NumVfs::Exactly(8)), Some(NumVfs::Exactly(4))]);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "[ -~\n]{0,200}") {
        let _ = Config::parse("f", &text);
    }
}
