//! What a policies file may say, and what is said about a wrong one.

use std::collections::BTreeSet;

use super::*;
use crate::Driver;
use crate::fake::FakeNode;
use crate::inventory::Inventory;
use crate::num_vfs::NumVfs;
use crate::policy::{OperatorPolicy, PfSelector, Policies, Pool, Principal, Source};

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
    driver: kernel
    mtu: 9000
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
    let pool = Pool {
        name: "fast".into(),
        pfs,
        num_vfs: Some(NumVfs::Exactly(7)),
        driver: Some(Driver::Kernel),
        mtu: Some(9000),
        kernel_driver: Some("igbvf".into()),
        who,
        source: Source {
            file: "policies.yaml".into(),
            lines: [("name", 7), ("pfs", 9), ("num_vfs", 11), ("mtu", 13)].into(),
        },
    };
    assert_eq!(config.policies.pools, [pool]);
    assert_eq!((config.rescan, config.state), (Duration::from_secs(10), PathBuf::from("/var/lib/x")));
}

#[test]
fn the_pfs_of_a_pool_may_have_different_numbers_of_vfs() {
    let node = FakeNode::new(3, 63);
    let inventory = Inventory::read(&node.sysfs()).unwrap();
    let text = |last: &str| {
        format!(
            "pools:
  - name: a
    pfs: [{{ name: ens1f0, num_vfs: 8 }}, {{ name: ens1f1, num_vfs: 4 }}, {{ name: ens1f2 }}{last}]
    num_vfs: 2
"
        )
    };
    let read = policies(&text(""));
    let counts: Vec<_> = inventory.pfs.values().map(|pf| read.wanted_count(pf)).collect();
    assert_eq!(counts, [8, 4, 2].map(|count| Some(NumVfs::Exactly(count))));
    assert_eq!(read.check(&inventory), [""; 0]);
    let twice = policies(&text(", { vendor: '8086', num_vfs: 8 }"));
    assert_eq!(
        twice.check(&inventory)[0],
        "f:4: entries of the pool a want different numbers of VFs of ens1f1: make their `num_vfs` the same"
    );
    let nothing = Config::parse("f", "pools: [{ name: a, pfs: [{ num_vfs: 3 }] }]").unwrap_err().to_string();
    assert!(nothing.contains("a PF is named by at least one of name"), "{nothing}");
}

#[test]
fn the_sample_of_the_docs_is_a_good_file() {
    let config = Config::parse("docs/vf-policies.yaml", include_str!("../../../docs/vf-policies.yaml")).unwrap();
    assert!(!config.policies.pools.is_empty());
}

/// Whoever starts it on a node with VFs in use loses none.
#[test]
fn the_sample_of_the_docs_changes_no_number_of_vfs() {
    let config = Config::parse("docs/vf-policies.yaml", include_str!("../../../docs/vf-policies.yaml")).unwrap();
    let inventory = Inventory::read(&FakeNode::new(2, 7).sysfs()).unwrap();
    assert_eq!(config.policies.counts(&inventory), []);
    for pf in inventory.pfs.values() {
        assert_eq!(config.policies.wanted_count(pf), None);
    }
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
    driver: vfio-pci
    mtu: 1500
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
        (8, "pools[1].mtu: only a VF with the driver `kernel` has an interface"),
        (9, "pools[1].who[0]: `nobody-of-this-name`: this machine knows no user"),
    ] {
        assert!(lines.get(line).is_some_and(|there| there.contains(part)), "{line} {part} in\n{error}");
    }
    assert_eq!(lines.len(), 10, "{error}");
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
    let read = OperatorPolicy {
        name: "a".to_owned(),
        priority: 10,
        num_vfs: 4,
        driver: Driver::VfioPci,
        mtu: None,
        is_externally_managed: false,
        source: pool.source.clone(),
    };
    assert!(pool.pfs.iter().all(|pf| pf.policy.as_ref() == Some(&read)), "{pool:?}");
    assert_eq!(pool.driver, Some(Driver::VfioPci), "its `deviceType` is kept");
    assert_eq!(pool.pfs[0].vfs, Some(BTreeSet::from([0, 1])));
    assert_eq!((pool.pfs[1].name.as_deref(), pool.pfs[1].vendor), (Some("ens1f1"), Some(0x8086)));

    let bad = policy("c", "{resourceName: x, numVfs: many, eSwitchMode: switchdev, nicSelector: {netFilter: 'aws/x'}}");
    let error = Config::parse("f", &bad).unwrap_err().to_string();
    for part in
        ["spec.numVfs: `many`", "spec.eSwitchMode: `switchdev`: only `legacy`", "netFilter", "at least one of vendor"]
    {
        assert!(error.contains(part), "{part} in\n{error}");
    }
}

/// A policy of the operator: priority, `numVfs`, names of PFs, resource, and what else it says.
fn policy(name: &str, (priority, count): (u32, u32), pf: &str, resource: &str, more: &str) -> String {
    format!(
        "---\nkind: SriovNetworkNodePolicy\nmetadata: {{name: {name}}}\nspec:\n  resourceName: {resource}\n  priority: {priority}\n  \
         numVfs: {count}\n  nicSelector: {{pfNames: ['{pf}']}}\n  {more}\n"
    )
}

fn policies(text: &str) -> Policies {
    Config::parse("f", text).unwrap().policies
}

/// What two policies of the operator make of one PF, `ens1f0`: how many VFs, and which are of the second one's resource.
fn merged(first: (u32, u32, &str), second: (u32, u32, &str), resources: [&str; 2]) -> (Option<NumVfs>, Vec<u32>) {
    let one = |name, (priority, count, range): (u32, u32, &str), resource| {
        policy(name, (priority, count), &format!("ens1f0{range}"), resource, "")
    };
    let policies = policies(&(one("p1", first, resources[0]) + &one("p2", second, resources[1])));
    let node = FakeNode::new(1, 63);
    let inventory = Inventory::read(&node.sysfs()).unwrap();
    let pf = &inventory.pfs[&node.pf(0)];
    let pool = policies.pool(resources[1]).unwrap();
    let division = policies.division(pf);
    let of_second = (0..20).filter(|&index| division.holds(pool, index)).collect();
    (policies.wanted_count(pf), of_second)
}

#[test]
fn two_policies_of_the_operator_for_one_pf_are_merged_as_it_merges_them() {
    let vfs = |vfs: std::ops::Range<u32>| vfs.collect::<Vec<_>>();
    let count = |count| Some(NumVfs::Exactly(count));
    let both = ["a", "b"];
    assert_eq!(merged((10, 8, "#0-3"), (20, 12, "#4-7"), both), (count(12), vfs(4..8)), "shared: the higher number");
    assert_eq!(merged((10, 8, ""), (20, 12, ""), both), (count(8), vfs(0..0)), "not shared: the more important one");
    assert_eq!(merged((20, 8, ""), (10, 12, ""), both), (count(12), vfs(0..12)), "in any order");
    assert_eq!(
        merged((10, 8, ""), (10, 4, ""), both),
        (count(8), vfs(0..4)),
        "as important: the higher number, the later name"
    );
    assert_eq!(merged((10, 8, "#4-7"), (20, 4, ""), both), (count(8), vfs(0..4)), "without a range the first so many");
    assert_eq!(
        merged((10, 8, "#0-3"), (20, 12, "#4-7"), ["a", "a"]),
        (count(8), vfs(0..4)),
        "of one resource: the more important"
    );
    assert_eq!(merged((10, 8, "#0-3"), (20, 0, "#4-7"), ["a", "a"]).0, count(8), "one that wants none says nothing");
}

#[test]
fn a_policy_as_important_as_the_one_before_it_shares_also_with_less_important_ones_as_the_operator_has_it() {
    let text = policy("a", (20, 12), "ens1f0", "x", "")
        + &policy("b", (10, 4), "ens1f1", "y", "")
        + &policy("c", (10, 8), "ens1f0", "z", "");
    let node = FakeNode::new(2, 63);
    let inventory = Inventory::read(&node.sysfs()).unwrap();
    assert_eq!(policies(&text).wanted_count(&inventory.pfs[&node.pf(0)]), Some(NumVfs::Exactly(12)));
}

#[test]
fn what_a_policy_of_the_operator_does_not_come_to_is_told() {
    let node = FakeNode::new(2, 63);
    let told = |text: &str| {
        let policies = policies(text);
        let inventory = Inventory::read(&node.sysfs()).unwrap();
        (policies.warnings(&inventory).join("\n"), policies.check(&inventory).join("\n"))
    };
    let displaced = policy("a", (10, 8), "ens1f0", "x", "") + &policy("b", (20, 4), "ens1f0", "y", "");
    assert!(
        told(&displaced).0.contains("the policy b has no VFs of ens1f0: a is more important"),
        "{:?}",
        told(&displaced)
    );
    let elsewhere = policy("a", (10, 8), "ens1f0", "x", "externallyManaged: true");
    let wanted = "ens1f0 has 0 VFs and its policies want 8, which are made elsewhere";
    assert!(told(&elsewhere).0.contains(wanted), "{:?}", told(&elsewhere));
    let inventory = Inventory::read(&node.sysfs()).unwrap();
    assert_eq!(policies(&elsewhere).counts(&inventory), [], "and are not made here");
    let mixed = policy("a", (10, 8), "ens1f0", "x", "") + &policy("b", (10, 8), "ens1f1", "x", "deviceType: vfio-pci");
    assert_eq!(policies(&mixed).pools[0].driver, None);
    assert!(told(&mixed).0.contains("has to name the driver"), "{:?}", told(&mixed));
    let disagree = policy("a", (10, 8), "ens1f0#0-3", "x", "externallyManaged: true")
        + &policy("b", (10, 8), "ens1f0#4-7", "y", "");
    assert!(told(&disagree).1.contains("the policies a and b disagree about `externallyManaged` of ens1f0"));
}

#[test]
fn an_mtu_of_a_policy_of_the_operator_is_kept_or_told() {
    let inventory = Inventory::read(&FakeNode::new(2, 63).sysfs()).unwrap();
    let told = |policies: &Policies| policies.warnings(&inventory).join("\n");
    let with =
        |name, pf, kind: &str, mtu: u32| policy(name, (10, 8), pf, "x", &format!("mtu: {mtu}\n  deviceType: {kind}"));
    let is_one = |policies: &Policies, mtu, warning: &str| {
        assert_eq!(policies.pools[0].mtu, mtu, "{policies:?}");
        let told = told(policies);
        assert!(told.starts_with(warning) && told.lines().count() == 1, "{warning} in {told}");
    };
    // Whatever drives the VFs: a user of DPDK sends no frames either that are longer than its PF's.
    let wanted = "f:9: the policies of ens1f0 want an MTU of 9000, and it has 1500: ";
    is_one(&policies(&with("a", "ens1f0", "netdevice", 9000)), Some(9000), wanted);
    is_one(&policies(&with("a", "ens1f0", "vfio-pci", 9000)), None, wanted);
    let both = |first, second| policies(&(with("a", "ens1f0", first, 1400) + &with("b", "ens1f1", second, 1300)));
    is_one(&both("netdevice", "netdevice"), None, "f:9: the policies of the pool x want different MTUs: ");
    // Only an interface has one, in whichever order they stand.
    let drivers = "f:3: the policies of the pool x want its VFs on different drivers";
    is_one(&both("netdevice", "vfio-pci"), Some(1400), drivers);
    is_one(&both("vfio-pci", "netdevice"), Some(1300), drivers);
}

#[test]
fn what_policies_do_not_come_to_is_told_with_its_file_and_line() {
    let node = FakeNode::new(2, 63);
    let inventory = Inventory::read(&node.sysfs()).unwrap();
    let own = policies(
        "pools:
  - name: nowhere
    pfs:
      - { name: ens9f0 }
  - name: a
    pfs: [{ name: ens1f0, vfs: \"0-9\" }]
    num_vfs: 4
    mtu: 9000
  - name: b
    pfs: [{ name: ens1f0 }]

    num_vfs: 5
",
    );
    let warnings = own.warnings(&inventory);
    for told in [
        "f:4: the pool nowhere fits no PF of this node, which has ens1f0",
        "f:6: the pool a names VF 9 of ens1f0, which is to have 4: raise `num_vfs`",
        "f:8: the pool a wants an MTU of 9000",
        "f:12: the pools a and b want different numbers of VFs of ens1f0: make their `num_vfs` the same",
    ] {
        assert!(warnings.iter().any(|warning| warning.starts_with(told)), "{told} in {warnings:#?}");
    }
    let operators = policy("a", (10, 8), "ens1f0#0-3", "x", "externallyManaged: true")
        + &policy("b", (10, 8), "ens1f0#4-7", "y", "\n  externallyManaged: false")
        + &policy("c", (20, 4), "ens1f1", "z", "")
        + &policy("d", (10, 4), "ens1f1", "w", "");
    let warnings = policies(&operators).warnings(&inventory);
    let told = [
        "f:19: the policies a and b disagree about `externallyManaged` of ens1f0",
        "f:22: the policy c has no VFs of ens1f1: d is more important",
    ];
    for told in told {
        assert!(warnings.iter().any(|warning| warning.starts_with(told)), "{told} in {warnings:#?}");
    }
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
    let policies = policies(text);
    assert_eq!(policies.pools.len(), 1);
    let node = FakeNode::new(2, 63);
    let inventory = Inventory::read(&node.sysfs()).unwrap();
    let counts: Vec<_> = inventory.pfs.values().map(|pf| policies.wanted_count(pf)).collect();
    assert_eq!(counts, [Some(NumVfs::Exactly(8)), Some(NumVfs::Exactly(4))]);
}

#[test]
fn an_empty_value_of_a_policy_is_none_and_names_are_unique() {
    let empty =
        "deviceType: ''\n  mtu: 0\n  eSwitchMode: ''\n  linkType: ''\n  vdpaType: ''\n  bridge: {}\n  isRdma: ''";
    let text = policy("a", (0, 8), "ens1f0", "x", empty)
        .replace("nicSelector: {", "nicSelector: {vendor: '', deviceID: '', rootDevices: [], netFilter: '', ");
    let read = policies(&text);
    assert_eq!((read.pools[0].driver, read.pools[0].mtu), (Some(Driver::Kernel), None));
    assert_eq!(read.pools[0].pfs[0].name.as_deref(), Some("ens1f0"));
    let error = Config::parse("f", &(text.clone() + &text)).unwrap_err().to_string();
    assert!(error.contains("the policy `a` is on line 3 already"), "{error}");
    let error = Config::parse(
        "f",
        &text.replace("isRdma: ''", "isRdma: true").replace("deviceType: ''", "deviceType: vfio-pci"),
    );
    assert!(error.unwrap_err().to_string().contains("RDMA needs `deviceType: netdevice`"));
}

#[test]
fn several_documents_are_for_objects_of_the_operator_and_others_of_its_kinds_stand_among_them() {
    let network = "---\napiVersion: sriovnetwork.openshift.io/v1\nkind: SriovNetwork\nspec: {vlan: 7}\n";
    let namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n";
    let text = namespace.to_owned() + &policy("a", (0, 8), "ens1f0", "x", "") + network + "---\n# the end\n";
    assert_eq!(policies(&text).pools.len(), 1);
    let error = Config::parse("f", network).unwrap_err().to_string();
    assert!(error.contains("there is no SriovNetworkNodePolicy in this file"), "{error}");
    let wrong = policy("a", (0, 8), "ens1f0", "x", "").replace("NodePolicy", "NodePolcy");
    let error = Config::parse("f", &wrong).unwrap_err().to_string();
    assert!(error.contains("`SriovNetworkNodePolcy`; `SriovNetworkNodePolicy` is wanted"), "{error}");
    let error = Config::parse("f", "pools: []\n---\npools: []\n").unwrap_err().to_string();
    assert!(error.starts_with("f:3:1: a second document"), "{error}");
}

#[test]
fn a_driver_is_known_by_the_name_that_it_had_before() {
    let text = "physicalFunctions:\n  '0000:01:00.0': {pfKernelDriver: i40e, vfKernelDriver: i40evf, capabilities: [a], serviceDomains: [b]}\n";
    assert_eq!(policies(text).pools[0].kernel_driver.as_deref(), Some("iavf"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "[ -~\n]{0,200}") {
        let _ = Config::parse("f", &text);
    }
}
