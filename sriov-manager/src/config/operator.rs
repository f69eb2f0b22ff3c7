//! Objects of the SR-IOV network operator: `SriovNetworkNodePolicy`, as documents of their own or in a list as
//! `kubectl get -o yaml` prints it.
//!
//! Each policy is a part of the pool of its resource's name. What asks for things that are not of this program (RDMA, node
//! selectors) is accepted where it changes nothing for the VFs, and refused where the VFs would not be what the policy says.
//! A value that is empty is one that is not there, as it is in the operator.

use std::collections::BTreeMap;

use ferrule_daemon::settings::{Field, Table};

use super::pools::{MTU_RANGE, VFS_MAX, hex_id, ranges};
use super::source;
use crate::policy::{OperatorPolicy, PfSelector, Policies, Pool, Source};
use crate::{Driver, PciAddress};

pub(super) fn read(documents: &[Field<'_>]) -> Policies {
    let mut reader = Reader::default();
    for document in documents {
        match text_of(document, "kind") {
            Some("List" | "SriovNetworkNodePolicyList") => {
                let items = document.peek("items").and_then(|items| items.items()).unwrap_or_default();
                for item in &items {
                    reader.object(item);
                }
            }
            _ => reader.object(document),
        }
    }
    if let (0, Some(first)) = (reader.policies, documents.first()) {
        first.wrong("there is no SriovNetworkNodePolicy in this file");
    }
    Policies { pools: reader.pools.into_values().collect() }
}

#[derive(Default)]
struct Reader {
    pools: BTreeMap<String, Pool>,
    /// Where the policies of these names are.
    names: BTreeMap<String, usize>,
    policies: usize,
}

impl Reader {
    /// A policy. Objects of another kind stand beside policies in the files that people have, and say nothing about VFs.
    fn object(&mut self, field: &Field<'_>) {
        let of_operator = text_of(field, "apiVersion").is_none_or(|version| version.starts_with(API_GROUP));
        let is_other = text_of(field, "kind").is_some_and(|kind| OTHER_KINDS.contains(&kind));
        if is_other || !of_operator {
            return;
        }
        self.policies += 1;
        let Some(table) = field.table(&["apiVersion", "kind", "metadata", "spec", "status"]) else { return };
        if table.required("kind", "`SriovNetworkNodePolicy`").and_then(|kind| kind.choice(&[(KIND, ())])).is_none() {
            return;
        }
        let name = table.required("metadata", "the policy's name").and_then(|metadata| {
            let name = metadata.peek("name");
            if name.is_none() {
                metadata.wrong_below("name", "missing; the policy's name is wanted");
            }
            name
        });
        let Some((name_field, name)) = name.as_ref().and_then(|field| Some((field, field.text()?))) else { return };
        // The operator makes one of this name, which says nothing.
        if name == "default" {
            return;
        }
        let line = field.line_of("metadata.name");
        if let Some(first) = self.names.insert(name.to_owned(), line) {
            name_field.wrong(format!("the policy `{name}` is on line {first} already"));
        }
        if let Some(spec) = table.required("spec", "what the policy says").and_then(|spec| spec.table(SPEC_KEYS)) {
            let fields = [
                ("name", "metadata.name"),
                ("pfs", "spec.nicSelector"),
                ("num_vfs", "spec.numVfs"),
                ("mtu", "spec.mtu"),
                ("externally_managed", "spec.externallyManaged"),
            ];
            self.policy(name, &spec, source(field, &fields));
        }
    }

    fn policy(&mut self, name: &str, spec: &Table<'_>, source: Source) {
        let resource = spec.required("resourceName", "the name of the resource");
        let resource = resource.and_then(|field| field.text()).unwrap_or_default();
        let count = spec.required("numVfs", "how many VFs").and_then(|field| field.number::<u32>(0..=VFS_MAX));
        refuse(spec, "eSwitchMode", &["legacy"], "only `legacy`: the mode of the switch is not changed here");
        refuse(spec, "linkType", &["eth", "ETH"], "only Ethernet");
        refuse(spec, "vdpaType", &[], "vDPA devices are not made here");
        let driver = match filled(spec, "deviceType") {
            None => Some(Driver::Kernel),
            Some(field) => field.choice(&[("netdevice", Driver::Kernel), ("vfio-pci", Driver::VfioPci)]),
        };
        let switch = |key| filled(spec, key).and_then(|field| field.choice(&[("true", true), ("false", false)]));
        if let (Some(true), Some(Driver::VfioPci), Some(field)) = (switch("isRdma"), driver, spec.optional("isRdma")) {
            field.wrong("RDMA needs `deviceType: netdevice`");
        }
        let number = |key, range| filled(spec, key).and_then(|field| field.number::<u32>(range));
        // Zero is what the operator has for "not said".
        let mtu = number("mtu", 0..=*MTU_RANGE.end()).filter(|&mtu| mtu != 0);
        let selector = spec.required("nicSelector", "which PFs");
        let selectors = selector.map(|field| read_selector(&field)).unwrap_or_default();
        let (Some(num_vfs), Some(driver)) = (count, driver) else { return };
        let policy = OperatorPolicy {
            name: name.to_owned(),
            priority: number("priority", 0..=PRIORITY_MAX).unwrap_or(PRIORITY_DEFAULT),
            num_vfs,
            driver,
            mtu,
            is_externally_managed: switch("externallyManaged") == Some(true),
            source: source.clone(),
        };
        // The operator passes over a policy that wants none.
        if num_vfs == 0 || resource.is_empty() {
            return;
        }
        let pool = self.pools.entry(resource.to_owned());
        let pool = pool.or_insert_with(|| Pool { name: resource.to_owned(), source, ..Pool::default() });
        pool.pfs.extend(selectors.into_iter().map(|selector| PfSelector { policy: Some(policy.clone()), ..selector }));
        pool.take_use_of_policies();
    }
}

fn text_of<'a>(field: &Field<'a>, key: &str) -> Option<&'a str> {
    field.peek(key).filter(Field::is_text).and_then(|field| field.text())
}

/// The value of a key, unless it is empty.
fn filled<'a>(table: &Table<'a>, key: &str) -> Option<Field<'a>> {
    table.optional(key).filter(|field| !field.is_empty())
}

/// Accepts a key only with values that change nothing.
fn refuse(spec: &Table<'_>, key: &str, good: &[&str], why: &str) {
    if let Some(field) = filled(spec, key)
        && let Some(text) = field.text()
        && !good.contains(&text)
    {
        field.wrong(format!("`{text}`: {why}"));
    }
}

fn read_selector(field: &Field<'_>) -> Vec<PfSelector> {
    let Some(table) = field.table(&["vendor", "deviceID", "rootDevices", "pfNames", "netFilter"]) else {
        return Vec::new();
    };
    let hex = |key| filled(&table, key).and_then(|field| hex_id(&field));
    let base = PfSelector { vendor: hex("vendor"), device: hex("deviceID"), ..PfSelector::default() };
    if let Some(filter) = filled(&table, "netFilter") {
        filter.wrong("networks of a cloud are not known here: name the PFs");
    }
    let items = |key| filled(&table, key).and_then(|field| field.items()).unwrap_or_default();
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
    let keys = ["vendor", "deviceID", "rootDevices", "pfNames"];
    if keys.iter().all(|key| filled(&table, key).is_none()) {
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

const KIND: &str = "SriovNetworkNodePolicy";
/// Both that the operator had: `sriovnetwork.openshift.io` and `sriovnetwork.k8s.cni.cncf.io`.
const API_GROUP: &str = "sriovnetwork.";
/// Of that group, but not about the VFs of a node.
const OTHER_KINDS: &[&str] = &[
    "OVSNetwork",
    "SriovIBNetwork",
    "SriovNetwork",
    "SriovNetworkNodeState",
    "SriovNetworkPoolConfig",
    "SriovOperatorConfig",
];
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
