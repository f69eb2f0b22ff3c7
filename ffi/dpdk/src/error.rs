//! What DPDK refused.

use nix::errno::Errno;
use thiserror::Error;

/// DPDK did not start.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StartError {
    /// It cannot be loaded. Asked again, it is tried again.
    #[error("load libdpdk {version}: {reason}")]
    Library {
        /// The version that this was built for.
        version: &'static str,
        /// What the loader says.
        reason: String,
    },
    /// It was loaded, and its environment did not start. DPDK allows one try in a process.
    #[error("start DPDK: {reason}")]
    Eal {
        /// What DPDK says.
        reason: String,
    },
}

impl StartError {
    /// What to do.
    pub fn cure(&self) -> &'static str {
        match self {
            Self::Library { .. } => {
                "install libdpdk of that version with its drivers (on Debian the packages librte-meta-net and librte-meta-bus)"
            }
            Self::Eal { .. } => {
                "give the forwarder the memory and the rights that DPDK asks for, then restart it: DPDK is not started again in this process"
            }
        }
    }
}

/// A call of DPDK failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{call} of {device}: {cause}")]
pub struct PortError {
    /// The device, as it was asked for.
    pub device: String,
    /// The call, or what stands for it.
    pub call: &'static str,
    /// Why: the error, and what DPDK wrote to its log meanwhile.
    pub cause: String,
    /// What the call answered, a negative errno; 0: it was not made.
    pub status: i32,
}

impl PortError {
    /// Of a call that was not made, or is not to be blamed.
    pub(crate) fn new(device: &str, call: &'static str, cause: String) -> Self {
        Self { device: device.to_owned(), call, cause, status: 0 }
    }

    /// Whether its driver does not know the call.
    pub(crate) fn is_unsupported(&self) -> bool {
        self.status == -(Errno::ENOTSUP as i32)
    }
}

/// What DPDK said of a failure, and what its negative errno means.
pub(crate) fn cause(status: i32, said: &[String]) -> String {
    let errno = Errno::from_raw(status.saturating_neg());
    let meaning = if errno == Errno::UnknownErrno { format!("status {status}") } else { errno.desc().to_lowercase() };
    match (said, errno) {
        ([], _) => meaning,
        // Drivers answer these for anything: beside their own words they mislead.
        (said, Errno::EPERM | Errno::EFAULT | Errno::EOPNOTSUPP) => format!("DPDK says: {}", said.join("; ")),
        (said, _) => format!("DPDK says: {} ({meaning})", said.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_has_the_error_and_what_was_said_of_it() {
        assert_eq!(cause(-22, &[]), "invalid argument");
        assert_eq!(cause(-100_000, &[]), "status -100000");
        let said = ["EAL: no such bus".to_owned(), "EAL: gone".to_owned()];
        assert_eq!(cause(-19, &said), "DPDK says: EAL: no such bus; EAL: gone (no such device)");
        assert_eq!(cause(-1, &said), "DPDK says: EAL: no such bus; EAL: gone", "it is no question of rights");
    }
}
