//! The SR-IOV configuration of NSM's forwarder: `physicalFunctions:`, by address.
//!
//! Each pair of a service domain and a capability is a pool, `domain/capability`: the name of NSM's tokens and of the
//! Kubernetes resource. `virtualFunctions` is for NSM's own tests and is only checked; VFs come from sysfs.

use std::collections::BTreeMap;

use ferrule_daemon::settings::Field;

use super::pools::{driver_name, vf_driver_name};
use super::source;
use crate::num_vfs::NumVfs;
use crate::policy::{PfSelector, Policies, Pool};

pub(super) fn read(root: &Field<'_>) -> Policies {
    let Some(table) = root.table(&["physicalFunctions"]) else { return Policies::default() };
    let functions = table.optional("physicalFunctions").and_then(|field| field.entries()).unwrap_or_default();
    let mut pools = BTreeMap::<String, Pool>::new();
    for (key, field) in functions {
        let address = match key.parse() {
            Ok(address) => Some(address),
            Err(error) => {
                field.wrong(format!("{error}"));
                None
            }
        };
        let keys = &["pfKernelDriver", "vfKernelDriver", "capabilities", "serviceDomains", "virtualFunctions"];
        let Some(table) = field.table(keys) else { continue };
        let pf_driver = table.required("pfKernelDriver", "the driver of the PF").and_then(|field| driver_name(&field));
        let vf_driver = table.required("vfKernelDriver", "the kernel's driver of the VFs");
        let vf_driver = vf_driver.and_then(|field| vf_driver_name(&field));
        let capabilities = texts(table.required("capabilities", "a list as in `[10G]`"));
        let domains = texts(table.required("serviceDomains", "a list as in `[worker.domain]`"));
        if let Some(functions) = table.optional("virtualFunctions") {
            for function in functions.items().unwrap_or_default() {
                let Some(table) = function.table(&["address", "iommuGroup"]) else { continue };
                let _: Option<crate::PciAddress> =
                    table.required("address", "the address of the VF").and_then(|field| field.parse());
            }
        }
        for domain in &domains {
            for capability in &capabilities {
                let name = format!("{domain}/{capability}");
                let pool = pools.entry(name.clone()).or_insert_with(|| Pool {
                    name,
                    num_vfs: Some(NumVfs::AllIfNone),
                    kernel_driver: vf_driver.clone(),
                    source: source(&field, &["name", "pfs", "num_vfs"].map(|name| (name, ""))),
                    ..Pool::default()
                });
                if pool.kernel_driver != vf_driver {
                    let problem = "another PF of the same domain and capability names another driver";
                    field.wrong_below("vfKernelDriver", problem);
                }
                pool.pfs.push(PfSelector { address, driver: pf_driver.clone(), ..PfSelector::default() });
            }
        }
    }
    Policies { pools: pools.into_values().collect() }
}

fn texts(field: Option<Field<'_>>) -> Vec<String> {
    let Some(field) = field else { return Vec::new() };
    let items = field.items().unwrap_or_default();
    if items.is_empty() {
        field.wrong("at least one is wanted");
    }
    items.iter().filter_map(|item| item.text().map(ToOwned::to_owned)).collect()
}
