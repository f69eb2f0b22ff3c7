//! Objects of the SR-IOV network operator: one `SriovNetworkNodePolicy`, or a list of them as `kubectl get -o yaml`
//! prints it.
//!
//! Each policy is a pool of its resource's name; policies of one resource are one pool. What asks for things that are
//! not of this program (RDMA, vDPA, bridges, node selectors) is accepted where it changes nothing for the VFs, and
//! refused where the VFs would not be what the policy says.

use std::collections::BTreeMap;

use ferrule_daemon::settings::{Field, Table};

use super::pools::{VFS_MAX, hex_id, ranges};
use crate::PciAddress;
use crate::policy::{PfCount, PfSelector, Policies, Pool};

pub(super) fn read(root: &Field<'_>) -> Policies {
    let mut pools = BTreeMap::<String, Pool>::new();
    match root.peek("kind").and_then(|kind| kind.text()) {
        Some("List" | "SriovNetworkNodePolicyList") => {
            let items = root.peek("items").and_then(|items| items.items()).unwrap_or_default();
            for item in &items {
                read_policy(item, &mut pools);
            }
        }
        _ => read_policy(root, &mut pools),
    }
    Policies { pools: pools.into_values().collect() }
}

fn read_policy(field: &Field<'_>, pools: &mut BTreeMap<String, Pool>) {
    let Some(table) = field.table(&["apiVersion", "kind", "metadata", "spec", "status"]) else { return };
    if let Some(kind) = table.optional("kind") {
        kind.choice(&[("SriovNetworkNodePolicy", ())]);
    }
    let is_default = || table.optional("metadata")?.peek("name")?.text().map(|name| name == "default");
    if is_default() == Some(true) {
        // The operator makes one of this name, which says nothing.
        return;
    }
    let Some(spec) = table.required("spec", "what the policy says") else { return };
    let Some(spec) = spec.table(SPEC_KEYS) else { return };
    let name = spec.required("resourceName", "the name of the resource").and_then(|field| field.text());
    let count = spec.required("numVfs", "how many VFs").and_then(|field| field.number::<u32>(0..=VFS_MAX));
    refuse(&spec, "eSwitchMode", &["legacy"], "only `legacy`: the mode of the switch is not changed here");
    refuse(&spec, "linkType", &["eth", "ETH"], "only Ethernet");
    refuse(&spec, "vdpaType", &[], "vDPA devices are not made here");
    refuse(&spec, "deviceType", &["netdevice", "vfio-pci"], "`netdevice` or `vfio-pci` is wanted");
    let priority = spec.optional("priority").and_then(|field| field.number::<u32>(0..=PRIORITY_MAX));
    let selector = spec.required("nicSelector", "which PFs");
    let mut selectors = selector.map(|field| read_selector(&field)).unwrap_or_default();
    let managed_elsewhere =
        spec.optional("externallyManaged").and_then(|field| field.choice(&[("true", true), ("false", false)]));
    let Some(name) = name else { return };
    if let Some(num_vfs) = count.filter(|_| managed_elsewhere != Some(true)) {
        let count = PfCount { num_vfs, priority: priority.unwrap_or(PRIORITY_DEFAULT) };
        for selector in &mut selectors {
            selector.count = Some(count);
        }
    }
    let pool = pools.entry(name.to_owned()).or_insert_with(|| Pool { name: name.to_owned(), ..Pool::default() });
    pool.pfs.extend(selectors);
}

/// Accepts a key only with values that change nothing.
fn refuse(spec: &Table<'_>, key: &str, good: &[&str], why: &str) {
    if let Some(field) = spec.optional(key)
        && let Some(text) = field.text()
        && !text.is_empty()
        && !good.contains(&text)
    {
        field.wrong(format!("`{text}`: {why}"));
    }
}

fn read_selector(field: &Field<'_>) -> Vec<PfSelector> {
    let Some(table) = field.table(&["vendor", "deviceID", "rootDevices", "pfNames", "netFilter"]) else {
        return Vec::new();
    };
    let hex = |key| table.optional(key).and_then(|field| hex_id(&field));
    let base = PfSelector { vendor: hex("vendor"), device: hex("deviceID"), ..PfSelector::default() };
    if let Some(filter) = table.optional("netFilter") {
        filter.wrong("networks of a cloud are not known here: name the PFs");
    }
    let items = |key| table.optional(key).and_then(|field| field.items()).unwrap_or_default();
    let mut selectors = Vec::new();
    // All keys must fit, so each name goes with each address.
    let addresses: Vec<_> = items("rootDevices").iter().map(Field::parse::<PciAddress>).collect();
    let addresses = if addresses.is_empty() { vec![None] } else { addresses };
    let names: Vec<_> = items("pfNames").iter().filter_map(read_name).collect();
    let names = if names.is_empty() { vec![(None, None)] } else { names };
    for (name, vfs) in &names {
        for &address in &addresses {
            selectors.push(PfSelector { name: name.clone(), vfs: vfs.clone(), address, ..base.clone() });
        }
    }
    if selectors.iter().any(PfSelector::is_empty) {
        field.wrong("at least one of vendor, deviceID, rootDevices, pfNames is wanted");
    }
    selectors
}

type Name = (Option<String>, Option<std::collections::BTreeSet<u32>>);

/// `ens1f0` or `ens1f0#0-3`.
fn read_name(field: &Field<'_>) -> Option<Name> {
    let text = field.text()?;
    match text.split_once('#') {
        None => Some((Some(text.to_owned()), None)),
        Some((name, range)) => Some((Some(name.to_owned()), Some(ranges(field, range)?))),
    }
}

/// Of the operator's CRD.
const PRIORITY_MAX: u64 = 99;
/// What a policy has that names none: the operator's zero value, the most important.
const PRIORITY_DEFAULT: u32 = 0;
const SPEC_KEYS: &[&str] = &[
    "resourceName",
    "nodeSelector",
    "priority",
    "mtu",
    "numVfs",
    "nicSelector",
    "deviceType",
    "isRdma",
    "needVhostNet",
    "linkType",
    "eSwitchMode",
    "vdpaType",
    "excludeTopology",
    "externallyManaged",
    "bridge",
];
