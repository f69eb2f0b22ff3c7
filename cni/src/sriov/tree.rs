//! A VF, as sysfs shows it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::interface::{Link, Namespace};
use crate::protocol::CniError;

/// Its driver; none: it has none, or is not there.
pub(super) fn driver(root: &Path, device: &str) -> Option<String> {
    let driver = fs::read_link(folder(root, device).join("driver")).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}

/// Whether it is on the bus.
pub(super) fn is_there(root: &Path, device: &str) -> bool {
    folder(root, device).exists()
}

/// Whether a program in the container drives it: it has no interface then.
pub(super) fn is_for_programs(driver: &str) -> bool {
    ["vfio-pci", "uio_pci_generic", "igb_uio"].contains(&driver)
}

/// Its interface, if that is on the host.
pub(super) fn at_home(root: &Path, device: &str, host: &mut Namespace) -> Result<Option<Link>, CniError> {
    let net = folder(root, device).join("net");
    let failed = |error: io::Error| CniError::failed(&format!("list {}", net.display()), error);
    let entries = match fs::read_dir(&net) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let names: Result<Vec<_>, _> = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
    let mut names = names.map_err(failed)?;
    names.sort();
    for name in names {
        if let Some(link) = host.named(&name)? {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// Its interface in a container, whatever that calls it by now. Interfaces that are made up have no device, and are known by name and
/// address.
pub(super) fn in_pod(
    pod: &mut Namespace,
    device: &str,
    name: &str,
    mac: Option<sriov_manager_client::mac::Mac>,
) -> Result<Option<Link>, CniError> {
    if let Some(link) = pod.of_device(device)? {
        return Ok(Some(link));
    }
    Ok(pod.named(name)?.filter(|link| link.device.is_none() && link.mac == mac))
}

fn folder(root: &Path, device: &str) -> PathBuf {
    root.join("sys/bus/pci/devices").join(device)
}
