//! Asking for what may go away at any moment: processes, their files, and what links lead to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::libc;

/// Where a link leads; none: it is gone, or what it leads to has a longer name than any that is looked for. Anybody can have a file
/// open whose name is too long to be read.
pub(crate) fn link_target(link: &Path) -> io::Result<Option<PathBuf>> {
    match fs::read_link(link) {
        Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => Ok(None),
        target => unless_gone(target),
    }
}

/// What is not there is gone. What cannot be asked, for want of descriptors say, is not.
pub(crate) fn unless_gone<T>(asked: io::Result<T>) -> io::Result<Option<T>> {
    match asked {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(error),
    }
}
