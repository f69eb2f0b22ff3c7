//! What a client wants.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::files::Inode;
use crate::proto::connection::{Connection, Mechanism};
use crate::service::INODE_URL;

/// A kernel interface to a network service, in a namespace of the client's.
#[derive(Clone, Debug)]
pub struct Wanted {
    service: String,
    interface: String,
    labels: BTreeMap<String, String>,
    inode: Inode,
    namespace: Vec<Arc<OwnedFd>>,
}

impl Wanted {
    /// An interface of this name in this namespace, whose file was opened with `O_PATH`.
    ///
    /// # Errors
    /// The kernel cannot say which file it is.
    pub fn kernel(service: &str, interface: &str, namespace: Arc<OwnedFd>) -> io::Result<Self> {
        Ok(Self {
            service: service.to_owned(),
            interface: interface.to_owned(),
            labels: BTreeMap::new(),
            inode: Inode::of(&namespace)?,
            namespace: vec![namespace],
        })
    }

    /// With these labels, by which services choose endpoints.
    #[must_use]
    pub fn labels(self, labels: BTreeMap<String, String>) -> Self {
        Self { labels, ..self }
    }

    /// As the client `name` asks for it first.
    pub(super) fn connection(&self, name: &str) -> Connection {
        Connection {
            id: format!("{name}-0"),
            network_service: self.service.clone(),
            labels: self.labels.clone(),
            ..Connection::default()
        }
    }

    pub(super) fn mechanism(&self) -> Mechanism {
        let parameters = [(INODE_URL, self.inode.to_string()), ("name", self.interface.clone())];
        let parameters = parameters.map(|(name, value)| (name.to_owned(), value)).into();
        Mechanism { cls: "LOCAL".to_owned(), r#type: "KERNEL".to_owned(), parameters }
    }

    /// As metrics name it.
    pub(super) fn interface(&self) -> String {
        format!("KERNEL/{}", self.interface)
    }

    pub(super) fn files(&self) -> &[Arc<OwnedFd>] {
        &self.namespace
    }
}
