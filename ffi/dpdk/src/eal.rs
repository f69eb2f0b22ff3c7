//! DPDK's environment. It is started once in a process, and never stopped: DPDK cannot start again.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use ferrule_dpdk_sys::{Dpdk, RTE_MAX_ETHPORTS, VERSION};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use crate::close::Unclosed;
use crate::error::{StartError, cause};
use crate::pool::{Mempool, Pools};
use crate::{announce, library, log};

/// How it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EalSettings {
    /// Memory for the frames of all ports, in MiB: a queue takes 12 at an MTU of 1500. It is reserved, and
    /// taken as ports are made.
    pub memory_mib: u32,
    /// Whether it lies in hugepages, an equal part on each NUMA node that has as many free. A NIC without an IOMMU needs them. All are taken at the
    /// start: DPDK has a SIGBUS handler of its own, for the whole process, while it takes one. So it has to be started before
    /// memory of peers is used (`ferrule_ffi::region`).
    pub hugepages: bool,
}

impl Default for EalSettings {
    fn default() -> Self {
        Self { memory_mib: 1024, hugepages: false }
    }
}

/// The environment.
pub struct Eal {
    pub(crate) dpdk: Dpdk,
    pub(crate) has_hugepages: bool,
    /// Whoever has it may probe and remove devices: DPDK's lists of these have no lock.
    control: Mutex<Unclosed>,
    /// Devices that wait to be removed: none is probed before they are.
    closing: AtomicUsize,
    pools: Mutex<Pools>,
}

impl Eal {
    /// Starts it, or shows the one that was started before, whatever the settings then were. It may take seconds.
    ///
    /// # Errors
    /// It does not start. If libdpdk was not found, it is looked for again next time; else it is told the same again.
    pub fn start(settings: EalSettings) -> Result<&'static Self, StartError> {
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = &*started {
            return outcome.clone();
        }
        let dpdk = library::load()?;
        // The thread that starts it is bound to CPUs, and known to DPDK for ever.
        let thread = thread::Builder::new().name("dpdk-start".to_owned()).spawn(move || init(dpdk, settings));
        let outcome = match thread.map(thread::JoinHandle::join) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(StartError::Eal { reason: "the thread that started it panicked".to_owned() }),
            // Nothing was tried.
            Err(error) => return Err(StartError::Eal { reason: format!("no thread can be started ({error})") }),
        };
        started.insert(outcome).clone()
    }

    pub(crate) fn new(dpdk: Dpdk, has_hugepages: bool) -> Self {
        let (control, pools) = (Mutex::default(), Mutex::default());
        Self { dpdk, has_hugepages, control, closing: AtomicUsize::new(0), pools }
    }

    /// DPDK's name and version, as it was loaded.
    pub fn version(&self) -> String {
        // SAFETY: it answers with a string that is there as long as the library.
        unsafe { CStr::from_ptr(self.dpdk.rte_version()) }.to_string_lossy().into_owned()
    }

    /// As many ports can be there at once.
    pub fn ports_max() -> usize {
        RTE_MAX_ETHPORTS as usize
    }

    /// The numbers of all ports.
    pub fn ports(&self) -> BTreeSet<u16> {
        let mut ports = BTreeSet::new();
        let mut next = 0;
        while next < RTE_MAX_ETHPORTS as u16 {
            // SAFETY: it reads DPDK's own table, for any number.
            let port = unsafe { self.dpdk.rte_eth_find_next(next) };
            if u32::from(port) >= RTE_MAX_ETHPORTS {
                break;
            }
            ports.insert(port);
            next = port + 1;
        }
        ports
    }

    /// Pools that were made. They stay, and are used again.
    pub fn pools(&self) -> usize {
        self.pool_set().made()
    }

    /// What frames of its ports lie in.
    pub(crate) fn pool_set(&self) -> MutexGuard<'_, Pools> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the pools of a port for the next ones.
    pub(crate) fn retire(&self, pools: Vec<Mempool>) {
        let mut set = self.pool_set();
        for pool in pools {
            set.retire(pool);
        }
    }

    /// For whoever probes a device: behind those that remove one, since a kernel may wait for these.
    pub(crate) fn control_to_open(&self) -> MutexGuard<'_, Unclosed> {
        loop {
            let control = self.control();
            if self.closing.load(Ordering::SeqCst) == 0 {
                return control;
            }
            drop(control);
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// For whoever removes a device.
    pub(crate) fn control_to_close(&self) -> MutexGuard<'_, Unclosed> {
        self.closing.fetch_add(1, Ordering::SeqCst);
        let control = self.control();
        self.closing.fetch_sub(1, Ordering::SeqCst);
        control
    }

    fn control(&self) -> MutexGuard<'_, Unclosed> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn init(dpdk: Dpdk, settings: EalSettings) -> Result<&'static Eal, StartError> {
    let failed = |reason: String| StartError::Eal { reason };
    log::open(&dpdk).map_err(failed)?;
    lock_what_may_be_locked();
    let cpus = sched_getaffinity(Pid::from_raw(0)).map_err(|error| failed(format!("its CPUs: {error}")))?;
    let free = free_hugepages();
    let arguments = arguments(settings, &cpus, &free);
    // DPDK keeps pointers into them.
    let arguments: &'static [CString] = Box::leak(arguments.into_boxed_slice());
    let pointers = arguments.iter().map(|argument| argument.as_ptr().cast_mut());
    let pointers: &'static mut [*mut c_char] = Box::leak(pointers.chain([std::ptr::null_mut()]).collect());
    let count = i32::try_from(arguments.len()).unwrap_or_default();
    // SAFETY: `count` strings and a null pointer behind them, which stay for ever. DPDK moves pointers about and does not
    // write to the strings. It is called once in this process: `STARTED` is locked, and remembers it.
    let (status, said) = log::collect(|| unsafe { dpdk.rte_eal_init(count, pointers.as_mut_ptr()) });
    if status < 0 {
        // SAFETY: it reads a variable of this thread.
        let errno = unsafe { dpdk.ferrule_errno() };
        return Err(failed(shortage(settings, &free).unwrap_or_else(|| cause(-errno.abs(), &said))));
    }
    if settings.hugepages {
        // SAFETY: the environment is there. From now on it takes no page more, whoever asks.
        let (status, said) = log::collect(|| unsafe { dpdk.ferrule_forbid_growth() });
        if status < 0 {
            return Err(failed(format!("its memory cannot be bounded: {}", cause(status, &said))));
        }
    }
    announce::watch(&dpdk).map_err(failed)?;
    let eal = Eal::new(dpdk, settings.hugepages);
    tracing::info!(version = eal.version(), built_for = VERSION, ?settings, "DPDK has started");
    Ok(Box::leak(Box::new(eal)))
}

/// VFIO counts all memory that a device can reach as locked. What the limit allows at most is asked for; what it does not is told by the device
/// that is opened.
fn lock_what_may_be_locked() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)
    {
        tracing::debug!(%error, "the limit of locked memory cannot be raised");
    }
}

fn arguments(settings: EalSettings, cpus: &CpuSet, free: &[(usize, u32)]) -> Vec<CString> {
    let cpus: Vec<_> =
        (0..CpuSet::count()).filter(|&cpu| cpus.is_set(cpu) == Ok(true)).map(|cpu| cpu.to_string()).collect();
    let mut arguments = vec![
        "ferrule".to_owned(),
        // One thread, on any CPU that we have: ours are registered when they come.
        format!("--lcores=0@({})", cpus.join(",")),
        // No device is touched but those that are asked for: this allows one that there is not.
        "--allow=0000:00:00.0".to_owned(),
        "--no-telemetry".to_owned(),
        "--file-prefix=ferrule".to_owned(),
    ];
    if settings.hugepages {
        let shares: Vec<_> = shares(settings.memory_mib, free).iter().map(u32::to_string).collect();
        let shares = shares.join(",");
        arguments.extend(["--in-memory".to_owned(), format!("--socket-mem={shares}")]);
    } else {
        let memory = format!("-m{}", settings.memory_mib);
        arguments.extend(["--no-huge", "--no-shconf", "--iova-mode=va", &memory].map(str::to_owned));
    }
    arguments.into_iter().filter_map(|argument| CString::new(argument).ok()).collect()
}

/// Memory by number of the NUMA node, of which each has so many MiB free: DPDK does not start if one has not what is asked of it.
/// If they do not suffice, it says so itself.
fn shares(memory: u32, free: &[(usize, u32)]) -> Vec<u32> {
    let mut nodes: Vec<_> = free.iter().filter(|(_, free)| *free > 0).collect();
    // Whoever has least goes first: the others take what it has not.
    nodes.sort_unstable_by_key(|(node, free)| (*free, *node));
    let last = nodes.iter().map(|(node, _)| *node).max().unwrap_or(0);
    let mut shares = vec![0; last + 1];
    let mut left = memory;
    for (place, (node, free)) in nodes.iter().enumerate() {
        let share = (left / (nodes.len() - place) as u32).min(*free);
        shares[*node] = share;
        left -= share;
    }
    let node = nodes.last().map_or(0, |(node, _)| *node);
    shares[node] += left;
    shares
}

/// MiB of free hugepages of all sizes on each NUMA node that we may take memory of.
fn free_hugepages() -> Vec<(usize, u32)> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:")).unwrap_or("0").trim();
    let entries = fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten();
    let nodes = entries.filter_map(|entry| {
        let node: usize = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let sizes = fs::read_dir(entry.path().join("hugepages")).into_iter().flatten().flatten();
        let free = sizes.filter_map(|size| {
            let kib: u64 = size.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count: u64 = fs::read_to_string(size.path().join("free_hugepages")).ok()?.trim().parse().ok()?;
            Some(count * kib / 1024)
        });
        Some((node, u32::try_from(free.sum::<u64>()).unwrap_or(u32::MAX)))
    });
    nodes.filter(|(node, _)| lists(allowed, *node)).collect()
}

/// That too few hugepages are free, which is why DPDK did not start; its own error says nothing of them.
fn shortage(settings: EalSettings, free: &[(usize, u32)]) -> Option<String> {
    let there: u64 = free.iter().map(|(_, mib)| u64::from(*mib)).sum();
    (settings.hugepages && there < settings.memory_mib.into()).then(|| {
        format!(
            "{} MiB of hugepages are wanted, and {there} MiB are free (`grep Huge /proc/meminfo`): set `vm.nr_hugepages`",
            settings.memory_mib
        )
    })
}

/// Whether a list of numbers and ranges, as the kernel writes them (`0-1,4`), has this one.
fn lists(text: &str, number: usize) -> bool {
    text.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let bounds = first.parse().ok().zip(last.parse().ok());
        bounds.is_some_and(|(first, last): (usize, usize)| (first..=last).contains(&number))
    })
}

static STARTED: Mutex<Option<Result<&'static Eal, StartError>>> = Mutex::new(None);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_hugepages_are_told_with_how_many_there_are() {
        let wanted = EalSettings { memory_mib: 2048, hugepages: true };
        let told = shortage(wanted, &[(0, 512), (1, 512)]).unwrap();
        assert!(told.starts_with("2048 MiB of hugepages are wanted, and 1024 MiB are free"), "{told}");
        assert_eq!(shortage(wanted, &[(0, 1024), (1, 1024)]), None);
        assert_eq!(shortage(EalSettings { hugepages: false, ..wanted }, &[]), None);
    }

    #[test]
    fn its_thread_may_run_where_we_may_and_memory_is_as_it_was_asked_for() {
        let mut cpus = CpuSet::new();
        for cpu in [0, 3] {
            cpus.set(cpu).unwrap();
        }
        let words = |hugepages| {
            let arguments = arguments(EalSettings { memory_mib: 64, hugepages }, &cpus, &[(0, 512), (1, 512)]);
            arguments.iter().map(|argument| argument.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let has = |hugepages, wanted: &str| words(hugepages).iter().any(|word| word == wanted);
        assert!(has(false, "--lcores=0@(0,3)") && has(false, "-m64") && has(false, "--no-huge"));
        assert!(has(true, "--in-memory") && has(true, "--socket-mem=32,32") && !has(true, "--no-huge"));
    }

    #[test]
    fn a_node_is_asked_for_no_more_hugepages_than_it_has() {
        assert_eq!(shares(1024, &[(0, 512), (1, 0), (3, 512)]), [512, 0, 0, 512]);
        assert_eq!(shares(1024, &[(0, 4096), (1, 100)]), [924, 100]);
        assert_eq!(shares(1001, &[(0, 4096), (8, 4096)]), [500, 0, 0, 0, 0, 0, 0, 0, 501]);
        // DPDK tells what is missing.
        assert_eq!(shares(1024, &[(0, 100), (1, 200)]), [100, 924]);
        assert_eq!(shares(64, &[]), [64]);
        assert_eq!(shares(64, &[(0, 0), (1, 0)]), [64]);
    }

    #[test]
    fn memory_is_taken_where_the_kernel_allows_it() {
        let listed = |text| (0..8).filter(|&node| lists(text, node)).collect::<Vec<_>>();
        assert_eq!(listed("0"), [0]);
        assert_eq!(listed("0-2,5"), [0, 1, 2, 5]);
        assert!(listed("").is_empty());
    }
}
