//! What the ports of interfaces are called, which tells a card's own interface from those of its switch.
//!
//! The kernel tells it under the lock of all interfaces (`phys_port_name_show` of net/core/net-sysfs.c), and a driver that hangs
//! may hold that. So nobody who looks at the node waits for it for long, and while an answer is late nobody waits at all. An
//! interface is asked once: its port has this name for as long as it is the same interface.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferrule_ffi::private_files;
use nix::libc;
use tracing::warn;

/// What is known of ports. Clones know the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Ports(Arc<(Mutex<KnownPorts>, Condvar)>);

#[derive(Debug, Default)]
struct KnownPorts {
    /// By the folder of a function's interfaces; empty: the port has no name.
    names: BTreeMap<PathBuf, BTreeMap<Netdev, String>>,
    is_asking: bool,
    /// Whoever asked waits no more, and so does nobody else.
    is_late: bool,
}

/// An interface: its name, and its number, which differs from that of one that had the name before.
pub(super) type Netdev = (String, u32);

impl Ports {
    /// What the ports of the interfaces in a folder are called, of those that tell. Empty: it has no name.
    pub fn names(&self, folder: &Path, netdevs: &[Netdev]) -> BTreeMap<String, String> {
        let deadline = Instant::now() + ANSWER_MAX;
        let mut has_asked = false;
        let mut known = self.lock();
        loop {
            let names = known.names.entry(folder.to_owned()).or_default();
            names.retain(|netdev, _| netdevs.contains(netdev));
            let unknown: Vec<_> = netdevs.iter().filter(|netdev| !names.contains_key(*netdev)).cloned().collect();
            if unknown.is_empty() || known.is_late || (has_asked && !known.is_asking) {
                break;
            }
            if !known.is_asking {
                known.is_asking = true;
                has_asked = true;
                drop(known);
                self.ask(folder.to_owned(), unknown);
                known = self.lock();
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                warn!(folder = %folder.display(), "the kernel does not tell which interfaces are a card's own: a driver may hang");
                known.is_late = true;
                break;
            }
            known = self.0.1.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let names = known.names.get(folder).into_iter().flatten();
        names.map(|((netdev, _), name)| (netdev.clone(), name.clone())).collect()
    }

    fn ask(&self, folder: PathBuf, netdevs: Vec<Netdev>) {
        let question = PortQuestion(self.clone());
        let asked = private_files::spawn("port-names", move || {
            let PortQuestion(ports) = &question;
            for netdev in netdevs {
                if let Ok(name) = port_name(&folder.join(&netdev.0)) {
                    ports.lock().names.entry(folder.clone()).or_default().insert(netdev, name);
                }
            }
        });
        if let Err(error) = asked {
            warn!(%error, "it cannot be asked which interfaces are a card's own: a thread cannot be started");
        }
    }

    fn lock(&self) -> MutexGuard<'_, KnownPorts> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It is over when it goes: also one that could not be put.
struct PortQuestion(Ports);

impl Drop for PortQuestion {
    fn drop(&mut self) {
        let mut known = self.0.lock();
        (known.is_asking, known.is_late) = (false, false);
        drop(known);
        self.0.0.1.notify_all();
    }
}

fn port_name(netdev: &Path) -> io::Result<String> {
    match fs::read_to_string(netdev.join("phys_port_name")) {
        Ok(name) => Ok(name.trim().to_owned()),
        // Most drivers have no names for ports.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT)) => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// The kernel answers at once, or waits for a driver.
const ANSWER_MAX: Duration = Duration::from_millis(500);
