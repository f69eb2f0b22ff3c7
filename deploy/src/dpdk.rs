//! What of libdpdk the forwarder loads when a wire has a VF: libraries, and drivers that DPDK looks for in a folder of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, OsStr};
use std::fs;
use std::io;
use std::iter;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::closure::{Program, ProgramError};

/// Files of libdpdk, and of what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DpdkFiles {
    /// Each at the path that it has here.
    pub paths: BTreeSet<PathBuf>,
    /// The drivers among them.
    pub drivers: Vec<&'static str>,
}

impl DpdkFiles {
    /// Those of the ABI version that the forwarder asks for; none: it was built without DPDK.
    pub fn of(forwarder: &Path, program: &Program) -> Result<Option<Self>, DpdkError> {
        let Some(abi) = abi(&read(forwarder)?) else { return Ok(None) };
        let folders: BTreeSet<_> = program.libraries.iter().skip(1).filter_map(|library| library.parent()).collect();
        let missing = || DpdkError::Missing { abi: abi.clone() };
        let of_shim = |name: &str| {
            let file = format!("librte_{name}.so.{abi}");
            folders.iter().map(|folder| folder.join(&file)).find(|path| path.exists())
        };
        let shim: Vec<_> = SHIM.iter().map(|name| of_shim(name)).collect::<Option<_>>().ok_or_else(missing)?;
        let folder = drivers_folder(&read(&shim[0])?).ok_or_else(missing)?;
        let there = |name: &&'static str| {
            Some((*name, folder.join(format!("librte_{name}.so")))).filter(|(_, path)| path.exists())
        };
        let drivers: BTreeMap<_, _> = DRIVERS.iter().filter_map(there).collect();
        if !drivers.keys().any(|name| NICS.contains(name)) {
            return Err(missing());
        }
        let mut paths: BTreeSet<_> = shim.iter().cloned().collect();
        for library in shim.iter().chain(drivers.values()) {
            paths.extend(program.libraries_of(library)?);
        }
        // What others need is loaded by its name. In the drivers' folder it would be another file, and loaded once more.
        let needed: BTreeSet<_> = paths.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
        let is_needed = |path: &PathBuf| fs::canonicalize(path).is_ok_and(|path| needed.contains(&path));
        paths.extend(drivers.values().filter(|path| !is_needed(path)).cloned());
        Ok(Some(Self { paths, drivers: drivers.into_keys().collect() }))
    }
}

/// What the forwarder needs of libdpdk cannot be put into its image.
#[derive(Debug, Error)]
pub enum DpdkError {
    /// It is not there.
    #[error(
        "dpdk-forwarder was built for librte_*.so.{abi}, and these libraries or their drivers are not here; install the Debian packages \
         librte-meta-net and librte-meta-bus, or build it with FERRULE_NO_DPDK=1"
    )]
    Missing {
        /// The version of the ABI.
        abi: String,
    },
    /// A file of it cannot be read.
    #[error("read {}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It is not to be asked what it needs.
    #[error(transparent)]
    Library(#[from] ProgramError),
}

fn read(path: &Path) -> Result<Vec<u8>, DpdkError> {
    fs::read(path).map_err(|error| DpdkError::Read { path: path.to_owned(), error })
}

/// The ABI version in the names that the shim asks for; the shim is a part of the program.
fn abi(program: &[u8]) -> Option<String> {
    let digits = |text: &[u8]| {
        let digits = text.strip_prefix(b"librte_eal.so.")?;
        let is_version = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        is_version.then(|| String::from_utf8_lossy(digits).into_owned())
    };
    strings(program).find_map(digits)
}

/// Where DPDK looks for drivers: a constant of librte_eal.
fn drivers_folder(eal: &[u8]) -> Option<PathBuf> {
    let is_folder =
        |text: &&[u8]| text.starts_with(b"/") && text.windows(DRIVERS_NAME.len()).any(|part| part == DRIVERS_NAME);
    strings(eal).find(is_folder).map(|text| PathBuf::from(OsStr::from_bytes(text)))
}

/// What ends by a zero, one after the other.
fn strings(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    iter::from_fn(move || {
        let text = CStr::from_bytes_until_nul(rest).ok()?.to_bytes();
        rest = &rest[text.len() + 1..];
        Some(text)
    })
}

/// In the name of the folder.
const DRIVERS_NAME: &[u8] = b"/dpdk/pmds-";

/// What the shim needs, librte_eal first.
const SHIM: [&str; 4] = ["eal", "ethdev", "mbuf", "mempool"];

/// Where frames lie; software devices that need nothing of the host, by which an image can be tried; NICs. Those of NVIDIA are left out, since
/// they are not driven by `vfio-pci`, and what uses an interface of the pod's own network, where none is.
const DRIVERS: [&str; 4 + NICS.len()] = {
    let mut all = [""; 4 + NICS.len()];
    (all[0], all[1], all[2], all[3]) = ("mempool_ring", "net_memif", "net_null", "net_ring");
    let mut place = 0;
    while place < NICS.len() {
        all[4 + place] = NICS[place];
        place += 1;
    }
    all
};
const NICS: [&str; 26] = [
    "net_atlantic",
    "net_axgbe",
    "net_bnx2x",
    "net_bnxt",
    "net_cxgbe",
    "net_e1000",
    "net_ena",
    "net_enic",
    "net_fm10k",
    "net_gve",
    "net_hinic",
    "net_hns3",
    "net_i40e",
    "net_iavf",
    "net_ice",
    "net_igc",
    "net_ionic",
    "net_ixgbe",
    "net_nfp",
    "net_ngbe",
    "net_octeon_ep",
    "net_qede",
    "net_sfc",
    "net_txgbe",
    "net_virtio",
    "net_vmxnet3",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_abi_is_the_one_that_the_shim_asks_for() {
        assert_eq!(abi(b"say librte_eal.so.7\0librte_eal.so.x\0\0librte_eal.so.23\0rest"), Some("23".to_owned()));
        assert_eq!(abi(b"load librte_eal.so.: no\0"), None);
    }

    #[test]
    fn drivers_are_where_librte_eal_says() {
        let folder = Some(PathBuf::from("/usr/lib/dpdk/pmds-23.0"));
        assert_eq!(drivers_folder(b"x\0/usr/lib/dpdk/pmds-23.0\0y"), folder);
        assert_eq!(drivers_folder(b"PATH=/usr/lib/dpdk/pmds-23.0\0/usr/lib/dpdk/pmds-23.0\0"), folder);
        assert_eq!(drivers_folder(b"nothing\0"), None);
    }
}
