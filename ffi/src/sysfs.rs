//! Device directories as the crate `sysfs-class` reads them, below any root.
//!
//! That crate accepts a path only through an `unsafe` constructor unless it lies in the machine's own `/sys`;
//! this module is here so that nobody else has to write `unsafe` for a made-up tree.

use std::path::PathBuf;

use sysfs_class::{Net, PciDevice, SysClass};

/// The PCI device whose directory is `path`. Nothing is looked at before it is asked for.
pub fn pci_device(path: PathBuf) -> PciDevice {
    // SAFETY: the constructor only stores the path. It is `unsafe` because nobody checked that a device is
    // there, and where none is every method answers with an I/O error.
    unsafe { PciDevice::from_path_unchecked(path) }
}

/// The network interface whose directory is `path`. Nothing is looked at before it is asked for.
pub fn net(path: PathBuf) -> Net {
    // SAFETY: as above.
    unsafe { Net::from_path_unchecked(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_answers_with_errors() {
        assert!(pci_device("/no/such".into()).read_file("vendor").is_err());
        assert!(net("/no/such".into()).mtu().is_err());
    }
}
