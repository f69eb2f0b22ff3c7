//! Namespaces that are passed.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferrule_dataplane::spec::OpenNetNs;
use ferrule_ffi::netns;
use tonic::Status;

/// The namespace that a file is, unless it is the node's own.
pub(in crate::nsm) fn open_namespace(file: &Arc<OwnedFd>) -> Result<OpenNetNs, Status> {
    if !is_namespace(file) {
        return Err(Status::invalid_argument("inodeURL names a file that is no network namespace"));
    }
    // Whoever may pass it need not be allowed to change the node's network, as we are.
    let inode = |path: &Path| netns::namespace_at(path).ok().flatten().map(|found| found.inode);
    let passed = inode(&path_of(file));
    if ["/proc/self/ns/net", "/proc/1/ns/net"].into_iter().any(|own| passed == inode(Path::new(own))) {
        return Err(Status::permission_denied(
            "inodeURL names the network namespace of the node, that of the forwarder: pass one of your own",
        ));
    }
    let cannot = |error| Status::invalid_argument(format!("open the namespace that inodeURL names: {error}"));
    let opened = netns::NetNs::open(&path_of(file)).map_err(cannot)?;
    OpenNetNs::try_from(OwnedFd::from(opened)).map_err(cannot)
}

/// Nobody is asked but the kernel: a file of another file system could keep us waiting.
pub(super) fn is_namespace(file: &Arc<OwnedFd>) -> bool {
    netns::namespace_at(&path_of(file)).is_ok_and(|found| found.is_some())
}

/// A path that leads to the file, whatever has become of its name.
pub(super) fn path_of(file: &Arc<OwnedFd>) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
