//! The SR-IOV configuration of cmd-forwarder-sriov (`NSM_SRIOV_CONFIG_FILE`): which tokens there are, and of which PFs. `sriov-manager` and
//! `device-plugin` read the same file: those make and bind VFs, and give them to pods.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ferrule_daemon::settings::{Field, decode, parse};

/// Which PFs the VFs of each token's name are of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SriovConfig {
    names: BTreeMap<String, BTreeSet<String>>,
}

impl SriovConfig {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(in crate::nsm) fn load(path: &Path) -> Result<Self, String> {
        let contents = std::fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))?;
        let text = decode(path, &contents).map_err(|error| error.to_string())?;
        parse(&path.display().to_string(), text, |root, _| read(root)).map_err(|errors| {
            let lines: Vec<_> = errors.lines().collect();
            lines.join("; ")
        })
    }

    /// Whether a VF of this PF may be used by a token of this name.
    pub(super) fn allows(&self, name: &str, pf: &str) -> bool {
        self.names.get(name).is_some_and(|pfs| pfs.contains(pf))
    }
}

fn read(root: &Field<'_>) -> SriovConfig {
    let mut config = SriovConfig::default();
    let Some(table) = root.table(&["physicalFunctions"]) else { return config };
    let Some(functions) = table.required("physicalFunctions", "PFs by their addresses") else { return config };
    for (address, field) in functions.entries().unwrap_or_default() {
        let keys = &["pfKernelDriver", "vfKernelDriver", "capabilities", "serviceDomains", "virtualFunctions"];
        let Some(table) = field.table(keys) else { continue };
        for key in ["pfKernelDriver", "vfKernelDriver"] {
            let _: Option<&str> = table.required(key, "a driver").and_then(|field| field.text());
        }
        if let Some(functions) = table.optional("virtualFunctions").filter(|functions| !functions.is_empty()) {
            functions.wrong("VFs are those that sriov-manager tells of: remove it");
        }
        let texts = |key: &str| -> Vec<String> {
            let Some(list) = table.required(key, "a list") else { return Vec::new() };
            let items = list.items().unwrap_or_default();
            if items.is_empty() {
                list.wrong("at least one is wanted");
            }
            items.iter().filter_map(|item| item.text().map(ToOwned::to_owned)).collect()
        };
        let (domains, capabilities) = (texts("serviceDomains"), texts("capabilities"));
        let names = domains
            .iter()
            .flat_map(|domain| capabilities.iter().map(move |capability| format!("{domain}/{capability}")));
        for name in names {
            config.names.entry(name).or_default().insert(address.to_lowercase());
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_which_tokens_there_are_and_what_means_nothing_here_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pci.config");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            SriovConfig::load(&path)
        };
        let pf = "  \"0000:3B:00.0\":\n    pfKernelDriver: igb\n    vfKernelDriver: igbvf\n    capabilities: [intel, 10G]\n    \
                  serviceDomains: [a.b]\n";
        let config = load(&format!("physicalFunctions:\n{pf}")).unwrap();
        assert!(config.allows("a.b/10G", "0000:3b:00.0") && config.allows("a.b/intel", "0000:3b:00.0"));
        assert!(!config.allows("a.b/10G", "0000:3c:00.0") && !config.allows("a.b/40G", "0000:3b:00.0"));
        assert_eq!(load("physicalFunctions: {}\n"), Ok(SriovConfig::default()));
        let wrong = load(&format!("physicalFunctions:\n{pf}    virtualFunctions: [{{address: x}}]\n    speed: 1\n"));
        let wrong = wrong.unwrap_err();
        assert!(wrong.contains("virtualFunctions") && wrong.contains("speed"), "{wrong}");
        assert!(SriovConfig::load(&directory.path().join("none")).unwrap_err().contains("none"));
    }
}
