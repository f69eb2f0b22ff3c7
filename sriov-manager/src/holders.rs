//! Who holds a VF: a process with its VFIO node open, a network namespace with its interface, or the host itself.

use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ferrule_ffi::netns::{NetNs, namespace_at, open_of, open_plain};
use nix::sys::statfs::CGROUP2_SUPER_MAGIC;

use crate::address::is_userspace_driver;
use crate::gone::{ProcessStat, link_target, open_files, unless_gone};
use crate::inventory::VirtualFunction;
use crate::kernel::ForeignNetdev;
use crate::lease::{NamespaceIdentity, Until};
use crate::sysfs::Sysfs;

/// Somebody who uses a VF now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A process that has a file of the VF open.
    Process {
        /// Its number.
        pid: u32,
        /// Its name.
        comm: String,
        /// The file.
        file: String,
    },
    /// Somebody has a file of the VF open whom `/proc` does not show: in another process namespace, or with its group's
    /// file closed and the device's still open, which has no name.
    Unseen {
        /// The file.
        file: String,
    },
    /// A network namespace that has the VF's interface.
    Namespace {
        /// The interface's name there.
        netdev: String,
        /// A file of the namespace.
        namespace: PathBuf,
        /// A process inside and its name.
        process: Option<(u32, String)>,
    },
    /// The VF's interface is in a network namespace that nothing here leads to: only a socket or a mount of somebody in another
    /// mount namespace keeps it, or a process that is not seen here has it.
    UnseenNamespace,
}

impl Holder {
    /// The process, if there is one.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Process { pid, .. } => Some(*pid),
            Self::Unseen { .. } | Self::UnseenNamespace => None,
            Self::Namespace { process, .. } => process.as_ref().map(|(pid, _)| *pid),
        }
    }

    pub(crate) fn of_namespace(sysfs: &Sysfs, foreign: ForeignNetdev) -> Self {
        let ForeignNetdev { netdev, namespace, pid } = foreign;
        Self::Namespace { netdev, namespace, process: pid.map(|pid| (pid, comm(sysfs, pid))) }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, comm, file } => write!(f, "process {pid} ({comm}) has {file} open"),
            Self::Unseen { file } => write!(
                f,
                "a process that /proc does not show has {file} open, or a device of it (in a container without \
                 `hostPID`, or one that closed the file of the group)"
            ),
            Self::Namespace { netdev, namespace, process: Some((pid, comm)) } => {
                write!(
                    f,
                    "its interface {netdev} is in the network namespace of process {pid} ({comm}), {}",
                    namespace.display()
                )
            }
            Self::Namespace { netdev, namespace, process: None } => {
                write!(f, "its interface {netdev} is in the network namespace {}", namespace.display())
            }
            Self::UnseenNamespace => f.write_str(
                "its interface is in a network namespace that no process, file or mount here leads to (in a container without \
                 `hostPID`, or kept by a socket alone)",
            ),
        }
    }
}

/// What the host itself does with an interface of a VF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostUse {
    /// The interface.
    pub netdev: String,
    /// Each in words.
    pub uses: Vec<String>,
}

impl fmt::Display for HostUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the host uses its interface {}: {}", self.netdev, self.uses.join(", "))
    }
}

/// The nodes through which a process can have a VF, below `/dev`: of its VFIO group first. A driver of the kernel may have some as
/// well: DPDK drives a VF that is on mlx5_core through its device of RDMA, and QEMU one through vDPA.
pub fn nodes(sysfs: &Sysfs, vf: &VirtualFunction) -> io::Result<Vec<PathBuf>> {
    if !vf.function.driver.as_deref().is_some_and(is_userspace_driver) {
        // Daemons of the host have those for the management of all ports (`umad`).
        let verbs = sysfs.rdma(vf.address)?.into_iter().flat_map(|device| device.nodes);
        let verbs = verbs.filter(|node| node.contains("/uverbs")).map(PathBuf::from);
        let vdpa = sysfs.vdpa_nodes(vf.address)?.into_iter().map(|node| Path::new("/dev").join(node));
        return Ok(verbs.chain(vdpa).collect());
    }
    // The group is one thing to whoever holds it, also by the device of another VF.
    let members = vf.group_with.iter().map(|&member| sysfs.vfio_device(member)).collect::<io::Result<Vec<_>>>()?;
    let devices = vf.vfio_device.iter().cloned().chain(members.into_iter().flatten());
    let devices = devices.map(|device| format!("vfio/devices/{device}"));
    let own = devices.chain(sysfs.uio_devices(vf.address)?).map(|node| Path::new("/dev").join(node));
    Ok(group_nodes(vf).chain(own).collect())
}

/// The nodes of a VF's VFIO group, of which at most one is there.
pub fn group_nodes(vf: &VirtualFunction) -> impl Iterator<Item = PathBuf> {
    let groups = vf.function.iommu_group.into_iter();
    groups.flat_map(|group| [format!("/dev/vfio/{group}"), format!("/dev/vfio/noiommu-{group}")]).map(PathBuf::from)
}

/// Processes that have one of these nodes open, as `/proc/*/fd` shows them. What cannot be looked at may be one: that is an error.
pub fn processes(sysfs: &Sysfs, nodes: &[PathBuf]) -> io::Result<Vec<Holder>> {
    let mut found = Vec::new();
    if nodes.is_empty() {
        return Ok(found);
    }
    for entry in fs::read_dir(sysfs.path("proc"))? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(file) = open_file(&sysfs.path(&format!("proc/{pid}")), nodes)? {
            found.push(Holder::Process { pid, comm: comm(sysfs, pid), file: file.display().to_string() });
        }
    }
    Ok(found)
}

/// When a process was started, in the kernel's ticks since the boot; none: there is no such process any more.
pub fn start_time(sysfs: &Sysfs, pid: u32) -> io::Result<Option<u64>> {
    let text = unless_gone(fs::read_to_string(sysfs.path(&format!("proc/{pid}/stat"))))?;
    let stat = text.as_deref().and_then(ProcessStat::parse);
    Ok(stat.filter(|stat| !stat.is_zombie).map(|stat| stat.started))
}

/// A network namespace by a file of it; none: it is not there, or is something else.
pub fn namespace(sysfs: &Sysfs, path: &Path) -> io::Result<Option<NamespaceIdentity>> {
    let path = below(sysfs, path);
    if !sysfs.is_live() {
        let metadata = unless_gone(fs::metadata(path))?;
        return Ok(metadata.map(|file| NamespaceIdentity { inode: file.ino(), changed: None, cookie: None }));
    }
    // What is something else is not opened.
    if unless_gone(namespace_at(&path))?.flatten().is_none() {
        return Ok(None);
    }
    let opened = match NetNs::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
        opened => unless_gone(opened)?,
    };
    let Some(opened) = opened else { return Ok(None) };
    let (file, cookie) = opened.identity_and_cookie()?;
    Ok(Some(NamespaceIdentity { inode: file.inode, changed: Some(file.changed), cookie }))
}

/// Whether another namespace than this one is at a path, or none.
fn is_other_namespace(sysfs: &Sysfs, path: &Path, then: &NamespaceIdentity) -> io::Result<bool> {
    let NamespaceIdentity { inode, changed, cookie } = *then;
    if sysfs.is_live() {
        // To ask for a cookie takes a thread.
        match unless_gone(namespace_at(&below(sysfs, path)))?.flatten() {
            None => return Ok(true),
            Some(now) if now.inode != inode => return Ok(true),
            Some(now) if Some(now.changed) == changed || cookie.is_none() => return Ok(false),
            Some(_) => {}
        }
    }
    let Some(now) = namespace(sysfs, path)? else { return Ok(true) };
    let is_other_cookie = cookie.zip(now.cookie).is_some_and(|(then, now)| then != now);
    Ok(now.inode != inode || is_other_cookie)
}

/// Whether what a lease was to last for is gone; not as long as that cannot be asked. What a path leads to may hang.
pub fn is_gone(sysfs: &Sysfs, until: &Until) -> bool {
    // No process and no namespace outlives a boot, whatever has its number after that.
    let is_of_this_boot =
        |then: &Option<String>| then.as_ref().is_none_or(|then| sysfs.boot_id().is_none_or(|now| now == *then));
    match until {
        Until::Process { pid, start_time: started, boot } => {
            !is_of_this_boot(boot) || start_time(sysfs, *pid).is_ok_and(|now| now != Some(*started))
        }
        Until::Namespace { path, identity, boot } => {
            // Names of namespaces are below a mount of its own, which a manager in a container may lack.
            let is_mounted = || path.parent().is_none_or(|folder| below(sysfs, folder).is_dir());
            !is_of_this_boot(boot) || (is_other_namespace(sysfs, path, identity).unwrap_or(false) && is_mounted())
        }
        // A control group may be left behind empty; one that was never populated is not there yet.
        Until::Cgroup { path } => match unless_gone(cgroup_events(sysfs, path)) {
            Ok(Some(events)) => events.lines().any(|line| line == "populated 0"),
            Ok(None) => !below(sysfs, path).is_dir(),
            Err(_) => false,
        },
    }
}

/// The path is a client's: what is there may be a pipe, a device or a link to one, and may have no end.
fn cgroup_events(sysfs: &Sysfs, cgroup: &Path) -> io::Result<String> {
    let path = below(sysfs, cgroup).join("cgroup.events");
    let file = if sysfs.is_live() { open_of(&path, CGROUP2_SUPER_MAGIC)? } else { open_plain(&path, |_| Ok(true))? };
    let mut events = String::new();
    file.take(CGROUP_EVENTS_MAX).read_to_string(&mut events)?;
    Ok(events)
}

fn below(sysfs: &Sysfs, path: &Path) -> PathBuf {
    sysfs.path(&path.strip_prefix("/").unwrap_or(path).to_string_lossy())
}

/// Whether every process of the machine is in `/proc`: whether this is the first process namespace.
pub(crate) fn sees_every_process(sysfs: &Sysfs) -> bool {
    fs::read_link(sysfs.path("proc/self/ns/pid")).is_ok_and(|namespace| namespace == Path::new(FIRST_PID_NAMESPACE))
}

fn open_file(process: &Path, nodes: &[PathBuf]) -> io::Result<Option<PathBuf>> {
    // A process that ends meanwhile, or closes a file, holds nothing.
    for file in open_files(process)? {
        let file = link_target(&file)?;
        if let Some(file) = file.filter(|file| nodes.contains(file)) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn comm(sysfs: &Sysfs, pid: u32) -> String {
    let text = fs::read_to_string(sysfs.path(&format!("proc/{pid}/comm"))).unwrap_or_default();
    text.trim().to_owned()
}

/// It has a few lines.
const CGROUP_EVENTS_MAX: u64 = 4096;
/// `PROC_PID_INIT_INO` of include/linux/proc_ns.h: 0xeffffffc.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::{Mode, mkdirat};

    use super::*;

    #[test]
    fn a_file_whose_name_is_too_long_to_be_read_hides_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let mut deep = OwnedFd::from(fs::File::open(directory.path()).unwrap());
        let name = "x".repeat(250);
        for _ in 0..20 {
            mkdirat(&deep, name.as_str(), Mode::S_IRWXU).unwrap();
            deep = openat(&deep, name.as_str(), OFlag::O_DIRECTORY | OFlag::O_RDONLY, Mode::empty()).unwrap();
        }
        let node = directory.path().join("node");
        let _node = fs::File::create(&node).unwrap();
        let own = Path::new("/proc/self");
        assert_eq!(open_file(own, std::slice::from_ref(&node)).unwrap(), Some(node));
        assert_eq!(open_file(own, &[directory.path().join("other")]).unwrap(), None);
    }
}
