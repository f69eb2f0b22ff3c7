use sriov_manager_client::v1;

use super::*;

fn parse(text: &str) -> Result<Config, Vec<String>> {
    Config::parse("f", text, "intel.com").map_err(|errors| errors.lines().collect())
}

fn warnings(config: &Config) -> Vec<String> {
    config.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_of_the_go_plugin_is_read_as_it_is() {
    let config = parse(
        r#"{
	"resourceList": [
		{
			"resourceName": "intel_sriov_netdevice",
			"selectors": [{"vendors": ["8086"], "devices": ["154c", "10ed", "1889"], "drivers": ["i40evf", "iavf"]}]
		},
		{
			"ResourceName": "mlnx_sriov_rdma", "RESOURCEPREFIX": "mellanox.com", "excludeTopology": true,
			"SelectorObj": null,
			"Selectors": {"vendors": ["15b3"], "IsRdma": true, "NeedVhostNet": false, "pfNames": ["ens1f0#0-3,7"]}
		},
		{
			"resourceName": "fpga", "deviceType": "accelerator", "selectors": {"devices": ["0d90"]},
			"additionalInfo": {"*": {"token": "3e49019f"}, "0000:3b:00.0": {"token": "x"}}
		},
		{"resourceName": "sf", "deviceType": "auxNetDevice", "selectors": [{"auxTypes": ["sf"], "rootDevices": ["0000:3B:00.0#1"]}]}
	]
}"#,
    )
    .unwrap();
    assert_eq!(warnings(&config), [""; 0]);
    let names: Vec<_> = config.resources.iter().map(|resource| resource.name.to_string()).collect();
    assert_eq!(
        names,
        ["intel.com/intel_sriov_netdevice", "mellanox.com/mlnx_sriov_rdma", "intel.com/fpga", "intel.com/sf"]
    );
    let [net, rdma, fpga, sf] = config.resources.as_slice() else { panic!("{names:?}") };
    assert_eq!(net.selectors[0].devices, ["154c", "10ed", "1889"]);
    assert_eq!((net.driver, net.policy, net.exclude_topology), (None, None, false));
    assert!(rdma.exclude_topology && rdma.selectors[0].is_rdma && !rdma.selectors[0].need_vhost_net);
    assert_eq!(rdma.selectors[0].pf_names, [PfFunctions { pf: "ens1f0".into(), vfs: Some(vec![0..=3, 7..=7]) }]);
    assert_eq!((fpga.device_type, sf.device_type), (DeviceType::Accelerator, DeviceType::AuxNetDevice));
    assert_eq!(fpga.additional_info["0000:3b:00.0"]["token"], "x");
    assert_eq!(rdma.name.variable(), "PCIDEVICE_MELLANOX_COM_MLNX_SRIOV_RDMA");
}

#[test]
fn what_the_go_plugin_leaves_out_is_left_out_with_a_warning() {
    let config = parse(
        r#"{"resourceList": [
  {"resourceName": "a"},
  {"resourceName": "b", "selectors": []},
  {"resourceName": "c", "selectors": {"vendors": "8086", "isRdma": 1}},
  {"resourceName": "d", "selectors": {"pfName": ["x"], "pfNames": ["ens1f0#x", "ens2#0", "ens2#4"], "linkTypes": ["ether", "infiniband"]}},
  {"resourceName": "e", "selectors": {"ddpProfiles": ["gtp"]}}
]}"#,
    )
    .unwrap();
    let names: Vec<_> = config.resources.iter().map(|resource| resource.name.name.as_str()).collect();
    assert_eq!(names, ["d", "e"]);
    assert_eq!(config.left_out, ["a (line 2)", "b (line 3)", "c (line 4)"]);
    let told = warnings(&config).join("\n");
    for wanted in [
        "2:3: resourceList[0]: it has no `selectors`, and is left out",
        "resourceList[1].selectors: a list without a selector means no device",
        "resourceList[2].selectors.vendors: a list of words is wanted",
        "resourceList[2].selectors.isRdma: `true` or `false` is wanted; the entry is left out",
        "resourceList[3].selectors.pfName: this key means nothing and is ignored; did you mean `pfNames`?",
        "`ens1f0#x` means no function",
        "`ens2` is named twice",
        "more than one type of link",
        "no DDP profile can be read here",
    ] {
        assert!(told.contains(wanted), "`{wanted}` is not in\n{told}");
    }
    // What means no function must not become what means all.
    let d = &config.resources[0].selectors[0];
    assert!(!d.pf_names[0].means(["ens1f0", ""].into_iter(), Some(0)));
}

#[test]
fn a_selector_by_the_driver_of_now_beside_the_driver_of_pods_is_a_warning() {
    let of = |keys: &str| {
        let entry = format!(r#"{{"resourceList": [{{"resourceName": "kernel", "driver": "kernel", {keys}}}]}}"#);
        warnings(&parse(&entry).unwrap())
    };
    let one = of(r#""selectors": {"pfNames": ["ens1f0"], "Drivers": ["vfio-pci"]}"#);
    assert!(one[0].contains("resourceList[0].selectors.Drivers: it compares the driver that a VF has now"), "{one:?}");
    let two = of(r#""selectors": [{"pfNames": ["ens1f0"]}, {"drivers": ["iavf"]}]"#);
    assert!(two.len() == 1 && two[0].contains("selectors[1].drivers: "), "{two:?}");
    assert_eq!(of(r#""selectors": {"pfNames": ["ens1f0"], "drivers": []}"#), [""; 0]);
    let go = parse(r#"{"resourceList": [{"resourceName": "a", "selectors": {"drivers": ["vfio-pci"]}}]}"#).unwrap();
    assert_eq!(warnings(&go), [""; 0], "without `driver` it is as in the Go plugin");
}

#[test]
fn warnings_of_a_file_that_cannot_be_used_are_kept() {
    let text =
        r#"{"resourceList": [{"resourceName": "a", "selectors": []}, {"resourceName": "b c", "selectors": {}}]}"#;
    let checked = Config::check("f", text, "intel.com");
    assert_eq!(checked.config.unwrap_err().errors.len(), 1);
    assert!(checked.warnings[0].problem.contains("the entry is left out"), "{:?}", checked.warnings);
}

#[test]
fn everything_that_is_wrong_is_told_in_one_go_with_its_place_and_a_cure() {
    let errors = parse(
        r#"{"resourceList": [
  {"resourceName": "a b", "selectors": {}},
  {"resourceName": "x", "deviceType": "gpu", "selectors": {}},
  {"resourceName": "y", "selectors": {"isRdma": true, "vdpaType": "vhost"}},
  {"resourceName": "y", "selectors": {}},
  {"resourceName": "z", "deviceType": "auxNetDevice", "selectors": {}},
  {"resourceName": "w", "driver": "uio", "policy": "random", "software": "many", "selectors": {},
   "attributes": {"vlan": 5000, "vlanQoS": 9, "trust": "yes", "minTxRate": 9, "maxTxRate": 3, "mtu": 1}},
  {"resourceName": "v", "deviceType": "accelerator", "driver": "kernel", "selectors": {}},
  {"selectors": {}}
]}"#,
    )
    .unwrap_err()
    .join("\n");
    for wanted in [
        "f:2:20: resourceList[0].resourceName: a `resourceName` of letters, digits, `_` and `-` is wanted",
        "resourceList[1].deviceType: `gpu`; `netDevice` or `accelerator` or `auxNetDevice` is wanted",
        "resourceList[2].selectors.isRdma: `isRdma` and `vdpaType` exclude each other",
        "resourceList[3]: the resource `intel.com/y` is on line 4 already",
        "resourceList[4].selectors: an `auxNetDevice` is a sub-function",
        "resourceList[5].driver: `uio`; `kernel` or `vfio-pci` is wanted",
        "resourceList[5].policy: `random`; `pack` or `spread` or `same-pf` is wanted",
        "resourceList[5].software: `many`; a number from 1 to 1024 is wanted",
        "resourceList[5].attributes.vlan: `5000`; a number from 0 to 4094 is wanted",
        "resourceList[5].attributes.trust: `yes`; `on` or `off` is wanted",
        "resourceList[5].attributes.minTxRate: `9` is above `maxTxRate`, which is 3",
        "resourceList[5].attributes.mtu: `1`; a number from 68 to 65535 is wanted",
        "resourceList[6].driver: only a `netDevice` is bound",
        "resourceList[7]: a `resourceName` of letters",
    ] {
        assert!(errors.contains(wanted), "`{wanted}` is not in\n{errors}");
    }
    assert!(parse("{}").unwrap_err()[0].contains("`resourceList` is missing"));
    assert!(parse("[1, 2").unwrap_err()[0].starts_with("f:"));
    assert!(parse("{\"resourceList\": null}").unwrap_err()[0].contains("`resourceList` is missing"));
}

#[test]
fn names_that_no_kubelet_takes_are_refused() {
    let entry = |name: &str, prefix: &str| {
        parse(&format!(
            r#"{{"resourceList": [{{"resourceName": "{name}", "resourcePrefix": "{prefix}", "selectors": {{}}}}]}}"#
        ))
    };
    for name in ["-a", "a_", "a-", "_", "a.b", &"x".repeat(64)] {
        assert!(entry(name, "").unwrap_err()[0].contains("with a letter or a digit at both ends"), "{name}");
    }
    for prefix in ["Intel.com", "a/b", "kubernetes.io", "x.kubernetes.io", "requests.x", "a b", "a..b", "-a", "a_b"] {
        assert!(entry("a", prefix).unwrap_err()[0].contains("a domain in lower case is wanted"), "{prefix}");
    }
    for (name, prefix) in [("a", "intel.com"), ("A-b_9", "x-1.example"), ("a", "localhost"), ("a", "")] {
        entry(name, prefix).unwrap();
    }
}

#[test]
fn a_name_that_two_prefixes_have_is_two_resources() {
    let both = r#"{"resourceList": [{"resourceName": "a", "selectors": {}},
        {"resourceName": "a", "resourcePrefix": "other.io", "selectors": {}}]}"#;
    assert_eq!(parse(both).unwrap().resources.len(), 2);
    let same = both.replace("other.io", "intel.com");
    assert!(parse(&same).unwrap_err()[0].contains("already"));
}

#[test]
fn software_endpoints_are_a_number_or_a_mapping_and_need_no_selectors() {
    let config = parse(
        r#"{"resourceList": [
  {"resourceName": "left", "Software": {"count": 3, "KIND": "vhost-user", "peer": "right"}},
  {"resourceName": "right", "software": {"count": 3, "peer": "left"}, "selectors": {"pfNames": ["ens1f0"]}},
  {"resourceName": "pairs", "driver": "vfio-pci", "software": 8}
]}"#,
    )
    .unwrap();
    let told = warnings(&config);
    assert!(told.len() == 1 && told[0].contains("[2].driver: it means nothing beside `software`"), "{told:?}");
    let software = |place: usize| config.resources[place].software.clone().unwrap();
    assert_eq!(software(0), Software { count: 3, kind: SoftwareKind::VhostUser, peer: Some("right".into()) });
    assert_eq!((software(1).kind, software(2).count, software(2).peer), (SoftwareKind::Memif, 8, None));
}

#[test]
fn wrong_software_endpoints_are_told_with_what_would_be_right() {
    let long = "x".repeat(55);
    let text = r#"{"resourceList": [
  {"resourceName": "odd", "software": 3},
  {"resourceName": "few", "software": {"count": 2, "peer": "many"}},
  {"resourceName": "many", "software": {"count": 4}},
  {"resourceName": "lost", "software": {"count": 2, "peer": "nobody"}},
  {"resourceName": "self", "software": {"count": 2, "peer": "self"}},
  {"resourceName": "a", "software": {"count": 4, "peer": "many"}},
  {"resourceName": "b", "software": {"count": 2, "peer": "lost"}},
  {"resourceName": "many", "resourcePrefix": "other.com", "software": 2},
  {"resourceName": "LONG", "software": 2},
  {"resourceName": "kind", "software": {"count": 2, "kind": "veth"}},
  {"resourceName": "none", "software": {"kind": "memif"}},
  {"resourceName": "fpga", "deviceType": "accelerator", "software": 2},
  {"resourceName": "l-r", "software": 2}, {"resourceName": "l_r", "software": 2}
]}"#;
    let errors = parse(&text.replace("LONG", &long)).unwrap_err();
    let told: Vec<_> = errors.iter().map(|error| error.split_once(": ").unwrap().1.to_owned()).collect();
    let at = |place: usize, problem: &str| format!("resourceList[{place}].software{problem}");
    // The entry `many` that is told of is the later one, which is the peer's as well.
    for wanted in [
        at(0, ": `3`; endpoints of one resource are joined two by two: an even number is wanted, or a `peer`"),
        at(3, ": there is no resource `nobody` with software endpoints in this file"),
        at(4, ": without a `peer` they are joined with each other: remove it"),
        at(5, ": it has 4 endpoints and its peer `many` 2: give both the same number"),
        at(6, ": its peer `lost` names another, `nobody`"),
        at(
            7,
            ": another resource with them has this `resourceName`: a prefix does not tell them apart, give one another",
        ),
        at(8, &format!(": the name `{long}` of a resource with them has at most 42 bytes")),
        at(9, ".kind: `veth`; `memif` or `vhost-user` is wanted"),
        at(10, ": `count` is missing; a number of endpoints is wanted, as in `{\"count\": 8}`"),
        at(13, ": another resource with them has this name but for `-` and `_`, and DPDK cannot tell them apart"),
        at(11, ": an endpoint without a NIC is no accelerator: remove it"),
    ] {
        assert!(told.contains(&wanted), "{wanted}\n{}", told.join("\n"));
    }
    let two = r#"{"resourceList": [{"resourceName": "a", "software": {"count": 2, "peer": "c"}},
        {"resourceName": "b", "software": {"count": 2, "peer": "c"}}, {"resourceName": "c", "software": 2}]}"#;
    let errors = parse(two).unwrap_err();
    assert_eq!(errors.iter().filter(|error| error.contains("is the peer of several resources")).count(), 2);
}

#[test]
fn the_command_line_turns_the_file_of_a_node_with_nics_into_one_without() {
    let text = r#"{"resourceList": [
  {"resourceName": "dpdk", "driver": "vfio-pci", "selectors": {"pfNames": ["ens1f0"]}},
  {"resourceName": "own", "software": {"count": 2, "kind": "vhost-user"}},
  {"resourceName": "fpga", "deviceType": "accelerator", "selectors": {}}
]}"#;
    let presets = |software| Presets { prefix: "intel.com".into(), software: Some(software) };
    let config = Config::parse("f", text, presets(8)).unwrap();
    let counts: Vec<_> =
        config.resources.iter().map(|resource| resource.software.as_ref().map(|software| software.count)).collect();
    assert_eq!(counts, [Some(8), Some(2), None]);
    assert!(Config::parse("f", text, presets(7)).unwrap_err().to_string().contains("an even number"));
}

#[test]
fn a_file_of_the_meshs_sriov_forwarder_has_a_resource_for_each_domain_and_capability() {
    let pf = |address: &str, domains: &str| {
        format!(
            "  \"{address}\":\n    pfKernelDriver: igb\n    vfKernelDriver: igbvf\n    capabilities: [intel, 10G]\n    \
             serviceDomains: [{domains}]\n"
        )
    };
    let text = format!("physicalFunctions:\n{}{}", pf("0000:01:00.0", "worker.domain, b.c"), pf("0000:02:00.0", "b.c"));
    let config = parse(&text).unwrap();
    let told = config.resources.iter().map(|resource| {
        let pfs: Vec<_> = resource.selectors[0].root_devices.iter().map(ToString::to_string).collect();
        assert!(resource.nsm_tokens && resource.driver == Some(v1::Driver::VfioPci) && !resource.needs_link);
        (resource.name.to_string(), pfs.join(" "))
    });
    let wanted = [
        ("b.c/10G", "0000:01:00.0 0000:02:00.0"),
        ("b.c/intel", "0000:01:00.0 0000:02:00.0"),
        ("worker.domain/10G", "0000:01:00.0"),
        ("worker.domain/intel", "0000:01:00.0"),
    ];
    assert_eq!(told.collect::<Vec<_>>(), wanted.map(|(name, pfs)| (name.to_owned(), pfs.to_owned())));
    let wrong = "physicalFunctions:\n  a:\n    pfKernelDriver: igb\n    capabilities: []\n    serviceDomains: [Not.Lower]\n    \
                 virtualFunctions: [{address: b}]\n    more: 1\n";
    let told = parse(wrong).unwrap_err().join("\n");
    for part in ["vfKernelDriver", "at least one", "Not.Lower", "sriov-manager tells of", "more"] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn tokens_of_the_mesh_are_of_vfs_alone_and_bind_them_to_vfio_unless_told_otherwise() {
    let entry = |more: &str| {
        format!(r#"{{"resourceList": [{{"resourceName": "a", "selectors": {{}}, "nsmTokens": true{more}}}]}}"#)
    };
    let read =
        |more: &str| parse(&entry(more)).map(|config| (config.resources[0].nsm_tokens, config.resources[0].driver));
    assert_eq!(read(""), Ok((true, Some(v1::Driver::VfioPci))));
    assert_eq!(read(r#", "driver": "kernel""#), Ok((true, Some(v1::Driver::Kernel))));
    for wrong in [r#", "deviceType": "accelerator""#, r#", "software": 2"#] {
        assert!(read(wrong).unwrap_err()[0].contains("only a VF has a token"), "{wrong}");
    }
}

#[test]
fn networks_keep_the_types_of_their_values_and_are_named() {
    let config = parse(
        r#"{"ResourceList": [
  {"resourceName": "none", "selectors": {}},
  {"resourceName": "a", "selectors": {}, "Networks": [{"name": "blue", "vlan": 100, "trust": "on", "ipam": {"mtu": "9000", "ranges": [[1, true, null]]}}]}
]}"#,
    );
    let config = config.unwrap();
    assert_eq!(warnings(&config), [""; 0]);
    let wanted = serde_json::json!({"name": "blue", "vlan": 100, "trust": "on", "ipam": {"mtu": "9000", "ranges": [[1, true, null]]}});
    assert_eq!((&config.resources[0].networks, &config.resources[1].networks), (&Vec::new(), &vec![wanted]));

    let entry = |networks: &str| {
        format!(r#"{{"resourceList": [{{"resourceName": "a", "selectors": {{}}, "networks": {networks}}}]}}"#)
    };
    let cases = [
        ("[]", "at least one is wanted"),
        (r#"[{"vlan": 1}]"#, "a `name` is wanted"),
        (r#"[{"name": "none"}]"#, "pods say that they want no network"),
        (r#"[{"name": "a/b"}]"#, "`a/b`; a letter or digit"),
        (r#"[{"name": "a"}, {"name": "a"}]"#, "another network of the resource is called `a`"),
        (r#"[{"name": "a", "DeviceID": "x"}]"#, "the CNI plugin fills it in"),
    ];
    for (networks, part) in cases {
        let errors = parse(&entry(networks)).unwrap_err().join("\n");
        assert!(errors.contains(part), "{networks}: {errors}");
    }
    let accelerator = r#"{"resourceList": [{"resourceName": "a", "deviceType": "accelerator", "selectors": {}, "networks": [{"name": "a"}]}]}"#;
    assert!(parse(accelerator).unwrap_err().join("\n").contains("only a `netDevice` can be an interface"));
}
