//! Files that others read about a device that a pod has: CDI specs for the container runtime, and device-info files for CNI plugins.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::given::{Node, cdi_class};
use crate::config::{ResourceName, Selector, SoftwareKind};
use crate::inventory::{Device, Source};
use crate::lease_name::LeaseName;
use crate::software::is_endpoint;

/// How containers get device nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CdiMode {
    /// As device nodes of the answer: no runtime needs to know CDI.
    #[default]
    Off,
    /// As names in the answer's own field.
    Field,
    /// As names in an annotation, as the Go plugin does with `--use-cdi`.
    Annotation,
}

/// Where the files are.
#[derive(Clone, Debug)]
pub struct DeviceFiles {
    /// CDI specs of this boot.
    pub cdi: PathBuf,
    /// Device-info files of device plugins.
    pub device_info: PathBuf,
}

impl DeviceFiles {
    /// Writes the device-info file of a device.
    pub fn write_info(&self, resource: &ResourceName, device: &Device, selector: Option<&Selector>) -> io::Result<()> {
        let path = self.info_path(resource, &device.id);
        fs::create_dir_all(&self.device_info)?;
        replace(&path, &device_info(device, selector), 0o444)
    }

    /// Writes that of a software endpoint, whose socket is here on the host: what the pod is at it.
    pub fn write_software_info(
        &self,
        resource: &ResourceName,
        id: &str,
        kind: SoftwareKind,
        socket: &Path,
    ) -> io::Result<()> {
        fs::create_dir_all(&self.device_info)?;
        let section = match kind {
            SoftwareKind::Memif => json!({"role": "slave", "mode": "ethernet", "path": socket}),
            SoftwareKind::VhostUser => json!({"mode": "client", "path": socket}),
        };
        let mut info = json!({"type": kind.word(), "version": INFO_VERSION});
        info[kind.word()] = section;
        replace(&self.info_path(resource, id), &info, 0o444)
    }

    /// Writes the CDI spec of a device. One for each device: a spec that is changed has no moment at which others miss theirs.
    pub fn write_cdi(&self, resource: &ResourceName, device: &Device, nodes: &[Node]) -> io::Result<()> {
        fs::create_dir_all(&self.cdi)?;
        let spec = cdi_spec(&cdi_kind(resource, &device.source), &device.id, nodes);
        replace(&self.cdi_path(resource, &device.id), &spec, 0o644)
    }

    /// Removes what there is of devices that no pod has: left by a process before, or by another plugin. Two specs of one name make
    /// a runtime know neither. `resources`: whose device-info files are ours. `are_endpoints_known`: software endpoints that are not held
    /// are nobody's.
    pub fn keep_only(&self, held: &[LeaseName], resources: &[String], are_endpoints_known: bool) -> io::Result<()> {
        let kept: BTreeSet<PathBuf> =
            held.iter().filter_map(Self::of_lease).flat_map(|name| self.paths(&name)).collect();
        let prefixes: Vec<_> = resources.iter().map(|resource| format!("{}-", resource.replace('/', "-"))).collect();
        let is_ours = |name: &str| {
            let is_info = |id: &str| id.ends_with("-device.json") && (are_endpoints_known || !is_endpoint(id));
            let mut infos = prefixes.iter().filter_map(|prefix| name.strip_prefix(prefix.as_str()));
            name.starts_with(CDI_PREFIX) || infos.any(is_info)
        };
        for directory in [&self.cdi, &self.device_info] {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let is_ours = entry.file_name().to_str().is_some_and(is_ours);
                if is_ours && !kept.contains(&entry.path()) {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(())
    }

    fn of_lease(name: &LeaseName) -> Option<(ResourceName, String)> {
        let (prefix, resource) = name.resource.split_once('/')?;
        Some((ResourceName { prefix: prefix.to_owned(), name: resource.to_owned() }, name.device.clone()))
    }

    fn paths(&self, (resource, id): &(ResourceName, String)) -> [PathBuf; 2] {
        [self.info_path(resource, id), self.cdi_path(resource, id)]
    }

    /// The same as [`Self::remove`], by the name of a lease.
    pub fn remove_of(&self, name: &LeaseName) -> io::Result<()> {
        Self::of_lease(name).map_or(Ok(()), |(resource, id)| self.remove(&resource, &id))
    }

    /// Removes what there is of a device that no pod has any more.
    pub fn remove(&self, resource: &ResourceName, id: &str) -> io::Result<()> {
        for path in [self.info_path(resource, id), self.cdi_path(resource, id)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn info_path(&self, resource: &ResourceName, id: &str) -> PathBuf {
        self.device_info.join(format!("{}-{id}-device.json", resource.to_string().replace('/', "-")))
    }

    fn cdi_path(&self, resource: &ResourceName, id: &str) -> PathBuf {
        self.cdi.join(format!("{CDI_PREFIX}{}_{}_{id}.json", resource.prefix, resource.name))
    }
}

/// The kind of a device's spec: `vendor/class`.
fn cdi_kind(resource: &ResourceName, source: &Source) -> String {
    format!("{}/{}", resource.prefix, cdi_class(source))
}

/// The name by which a runtime finds a device.
pub fn cdi_name(resource: &ResourceName, device: &Device) -> String {
    format!("{}={}", cdi_kind(resource, &device.source), device.id)
}

/// The key of the annotation that names devices.
pub fn cdi_annotation(resource: &ResourceName, source: &Source) -> String {
    format!("cdi.k8s.io/{}_{}", resource.prefix, cdi_class(source))
}

/// Numbers of nodes are left out: the runtime takes those of the host at the start of the container.
fn cdi_spec(kind: &str, id: &str, nodes: &[Node]) -> Value {
    let node = |Node { host, container }: &Node| json!({"path": container, "hostPath": host, "permissions": "rw"});
    let nodes: Vec<_> = nodes.iter().map(node).collect();
    // The lowest version that has `hostPath`, and names that begin with a digit.
    json!({"cdiVersion": "0.5.0", "kind": kind, "devices": [{"name": id, "containerEdits": {"deviceNodes": nodes}}]})
}

fn device_info(device: &Device, selector: Option<&Selector>) -> Value {
    let wants_vdpa = selector.is_some_and(|selector| selector.vdpa_type.is_some());
    if let Some(vdpa) = device.vdpa.as_ref().filter(|_| wants_vdpa) {
        let driver = if vdpa.path.is_some() { "vhost" } else { "virtio" };
        let mut section = json!({"parent-device": vdpa.name, "driver": driver, "pci-address": device.pci});
        section["path"] = json!(vdpa.path.clone().unwrap_or_default());
        return json!({"type": "vdpa", "version": INFO_VERSION, "vdpa": section});
    }
    let mut pci = json!({"pci-address": device.pci});
    if selector.is_some_and(|selector| selector.is_rdma) && !device.rdma.devices.is_empty() {
        pci["rdma-device"] = json!(device.rdma.devices.join(","));
    }
    json!({"type": "pci", "version": INFO_VERSION, "pci": pci})
}

/// Whoever reads it finds the old one or the new one, whole.
fn replace(path: &Path, value: &Value, mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    // Neither a runtime nor a CNI plugin looks at hidden files of another ending.
    let new = path.with_file_name(format!(".{}", name.to_string_lossy()));
    let written = fs::write(&new, value.to_string())
        .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

/// As of the Go plugin.
const CDI_PREFIX: &str = "sriov-dp-";
const INFO_VERSION: &str = "1.1.0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_and_filled_as_their_readers_want_them_and_go_away() {
        let directory = tempfile::tempdir().unwrap();
        let files = DeviceFiles { cdi: directory.path().join("cdi"), device_info: directory.path().join("dp") };
        let resource = ResourceName { prefix: "intel.com".into(), name: "sriov".into() };
        let id = "0000:3b:02.1".to_owned();
        let device =
            Device { id: id.clone(), pci: id.clone(), source: Source::Vf(Box::default()), ..Device::default() };
        let node = Node { host: "/dev/vfio/noiommu-4".into(), container: "/dev/vfio/4".into() };
        files.write_info(&resource, &device, None).unwrap();
        files.write_cdi(&resource, &device, std::slice::from_ref(&node)).unwrap();
        let info = fs::read_to_string(directory.path().join("dp/intel.com-sriov-0000:3b:02.1-device.json")).unwrap();
        let wanted = json!({"type": "pci", "version": "1.1.0", "pci": {"pci-address": id}});
        assert_eq!(serde_json::from_str::<Value>(&info).unwrap(), wanted);
        let spec = fs::read_to_string(directory.path().join("cdi/sriov-dp-intel.com_sriov_0000:3b:02.1.json")).unwrap();
        let spec: Value = serde_json::from_str(&spec).unwrap();
        assert_eq!(spec["kind"], "intel.com/net-pci");
        assert_eq!(spec["devices"][0]["containerEdits"]["deviceNodes"][0]["hostPath"], node.host);
        assert_eq!(cdi_name(&resource, &device), "intel.com/net-pci=0000:3b:02.1");
        assert_eq!(cdi_annotation(&resource, &device.source), "cdi.k8s.io/intel.com_net-pci");
        let socket = Path::new("/run/ferrule/software/soft-a-0/memif.sock");
        files.write_software_info(&resource, "soft-a-0", SoftwareKind::Memif, socket).unwrap();
        let info = fs::read_to_string(directory.path().join("dp/intel.com-sriov-soft-a-0-device.json")).unwrap();
        let memif = json!({"role": "slave", "mode": "ethernet", "path": socket});
        let wanted = json!({"type": "memif", "version": "1.1.0", "memif": memif});
        assert_eq!(serde_json::from_str::<Value>(&info).unwrap(), wanted);
        files.remove(&resource, "soft-a-0").unwrap();
        files.remove(&resource, &id).unwrap();
        files.remove(&resource, &id).unwrap();
        assert_eq!(fs::read_dir(directory.path().join("cdi")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(directory.path().join("dp")).unwrap().count(), 0);
    }
}
