//! From what is asked for and what is there to what each resource has: a pure function.
//!
//! As in the Go plugin, entries and selectors are worked in the order of the file, and a device goes to the first that takes it. Resources
//! that name a driver share what fits them: a device is bound when it is given away, and is unhealthy in the others until it
//! is back.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{Config, DeviceType, PfFunctions, ResourceConfig, Selector, VdpaType};
use crate::inventory::{Device, Inventory, Source};

/// A resource with its devices.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// What was asked for.
    pub resource: Arc<ResourceConfig>,
    /// By their ids.
    pub members: BTreeMap<String, Member>,
}

/// A device of a resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The device; one that is gone is as it was last.
    pub device: Arc<Device>,
    /// Which of the resource's selectors it fits: it says what the pod gets beside.
    pub selector: usize,
    /// It is not there any more, and a pod has it.
    pub is_gone: bool,
}

/// Gives every device to its resources. `before` is what they had: a device that a pod has stays where it is, whatever the
/// configuration says now, and whether it is there or not. `retired`: resources that are not asked for any more and of which pods have
/// something, which is all that they have. `is_held` tells of a resource's name and a device's id.
pub fn pools(
    config: &Config,
    retired: &[Arc<ResourceConfig>],
    inventory: &Inventory,
    before: &[Pool],
    is_held: impl Fn(&str, &str) -> bool,
) -> Vec<Pool> {
    // By the place of each device.
    let mut exclusive = vec![false; inventory.devices.len()];
    let mut shared = exclusive.clone();
    let mut pools = Vec::new();
    let asked_for = config.resources.iter().map(|resource| (resource, false));
    for (resource, is_retired) in asked_for.chain(retired.iter().map(|resource| (resource, true))) {
        let name = resource.name.to_string();
        let earlier = before_of(before, &name);
        let mut members = BTreeMap::new();
        for (place, device) in inventory.devices.values().enumerate() {
            let is_taken = is_retired
                || resource.software.is_some()
                || exclusive[place]
                || resource.driver.is_none() && shared[place];
            let fits = || resource.selectors.iter().position(|selector| misfit(resource, selector, device).is_none());
            let selector = if is_taken { None } else { fits() };
            // One that somebody took its driver from stays, as ill: it may be back in a moment.
            let is_lost = || !is_taken && is_without_driver(resource, device, earlier);
            let stays = selector.is_none() && (is_held(&name, &device.id) || is_lost());
            let kept = stays.then(|| selector_before(earlier, &device.id)).or(selector);
            if let Some(selector) = kept {
                let taken = if resource.driver.is_some() { &mut shared } else { &mut exclusive };
                taken[place] = true;
                members.insert(device.id.clone(), Member { device: Arc::clone(device), selector, is_gone: false });
            }
        }
        members.extend(gone(earlier, inventory, &name, &is_held));
        pools.push(Pool { resource: Arc::clone(resource), members });
    }
    pools
}

/// What a pod has and is not there any more. One that nobody remembers, because this process did not see it, is known by its lease.
fn gone(
    before: Option<&Pool>,
    inventory: &Inventory,
    name: &str,
    is_held: impl Fn(&str, &str) -> bool,
) -> BTreeMap<String, Member> {
    let remembered = before.map(|pool| pool.members.clone()).unwrap_or_default();
    let unknown = |id: &String| {
        let device =
            Device { id: id.clone(), pci: id.clone(), source: Source::Vf(Box::default()), ..Device::default() };
        Member { device: Arc::new(device), selector: 0, is_gone: true }
    };
    let lost = inventory.lost.keys().map(|id| (id.clone(), unknown(id)));
    let all = lost.chain(remembered).filter(|(id, _)| !inventory.devices.contains_key(id) && is_held(name, id));
    all.map(|(id, member)| (id, Member { is_gone: true, ..member })).collect()
}

fn before_of<'a>(before: &'a [Pool], name: &str) -> Option<&'a Pool> {
    before.iter().find(|pool| pool.resource.name.to_string() == name)
}

fn selector_before(before: Option<&Pool>, id: &str) -> usize {
    before.and_then(|pool| pool.members.get(id)).map_or(0, |member| member.selector)
}

/// Whether a device that a resource had is on no driver, which it needs to be.
fn is_without_driver(resource: &ResourceConfig, device: &Device, before: Option<&Pool>) -> bool {
    let was_member = || before.is_some_and(|pool| pool.members.contains_key(&device.id));
    let is_unbound = |selector: &Selector| misfit(resource, selector, device) == Some(Misfit::Unbound);
    device.driver.is_none() && was_member() && resource.selectors.iter().any(is_unbound)
}

/// Why a device is none of a resource, by one of its selectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It is of another type.
    Type(DeviceType),
    /// Nobody can bind it, and the resource wants it bound.
    NeverBound,
    /// It is on no driver, and the resource says none.
    Unbound,
    /// The host's default route leads through it.
    DefaultRoute,
    /// What this key of the selector wants is another.
    Key(&'static str),
}

/// None: it fits.
pub fn misfit(resource: &ResourceConfig, selector: &Selector, device: &Device) -> Option<Misfit> {
    let is_of_type = matches!(
        (resource.device_type, &device.source),
        (DeviceType::NetDevice, Source::Vf(_) | Source::Function)
            | (DeviceType::Accelerator, Source::Accelerator)
            | (DeviceType::AuxNetDevice, Source::SubFunction)
    );
    if !is_of_type {
        return Some(Misfit::Type(resource.device_type));
    }
    // What is never borrowed cannot be bound.
    if device.source == Source::Function && resource.driver.is_some() {
        return Some(Misfit::NeverBound);
    }
    // Somebody who says what it shall be bound to takes it from no driver as well.
    if device.driver.is_none() && resource.driver.is_none() {
        return Some(Misfit::Unbound);
    }
    if device.is_default_route && resource.device_type == DeviceType::NetDevice {
        return Some(Misfit::DefaultRoute);
    }
    let key = wrong_id(resource, selector, device).or_else(|| wrong_net(resource, selector, device));
    key.map(Misfit::Key)
}

fn wrong_id(resource: &ResourceConfig, selector: &Selector, device: &Device) -> Option<&'static str> {
    let is_aux = resource.device_type == DeviceType::AuxNetDevice;
    first_wrong([
        ("vendors", one_of(&selector.vendors, Some(&device.vendor))),
        ("devices", one_of(&selector.devices, Some(&device.device))),
        ("drivers", one_of(&selector.drivers, device.driver.as_deref())),
        ("pciAddresses", is_aux || one_of(&selector.pci_addresses, Some(&device.pci))),
    ])
}

/// What the Go plugin looks at of NICs only.
fn wrong_net(resource: &ResourceConfig, selector: &Selector, device: &Device) -> Option<&'static str> {
    if resource.device_type == DeviceType::Accelerator {
        return None;
    }
    let has_vdpa = |kind| device.vdpa.as_ref().is_some_and(|vdpa| vdpa.kind == kind);
    let of_all = first_wrong([
        ("linkTypes", one_of(&selector.link_types, device.link_type.as_deref())),
        ("pfNames", means(&selector.pf_names, device, &device.pf_names.iter().map(String::as_str))),
        ("rootDevices", means(&selector.root_devices, device, &device.pf.as_deref().into_iter())),
        ("isRdma", !selector.is_rdma || !device.rdma.devices.is_empty()),
    ]);
    if resource.device_type != DeviceType::NetDevice {
        return of_all;
    }
    let acpi_index = || device.acpi_index.map(|index| index.to_string());
    of_all.or_else(|| {
        first_wrong([
            (
                "acpiIndexes",
                selector.acpi_indexes.is_empty() || one_of(&selector.acpi_indexes, acpi_index().as_deref()),
            ),
            ("pKeys", one_of(&selector.pkeys, device.pkey.as_deref())),
            ("ddpProfiles", selector.ddp_profiles.is_empty()),
            ("vdpaType", selector.vdpa_type.is_none_or(has_vdpa)),
        ])
    })
}

fn first_wrong<const N: usize>(keys: [(&'static str, bool); N]) -> Option<&'static str> {
    keys.into_iter().find(|(_, is_right)| !is_right).map(|(key, _)| key)
}

impl Misfit {
    /// In words, of a device and the selector that it does not fit.
    pub fn words(self, selector: &Selector, device: &Device) -> String {
        match self {
            Self::Type(wanted) => format!("`deviceType` is {}, and it is {}", wanted.word(), device.source.word()),
            Self::NeverBound => {
                "it has no VFs and is no VF, so nobody can bind it to the `driver` of the resource".to_owned()
            }
            Self::Unbound => "it is on no driver: bind it, or give the resource a `driver`".to_owned(),
            Self::DefaultRoute => "the host's default route leads through it".to_owned(),
            Self::Key(key) => wrong_words(key, selector, device),
        }
    }
}

fn wrong_words(key: &str, selector: &Selector, device: &Device) -> String {
    let known = |text: Option<&str>| text.unwrap_or("none").to_owned();
    let index = device.index.map(|index| format!(" number {index}")).unwrap_or_default();
    let means = |wanted: &[PfFunctions]| wanted.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (wanted, has) = match key {
        "vendors" => (selector.vendors.clone(), device.vendor.clone()),
        "devices" => (selector.devices.clone(), device.device.clone()),
        "drivers" => (selector.drivers.clone(), known(device.driver.as_deref())),
        "pciAddresses" => (selector.pci_addresses.clone(), device.pci.clone()),
        "linkTypes" => (selector.link_types.clone(), known(device.link_type.as_deref())),
        "pfNames" => (means(&selector.pf_names), format!("{}{index}", device.pf_names.join(" or "))),
        "rootDevices" => (means(&selector.root_devices), format!("{}{index}", known(device.pf.as_deref()))),
        "acpiIndexes" => {
            (selector.acpi_indexes.clone(), known(device.acpi_index.map(|index| index.to_string()).as_deref()))
        }
        "pKeys" => (selector.pkeys.clone(), known(device.pkey.as_deref())),
        "isRdma" => return "`isRdma` wants RDMA devices, and it has none".to_owned(),
        "ddpProfiles" => return "`ddpProfiles` matches nothing here: profiles are not read".to_owned(),
        _ => return format!("`{key}` wants what it is not"),
    };
    format!("`{key}` wants {}, and it has {}", wanted.join(" or "), if has.is_empty() { "none" } else { &has })
}

fn one_of(wanted: &[String], has: Option<&str>) -> bool {
    wanted.is_empty() || has.is_some_and(|has| wanted.iter().any(|wanted| wanted == has))
}

fn means<'a>(wanted: &[PfFunctions], device: &Device, names: &(impl Iterator<Item = &'a str> + Clone)) -> bool {
    wanted.is_empty() || wanted.iter().any(|functions| functions.means(names.clone(), device.index))
}

impl Member {
    /// The selector that it fits: the first one of a resource whose selectors became fewer.
    pub fn selector<'a>(&self, resource: &'a ResourceConfig) -> Option<&'a Selector> {
        resource.selectors.get(self.selector).or_else(|| resource.selectors.first())
    }

    /// Whether a program drives its vDPA device.
    pub fn is_vhost_vdpa(&self, resource: &ResourceConfig) -> bool {
        self.selector(resource).is_some_and(|selector| selector.vdpa_type == Some(VdpaType::Vhost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Rdma, Vdpa};

    /// A device of which everything is known that a selector may ask for.
    fn device(source: Source) -> Device {
        let is_net = matches!(source, Source::Vf(_));
        Device {
            id: "0000:3b:02.1".into(),
            source,
            pci: "0000:3b:02.1".into(),
            vendor: "15b3".into(),
            device: "1018".into(),
            driver: Some("mlx5_core".into()),
            pf: Some("0000:3b:00.0".into()),
            pf_names: vec!["ens1f0np0".into(), "ens1f0".into()],
            index: Some(5),
            netdevs: Vec::new(),
            link_type: Some("ether".into()),
            acpi_index: Some(101),
            rdma: Rdma { devices: vec!["mlx5_2".into()], nodes: Vec::new() },
            vdpa: is_net.then(|| Vdpa { name: "vdpa0".into(), kind: VdpaType::Virtio, path: None }),
            pkey: Some("0x8001".into()),
            ..Device::default()
        }
    }

    /// The key of the selector that a device does not fit; none: it fits.
    fn wrong_key(kind: &str, source: Source, selector: &str) -> Option<&'static str> {
        let aux = if kind == "auxNetDevice" { r#""auxTypes": ["sf"], "# } else { "" };
        let entry = format!(r#"{{"resourceName": "a", "deviceType": "{kind}", "selectors": {{{aux}{selector}}}}}"#);
        let text = format!(r#"{{"resourceList": [{entry}]}}"#);
        let resource = Config::parse("f", &text, "intel.com").unwrap().resources.remove(0);
        match misfit(&resource, &resource.selectors[0], &device(source)) {
            None => None,
            Some(Misfit::Key(key)) => Some(key),
            other => panic!("{entry}: {other:?}"),
        }
    }

    /// Each key: one value that the device fits, and one that it does not; and for which types it counts: NICs, accelerators, sub-functions.
    const KEYS: &[(&str, &str, &str, [bool; 3])] = &[
        ("vendors", r#"["8086", "15b3"]"#, r#"["8086"]"#, [true, true, true]),
        ("devices", r#"["1018"]"#, r#"["1019", "101"]"#, [true, true, true]),
        ("drivers", r#"["iavf", "mlx5_core"]"#, r#"["mlx5"]"#, [true, true, true]),
        ("pciAddresses", r#"["0000:3b:02.1"]"#, r#"["3b:02.1"]"#, [true, true, false]),
        ("acpiIndexes", r#"["101"]"#, r#"["1"]"#, [true, false, false]),
        ("pfNames", r#"["ens9", "ENS1F0#0-2,5"]"#, r#"["ens1f0#0-4", "ens9#5"]"#, [true, false, true]),
        ("rootDevices", r#"["0000:3B:00.0#4-6"]"#, r#"["0000:3b:00.1"]"#, [true, false, true]),
        ("linkTypes", r#"["ether"]"#, r#"["infiniband"]"#, [true, false, true]),
        ("pKeys", r#"["0x8001"]"#, r#"["0xffff"]"#, [true, false, false]),
        ("vdpaType", r#""virtio""#, r#""vhost""#, [true, false, false]),
    ];

    #[test]
    fn every_key_of_the_go_plugin_counts_for_the_types_that_it_counts_for_there() {
        let types = [
            ("netDevice", Source::Vf(Box::default())),
            ("accelerator", Source::Accelerator),
            ("auxNetDevice", Source::SubFunction),
        ];
        for (key, fits, does_not, counts) in KEYS {
            for ((kind, source), counts) in types.iter().zip(counts) {
                let told = |value: &str| wrong_key(kind, source.clone(), &format!("\"{key}\": {value}"));
                assert_eq!(told(fits), None, "{kind}: {key}");
                assert_eq!(told(does_not), counts.then_some(*key), "{kind}: {key}");
                assert_eq!(
                    told(if *key == "vdpaType" { "\"\"" } else { "[]" }),
                    None,
                    "{kind}: {key}: empty means any"
                );
            }
        }
        // Nothing here has a profile that is read.
        assert_eq!(wrong_key("netDevice", Source::Function, r#""ddpProfiles": ["gtp"]"#), Some("ddpProfiles"));
        assert_eq!(wrong_key("auxNetDevice", Source::SubFunction, r#""ddpProfiles": ["gtp"]"#), None);
    }

    #[test]
    fn keys_that_are_switches_want_what_they_say_or_nothing() {
        for (kind, source) in [("netDevice", Source::Function), ("auxNetDevice", Source::SubFunction)] {
            assert_eq!(wrong_key(kind, source.clone(), r#""isRdma": true, "needVhostNet": true"#), None);
            assert_eq!(wrong_key(kind, source, r#""isRdma": false"#), None);
        }
        let is_rdma = r#"{"resourceList": [{"resourceName": "a", "selectors": {"isRdma": true}}]}"#;
        let resource = Config::parse("f", is_rdma, "intel.com").unwrap().resources.remove(0);
        let without = Device { rdma: Rdma::default(), ..device(Source::Function) };
        assert_eq!(misfit(&resource, &resource.selectors[0], &without), Some(Misfit::Key("isRdma")));
    }

    #[test]
    fn all_keys_of_a_selector_must_fit_and_one_of_several_selectors() {
        let (good, wrong) = (r#""vendors": ["15b3"], "devices": ["1018"]"#, r#""vendors": ["15b3"], "devices": ["1"]"#);
        let vf = || Source::Vf(Box::default());
        assert_eq!((wrong_key("netDevice", vf(), good), wrong_key("netDevice", vf(), wrong)), (None, Some("devices")));
        let text = format!(
            r#"{{"resourceList": [{{"resourceName": "a", "selectors": [{{{wrong}}}, {{{good}, "isRdma": true}}]}},
                {{"resourceName": "b", "selectors": {{}}}}]}}"#
        );
        let config = Config::parse("f", &text, "intel.com").unwrap();
        let device = Arc::new(device(vf()));
        let inventory = Inventory { devices: [(device.id.clone(), device)].into(), ..Inventory::default() };
        let pools = pools(&config, &[], &inventory, &[], |_, _| false);
        assert_eq!(
            (pools[0].members["0000:3b:02.1"].selector, pools[1].members.len()),
            (1, 0),
            "the first entry has it"
        );
    }

    #[test]
    fn what_is_on_no_driver_or_carries_the_default_route_is_left_out() {
        let text = r#"{"resourceList": [{"resourceName": "a", "selectors": {}}, {"resourceName": "b", "driver": "vfio-pci", "selectors": {}}]}"#;
        let config = Config::parse("f", text, "intel.com").unwrap();
        let [as_is, bound] = config.resources.as_slice() else { panic!("{config:?}") };
        let of = |resource: &ResourceConfig, device: &Device| misfit(resource, &resource.selectors[0], device);
        let unbound = Device { driver: None, ..device(Source::Vf(Box::default())) };
        assert_eq!((of(as_is, &unbound), of(bound, &unbound)), (Some(Misfit::Unbound), None));
        let routed = Device { is_default_route: true, ..device(Source::Vf(Box::default())) };
        assert_eq!(of(as_is, &routed), Some(Misfit::DefaultRoute));
        assert_eq!(of(bound, &device(Source::Function)), Some(Misfit::NeverBound));
        assert_eq!(of(as_is, &device(Source::Accelerator)), Some(Misfit::Type(DeviceType::NetDevice)));
    }
}
