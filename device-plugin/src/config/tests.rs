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
fn everything_that_is_wrong_is_told_in_one_go_with_its_place_and_a_cure() {
    let errors = parse(
        r#"{"resourceList": [
  {"resourceName": "a b", "selectors": {}},
  {"resourceName": "x", "deviceType": "gpu", "selectors": {}},
  {"resourceName": "y", "selectors": {"isRdma": true, "vdpaType": "vhost"}},
  {"resourceName": "y", "selectors": {}},
  {"resourceName": "z", "deviceType": "auxNetDevice", "selectors": {}},
  {"resourceName": "w", "driver": "uio", "policy": "random", "software": 4, "selectors": {},
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
        "resourceList[5].software: software endpoints are not served by this release; remove it",
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
fn a_name_that_two_prefixes_have_is_two_resources() {
    let both = r#"{"resourceList": [{"resourceName": "a", "selectors": {}},
        {"resourceName": "a", "resourcePrefix": "other.io", "selectors": {}}]}"#;
    assert_eq!(parse(both).unwrap().resources.len(), 2);
    let same = both.replace("other.io", "intel.com");
    assert!(parse(&same).unwrap_err()[0].contains("already"));
}
