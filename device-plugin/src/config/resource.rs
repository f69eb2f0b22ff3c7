//! One resource: its name, what it is made of, and what a pod gets with it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use ferrule_daemon::settings::{ConfigError, Field};
use serde_json::Value;
use sriov_manager_client::v1;

use super::Keys;
use super::networks;
use super::selector::{self, DeviceType, Selector};
use super::software::{self, Software};

/// One entry of `resourceList`.
#[derive(Clone, Debug, PartialEq)]
pub struct ResourceConfig {
    /// What pods ask for.
    pub name: ResourceName,
    /// What kind of devices it has.
    pub device_type: DeviceType,
    /// The kubelet is not told of NUMA nodes.
    pub exclude_topology: bool,
    /// What of the node it has; one that fits is enough.
    pub selectors: Vec<Selector>,
    /// By device or `*`: what its pods are told beside.
    pub additional_info: BTreeMap<String, BTreeMap<String, String>>,
    /// What a VF is bound to when a pod gets it; none: what it is on. Resources that name one may share VFs.
    pub driver: Option<v1::Driver>,
    /// Which devices go first.
    pub policy: Option<Policy>,
    /// What the PF shall decide about a VF while a pod has it.
    pub attributes: v1::Attributes,
    /// A PF without a link makes its free VFs unhealthy.
    pub needs_link: bool,
    /// It has endpoints of the forwarder, and nothing of the node.
    pub software: Option<Software>,
    /// Its pods get tokens of Network Service Mesh.
    pub nsm_tokens: bool,
    /// What a CNI plugin attaches its pods to, as CNI has configurations. The first is for pods that name none.
    pub networks: Vec<Value>,
}

/// The name of a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResourceName {
    /// A domain.
    pub prefix: String,
    /// Unique with it.
    pub name: String,
}

/// Which devices go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The PF with the fewest free devices.
    Pack,
    /// The PF with the most free devices, one after the other.
    Spread,
    /// All of one PF, if one has enough.
    SamePf,
}

impl ResourceConfig {
    /// A resource of which nothing but the name is known. None: it has no prefix.
    pub fn of_name(name: &str) -> Option<Self> {
        let (prefix, name) = name.split_once('/')?;
        Some(Self {
            name: ResourceName { prefix: prefix.to_owned(), name: name.to_owned() },
            device_type: DeviceType::default(),
            exclude_topology: false,
            selectors: Vec::new(),
            additional_info: BTreeMap::new(),
            driver: None,
            policy: None,
            attributes: v1::Attributes::default(),
            needs_link: false,
            software: None,
            nsm_tokens: false,
            networks: Vec::new(),
        })
    }
}

impl ResourceName {
    /// The environment variable in which a container finds its devices. Its shell cannot read a name with a hyphen; pods of the Go
    /// plugin expect it all the same.
    pub fn variable(&self) -> String {
        format!("PCIDEVICE_{}_{}", self.prefix, self.name).to_uppercase().replace('.', "_")
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.prefix, self.name)
    }
}

/// Reads one entry; `raw` is the same with the types of its values. None: it cannot be used, which is a warning or an error.
pub(super) fn read(
    entry: &Field<'_>,
    raw: &Value,
    prefix: &str,
    warnings: &mut Vec<ConfigError>,
) -> Option<ResourceConfig> {
    let keys = Keys::of(entry, KEYS, warnings)?;
    let name = keys.get("resourceName").and_then(Field::text);
    let name_is_good = name.is_some_and(is_name);
    if !name_is_good {
        let at = keys.get("resourceName").unwrap_or(entry);
        at.wrong(
            "a `resourceName` of letters, digits, `_` and `-` is wanted, at most 63 of them, with a letter or a digit at both ends",
        );
    }
    if let Some(field) = keys.get("resourcePrefix").filter(|field| !field.is_empty())
        && !field.text().is_some_and(is_prefix)
    {
        field.wrong(format!("{PREFIX_WANTED}; the kubelet takes no other"));
    }
    let prefix = keys.get("resourcePrefix").and_then(Field::text).filter(|text| !text.is_empty()).unwrap_or(prefix);
    let device_type = match keys.get("deviceType").filter(|field| !field.is_empty()) {
        Some(field) => field.choice(DEVICE_TYPES)?,
        None => DeviceType::default(),
    };
    let own = read_own(&keys, device_type, warnings);
    let software = keys.get("software").and_then(|field| {
        if device_type == DeviceType::Accelerator {
            field.wrong("an endpoint without a NIC is no accelerator: remove it");
        }
        for field in ["driver", "policy", "attributes", "needsLink"].iter().filter_map(|key| keys.get(key)) {
            warnings.push(field.error("it means nothing beside `software`, whose endpoints are no VFs"));
        }
        software::read(field, warnings)
    });
    let nsm_tokens = keys.get("nsmTokens").is_some_and(|field| {
        if device_type != DeviceType::NetDevice || software.is_some() {
            field.wrong("only a VF has a token of Network Service Mesh: remove it");
        }
        field.choice(BOOLS).unwrap_or(false)
    });
    let networks = keys.get("networks").map(|field| networks::read(field, raw, device_type)).unwrap_or_default();
    // They select what it does not have.
    let is_selected = software.is_none() || keys.get("selectors").is_some();
    let selectors = if is_selected { read_selectors(entry, &keys, device_type, warnings)? } else { Vec::new() };
    if let (Some(driver), Some(field)) = (own.0, keys.get("selectors").filter(|_| software.is_none())) {
        warnings.extend(drivers_of_now(field, driver));
    }
    if !name_is_good {
        return None;
    }
    let (driver, policy, attributes, needs_link) = own;
    // Such a VF can become anything that a connection asks for, and its container has its nodes.
    let driver = driver.or(nsm_tokens.then_some(v1::Driver::VfioPci));
    Some(ResourceConfig {
        name: ResourceName { prefix: prefix.to_owned(), name: name?.to_owned() },
        device_type,
        exclude_topology: keys.get("excludeTopology").and_then(|field| field.choice(BOOLS)).unwrap_or(false),
        selectors,
        additional_info: keys.get("additionalInfo").map(read_info).unwrap_or_default(),
        driver,
        policy,
        attributes,
        needs_link,
        software,
        nsm_tokens,
        networks,
    })
}

/// What people call an entry that cannot be used.
pub(super) fn called(entry: &Field<'_>) -> String {
    let named = entry.is_table().then(|| entry.entries()).flatten().unwrap_or_default();
    let name =
        named.iter().find(|(key, _)| key.eq_ignore_ascii_case("resourceName")).and_then(|(_, field)| field.text());
    format!("{} (line {})", name.unwrap_or("an entry without a `resourceName`"), entry.line_of(""))
}

/// An object is the old form, a list of one. None: nothing can be used of it, which is a warning.
fn read_selectors(
    entry: &Field<'_>,
    keys: &Keys<'_>,
    device_type: DeviceType,
    warnings: &mut Vec<ConfigError>,
) -> Option<Vec<Selector>> {
    let Some(field) = keys.get("selectors") else {
        warnings.push(entry.error("it has no `selectors`, and is left out; `{}` means every device of its type"));
        return None;
    };
    let items = if field.is_list() { field.items()? } else { vec![field.clone()] };
    if items.is_empty() {
        warnings.push(field.error("a list without a selector means no device, and the entry is left out"));
        return None;
    }
    let mut wrong = Vec::new();
    let mut selectors = Vec::new();
    for item in &items {
        match selector::read(item, device_type, warnings) {
            Ok(selector) => selectors.push(selector),
            Err(errors) => wrong.extend(errors),
        }
    }
    if wrong.is_empty() {
        return Some(selectors);
    }
    for mut error in wrong {
        error.problem.push_str("; the entry is left out");
        warnings.push(error);
    }
    None
}

/// A selector by the driver of this moment, in an entry that binds its VFs to one.
fn drivers_of_now(selectors: &Field<'_>, driver: v1::Driver) -> Vec<ConfigError> {
    let all = if selectors.is_list() { selectors.items().unwrap_or_default() } else { vec![selectors.clone()] };
    let keys = all.iter().flat_map(|selector| selector.entries().unwrap_or_default());
    let drivers = keys.filter(|(key, field)| key.eq_ignore_ascii_case("drivers") && !field.is_empty());
    let problem = format!(
        "it compares the driver that a VF has now, and `driver` binds each to {} when a pod gets it: VFs that are on another driver \
         are not in this resource, and leave it when they are bound to one; delete `drivers`",
        driver.word()
    );
    drivers.map(|(_, field)| field.error(problem.clone())).collect()
}

type Own = (Option<v1::Driver>, Option<Policy>, v1::Attributes, bool);

/// The keys that the Go plugin does not know.
fn read_own(keys: &Keys<'_>, device_type: DeviceType, warnings: &mut Vec<ConfigError>) -> Own {
    let driver = keys.get("driver").and_then(|field| {
        if device_type != DeviceType::NetDevice {
            field.wrong("only a `netDevice` is bound; others are advertised as they are: remove it");
        }
        field.choice(&[("kernel", v1::Driver::Kernel), ("vfio-pci", v1::Driver::VfioPci)])
    });
    let policy = keys.get("policy").and_then(|field| field.choice(POLICIES));
    let attributes = keys.get("attributes").map(|field| {
        if device_type != DeviceType::NetDevice {
            field.wrong("only a `netDevice` has attributes: remove it");
        }
        read_attributes(field, driver, warnings)
    });
    let needs_link = keys.get("needsLink").and_then(|field| field.choice(BOOLS)).unwrap_or(true);
    (driver, policy, attributes.unwrap_or_default(), needs_link)
}

/// With the words of the SR-IOV network operator's `SriovNetwork`.
fn read_attributes(field: &Field<'_>, driver: Option<v1::Driver>, warnings: &mut Vec<ConfigError>) -> v1::Attributes {
    let Some(keys) = Keys::of(field, ATTRIBUTES, warnings) else { return v1::Attributes::default() };
    let number = |key: &str, range: RangeInclusive<u64>| keys.get(key).and_then(|field| field.number::<u32>(range));
    let switch = |key: &str| keys.get(key).and_then(|field| field.choice(SWITCH));
    let vlan = number("vlan", 0..=4094).map(|id| v1::Vlan {
        id,
        qos: number("vlanQoS", 0..=7).unwrap_or(0),
        protocol: keys
            .get("vlanProto")
            .and_then(Field::parse::<v1::VlanProtocol>)
            .unwrap_or(v1::VlanProtocol::Dot1q)
            .into(),
    });
    for key in ["vlanQoS", "vlanProto"] {
        if let Some(field) = keys.get(key).filter(|_| vlan.is_none()) {
            field.wrong("it is of a VLAN, and there is no `vlan`");
        }
    }
    let (min, max) = (number("minTxRate", RATES), number("maxTxRate", RATES));
    if let (Some(field), Some(min), Some(max)) = (keys.get("minTxRate"), min, max)
        && max != 0
        && min > max
    {
        field.wrong(format!("`{min}` is above `maxTxRate`, which is {max}"));
    }
    let mtu = number("mtu", 68..=65535);
    if let (Some(field), Some(v1::Driver::VfioPci)) = (keys.get("mtu"), driver) {
        field.wrong("a VF on `vfio-pci` has no interface whose MTU can be set");
    }
    let rate = (min.is_some() || max.is_some()).then(|| v1::Rate { min: min.unwrap_or(0), max: max.unwrap_or(0) });
    v1::Attributes {
        mac: None,
        vlan,
        rate,
        spoof_check: switch("spoofChk"),
        trust: switch("trust"),
        link_state: keys.get("linkState").and_then(Field::parse::<v1::LinkState>).map(Into::into),
        mtu,
    }
}

fn read_info(field: &Field<'_>) -> BTreeMap<String, BTreeMap<String, String>> {
    let texts = |field: &Field<'_>| -> BTreeMap<String, String> {
        let entries = field.entries().unwrap_or_default();
        entries.iter().filter_map(|(key, value)| Some(((*key).to_owned(), value.text()?.to_owned()))).collect()
    };
    let devices = field.entries().unwrap_or_default();
    devices.iter().map(|(device, info)| ((*device).to_owned(), texts(info))).collect()
}

/// What the kubelet takes after the slash.
pub(super) fn is_name(name: &str) -> bool {
    let has_ends = name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.ends_with(|last: char| last.is_ascii_alphanumeric());
    has_ends && name.len() <= NAME_MAX && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

/// What the kubelet takes in front of it: a DNS name that is not Kubernetes' own.
pub(super) fn is_prefix(prefix: &str) -> bool {
    let is_label = |label: &str| {
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        label.len() <= NAME_MAX
            && label.bytes().all(|byte| is_word(byte) || byte == b'-')
            && label.bytes().next().is_some_and(is_word)
            && label.bytes().last().is_some_and(is_word)
    };
    prefix.len() <= PREFIX_MAX
        && prefix.split('.').all(is_label)
        && !prefix.ends_with("kubernetes.io")
        && !prefix.starts_with("requests.")
}

/// Reads the prefix of resources that have none of their own.
pub fn parse_prefix(text: &str) -> Result<String, String> {
    if is_prefix(text) { Ok(text.to_owned()) } else { Err(format!("`{text}`; {PREFIX_WANTED}")) }
}

const PREFIX_WANTED: &str = "a domain in lower case is wanted, such as `intel.com`, which is not Kubernetes' own (`kubernetes.io`, `requests.`)";
/// Of a DNS name.
const PREFIX_MAX: usize = 253;
const KEYS: &[&str] = &[
    "resourceName",
    "resourcePrefix",
    "deviceType",
    "excludeTopology",
    "selectors",
    "additionalInfo",
    "driver",
    "policy",
    "attributes",
    "software",
    "needsLink",
    "nsmTokens",
    "networks",
];
const ATTRIBUTES: &[&str] =
    &["vlan", "vlanQoS", "vlanProto", "minTxRate", "maxTxRate", "spoofChk", "trust", "linkState", "mtu"];
const DEVICE_TYPES: &[(&str, DeviceType)] = &[
    ("netDevice", DeviceType::NetDevice),
    ("accelerator", DeviceType::Accelerator),
    ("auxNetDevice", DeviceType::AuxNetDevice),
];
const POLICIES: &[(&str, Policy)] = &[("pack", Policy::Pack), ("spread", Policy::Spread), ("same-pf", Policy::SamePf)];
const BOOLS: &[(&str, bool)] = &[("true", true), ("false", false)];
const SWITCH: &[(&str, bool)] = &[("on", true), ("off", false)];
const RATES: RangeInclusive<u64> = 0..=u32::MAX as u64;
/// Of the part of a qualified name after the slash.
const NAME_MAX: usize = 63;
