//! What a client wants.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::files::Inode;
use crate::proto::connection::{Connection, Mechanism};
use crate::service::INODE_URL;

/// An end of the client's, and the network service that is to be at the other one.
#[derive(Clone, Debug)]
pub struct Wanted {
    service: String,
    labels: BTreeMap<String, String>,
    kind: &'static str,
    parameters: BTreeMap<String, String>,
    files: Vec<Arc<OwnedFd>>,
}

impl Wanted {
    /// A kernel interface of this name in this namespace, whose file was opened with `O_PATH`.
    ///
    /// # Errors
    /// The kernel cannot say which file it is.
    pub fn kernel(service: &str, interface: &str, namespace: Arc<OwnedFd>) -> io::Result<Self> {
        Ok(Self::in_namespace("KERNEL", service, namespace)?.named(interface))
    }

    /// A memif, whose socket is in this namespace: an abstract one, which the answer names.
    ///
    /// # Errors
    /// The kernel cannot say which file it is.
    pub fn memif(service: &str, namespace: Arc<OwnedFd>) -> io::Result<Self> {
        Self::in_namespace("MEMIF", service, namespace)
    }

    /// A VF on VFIO, by a token that the client's pod has.
    pub fn vfio(service: &str, token: &str) -> Self {
        let (labels, parameters) = (BTreeMap::new(), BTreeMap::new());
        let wanted = Self { service: service.to_owned(), labels, kind: "VFIO", parameters, files: Vec::new() };
        wanted.by_token(token)
    }

    fn in_namespace(kind: &'static str, service: &str, namespace: Arc<OwnedFd>) -> io::Result<Self> {
        let parameters = [(INODE_URL.to_owned(), Inode::of(&namespace)?.to_string())].into();
        Ok(Self { service: service.to_owned(), labels: BTreeMap::new(), kind, parameters, files: vec![namespace] })
    }

    /// Called so, if that is not empty.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        if name.is_empty() { self } else { self.with("name", name) }
    }

    /// By the VF that the client's pod has this token of.
    #[must_use]
    pub fn by_token(self, token: &str) -> Self {
        self.with(TOKEN, token)
    }

    fn with(mut self, key: &str, value: &str) -> Self {
        self.parameters.insert(key.to_owned(), value.to_owned());
        self
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
        Mechanism { cls: "LOCAL".to_owned(), r#type: self.kind.to_owned(), parameters: self.parameters.clone() }
    }

    /// As metrics name it.
    pub(super) fn interface(&self) -> String {
        format!("{}/{}", self.kind, self.parameters.get("name").map_or("", String::as_str))
    }

    pub(super) fn files(&self) -> &[Arc<OwnedFd>] {
        &self.files
    }
}

/// The parameter that says by which VF.
pub(crate) const TOKEN: &str = "tokenID";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_asked_for_with_what_it_takes() {
        let namespace = Arc::new(OwnedFd::from(std::fs::File::open("/proc/self/ns/net").unwrap()));
        let inode = Inode::of(&namespace).unwrap().to_string();
        let of = |wanted: &Wanted| (wanted.mechanism(), wanted.interface(), wanted.files().len());
        let mechanism = |kind: &str, parameters: &[(&str, &str)]| Mechanism {
            cls: "LOCAL".to_owned(),
            r#type: kind.to_owned(),
            parameters: parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let kernel = Wanted::kernel("s", "nsm-1", Arc::clone(&namespace)).unwrap().by_token("sriov-1");
        let parameters = [(INODE_URL, inode.as_str()), ("name", "nsm-1"), (TOKEN, "sriov-1")];
        assert_eq!(of(&kernel), (mechanism("KERNEL", &parameters), "KERNEL/nsm-1".to_owned(), 1));
        let memif = Wanted::memif("s", namespace).unwrap().named("");
        assert_eq!(of(&memif), (mechanism("MEMIF", &[(INODE_URL, &inode)]), "MEMIF/".to_owned(), 1));
        let vfio = Wanted::vfio("s", "sriov-1");
        assert_eq!(of(&vfio), (mechanism("VFIO", &[(TOKEN, "sriov-1")]), "VFIO/".to_owned(), 0));
    }
}
