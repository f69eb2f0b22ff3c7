//! What control finds its things by.

use slotmap::new_key_type;

new_key_type! {
    /// A wire. The key of one that is gone finds nothing.
    pub struct WireKey;

    /// A listening socket. The key of one that is gone finds nothing.
    pub struct ListenerKey;
}

/// One end of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndId {
    /// The wire.
    pub wire: WireKey,
    /// 0 or 1.
    pub end: usize,
}

/// A job at a socket's address. Its number is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketJobId(pub u64);
