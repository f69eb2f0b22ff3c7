//! The key `networks`: what a CNI plugin attaches pods to by the devices of a resource. It is handed over as it is; the plugin knows its
//! keys.

use std::collections::BTreeSet;

use ferrule_daemon::settings::Field;
use serde_json::Value;

use super::selector::DeviceType;

/// The entries of a text with the types of their values, which a [`Field`] does not have. Without a key `networks` nobody wants them.
pub(super) fn raw_entries(text: &str) -> Vec<Value> {
    if !text.to_ascii_lowercase().contains(KEY) {
        return Vec::new();
    }
    let mut whole: Value = serde_saphyr::from_str(text).unwrap_or_default();
    value_of(&mut whole, "resourceList").and_then(|list| list.as_array_mut().map(std::mem::take)).unwrap_or_default()
}

/// Networks of an entry, of which these are the values.
pub(super) fn read(field: &Field<'_>, raw: &Value, device_type: DeviceType) -> Vec<Value> {
    if device_type != DeviceType::NetDevice {
        field.wrong("only a `netDevice` can be an interface: remove it");
    }
    let items = field.items().unwrap_or_default();
    if items.is_empty() && field.is_list() {
        field.wrong("at least one is wanted, as in `[{\"name\": \"blue\", \"vlan\": 100}]`");
    }
    let mut names = BTreeSet::new();
    for item in &items {
        let Some(entries) = item.entries() else { continue };
        let name = entries.iter().find(|(key, _)| *key == "name");
        match name.and_then(|(_, name)| name.text()) {
            Some(NONE) => item.wrong_below("name", format!("`{NONE}` is how pods say that they want no network")),
            Some(name) if !is_name(name) => item.wrong_below(
                "name",
                format!("`{name}`; a letter or digit and then letters, digits, `_`, `.` or `-` are wanted"),
            ),
            Some(name) if !names.insert(name.to_owned()) => {
                item.wrong_below("name", format!("another network of the resource is called `{name}`"));
            }
            Some(_) => {}
            None => item.wrong("a `name` is wanted, by which pods choose it"),
        }
        for (key, value) in entries {
            if FILLED_IN.iter().any(|filled| filled.eq_ignore_ascii_case(key)) {
                value.wrong("the CNI plugin fills it in: remove it");
            }
        }
    }
    let mut raw = raw.clone();
    value_of(&mut raw, KEY).and_then(|list| list.as_array_mut().map(std::mem::take)).unwrap_or_default()
}

/// Found as Go finds keys: without regard to case, and the last of several.
fn value_of<'a>(of: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let mut entries = of.as_object_mut()?.iter_mut().rev();
    entries.find(|(written, _)| written.eq_ignore_ascii_case(key)).map(|(_, value)| value)
}

/// As CNI has them.
fn is_name(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(is_part)
}

const KEY: &str = "networks";
const NONE: &str = "none";
const FILLED_IN: [&str; 7] = ["cniVersion", "type", "deviceID", "endpoint", "ferrule", "runtimeConfig", "prevResult"];
