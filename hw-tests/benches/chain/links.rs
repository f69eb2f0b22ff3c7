//! What joins a chain: which sockets there are, and who listens.

use std::path::PathBuf;

use anyhow::Result;
use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_endpoints::end::EndSpec;
use tempfile::TempDir;

/// Hops of the chain; one link more joins them and the generator's two ends.
pub const HOPS: usize = 5;

/// Links with their sockets, in a folder that goes with them.
pub struct Links {
    folder: TempDir,
    has_forwarder: bool,
}

/// An end of a link, as its program has it.
pub struct LinkEnd {
    /// Where.
    pub socket: PathBuf,
    /// Whether it listens there.
    pub role: Role,
}

impl Links {
    /// Of one chain: a forwarder listens at both ends of every link, or one program does.
    pub fn new(has_forwarder: bool) -> Result<Self> {
        Ok(Self { folder: tempfile::tempdir()?, has_forwarder })
    }

    /// What a hop has, on its client's and on its network's side.
    pub fn of_hop(&self, hop: usize) -> [LinkEnd; 2] {
        [self.end(hop, 1), self.end(hop + 1, 0)]
    }

    /// What a forwarder has at both ends of a link.
    pub fn sockets(&self, link: usize) -> [PathBuf; 2] {
        [0, 1].map(|end| self.end(link, end).socket)
    }

    /// The generator's ends.
    pub fn generator(&self) -> Result<[EndSpec; 2]> {
        let spec = |LinkEnd { socket, role }: LinkEnd| -> Result<_> {
            Ok(EndSpec::Memif(MemifSpec::new(socket.display().to_string().parse()?, role)))
        };
        Ok([spec(self.end(0, 0))?, spec(self.end(HOPS, 1))?])
    }

    /// A file of this name beside the sockets.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// End 0 is the one towards the client. The generator connects to its neighbours; a hop connects to the one before it.
    fn end(&self, link: usize, end: usize) -> LinkEnd {
        let listener = usize::from(link == 0);
        let role = if !self.has_forwarder && end == listener { Role::Server } else { Role::Client };
        let name = if self.has_forwarder { format!("{link}-{end}.sock") } else { format!("{link}.sock") };
        LinkEnd { socket: self.path(&name), role }
    }
}

/// As settings and DPDK write it.
pub fn word(role: Role) -> &'static str {
    match role {
        Role::Server => "server",
        Role::Client => "client",
    }
}
