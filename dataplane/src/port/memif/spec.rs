//! What a memif end should be.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::spec::{ByteSize, Mode, NetNs, Role, SocketAccess, SocketAddress, SpecError};

/// A memif end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemifSpec {
    /// Where the control socket is.
    pub socket: SocketAddress,
    /// The namespace whose abstract names are meant; none: the forwarder's own. Path sockets ignore it.
    pub netns: Option<NetNs>,
    /// Interface id: several interfaces can share one listening socket.
    pub id: u32,
    /// Which side of the protocol we play: the client owns the shared memory.
    pub role: Role,
    /// What the frames are.
    pub mode: Mode,
    /// Both sides must name the same one, if the server names one.
    pub secret: Option<Secret>,
    /// Queue pairs: as client, those that we make, as far as the server takes them; as server, the most that we take.
    pub queues: u16,
    /// Descriptors of each ring as client: a power of two. As server the peer chooses.
    pub ring: u32,
    /// Bytes of each buffer as client. As server the peer chooses.
    pub buffer: u32,
    /// When the memory that we make as client is populated. As server it is the peer's.
    pub prealloc: Prealloc,
    /// Who may connect to a socket that we listen on.
    pub access: SocketAccess,
    /// The most memory that the peers of this end may make the forwarder populate.
    pub memory: ByteSize,
}

impl MemifSpec {
    /// The limit of memory unless told otherwise: some times what one pair of rings with the default sizes has.
    pub const MEMORY_DEFAULT: ByteSize = ByteSize::mebibytes(64);

    /// An end with the defaults of the field: id 0, ethernet, no secret, one queue pair, rings of
    /// 1024 descriptors, buffers of 2048 bytes.
    pub fn new(socket: SocketAddress, role: Role) -> Self {
        Self {
            socket,
            netns: None,
            id: 0,
            role,
            mode: Mode::Ethernet,
            secret: None,
            queues: 1,
            ring: 1024,
            buffer: 2048,
            prealloc: Prealloc::Never,
            access: SocketAccess::default(),
            memory: Self::MEMORY_DEFAULT,
        }
    }

    /// Takes over what no peer sees.
    pub(crate) fn adopt_unseen(&mut self, newer: &Self) {
        self.memory = newer.memory;
    }

    /// Bytes of the rings and buffers that we make as client, of the rest of their last pages, and of their page tables.
    pub(super) fn own_memory(&self) -> u64 {
        let slots = 2 * u64::from(self.queues) * u64::from(self.ring);
        let last_page = if self.prealloc == Prealloc::HugePages { 2 << 20 } else { 4096 };
        let own = slots * (u64::from(self.buffer) + 16) + 2 * u64::from(self.queues) * 128 + 4096 + last_page;
        // An entry of 8 bytes, and a bit of ours, for each 4 KiB.
        own + own / 504
    }
}

impl fmt::Display for MemifSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memif {} id {} {}", self.socket, self.id, self.role)
    }
}

/// When the buffers of a memif client are populated, and with what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prealloc {
    /// Each page when its first frame comes: a wire that carries none costs nothing.
    #[default]
    Never,
    /// All pages when the connection is made.
    SmallPages,
    /// The same in pages of 2 MiB, if the node has free ones; else small pages.
    HugePages,
}

impl Prealloc {
    /// What it is called in settings.
    pub fn word(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::SmallPages => "small-pages",
            Self::HugePages => "huge-pages",
        }
    }

    /// All of them.
    pub const ALL: [Self; 3] = [Self::Never, Self::SmallPages, Self::HugePages];
}

/// A secret of at most 24 bytes. Neither `Debug` nor any error shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_MAX]);

impl Secret {
    /// The 24 bytes of the INIT message, padded with zeros.
    pub fn bytes(&self) -> &[u8; SECRET_MAX] {
        &self.0
    }

    /// The text that it was made of: for whoever has to hand it on, never for a log.
    pub fn text(&self) -> Cow<'_, str> {
        let length = self.0.iter().position(|&byte| byte == 0).unwrap_or(SECRET_MAX);
        String::from_utf8_lossy(&self.0[..length])
    }
}

impl FromStr for Secret {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text.is_empty() || text.len() > SECRET_MAX || text.contains('\0') {
            let problem = format!("{} bytes; a memif secret has 1 to {SECRET_MAX} and no NUL", text.len());
            return Err(SpecError::new("secret", "(hidden)", problem));
        }
        let mut bytes = [0; SECRET_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Bytes of a memif secret.
pub const SECRET_MAX: usize = 24;
/// Queue pairs of one end.
pub const QUEUES_MAX: u16 = 16;
/// Smallest ring a memif client of ours makes, in descriptors.
pub const RING_MIN: u32 = 32;
/// Largest ring, in descriptors: 2^14 is what every memif peer announces.
pub const RING_MAX: u32 = 1 << 14;
/// Smallest buffer a memif client of ours makes, in bytes.
pub const BUFFER_MIN: u32 = 128;
/// Largest buffer a memif client of ours makes, in bytes.
pub const BUFFER_MAX: u32 = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret: Secret = "hunter2".parse().unwrap();
        assert!(!format!("{secret:?}").contains("hunter2"));
        let error = "x".repeat(25).parse::<Secret>().unwrap_err();
        assert!(!error.to_string().contains("xxx"));
    }
}
