//! Ends that are memif interfaces of the endpoint's own program, at sockets in its network namespace.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tonic::Status;

use crate::files::Inode;
use crate::proto::connection::Mechanism;
use crate::service::INODE_URL;

/// The memif interfaces of a program in this network namespace. Its sockets have abstract names: they go with it, and nobody elsewhere has
/// them.
#[derive(Clone, Debug)]
pub struct MemifEnds {
    namespace: Arc<OwnedFd>,
    inode: Inode,
}

impl MemifEnds {
    /// In this namespace, whose file was opened with `O_PATH`.
    ///
    /// # Errors
    /// The kernel cannot say which file it is.
    pub fn new(namespace: Arc<OwnedFd>) -> io::Result<Self> {
        let inode = Inode::of(&namespace)?;
        Ok(Self { namespace, inode })
    }

    /// What an endpoint answers of its end of a connection, where it listens: the same one again and again, also by a program that was started
    /// again.
    pub fn served(&self, id: &str) -> Result<Mechanism, Status> {
        if id.len() > ID_MAX {
            return Err(Status::invalid_argument(format!("the id of the connection has more than {ID_MAX} bytes")));
        }
        Ok(self.with([(SOCKET_FILE.to_owned(), format!("@ferrule/nse/{id}/memif.socket"))]))
    }

    /// What a client wants: whoever answers listens in this namespace, and says where.
    pub fn wanted(&self) -> Mechanism {
        self.with([])
    }

    /// What goes with a mechanism.
    pub fn file(&self) -> &Arc<OwnedFd> {
        &self.namespace
    }

    fn with<const N: usize>(&self, parameters: [(String, String); N]) -> Mechanism {
        let mut parameters = BTreeMap::from(parameters);
        parameters.insert(INODE_URL.to_owned(), self.inode.to_string());
        Mechanism { cls: "LOCAL".to_owned(), r#type: MEMIF.to_owned(), parameters }
    }
}

/// The socket that a mechanism names, if it is a memif.
pub fn memif_socket(mechanism: &Mechanism) -> Option<&str> {
    mechanism.parameters.get(SOCKET_FILE).filter(|_| mechanism.r#type == MEMIF).map(String::as_str)
}

pub(super) const MEMIF: &str = "MEMIF";
pub(super) const SOCKET_FILE: &str = "socketfile";
/// An abstract name has 107 bytes.
const ID_MAX: usize = 64;
