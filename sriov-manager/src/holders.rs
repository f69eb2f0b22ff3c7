//! Who holds a VF: a process with its VFIO node open, or a network namespace with its interface.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::address::VFIO_PCI;
use crate::inventory::VirtualFunction;
use crate::kernel::ForeignNetdev;
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
    /// A network namespace that has the VF's interface.
    Namespace {
        /// The interface's name there.
        netdev: String,
        /// A file of the namespace.
        namespace: PathBuf,
        /// A process inside and its name.
        process: Option<(u32, String)>,
    },
}

impl Holder {
    /// The process, if there is one.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Process { pid, .. } => Some(*pid),
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
        }
    }
}

/// Processes that have the VFIO group or the VFIO device of a VF open, as `/proc/*/fd` shows them.
///
/// A process that keeps only the device and has closed its group is not seen: such a file has no name. The
/// watchdog bounds what that costs.
pub fn processes(sysfs: &Sysfs, vf: &VirtualFunction) -> Vec<Holder> {
    if vf.function.driver.as_deref() != Some(VFIO_PCI) {
        return Vec::new();
    }
    let group = vf.function.iommu_group;
    // The group is one thing to whoever holds it, also by the device of another VF.
    let members = vf.group_with.iter().filter_map(|&member| sysfs.vfio_device(member));
    let devices = vf.vfio_device.iter().cloned().chain(members);
    let nodes: Vec<PathBuf> = group
        .iter()
        .flat_map(|group| [format!("/dev/vfio/{group}"), format!("/dev/vfio/noiommu-{group}")])
        .chain(devices.map(|device| format!("/dev/vfio/devices/{device}")))
        .map(PathBuf::from)
        .collect();
    let Ok(processes) = fs::read_dir(sysfs.path("proc")) else { return Vec::new() };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        let file = open_file(&sysfs.path(&format!("proc/{pid}/fd")), &nodes);
        file.map(|file| Holder::Process { pid, comm: comm(sysfs, pid), file: file.display().to_string() })
    })
    .collect()
}

/// Whether every process of the machine is in `/proc`: whether this is the first process namespace.
pub(crate) fn sees_every_process(sysfs: &Sysfs) -> bool {
    fs::read_link(sysfs.path("proc/self/ns/pid")).is_ok_and(|namespace| namespace == Path::new(FIRST_PID_NAMESPACE))
}

fn open_file(directory: &Path, nodes: &[PathBuf]) -> Option<PathBuf> {
    // A process that ends meanwhile holds nothing.
    let files = fs::read_dir(directory).ok()?;
    files.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).find(|file| nodes.contains(file))
}

fn comm(sysfs: &Sysfs, pid: u32) -> String {
    let text = fs::read_to_string(sysfs.path(&format!("proc/{pid}/comm"))).unwrap_or_default();
    text.trim().to_owned()
}

/// `PROC_PID_INIT_INO` of include/linux/proc_ns.h: 0xeffffffc.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
