use super::*;

const VF: &str = "0000:3b:02.0";
const NAME: &str = "intel.com/dpdk";

/// What a manager tells that has this VF, or none.
fn lists(has_vf: bool) -> Lists {
    let vf = v1::Vf { address: VF.into(), pf: PF.into(), driver: "vfio-pci".into(), ..v1::Vf::default() };
    let pfs = vec![v1::Pf { address: PF.into(), ..v1::Pf::default() }];
    let vfs = if has_vf { vec![vf] } else { Vec::new() };
    let list = Arc::new(v1::ListResponse { vfs, pfs, ..v1::ListResponse::default() });
    Lists { kernel: Arc::clone(&list), vfio: list }
}

const PF: &str = "0000:3b:00.0";

#[test]
fn a_vf_that_comes_back_under_the_address_of_a_refused_one_is_to_be_had() {
    let config = r#"{"resourceList": [{"resourceName": "dpdk", "driver": "vfio-pci", "selectors": {}}]}"#;
    let resources = Resources::new(Config::parse("config.json", config, "intel.com").unwrap());
    let host = HostView { nic_pfs: BTreeSet::from([PF.to_owned()]), ..HostView::default() };
    let told = || {
        let list = resources.list(NAME).unwrap().borrow().clone().unwrap();
        list.iter().map(|device| (device.id.clone(), device.health.clone())).collect::<Vec<_>>()
    };
    let told_as = |health: &str| vec![(VF.to_owned(), health.to_owned())];
    resources.set_inventory(&lists(true), &host);
    assert_eq!(told(), told_as(HEALTHY));
    resources.refuse(&BTreeSet::from([VF.to_owned()]), "its pod was refused");
    resources.set_inventory(&lists(true), &host);
    assert_eq!(told(), told_as(UNHEALTHY), "it was there all the time");

    resources.set_inventory(&lists(false), &host);
    assert_eq!(told(), []);
    resources.set_inventory(&lists(true), &host);
    assert_eq!(told(), told_as(HEALTHY));
}
