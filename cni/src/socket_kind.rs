//! What speaks over a socket.

use serde::{Deserialize, Serialize};

/// What speaks over a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Frames of Ethernet.
    Memif,
    /// Packets of IP.
    MemifIp,
    /// A virtual machine, or virtio-user.
    VhostUser,
}

impl Kind {
    /// As the configuration calls it.
    pub fn iftype(self) -> &'static str {
        match self {
            Self::Memif | Self::MemifIp => "memif",
            Self::VhostUser => "vhostuser",
        }
    }
}
