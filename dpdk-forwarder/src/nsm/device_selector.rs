//! The devices by which connections leave the mesh into VLANs (`NSM_DEVICE_SELECTOR_FILE`, as cmd-forwarder-vpp has it): the label `via` of a
//! connection chooses one.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use ferrule_daemon::settings::{Field, decode, parse};
use ferrule_dataplane::spec::InterfaceName;

/// Which device each value of `via` means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DeviceSelector(BTreeMap<String, SelectedDevice>);

/// A device of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SelectedDevice {
    pub(super) name: InterfaceName,
    /// Those that connections may leave into.
    vlans: Vec<RangeInclusive<u16>>,
}

impl SelectedDevice {
    /// Whether connections may leave into a VLAN.
    pub(super) fn has(&self, vlan: u16) -> bool {
        self.vlans.iter().any(|vlans| vlans.contains(&vlan))
    }
}

impl DeviceSelector {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        let contents = std::fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))?;
        let text = decode(path, &contents).map_err(|error| error.to_string())?;
        parse(&path.display().to_string(), text, |root, _| read(root)).map_err(|errors| {
            let lines: Vec<_> = errors.lines().collect();
            lines.join("; ")
        })
    }

    /// The device of a connection with these labels.
    pub(super) fn device(&self, labels: &BTreeMap<String, String>) -> Option<&SelectedDevice> {
        self.0.get(labels.get(VIA)?)
    }

    /// All devices.
    pub(super) fn devices(&self) -> impl Iterator<Item = &SelectedDevice> {
        self.0.values()
    }
}

fn read(root: &Field<'_>) -> DeviceSelector {
    let mut selector = DeviceSelector::default();
    let Some(table) = root.table(&["interfaces"]) else { return selector };
    let Some(interfaces) = table.required("interfaces", "a list of devices") else { return selector };
    for interface in interfaces.items().unwrap_or_default() {
        let Some(table) = interface.table(&["name", "matches", "vlans"]) else { continue };
        let name = table.required("name", "a device").and_then(|field| field.parse_as("the name of an interface"));
        let vlans = match table.optional("vlans") {
            None => vec![TAGGED],
            Some(list) => list.items().unwrap_or_default().iter().filter_map(vlans).collect(),
        };
        let device = name.map(|name| SelectedDevice { name, vlans });
        let matches = table.optional("matches").and_then(|field| field.items()).unwrap_or_default();
        for one in &matches {
            let Some(table) = one.table(&["labelSelector"]) else { continue };
            let Some(list) = table.required("labelSelector", "a list of labels") else { continue };
            let labels = list.items().unwrap_or_default();
            if labels.is_empty() {
                list.wrong("at least one label is wanted, as in `- via: gw0`");
            }
            for label in &labels {
                let Some(table) = label.table(&[VIA]) else { continue };
                let Some(via) = table.required(VIA, "what connections say") else { continue };
                let (Some(text), Some(device)) = (via.text(), &device) else { continue };
                let before = selector.0.insert(text.to_owned(), SelectedDevice::clone(device));
                if before.is_some_and(|before| before != *device) {
                    via.wrong("another device has it already");
                }
            }
        }
    }
    selector
}

/// `n`, or `first-last`.
fn vlans(field: &Field<'_>) -> Option<RangeInclusive<u16>> {
    let text = field.text()?;
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |word: &str| word.trim().parse::<u16>().ok().filter(|vlan| *vlan <= *TAGGED.end());
    let range = number(first).zip(number(last)).filter(|(first, last)| first <= last);
    if range.is_none() {
        field.wrong("a VLAN is wanted, 0 to 4094, or a range as in `100-199`");
    }
    range.map(|(first, last)| first..=last)
}

/// What a device has that does not say it: frames without a tag are the node's own.
const TAGGED: RangeInclusive<u16> = 1..=4094;
/// The label of a connection that chooses.
const VIA: &str = "via";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_chooses_a_device_and_what_is_wrong_is_told_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("selector.yaml");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            DeviceSelector::load(&path)
        };
        let labels = |via: &str| [("via".to_owned(), via.to_owned()), ("app".to_owned(), "x".to_owned())].into();
        let eth1 = "interfaces:\n- name: eth1\n  matches:\n  - labelSelector:\n    - via: gw0\n    - via: gw1\n";
        let selector = load(eth1).unwrap();
        let device = |via| selector.device(&labels(via)).map(|device| device.name.to_string());
        assert_eq!([0, 1, 4094].map(|vlan| selector.device(&labels("gw0")).unwrap().has(vlan)), [false, true, true]);
        assert_eq!(
            [device("gw0"), device("gw1"), device("gw2")],
            [Some("eth1".to_owned()), Some("eth1".to_owned()), None]
        );
        assert_eq!(selector.device(&BTreeMap::new()), None);
        for (wrong, word) in [
            (format!("{eth1}- name: eth2\n  matches: [{{labelSelector: [{{via: gw0}}]}}]\n"), "another device"),
            (format!("{eth1}- name: a/b\n"), "name"),
            ("interfaces: [{name: eth1, matches: [{labelSelector: []}]}]\n".to_owned(), "at least one"),
            ("interfaces: [{name: eth1, matches: [{labelSelector: [{to: gw0}]}]}]\n".to_owned(), "to"),
            ("bridges: []\n".to_owned(), "bridges"),
            (eth1.replace("name: eth1\n", "name: eth1\n  vlans: [200-100]\n"), "range"),
        ] {
            let problem = load(&wrong).unwrap_err();
            assert!(problem.contains(word), "{problem}");
        }
        assert!(DeviceSelector::load(&directory.path().join("none")).unwrap_err().contains("none"));
    }
}
