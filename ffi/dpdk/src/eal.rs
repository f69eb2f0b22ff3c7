//! DPDK's environment. It is started once in a process, and never stopped: DPDK cannot start again.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use ferrule_dpdk_sys::{Dpdk, RTE_MAX_ETHPORTS, VERSION, rte_mempool};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::error::{StartError, cause};
use crate::library;
use crate::log;

/// How it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EalSettings {
    /// Memory for the frames of all ports, in MiB: a queue takes 17 at an MTU of 1500, and 10 of hugepages. It is reserved, and
    /// taken as ports are made.
    pub memory_mib: u32,
    /// Whether it lies in hugepages. A NIC without an IOMMU needs them; they are taken at the start, all at once.
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
    control: Mutex<Control>,
}

/// What only one thread does at a time.
#[derive(Default)]
pub(crate) struct Control {
    /// Pools of ports that are closed, of which frames are still somewhere.
    retired: Vec<PoolPointer>,
    pools_made: u64,
}

pub(crate) struct PoolPointer(pub NonNull<rte_mempool>);

// SAFETY: DPDK's pools may be used from any thread.
unsafe impl Send for PoolPointer {}
// SAFETY: as above; what they do concurrently is made for it.
unsafe impl Sync for PoolPointer {}

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

    /// Pools of closed ports that are kept because some of their frames are still with another port. They are freed when ports
    /// are opened or closed.
    pub fn retired_pools(&self) -> usize {
        let mut control = self.control();
        control.free_retired(self);
        control.retired.len()
    }

    /// For whoever makes or closes a port.
    pub(crate) fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    /// A name that no pool has.
    pub fn pool_name(&mut self) -> CString {
        self.pools_made += 1;
        CString::new(format!("ferrule-{}", self.pools_made)).unwrap_or_default()
    }

    /// Frees a pool as soon as all of its frames are back.
    pub fn retire(&mut self, eal: &Eal, pool: PoolPointer) {
        self.retired.push(pool);
        self.free_retired(eal);
    }

    pub fn free_retired(&mut self, eal: &Eal) {
        self.retired.retain(|pool| {
            // SAFETY: it is a pool that was not freed: those that are leave the list. No queue has it any more, so nobody
            // takes a frame of it while the last one comes back.
            unsafe {
                let in_use = eal.dpdk.rte_mempool_in_use_count(pool.0.as_ptr());
                if in_use == 0 {
                    eal.dpdk.rte_mempool_free(pool.0.as_ptr());
                }
                in_use > 0
            }
        });
    }
}

fn init(dpdk: Dpdk, settings: EalSettings) -> Result<&'static Eal, StartError> {
    let failed = |reason: String| StartError::Eal { reason };
    log::open(&dpdk).map_err(failed)?;
    let cpus = sched_getaffinity(Pid::from_raw(0)).map_err(|error| failed(format!("its CPUs: {error}")))?;
    let arguments = arguments(settings, &cpus);
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
        return Err(failed(cause(-errno.abs(), &said)));
    }
    let eal = Eal { dpdk, has_hugepages: settings.hugepages, control: Mutex::default() };
    tracing::info!(version = eal.version(), built_for = VERSION, ?settings, "DPDK has started");
    Ok(Box::leak(Box::new(eal)))
}

fn arguments(settings: EalSettings, cpus: &CpuSet) -> Vec<CString> {
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
        format!("-m{}", settings.memory_mib),
    ];
    let memory: &[&str] =
        if settings.hugepages { &["--in-memory"] } else { &["--no-huge", "--no-shconf", "--iova-mode=va"] };
    arguments.extend(memory.iter().map(|&argument| argument.to_owned()));
    arguments.into_iter().filter_map(|argument| CString::new(argument).ok()).collect()
}

static STARTED: Mutex<Option<Result<&'static Eal, StartError>>> = Mutex::new(None);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_thread_may_run_where_we_may_and_memory_is_as_it_was_asked_for() {
        let mut cpus = CpuSet::new();
        for cpu in [0, 3] {
            cpus.set(cpu).unwrap();
        }
        let words = |hugepages| {
            let arguments = arguments(EalSettings { memory_mib: 64, hugepages }, &cpus);
            arguments.iter().map(|argument| argument.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert!(words(false).contains(&"--lcores=0@(0,3)".to_owned()) && words(false).contains(&"-m64".to_owned()));
        let [plain, huge] = [false, true].map(|hugepages| {
            let words = words(hugepages);
            ["--no-huge", "--in-memory"].map(|word| words.iter().any(|other| other == word))
        });
        assert_eq!([plain, huge], [[true, false], [false, true]]);
    }
}
