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
        let mut members = BTreeMap::new();
        for (place, device) in inventory.devices.values().enumerate() {
            let is_taken = is_retired
                || resource.software.is_some()
                || exclusive[place]
                || resource.driver.is_none() && shared[place];
            let fits = || resource.selectors.iter().position(|selector| fits(resource, selector, device));
            let selector = if is_taken { None } else { fits() };
            let held = selector.is_none() && is_held(&name, &device.id);
            let kept = held.then(|| selector_before(before, &name, &device.id)).or(selector);
            if let Some(selector) = kept {
                let taken = if resource.driver.is_some() { &mut shared } else { &mut exclusive };
                taken[place] = true;
                members.insert(device.id.clone(), Member { device: Arc::clone(device), selector, is_gone: false });
            }
        }
        members.extend(gone(before, inventory, &name, &is_held));
        pools.push(Pool { resource: Arc::clone(resource), members });
    }
    pools
}

/// What a pod has and is not there any more. One that nobody remembers, because this process did not see it, is known by its lease.
fn gone(
    before: &[Pool],
    inventory: &Inventory,
    name: &str,
    is_held: impl Fn(&str, &str) -> bool,
) -> BTreeMap<String, Member> {
    let pool = before.iter().find(|pool| pool.resource.name.to_string() == name);
    let remembered = pool.map(|pool| pool.members.clone()).unwrap_or_default();
    let unknown = |id: &String| {
        let device =
            Device { id: id.clone(), pci: id.clone(), source: Source::Vf(Box::default()), ..Device::default() };
        Member { device: Arc::new(device), selector: 0, is_gone: true }
    };
    let lost = inventory.lost.keys().map(|id| (id.clone(), unknown(id)));
    let all = lost.chain(remembered).filter(|(id, _)| !inventory.devices.contains_key(id) && is_held(name, id));
    all.map(|(id, member)| (id, Member { is_gone: true, ..member })).collect()
}

fn selector_before(before: &[Pool], name: &str, id: &str) -> usize {
    let pool = before.iter().find(|pool| pool.resource.name.to_string() == name);
    pool.and_then(|pool| pool.members.get(id)).map_or(0, |member| member.selector)
}

fn fits(resource: &ResourceConfig, selector: &Selector, device: &Device) -> bool {
    let is_of_type = match (resource.device_type, &device.source) {
        (DeviceType::NetDevice, Source::Vf(_))
        | (DeviceType::Accelerator, Source::Accelerator)
        | (DeviceType::AuxNetDevice, Source::SubFunction) => true,
        // What is never borrowed cannot be bound.
        (DeviceType::NetDevice, Source::Function) => resource.driver.is_none(),
        _ => false,
    };
    // Somebody who says what it shall be bound to takes it from no driver as well.
    let has_driver = device.driver.is_some() || resource.driver.is_some();
    let is_hosts = device.is_default_route && resource.device_type == DeviceType::NetDevice;
    is_of_type
        && has_driver
        && !is_hosts
        && fits_ids(resource, selector, device)
        && fits_net(resource, selector, device)
}

fn fits_ids(resource: &ResourceConfig, selector: &Selector, device: &Device) -> bool {
    let is_aux = resource.device_type == DeviceType::AuxNetDevice;
    one_of(&selector.vendors, Some(&device.vendor))
        && one_of(&selector.devices, Some(&device.device))
        && one_of(&selector.drivers, device.driver.as_deref())
        && (is_aux || one_of(&selector.pci_addresses, Some(&device.pci)))
}

/// What the Go plugin looks at of NICs only.
fn fits_net(resource: &ResourceConfig, selector: &Selector, device: &Device) -> bool {
    if resource.device_type == DeviceType::Accelerator {
        return true;
    }
    let acpi_index = device.acpi_index.map(|index| index.to_string());
    let is_plain = resource.device_type == DeviceType::NetDevice;
    let only_net = || {
        one_of(&selector.acpi_indexes, acpi_index.as_deref())
            && one_of(&selector.pkeys, device.pkey.as_deref())
            && selector.ddp_profiles.is_empty()
            && selector.vdpa_type.is_none_or(|kind| device.vdpa.as_ref().is_some_and(|vdpa| vdpa.kind == kind))
    };
    one_of(&selector.link_types, device.link_type.as_deref())
        && means(&selector.pf_names, device, &device.pf_names.iter().map(String::as_str))
        && means(&selector.root_devices, device, &device.pf.as_deref().into_iter())
        && (!selector.is_rdma || !device.rdma.devices.is_empty())
        && (!is_plain || only_net())
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
