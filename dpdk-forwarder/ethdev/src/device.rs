//! The port of an end, made when its wire is made.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferrule_dataplane::port::any::LaneEnd;
use ferrule_dataplane::port::device::{Device, DeviceContext, MadeDevice};
use ferrule_dataplane::port::device_status::{DeviceStatus, LinkState};
use ferrule_dataplane::port::external::DeviceError;
use ferrule_dataplane::port::{Source, Target};
use ferrule_dataplane::spec::{MacAddress, end_name};
use ferrule_dpdk::config::PortConfig;
use ferrule_dpdk::eal::Eal;
use ferrule_dpdk::error::PortError;
use ferrule_dpdk::port::Port;
use ferrule_dpdk::watch::LossCause;
use tracing::{debug, info, warn};

use crate::queue::{EthdevSource, EthdevTarget};
use crate::settings::start;
use crate::spec::EthdevSpec;

/// Makes the device of an end, and starts DPDK if it is the first one.
pub(crate) fn make(spec: &EthdevSpec, context: &DeviceContext) -> Result<MadeDevice, DeviceError> {
    let eal = start().map_err(|error| spec.error("make", error.to_string(), error.cure()))?;
    let (port, rings) = open(eal, &spec.device, (spec.queues, spec.mtu), context).map_err(|error| {
        let cure = match error.call {
            POOL_CALL => RAISE_MEMORY,
            _ if is_pci(&spec.device) => "bind it to vfio-pci, and see that its VFIO group may be opened",
            _ => "see that libdpdk has that driver, and DPDK's page of it for its devargs",
        };
        let reason = match (error.call, bound_elsewhere(&spec.device)) {
            (PROBE_CALL, Some(driver)) => format!("it is on {driver}; {}", error.cause),
            (PROBE_CALL, None) => error.cause,
            (call, _) => format!("{call}: {}", error.cause),
        };
        spec.error("make", reason, cure)
    })?;
    let words = format!("{} ({})", port.device(), port.driver());
    Ok(MadeDevice { rings, device: Arc::new(EthdevDevice::new(port, words)) })
}

/// Opens a port of so many queues, with this MTU.
pub(crate) fn open(
    eal: &'static Eal,
    devargs: &str,
    (queues, mtu): (u32, Option<u32>),
    context: &DeviceContext,
) -> Result<(Arc<Port>, LaneEnd), PortError> {
    let config = PortConfig {
        // Both were checked.
        queues: u16::try_from(queues).unwrap_or(u16::MAX),
        mtu: mtu.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX)),
        buffer: None,
        finishes: context.unfinished,
        stamps: false,
        interrupts: true,
    };
    let loss = context.loss.clone();
    let lost = move |cause: LossCause| match cause {
        LossCause::Reset => loss.lost_for(RESET_PAUSE, &cause),
        LossCause::Removed | LossCause::AskedBack => loss.lost(&cause),
    };
    let (port, queues) = Port::open(eal, devargs, &config, Arc::new(lost))?;
    info!(
        wire = context.wire,
        end = end_name(context.end),
        device = devargs,
        driver = port.driver(),
        port = port.id(),
        promiscuous = port.is_promiscuous(),
        "the DPDK device is there"
    );
    let queues = queues.into_iter().map(|(rx, tx)| {
        let ends: (Box<dyn Source + Send>, Box<dyn Target + Send>) =
            (Box::new(EthdevSource::new(rx)), Box::new(EthdevTarget::new(tx)));
        ends
    });
    Ok((port, LaneEnd::external(queues)))
}

/// Whether devargs begin with a PCI address.
fn is_pci(devargs: &str) -> bool {
    devargs.split(',').next().is_some_and(|name| name.contains(':'))
}

/// The driver of a PCI device that DPDK cannot have, since it is not VFIO's.
fn bound_elsewhere(devargs: &str) -> Option<String> {
    let name = devargs.split(',').next().filter(|name| name.contains(':') && !name.contains('/'))?;
    let driver = fs::read_link(Path::new("/sys/bus/pci/devices").join(name).join("driver")).ok()?;
    let driver = driver.file_name()?.to_str()?.to_owned();
    (driver != "vfio-pci").then_some(driver)
}

/// The call that makes a device of devargs.
const PROBE_CALL: &str = "rte_dev_probe";

/// The call that fails when DPDK's memory is used up, and what to do.
pub(crate) const POOL_CALL: &str = "rte_pktmbuf_pool_create";
pub(crate) const RAISE_MEMORY: &str = "raise `dpdk.memory` in the wires file";

/// A port that runs.
pub(crate) struct EthdevDevice {
    port: Arc<Port>,
    /// What it is.
    words: String,
    told: Mutex<LinkTold>,
    looks: Mutex<Looks>,
}

/// What we have brought its link to.
enum LinkTold {
    /// Its driver cannot.
    Nothing,
    Down,
    /// Whether it has been up since.
    Up {
        since: Instant,
        was_up: bool,
    },
}

/// What it said of itself last, and how often it has not answered since.
#[derive(Default)]
struct Looks {
    last: DeviceStatus,
    failed: u32,
}

impl EthdevDevice {
    /// Of a port that has just been started. Its link is down: nobody is at the other end of its wire yet.
    pub fn new(port: Arc<Port>, words: String) -> Self {
        let device = Self { port, words, told: Mutex::new(LinkTold::Nothing), looks: Mutex::default() };
        device.set_link(false);
        device
    }
}

impl EthdevDevice {
    fn look(&self) -> Result<DeviceStatus, PortError> {
        let status = self.port.status()?;
        let speed = status.speed_mbps.map(|mbps| format!(", {mbps} Mbit/s")).unwrap_or_default();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let (LinkTold::Up { was_up, .. }, Some(true)) = (&mut *told, status.link_is_up) {
            *was_up = true;
        }
        // What we brought down says nothing of the other side, nor does what is still coming up: two ends must not keep each other down.
        let link = match (&*told, status.link_is_up) {
            (LinkTold::Down, _) | (_, None) => LinkState::Unknown,
            (_, Some(true)) => LinkState::Up,
            (LinkTold::Up { since, was_up: false }, Some(false)) if since.elapsed() < LINK_WAIT => LinkState::Unknown,
            (_, Some(false)) => LinkState::Down,
        };
        drop(told);
        Ok(DeviceStatus {
            words: format!("{}{speed}", self.words),
            link,
            mac: self.port.mac().ok().map(MacAddress),
            mtu: Some(status.mtu.into()),
            numa_node: status.numa_node,
            counters: self.port.counters()?,
        })
    }
}

impl Device for EthdevDevice {
    /// A driver that asks its PF may be without an answer for once, and is no reason to close the port.
    fn status(&self) -> Result<DeviceStatus, String> {
        self.port.check_presence().map_err(|error| error.to_string())?;
        let look = self.look();
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        match look {
            Ok(status) => *looks = Looks { last: status, failed: 0 },
            Err(error) if looks.failed >= FAILED_MAX => return Err(error.to_string()),
            Err(error) => {
                looks.failed += 1;
                debug!("{error}");
            }
        }
        Ok(looks.last.clone())
    }

    fn set_link(&self, up: bool) {
        // Whoever looks meanwhile waits.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match self.port.set_link(up) {
            Ok(true) if up => *told = LinkTold::Up { since: Instant::now(), was_up: false },
            Ok(true) => *told = LinkTold::Down,
            Ok(false) => {}
            Err(error) => warn!("{error}"),
        }
    }
}

/// A PF takes about so long for its reset, in which probes of its VFs wait for it: and all others for them.
const RESET_PAUSE: Duration = Duration::from_secs(2);
/// A link of copper takes seconds to come up.
const LINK_WAIT: Duration = Duration::from_secs(10);
/// As many looks in a row may fail: 5 s.
const FAILED_MAX: u32 = 12;
