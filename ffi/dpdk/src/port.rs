//! A device, from its devargs to its end.

use std::ffi::{CStr, CString};
use std::mem::{MaybeUninit, zeroed};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ferrule_dpdk_sys::{Dpdk, FERRULE_DEV_INTR_RMV, rte_device, rte_eth_conf, rte_eth_dev_info, rte_ether_addr};

use crate::config::{BURST, DESCRIPTORS, Finishes, Plan, PortConfig, buffers};
use crate::eal::Eal;
use crate::error::{PortError, cause};
use crate::interface::{Interface, indexes};
use crate::interrupt::has_interrupts;
use crate::packet_sockets::make_non_blocking;
use crate::pool::{ANY_NODE, Mempool, Shape};
use crate::watch::{LossFn, Watch};
use crate::{announce, log};

/// A port that runs. When it and all of its queues are dropped, it is stopped and closed, and its device is removed; that
/// may take its time.
pub struct Port {
    pub(crate) eal: &'static Eal,
    pub(crate) device: String,
    id: u16,
    /// Ports of the device: all of them are closed.
    pub(crate) ports: Vec<u16>,
    pub(crate) handle: *mut rte_device,
    driver: String,
    frame_max: u32,
    room: u16,
    segments_max: u16,
    cut_segments_max: u16,
    finishes: Finishes,
    is_promiscuous: bool,
    pub(crate) pools: Vec<Mempool>,
    pub(crate) is_started: bool,
    /// Its receive queues may have interrupts.
    pub(crate) has_interrupts: bool,
    /// The interface of the kernel that it is made of, if it is of one.
    pub(crate) interface: Option<Interface>,
    pub(crate) watch: Option<Watch>,
    tx_refused: AtomicU64,
    rx_refused: AtomicU64,
    /// Drivers do not expect two control calls on one port at the same time, not even of those that only read.
    turn: Mutex<()>,
}

// SAFETY: DPDK's control calls on a port may be made from any thread. `handle` is used by `set_up` and `close` only.
unsafe impl Send for Port {}
// SAFETY: control calls on one port are made one after the other (`turn`), beside the bursts of its queues, as DPDK allows.
unsafe impl Sync for Port {}

impl Port {
    /// The devargs that it was made of.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The name of its driver.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// DPDK's number of it.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// The longest frame that it sends, without its checksum.
    pub fn frame_max(&self) -> usize {
        self.frame_max as usize
    }

    /// The longest frame of which it sends a copy: that has to lie in one buffer.
    pub(crate) fn copy_max(&self) -> usize {
        self.frame_max().min(usize::from(self.room))
    }

    /// Whether it receives what is for other addresses than its own.
    pub fn is_promiscuous(&self) -> bool {
        self.is_promiscuous
    }

    /// Buffers that a frame may lie in when it is sent.
    pub(crate) fn segments_max(&self) -> u16 {
        self.segments_max
    }

    /// The same of one that it cuts into segments.
    pub(crate) fn cut_segments_max(&self) -> u16 {
        self.cut_segments_max
    }

    /// Bytes that a buffer has room for.
    pub(crate) fn room(&self) -> usize {
        usize::from(self.room)
    }

    /// What it finishes on frames that it sends.
    pub fn finishes(&self) -> Finishes {
        self.finishes
    }

    /// Frames that were dropped since the device did not take them.
    pub(crate) fn tx_refused(&self) -> u64 {
        self.tx_refused.load(Ordering::Relaxed)
    }

    /// One more of them.
    pub(crate) fn count_refused(&self) {
        self.tx_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Received frames that were freed unseen, since they were too long or in too many pieces.
    pub(crate) fn rx_refused(&self) -> u64 {
        self.rx_refused.load(Ordering::Relaxed)
    }

    /// So many more of them.
    #[inline]
    pub(crate) fn count_rx_refused(&self, count: u64) {
        if count > 0 {
            self.rx_refused.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(crate) fn dpdk(&self) -> &'static Dpdk {
        &self.eal.dpdk
    }

    /// Makes a device of which nothing is configured yet.
    pub(crate) fn probe(eal: &'static Eal, devargs: &str) -> Result<Self, PortError> {
        let refused = |cause: String| PortError::new(devargs, "rte_dev_probe", cause);
        check_name(devargs)?;
        let text = CString::new(devargs).map_err(|_| refused("a zero byte".to_owned()))?;
        let mut unclosed = eal.control_to_open();
        eal.retire(unclosed.retry(&eal.dpdk));
        if unclosed.has(devargs) {
            return Err(refused(NOT_CLOSED.to_owned()));
        }
        let count = eal.ports().len();
        if count >= Eal::ports_max() {
            return Err(refused(format!("there are {count} ports already, as many as this DPDK can have")));
        }
        enable_vfio(eal);
        // SAFETY: a string, of which DPDK keeps a copy. `Eal::control` is held.
        let probe = || log::collect(|| unsafe { eal.dpdk.rte_dev_probe(text.as_ptr()) });
        let ((status, said), ports) = announce::collect(probe);
        drop(unclosed);
        if status < 0 {
            return Err(refused(cause(status, &said)));
        }
        let Some(&id) = ports.first() else {
            return Err(refused(NO_NEW_PORT.to_owned()));
        };
        Ok(Self {
            eal,
            device: devargs.to_owned(),
            id,
            ports,
            handle: null_mut(),
            driver: String::new(),
            frame_max: 0,
            room: 0,
            segments_max: 1,
            cut_segments_max: 1,
            finishes: Finishes::default(),
            is_promiscuous: false,
            pools: Vec::new(),
            is_started: false,
            has_interrupts: false,
            interface: None,
            watch: None,
            tx_refused: AtomicU64::new(0),
            rx_refused: AtomicU64::new(0),
            turn: Mutex::default(),
        })
    }

    /// Configures it, and starts it.
    pub(crate) fn set_up(&mut self, config: &PortConfig, lost: LossFn) -> Result<(), PortError> {
        let id = self.id;
        let info = self.info()?;
        self.handle = info.device;
        // A NIC's interface may be in another namespace, and only what software devices are made of goes with theirs.
        self.interface =
            Some(info.if_index).filter(|&index| index != 0 && self.device.starts_with("net_")).and_then(Interface::of);
        if self.ports.len() > 1 {
            let cause = format!("it has {} ports, and an end of a wire is one", self.ports.len());
            return Err(PortError::new(&self.device, "rte_dev_probe", cause));
        }
        // Before it is started, which takes some drivers seconds: nothing that happens meanwhile is told twice.
        self.watch(lost)?;
        // SAFETY: the driver's name is a string that is there as long as the driver.
        let driver = unsafe { info.driver_name.as_ref().map(|name| CStr::from_ptr(name)) };
        self.driver = driver.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut mtu = 0;
        // SAFETY: the port is there until `self` is dropped, and `mtu` has room for the answer.
        self.call("rte_eth_dev_get_mtu", |dpdk| unsafe { dpdk.rte_eth_dev_get_mtu(id, &raw mut mtu) })?;
        let plan = Plan::new(config, &info, mtu, (&self.device, &self.driver))?;
        // SAFETY: the driver's flags, which are there as long as the device.
        let can_tell = unsafe { info.dev_flags.as_ref() }.is_some_and(|flags| flags & FERRULE_DEV_INTR_RMV != 0);
        (self.frame_max, self.room, self.segments_max) = (plan.frame_max, plan.room, plan.segments_max);
        (self.cut_segments_max, self.finishes) = (plan.cut_segments_max, plan.finishes);
        if config.stamps {
            // SAFETY: it registers a field of mbufs, which DPDK keeps for ever.
            self.call("rte_mbuf_dyn_rx_timestamp_register", |dpdk| unsafe { dpdk.ferrule_stamps_enable() })?;
        }
        let mut conf = plan.conf();
        conf.intr_conf.set_rmv(can_tell.into());
        conf.intr_conf.set_rxq((config.interrupts && has_interrupts(&self.driver)).into());
        match self.start(config, &plan, &conf) {
            Err(error) if conf.intr_conf.rxq() != 0 => {
                // It may lack vectors.
                tracing::info!("{error}; it is tried without interrupts of its queues");
                conf.intr_conf.set_rxq(0);
                self.start(config, &plan, &conf)?;
            }
            started => started?,
        }
        self.is_started = true;
        self.has_interrupts = conf.intr_conf.rxq() != 0;
        if self.driver == "net_pcap" {
            make_non_blocking(&indexes(&self.device));
        }
        // What a driver does not allow is not asked for again: then the other end must have the port's address.
        // SAFETY: the port is there.
        let all = self.call("rte_eth_promiscuous_enable", |dpdk| unsafe { dpdk.rte_eth_promiscuous_enable(id) });
        self.is_promiscuous =
            all.inspect_err(|error| tracing::info!("{error}; only its own address is received")).is_ok();
        // Where that is not allowed, neighbours of IPv6 are found at least.
        // SAFETY: the port is there.
        let groups = self.call("rte_eth_allmulticast_enable", |dpdk| unsafe { dpdk.rte_eth_allmulticast_enable(id) });
        if let Err(error) = groups {
            tracing::debug!("{error}");
        }
        Ok(())
    }

    /// Configures it as planned, with its queues, and starts it. If it does not start, that may be tried again otherwise.
    fn start(&mut self, config: &PortConfig, plan: &Plan, conf: &rte_eth_conf) -> Result<(), PortError> {
        let (id, queues) = (self.id, config.queues);
        self.call("rte_eth_dev_configure", |dpdk| {
            // SAFETY: the port is there, and `conf` is copied.
            unsafe { dpdk.rte_eth_dev_configure(id, queues, queues, conf) }
        })?;
        if config.mtu.is_some() {
            // SAFETY: the port is there.
            let set = self.call("rte_eth_dev_set_mtu", |dpdk| unsafe { dpdk.rte_eth_dev_set_mtu(id, plan.mtu) });
            unless_unsupported(set)?;
            self.interface.iter_mut().for_each(|interface| interface.note_mtu(plan.mtu));
        }
        let (mut rx, mut tx) = (DESCRIPTORS, DESCRIPTORS);
        self.call("rte_eth_dev_adjust_nb_rx_tx_desc", |dpdk| {
            // SAFETY: the port is there; both numbers are read and written during the call.
            unsafe { dpdk.rte_eth_dev_adjust_nb_rx_tx_desc(id, &raw mut rx, &raw mut tx) }
        })?;
        // SAFETY: it reads a number, for any port.
        let node = unsafe { self.dpdk().rte_eth_dev_socket_id(id) };
        // Memory that is not in hugepages is of no known node.
        let pool_node = if self.eal.has_hugepages { node } else { ANY_NODE };
        let shape =
            Shape { count: buffers(rx, tx), room: plan.room, node: pool_node, in_hugepages: self.eal.has_hugepages };
        for queue in 0..queues {
            if self.pools.len() == usize::from(queue) {
                let pool = self.eal.pool_set().get(self.dpdk(), &self.device, shape)?;
                self.pools.push(pool);
            }
            let mbufs = self.pools[usize::from(queue)].pointer.as_ptr();
            self.call("rte_eth_rx_queue_setup", |dpdk| {
                // SAFETY: the port is there and not started. Pools are never freed.
                unsafe { dpdk.rte_eth_rx_queue_setup(id, queue, rx, node.cast_unsigned(), null(), mbufs) }
            })?;
            self.call("rte_eth_tx_queue_setup", |dpdk| {
                // SAFETY: the port is there and not started.
                unsafe { dpdk.rte_eth_tx_queue_setup(id, queue, tx, node.cast_unsigned(), null()) }
            })?;
        }
        // SAFETY: the port is there, with all of its queues.
        self.call("rte_eth_dev_start", |dpdk| unsafe { dpdk.rte_eth_dev_start(id) }).map(drop)
    }

    /// Has `lost` called when the device says that it is removed or was reset, or the kernel asks for it back. It must not close the port.
    fn watch(&mut self, lost: LossFn) -> Result<(), PortError> {
        if self.handle.is_null() {
            return Err(PortError::new(&self.device, "rte_eth_dev_info_get", "it names no device".to_owned()));
        }
        // SAFETY: the name is a string of the device, which is there until it is removed.
        let name = unsafe { CStr::from_ptr(self.dpdk().rte_dev_name(self.handle)) }.to_owned();
        let watch = Watch::new(self.dpdk(), self.id, name, lost);
        let watch = watch.map_err(|status| {
            let refused = PortError::new(&self.device, "rte_dev_event_callback_register", cause(status, &[]));
            PortError { status, ..refused }
        })?;
        self.watch = Some(watch);
        Ok(())
    }

    /// What its driver says of it.
    pub(crate) fn info(&self) -> Result<rte_eth_dev_info, PortError> {
        let mut info = MaybeUninit::<rte_eth_dev_info>::zeroed();
        self.call("rte_eth_dev_info_get", |dpdk| {
            // SAFETY: the port is there until `self` is dropped, and there is room for the answer.
            unsafe { dpdk.rte_eth_dev_info_get(self.id, info.as_mut_ptr()) }
        })?;
        // SAFETY: of numbers and pointers that may be null: zeros are a value, and the call has filled it.
        Ok(unsafe { info.assume_init() })
    }

    /// Its MAC address.
    pub fn mac(&self) -> Result<[u8; 6], PortError> {
        // SAFETY: of bytes.
        let mut address: rte_ether_addr = unsafe { zeroed() };
        self.call("rte_eth_macaddr_get", |dpdk| {
            // SAFETY: the port is there until `self` is dropped, and there is room for the answer.
            unsafe { dpdk.rte_eth_macaddr_get(self.id, &raw mut address) }
        })?;
        Ok(address.addr_bytes)
    }

    /// What the clock of the device shows, in ticks of its own: frames say by it when they arrived ([`RxQueue::stamps`](crate::queue::RxQueue)).
    pub fn clock(&self) -> Result<u64, PortError> {
        let mut ticks = 0;
        self.call("rte_eth_read_clock", |dpdk| {
            // SAFETY: the port is there until `self` is dropped, and there is room for the answer.
            unsafe { dpdk.rte_eth_read_clock(self.id, &raw mut ticks) }
        })?;
        Ok(ticks)
    }

    /// Brings its link up or down. `false`: its driver cannot.
    pub fn set_link(&self, up: bool) -> Result<bool, PortError> {
        let set = if up {
            // SAFETY: the port is there until `self` is dropped.
            self.call("rte_eth_dev_set_link_up", |dpdk| unsafe { dpdk.rte_eth_dev_set_link_up(self.id) })
        } else {
            // SAFETY: as above.
            self.call("rte_eth_dev_set_link_down", |dpdk| unsafe { dpdk.rte_eth_dev_set_link_down(self.id) })
        };
        match set {
            Err(error) if error.is_unsupported() => Ok(false),
            set => set.map(|_| true),
        }
    }

    /// Calls DPDK, which answers with a negative errno if it refuses.
    pub(crate) fn call(&self, name: &'static str, call: impl FnOnce(&'static Dpdk) -> i32) -> Result<i32, PortError> {
        let (status, said) = {
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            log::collect(|| call(self.dpdk()))
        };
        if status >= 0 {
            return Ok(status);
        }
        Err(PortError { status, ..PortError::new(&self.device, name, cause(status, &said)) })
    }

    /// What is still in the rings of a device that only pretends to be one would be lost with them, and its pool kept.
    pub(crate) fn drain(&self) {
        let mut refused = 0;
        // SAFETY: of numbers and pointers that may be null.
        let mut frames = [unsafe { zeroed() }; BURST];
        for queue in 0..self.pools.len() as u16 {
            for _ in 0..2 * usize::from(DESCRIPTORS) / BURST {
                // SAFETY: the port is started, and none of its queues is there any more. There is room for a burst.
                unsafe {
                    let dpdk = self.dpdk();
                    let count =
                        dpdk.ferrule_rx_burst(self.id, queue, frames.as_mut_ptr(), BURST as u16, &raw mut refused);
                    dpdk.ferrule_free(frames.as_mut_ptr(), count);
                    if count == 0 {
                        break;
                    }
                }
            }
        }
    }
}

/// DPDK looks for VFIO when it starts. Its modules may have been loaded since. Once it is enabled that is never done again: DPDK would forget the
/// groups that it has open.
fn enable_vfio(eal: &Eal) {
    static IS_ENABLED: AtomicBool = AtomicBool::new(false);
    if IS_ENABLED.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: a string. `Eal::control` is held, and no device is on VFIO as long as it was never enabled.
    let is_enabled = unsafe {
        if eal.dpdk.rte_vfio_is_enabled(VFIO.as_ptr()) == 0 {
            eal.dpdk.rte_vfio_enable(VFIO.as_ptr());
        }
        eal.dpdk.rte_vfio_is_enabled(VFIO.as_ptr()) != 0
    };
    IS_ENABLED.store(is_enabled, Ordering::Relaxed);
}

/// The module.
const VFIO: &CStr = c"vfio";

/// Devices of other kinds have names of the same form, and would be made before it is seen that they have no port.
fn check_name(devargs: &str) -> Result<(), PortError> {
    let name = devargs.split(',').next().unwrap_or_default();
    // A PCI address, or a device of the auxiliary bus (mlx5_core.sf.4). A bus in front (`vdev:`) could be of anything.
    let is_pci = name.contains(':') && name.chars().all(|c| c.is_ascii_hexdigit() || c == ':' || c == '.');
    let is_address =
        is_pci || (name.contains('.') && name.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c)));
    if is_address || name.starts_with("net_") {
        return Ok(());
    }
    let cause = format!("`{name}` is neither a network driver's name (net_tap0) nor an address (0000:3b:02.1)");
    Err(PortError::new(devargs, "the name", cause))
}

/// What a driver does not know is left as it is.
fn unless_unsupported(outcome: Result<i32, PortError>) -> Result<(), PortError> {
    match outcome {
        Err(error) if !error.is_unsupported() => Err(error),
        _ => Ok(()),
    }
}

/// It has, and DPDK would say so in a less helpful way.
const NOT_CLOSED: &str = "its driver could not close it before, and this process still has it; restart the forwarder";
/// DPDK finds nothing wrong with a device that is there already.
const NO_NEW_PORT: &str = "this process has that device already, or it has no Ethernet port";
