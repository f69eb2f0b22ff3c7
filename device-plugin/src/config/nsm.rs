//! The SR-IOV configuration of Network Service Mesh's forwarder: `physicalFunctions:`, by address. Each pair of a service domain and a
//! capability is a resource, as cmd-forwarder-sriov's plugin has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferrule_daemon::settings::Field;
use sriov_manager_client::v1;

use super::resource::{is_name, is_prefix};
use super::{PfFunctions, ResourceConfig, Selector};

/// By their names. VFs are those that are there.
pub(super) fn read(root: &Field<'_>) -> Vec<Arc<ResourceConfig>> {
    let Some(table) = root.table(&["physicalFunctions"]) else { return Vec::new() };
    let functions = table.optional("physicalFunctions").and_then(|field| field.entries()).unwrap_or_default();
    let mut resources = BTreeMap::<String, ResourceConfig>::new();
    for (address, field) in functions {
        let keys = &["pfKernelDriver", "vfKernelDriver", "capabilities", "serviceDomains", "virtualFunctions"];
        let Some(table) = field.table(keys) else { continue };
        // `sriov-manager` reads the same file, and binds VFs.
        for key in ["pfKernelDriver", "vfKernelDriver"] {
            let _: Option<&str> = table.required(key, "a driver").and_then(|field| field.text());
        }
        if let Some(functions) = table.optional("virtualFunctions").filter(|functions| !functions.is_empty()) {
            functions.wrong("VFs are those that sriov-manager tells of: remove it");
        }
        let is_right = |what: fn(&str) -> bool, wanted: &'static str| {
            move |item: &Field<'_>| {
                let text = item.text()?;
                if !what(text) {
                    item.wrong(format!("`{text}`; {wanted}"));
                }
                Some(text.to_owned())
            }
        };
        let texts = |key: &str, what: fn(&str) -> bool, wanted: &'static str| -> Vec<String> {
            let Some(list) = table.required(key, "a list") else { return Vec::new() };
            let items = list.items().unwrap_or_default();
            if items.is_empty() {
                list.wrong("at least one is wanted");
            }
            items.iter().filter_map(is_right(what, wanted)).collect()
        };
        let domains = texts("serviceDomains", is_prefix, "a domain in lower case is wanted, as in `worker.domain`");
        let capabilities =
            texts("capabilities", is_name, "letters, digits, `_` and `-` are wanted, at most 63, as in `10G`");
        for domain in &domains {
            for capability in &capabilities {
                let name = format!("{domain}/{capability}");
                let Some(new) = ResourceConfig::of_name(&name) else { continue };
                let resource = resources.entry(name).or_insert_with(|| ResourceConfig {
                    selectors: vec![Selector::default()],
                    // Such a VF can become anything that a connection asks for, and its container has its nodes.
                    driver: Some(v1::Driver::VfioPci),
                    nsm_tokens: true,
                    ..new
                });
                resource.selectors[0].root_devices.push(PfFunctions { pf: address.to_owned(), vfs: None });
            }
        }
    }
    resources.into_values().map(Arc::new).collect()
}
