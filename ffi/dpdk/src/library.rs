//! Loads the shim, and with it libdpdk. The shim is a part of this program, and needs no file of its own.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use ferrule_dpdk_sys::{Dpdk, SHIM, VERSION};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use nix::libc::RTLD_NODELETE;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::StartError;

/// Loads it from memory; where that is forbidden, from a file without a name.
pub(crate) fn load() -> Result<Dpdk, StartError> {
    let refused = |reason: String| StartError::Library { version: VERSION, reason };
    let library = match open(in_memory()) {
        Ok(library) => library,
        // It cannot be because of the place.
        Err(reason) if reason.contains(NOT_FOUND) && !reason.starts_with(OPENED) => return Err(refused(reason)),
        Err(reason) => open(tempfile::tempfile()).map_err(|other| {
            refused(if other == reason {
                other
            } else {
                format!("from memory: {reason}; from a temporary file: {other}")
            })
        })?,
    };
    // SAFETY: the functions have the types that bindgen read from the headers with which the shim was compiled. The loader
    // has checked that libdpdk has the ABI version of these headers, which is part of its file names.
    unsafe { Dpdk::from_library(library) }.map_err(|error| refused(error.to_string()))
}

fn in_memory() -> io::Result<File> {
    let file: OwnedFd = memfd_create(c"ferrule-dpdk-shim", MFdFlags::MFD_CLOEXEC)?;
    Ok(file.into())
}

/// Writes the shim to a file and loads that.
fn open(file: io::Result<File>) -> Result<Library, String> {
    let words = |error: &dyn Display| error.to_string();
    let mut file = file.map_err(|error| words(&error))?;
    file.write_all(SHIM).map_err(|error| words(&error))?;
    let path = format!("{OPENED}{}", file.as_raw_fd());
    // SAFETY: what runs now are the constructors of the shim, which has none, and of libdpdk, which enter its drivers into
    // its own lists. It stays for ever: DPDK has threads and a log by then, also if it did not start.
    unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) }.map_err(|error| words(&error))
}

/// Where a file that is open can be opened once more.
const OPENED: &str = "/proc/self/fd/";
/// What the loader says of a library that is not installed.
const NOT_FOUND: &str = "cannot open shared object file";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_loaded_from_memory_and_from_a_file_without_a_name() {
        for place in [in_memory(), tempfile::tempfile()] {
            open(place).unwrap();
        }
        let refusal = open(Err(io::ErrorKind::PermissionDenied.into())).unwrap_err();
        assert_eq!(refusal, "permission denied");
    }
}
