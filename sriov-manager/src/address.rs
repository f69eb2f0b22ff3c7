//! Where a PCI function is, and which driver it is to have.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Domain, bus, device and function, as in `0000:3b:02.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// More than 16 bits behind some host bridges (VMD).
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// An address; `device` has five bits and `function` three, the others are cut off.
    pub const fn new(domain: u32, bus: u8, device: u8, function: u8) -> Self {
        Self { domain, bus, device: device & 0x1f, function: function & 7 }
    }
}

impl FromStr for PciAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.to_owned());
        let hex = |part: &str, digits: std::ops::RangeInclusive<usize>| {
            let good = digits.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            good.then(|| u32::from_str_radix(part, 16).ok()).flatten()
        };
        let mut parts = text.split(':');
        let (Some(domain), Some(bus), Some(last), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let (device, function) = last.split_once('.').ok_or_else(wrong)?;
        let domain = hex(domain, 4..=8).ok_or_else(wrong)?;
        let bus = hex(bus, 2..=2).ok_or_else(wrong)?;
        let device = hex(device, 2..=2).filter(|&device| device < 32).ok_or_else(wrong)?;
        let function = hex(function, 1..=1).filter(|&function| function < 8).ok_or_else(wrong)?;
        Ok(Self { domain, bus: bus as u8, device: device as u8, function: function as u8 })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl TryFrom<String> for PciAddress {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

/// A text that is no PCI address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}`; a PCI address as in `0000:3b:02.1` is wanted")]
pub struct AddressError(String);

/// What drives a VF while it is lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// The kernel's own driver: the VF is a network interface.
    #[default]
    Kernel,
    /// `vfio-pci`: the VF belongs to a process or a virtual machine.
    VfioPci,
    /// None.
    None,
}

impl Driver {
    /// As people and files write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::VfioPci => VFIO_PCI,
            Self::None => "none",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Driver {
    type Err = DriverError;

    fn from_str(text: &str) -> Result<Self, DriverError> {
        let all = [Self::Kernel, Self::VfioPci, Self::None];
        all.into_iter().find(|driver| driver.word() == text).ok_or_else(|| DriverError(text.to_owned()))
    }
}

/// A text that is no [`Driver`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}`; `kernel`, `vfio-pci` or `none` is wanted")]
pub struct DriverError(String);

/// The driver that executor a device to a process.
pub const VFIO_PCI: &str = "vfio-pci";

/// Whether a driver hands its device to a process: `vfio-pci`, the variants of it that vendors have
/// (`mlx5_vfio_pci`), and UIO.
pub fn is_userspace_driver(driver: &str) -> bool {
    driver.contains("vfio") || driver.contains("uio")
}

/// The driver of the VFs of a PF that `pf_driver` drives, of the kernel's own drivers. None: not known, the
/// kernel has to find out from the device's ids.
pub fn kernel_vf_driver(pf_driver: &str) -> Option<&'static str> {
    const DRIVERS: [(&str, &str); 14] = [
        ("igb", "igbvf"),
        ("ixgbe", "ixgbevf"),
        ("i40e", "iavf"),
        ("ice", "iavf"),
        ("idpf", "idpf"),
        ("mlx4_core", "mlx4_core"),
        ("mlx5_core", "mlx5_core"),
        ("bnxt_en", "bnxt_en"),
        ("qede", "qede"),
        ("cxgb4", "cxgb4vf"),
        ("enic", "enic"),
        ("ionic", "ionic"),
        ("octeon_ep", "octeon_ep_vf"),
        ("rvu_nicpf", "rvu_nicvf"),
    ];
    DRIVERS.iter().find(|(pf, _)| *pf == pf_driver).map(|(_, vf)| *vf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_and_writes_the_same_text() {
        for text in ["0000:3b:02.1", "10000:e1:1f.7", "0000:00:00.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        assert_eq!("0000:3B:0A.1".parse::<PciAddress>().unwrap().to_string(), "0000:3b:0a.1");
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example() {
        for text in ["", "3b:02.1", "0000:3b:02", "0000:3b:20.0", "0000:3b:02.8", "0000:3b:02.1:4", "+000:3b:02.1"] {
            let error = text.parse::<PciAddress>().unwrap_err().to_string();
            assert!(error.contains("0000:3b:02.1"), "{text}: {error}");
        }
    }

    #[test]
    fn addresses_are_ordered_as_numbers() {
        let address = |text: &str| text.parse::<PciAddress>().unwrap();
        assert!(address("0000:3b:02.1") < address("0000:3b:10.0"));
        assert!(address("0000:ff:02.1") < address("10000:00:00.0"));
    }
}
