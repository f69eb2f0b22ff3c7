//! What the device plugin of a node says of every resource and every device, for people who ask why.
//!
//! It writes one JSON document to whoever connects to its socket, and closes the connection. Nothing is sent to it. Only root may connect:
//! the document names pods.

pub mod networks;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrule_daemon::grpc::denied;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Everything that the plugin knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What is wrong with the plugin itself, in words.
    pub problems: Vec<String>,
    /// In the order of the configuration.
    pub resources: Vec<Resource>,
    /// Every device of the node, in the order of their ids.
    pub devices: Vec<Device>,
    /// PFs that have VFs, which are given away instead of them: by address, with the interface.
    pub pfs: Vec<(String, String)>,
    /// Entries of the configuration that cannot be used, such as `dpdk (line 2)`.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// A resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// What pods ask for.
    pub name: String,
    /// What its VFs are bound to for a pod; none: what they are on.
    pub driver: Option<String>,
    /// Whether the kubelet has its list.
    pub is_registered: bool,
    /// What it has.
    pub members: Vec<Member>,
}

/// A device of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub device: String,
    /// Who has it by this resource.
    pub holder: Option<Holder>,
    /// Why it is told to be unhealthy.
    pub problem: Option<Problem>,
}

/// A pod that has a device, or may have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Such as `pod NAMESPACE/NAME`; none: the kubelet has not listed it.
    pub pod: Option<String>,
    /// The manager has lent it.
    pub is_ready: bool,
}

/// Why a device is unhealthy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// One word, as in metrics.
    pub word: String,
    /// A sentence without its end.
    pub text: String,
}

/// A device of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What the kubelet calls it.
    pub id: String,
    /// What it is, in words.
    pub kind: String,
    /// What it is bound to now.
    pub driver: Option<String>,
    /// Its interfaces in the host's namespace.
    pub netdevs: Vec<String>,
    /// Resources that do not have it.
    pub left_out: Vec<LeftOut>,
}

/// Why a resource does not have a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The resource.
    pub resource: String,
    /// A sentence without its end.
    pub why: String,
}

impl Report {
    /// Asks the plugin whose socket is at `path`.
    pub async fn read(path: &Path) -> Result<Self, ReadError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied => ReadError::Denied(denied(path)),
            _ => ReadError::Connect { path: path.to_owned(), source },
        };
        let read = async {
            let client = UnixStream::connect(path).await.map_err(failed)?;
            let mut text = Vec::new();
            client.take(REPORT_MAX).read_to_end(&mut text).await.map_err(ReadError::Broken)?;
            serde_json::from_slice(&text).map_err(ReadError::Unreadable)
        };
        timeout(READ_WAIT, read).await.map_err(|_| ReadError::Late)?
    }

    /// A resource by its name.
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.name == name)
    }

    /// A device by its id, or by an interface of it.
    pub fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.id == name || device.netdevs.iter().any(|netdev| netdev == name))
    }

    /// What resources say of a device that they have.
    pub fn memberships<'a>(&'a self, device: &'a str) -> impl Iterator<Item = (&'a Resource, &'a Member)> {
        let of = move |resource: &'a Resource| {
            Some((resource, resource.members.iter().find(|member| member.device == device)?))
        };
        self.resources.iter().filter_map(of)
    }
}

impl Resource {
    /// Devices that the next pod may get.
    pub fn free(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.holder.is_none() && member.problem.is_none())
    }

    /// Devices that pods have.
    pub fn held(&self) -> impl Iterator<Item = (&Member, &Holder)> {
        self.members.iter().filter_map(|member| Some((member, member.holder.as_ref()?)))
    }

    /// Devices that no pod has, and that none will get.
    pub fn withheld(&self) -> impl Iterator<Item = (&Member, &Problem)> {
        let free = self.members.iter().filter(|member| member.holder.is_none());
        free.filter_map(|member| Some((member, member.problem.as_ref()?)))
    }
}

/// Why the plugin does not say anything.
#[derive(Debug, Error)]
pub enum ReadError {
    /// Nobody listens, or one may not.
    #[error("no device-plugin answers on {}: {source}; is it running?", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is there, and the caller may not ask.
    #[error("{0}")]
    Denied(String),
    /// It ended while it answered.
    #[error("the device plugin went away while it was asked: {0}")]
    Broken(io::Error),
    /// Its answer is none.
    #[error("the device plugin's answer cannot be read: {0}; is it of another release than this program?")]
    Unreadable(serde_json::Error),
    /// It takes too long.
    #[error("the device plugin has not answered for {} s; its page `/livez` tells whether it hangs", READ_WAIT.as_secs())]
    Late,
}

/// Where the plugin listens.
pub const SOCKET_DEFAULT: &str = "/run/ferrule/device-plugin.sock";
const READ_WAIT: Duration = Duration::from_secs(10);
/// Bytes: some thousand devices with some hundred for each of some dozen resources.
const REPORT_MAX: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_report_is_read_and_what_is_none_is_told_in_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plugin.sock");
        let error = Report::read(&path).await.unwrap_err().to_string();
        assert!(error.contains("is it running"), "{error}");
        let report = Report { problems: vec!["x".into()], ..Report::default() };
        let listener = UnixListener::bind(&path).unwrap();
        for (sent, is_good) in [(serde_json::to_vec(&report).unwrap(), true), (b"{".to_vec(), false)] {
            let (read, ()) = tokio::join!(Report::read(&path), async {
                let (mut client, _) = listener.accept().await.unwrap();
                client.write_all(&sent).await.unwrap();
            });
            assert_eq!(read.is_ok_and(|read| read == report), is_good);
        }
    }
}
