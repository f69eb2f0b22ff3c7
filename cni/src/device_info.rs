//! What programs in the pod are told of a device: device-info-spec 1.1.0, which Multus puts into the annotation `network-status`.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::protocol::CniError;
use crate::socket_kind::Kind;

/// A device of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceInfo {
    /// A VF.
    Pci {
        /// Its address.
        device: String,
        /// Its PF's.
        pf: String,
    },
    /// A socket.
    Socket {
        /// What speaks over it.
        kind: Kind,
        /// Whether the forwarder listens, and the pod connects.
        forwarder_listens: bool,
        /// Where it is on the host.
        path: String,
    },
}

impl DeviceInfo {
    /// Writes it where the runtime wants it.
    pub fn write(&self, file: &Path) -> Result<(), CniError> {
        let write = || -> io::Result<()> {
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder)?;
            }
            let new = file.with_extension("new");
            fs::write(&new, self.document().to_string())?;
            fs::rename(&new, file)
        };
        write().map_err(|error| CniError::failed(&format!("write the device's description {}", file.display()), error))
    }

    /// Removes what was written. What is not there is good as it is.
    pub fn remove(file: &Path) -> Result<(), CniError> {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CniError::failed(&format!("remove {}", file.display()), error))
            }
            _ => Ok(()),
        }
    }

    fn document(&self) -> Value {
        match self {
            Self::Pci { device, pf } => {
                json!({ "type": "pci", "version": RELEASE, "pci": { "pci-address": device, "pf-pci-address": pf } })
            }
            Self::Socket { kind: Kind::VhostUser, forwarder_listens, path } => {
                let mode = if *forwarder_listens { "client" } else { "server" };
                json!({ "type": "vhost-user", "version": RELEASE, "vhost-user": { "mode": mode, "path": path } })
            }
            Self::Socket { kind, forwarder_listens, path } => {
                let role = if *forwarder_listens { "slave" } else { "master" };
                let mode = if *kind == Kind::MemifIp { "ip" } else { "ethernet" };
                json!({ "type": "memif", "version": RELEASE, "memif": { "role": role, "path": path, "mode": mode } })
            }
        }
    }
}

const RELEASE: &str = "1.1.0";
