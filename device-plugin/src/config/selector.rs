//! What of the node an entry means.

use std::str::FromStr;

use ferrule_daemon::settings::{ConfigError, Field};

use super::{Keys, PfFunctions};

/// What of the node is meant: everything that is named must fit, one of the values of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// PCI vendors, four hexadecimal digits.
    pub vendors: Vec<String>,
    /// PCI device ids, four hexadecimal digits.
    pub devices: Vec<String>,
    /// Drivers that it is bound to.
    pub drivers: Vec<String>,
    /// Whole addresses.
    pub pci_addresses: Vec<String>,
    /// What firmware calls it.
    pub acpi_indexes: Vec<String>,
    /// Kinds of functions on the auxiliary bus.
    pub aux_types: Vec<String>,
    /// Functions of PFs by their interfaces.
    pub pf_names: Vec<PfFunctions>,
    /// Functions of PFs by their addresses.
    pub root_devices: Vec<PfFunctions>,
    /// `ether` or `infiniband`.
    pub link_types: Vec<String>,
    /// DDP profiles that the NIC has loaded.
    pub ddp_profiles: Vec<String>,
    /// InfiniBand partition keys.
    pub pkeys: Vec<String>,
    /// Only what RDMA can use; its nodes go to the pod.
    pub is_rdma: bool,
    /// The nodes of vhost-net go to the pod.
    pub need_vhost_net: bool,
    /// Only what has such a vDPA device.
    pub vdpa_type: Option<VdpaType>,
}

/// What kind of devices a resource has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceType {
    /// Functions of NICs.
    #[default]
    NetDevice,
    /// Accelerators: they are advertised, and never bound.
    Accelerator,
    /// Functions on the auxiliary bus: they are advertised, and never bound.
    AuxNetDevice,
}

impl DeviceType {
    /// As the configuration writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::NetDevice => "netDevice",
            Self::Accelerator => "accelerator",
            Self::AuxNetDevice => "auxNetDevice",
        }
    }
}

/// Who drives a vDPA device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VdpaType {
    /// A program, through `/dev/vhost-vdpa-N`.
    Vhost,
    /// The kernel: it is a network interface.
    Virtio,
}

impl FromStr for VdpaType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "vhost" => Ok(Self::Vhost),
            "virtio" => Ok(Self::Virtio),
            _ => Err(format!("`{text}`; `vhost` or `virtio` is wanted")),
        }
    }
}

/// Reads one selector. What is wrong with its values comes back in one go; what contradicts itself is noted as an error.
pub(super) fn read(
    field: &Field<'_>,
    device_type: DeviceType,
    warnings: &mut Vec<ConfigError>,
) -> Result<Selector, Vec<ConfigError>> {
    if !field.is_table() {
        return Err(vec![field.error("a mapping is wanted, as in `{\"pfNames\": [\"ens1f0\"]}`")]);
    }
    let keys = Keys::of(field, KEYS, warnings).ok_or_else(Vec::new)?;
    let mut errors = Vec::new();
    let mut list = |key: &str| words(&keys, key, &mut errors);
    let (vendors, devices, drivers) = (list("vendors"), list("devices"), list("drivers"));
    let (pci_addresses, acpi_indexes, aux_types) = (list("pciAddresses"), list("acpiIndexes"), list("auxTypes"));
    let (link_types, ddp_profiles, pkeys) = (list("linkTypes"), list("ddpProfiles"), list("pKeys"));
    let (pf_names, root_devices) = (list("pfNames"), list("rootDevices"));
    let is_rdma = flag(&keys, "isRdma", &mut errors);
    let need_vhost_net = flag(&keys, "needVhostNet", &mut errors);
    let vdpa_type = keys.get("vdpaType").filter(|field| !field.is_empty()).and_then(|field| {
        let parsed = one_word(field).map(str::parse);
        parsed
            .unwrap_or_else(|| Err("one word is wanted".to_owned()))
            .map_err(|wrong| errors.push(field.error(wrong)))
            .ok()
    });
    if let Some(field) = keys.get("isRdma").filter(|_| is_rdma && vdpa_type.is_some()) {
        field.wrong("`isRdma` and `vdpaType` exclude each other; make two entries of it");
    }
    if device_type == DeviceType::AuxNetDevice && (aux_types.is_empty() || aux_types.iter().any(|kind| kind != "sf")) {
        let at = keys.get("auxTypes").unwrap_or(field);
        at.wrong("an `auxNetDevice` is a sub-function: `\"auxTypes\": [\"sf\"]` is wanted");
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    if let Some(field) = keys.get("linkTypes").filter(|_| link_types.len() > 1) {
        warnings.push(field.error("more than one type of link: a pod cannot tell which it gets"));
    }
    if let Some(field) = keys.get("ddpProfiles").filter(|_| !ddp_profiles.is_empty()) {
        warnings.push(field.error("no DDP profile can be read here, so nothing fits; name the functions by `pfNames`"));
    }
    let functions = |key: &str, texts: &[String], warnings: &mut Vec<ConfigError>| {
        let Some(field) = keys.get(key) else { return Vec::new() };
        functions(field, texts, warnings)
    };
    Ok(Selector {
        pf_names: functions("pfNames", &pf_names, warnings),
        root_devices: functions("rootDevices", &root_devices, warnings),
        vendors,
        devices,
        drivers,
        pci_addresses,
        acpi_indexes,
        aux_types,
        link_types,
        ddp_profiles,
        pkeys,
        is_rdma,
        need_vhost_net,
        vdpa_type,
    })
}

/// A text that means no function is kept as one that no function has: it must not turn into no condition at all.
fn functions(field: &Field<'_>, texts: &[String], warnings: &mut Vec<ConfigError>) -> Vec<PfFunctions> {
    let mut read: Vec<PfFunctions> = Vec::new();
    for text in texts {
        let functions = PfFunctions::parse(text).unwrap_or_else(|wrong| {
            warnings.push(field.error(wrong));
            PfFunctions { pf: String::new(), vfs: Some(Vec::new()) }
        });
        if read.iter().any(|other| other.pf.eq_ignore_ascii_case(&functions.pf) && !other.pf.is_empty()) {
            let pf = &functions.pf;
            warnings.push(field.error(format!(
                "`{pf}` is named twice; the Go plugin looks at the first only, this one at both: write `{pf}#0-1,4-5`"
            )));
        }
        read.push(functions);
    }
    read
}

fn words(keys: &Keys<'_>, key: &str, errors: &mut Vec<ConfigError>) -> Vec<String> {
    let Some(field) = keys.get(key) else { return Vec::new() };
    if !field.is_list() {
        errors.push(field.error("a list of words is wanted, as in `[\"a\", \"b\"]`"));
        return Vec::new();
    }
    let items = field.items().unwrap_or_default();
    let word = |item: &Field<'_>| {
        let word = one_word(item).map(ToOwned::to_owned);
        if word.is_none() {
            errors.push(item.error("a word is wanted"));
        }
        word
    };
    items.iter().filter_map(word).collect()
}

fn one_word<'a>(field: &Field<'a>) -> Option<&'a str> {
    if field.is_text() { field.text() } else { None }
}

fn flag(keys: &Keys<'_>, key: &str, errors: &mut Vec<ConfigError>) -> bool {
    let Some(field) = keys.get(key) else { return false };
    match one_word(field) {
        Some("true") => true,
        Some("false") => false,
        _ => {
            errors.push(field.error("`true` or `false` is wanted"));
            false
        }
    }
}

const KEYS: &[&str] = &[
    "vendors",
    "devices",
    "drivers",
    "pciAddresses",
    "acpiIndexes",
    "auxTypes",
    "pfNames",
    "rootDevices",
    "linkTypes",
    "ddpProfiles",
    "pKeys",
    "isRdma",
    "needVhostNet",
    "vdpaType",
];
