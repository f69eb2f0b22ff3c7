//! PFs and VFs as the kernel shows them: the judge of what others do to them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::eventually;

/// A PCI function, by its address: `0000:21:00.0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    /// Its address.
    pub address: String,
}

/// The PFs of the lab, in the order of their addresses.
pub fn pfs() -> Result<Vec<Function>> {
    let devices = fs::read_dir(DEVICES).context("read the PCI devices")?.flatten();
    let mut pfs: Vec<_> = devices
        .filter(|device| device.path().join("sriov_totalvfs").exists())
        .map(|device| Function { address: device.file_name().to_string_lossy().into_owned() })
        .collect();
    pfs.sort();
    Ok(pfs)
}

impl Function {
    /// Its folder in sysfs.
    pub fn folder(&self) -> PathBuf {
        Path::new(DEVICES).join(&self.address)
    }

    /// What one of its files says.
    pub fn read(&self, file: &str) -> Result<String> {
        let path = self.folder().join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Writes into one of its files, in one call, as sysfs wants it.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.folder().join(file);
        fs::write(&path, text).with_context(|| format!("write {text} to {}", path.display()))
    }

    /// The driver it is bound to.
    pub fn driver(&self) -> Option<String> {
        self.link("driver")
    }

    /// The number of its IOMMU group.
    pub fn iommu_group(&self) -> Option<u32> {
        self.link("iommu_group")?.parse().ok()
    }

    /// What is in its IOMMU group beside it, bridges left out.
    pub fn group_with(&self) -> Result<Vec<Function>> {
        let group = fs::read_dir(self.folder().join("iommu_group/devices")).context("read an IOMMU group")?;
        let members = group.flatten().map(|device| Function { address: device.file_name().to_string_lossy().into() });
        let mut others: Vec<_> = members.filter(|member| member != self && !member.is_bridge()).collect();
        others.sort();
        Ok(others)
    }

    /// Base class 6 (PCI code and id assignment specification, 1.7).
    fn is_bridge(&self) -> bool {
        self.read("class").is_ok_and(|class| class.starts_with("0x06"))
    }

    /// Its network interface, in whatever namespace.
    pub fn interface(&self) -> Option<String> {
        let mut interfaces = fs::read_dir(self.folder().join("net")).ok()?.flatten();
        Some(interfaces.next()?.file_name().to_string_lossy().into_owned())
    }

    /// The VFs of this PF, in the order of their indexes.
    pub fn vfs(&self) -> Vec<Function> {
        let vf = |index| Some(Function { address: self.link(&format!("virtfn{index}"))? });
        (0..VFS_MAX).map_while(vf).collect()
    }

    /// Makes it have so many VFs. From some to others the way leads over none.
    pub fn set_vfs(&self, count: usize) -> Result<()> {
        let now = self.vfs().len();
        if now != count && now != 0 {
            self.write("sriov_numvfs", "0")?;
        }
        if now != count && count != 0 {
            self.write("sriov_numvfs", &count.to_string())?;
        }
        ensure!(self.vfs().len() == count, "{} has {} VFs, not {count}", self.address, self.vfs().len());
        Ok(())
    }

    /// Takes it from the driver it has and gives it to this one.
    pub fn bind(&self, driver: &str) -> Result<()> {
        if self.driver().is_some() {
            self.write("driver/unbind", &self.address)?;
        }
        self.write("driver_override", driver)?;
        fs::write(PROBE, &self.address).with_context(|| format!("write {} to {PROBE}", self.address))?;
        let now = self.driver();
        ensure!(now.as_deref() == Some(driver), "{} is bound to {now:?}, not to {driver}", self.address);
        Ok(())
    }

    /// Waits until it has a network interface.
    pub fn wait_for_interface(&self) -> String {
        eventually(&format!("{} has an interface", self.address), || self.interface().is_some());
        self.interface().unwrap_or_default()
    }

    fn link(&self, name: &str) -> Option<String> {
        let target = fs::read_link(self.folder().join(name)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }
}

/// An 82576 has at most so many VFs on a PF.
pub const VFS_MAX: usize = 7;

/// What the kernel itself waits when it makes VFs and when it removes them: nobody can be faster.
pub const KERNEL_WAITS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

const DEVICES: &str = "/sys/bus/pci/devices";
const PROBE: &str = "/sys/bus/pci/drivers_probe";
