//! The feature bits of virtio (1.2, sections 5.1.3 and 6) and of vhost that a net device negotiates.

use std::ops::{BitAnd, BitOr};

/// A set of feature bits, as GET_FEATURES and SET_FEATURES carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// The device takes frames with unfinished checksums.
    pub const CSUM: Self = Self(1);
    /// The driver takes frames with unfinished checksums.
    pub const GUEST_CSUM: Self = Self(1 << 1);
    /// The device says its MTU.
    pub const MTU: Self = Self(1 << 3);
    /// The device says its MAC address.
    pub const MAC: Self = Self(1 << 5);
    /// The driver takes TCP over IPv4 to be segmented.
    pub const GUEST_TSO4: Self = Self(1 << 7);
    /// The driver takes TCP over IPv6 to be segmented.
    pub const GUEST_TSO6: Self = Self(1 << 8);
    /// The driver takes such TCP with CWR set.
    pub const GUEST_ECN: Self = Self(1 << 9);
    /// The device takes TCP over IPv4 to be segmented.
    pub const HOST_TSO4: Self = Self(1 << 11);
    /// The device takes TCP over IPv6 to be segmented.
    pub const HOST_TSO6: Self = Self(1 << 12);
    /// The device takes such TCP with CWR set.
    pub const HOST_ECN: Self = Self(1 << 13);
    /// A received frame may lie in several buffers.
    pub const MRG_RXBUF: Self = Self(1 << 15);
    /// The device says whether its link is up.
    pub const STATUS: Self = Self(1 << 16);
    /// There is a control queue.
    pub const CTRL_VQ: Self = Self(1 << 17);
    /// It takes receive modes.
    pub const CTRL_RX: Self = Self(1 << 18);
    /// The driver can announce itself after a migration.
    pub const GUEST_ANNOUNCE: Self = Self(1 << 21);
    /// There are several queue pairs.
    pub const MQ: Self = Self(1 << 22);
    /// vhost: the backend logs which pages it writes.
    pub const LOG_ALL: Self = Self(1 << 26);
    /// Headers may share a descriptor with data.
    pub const ANY_LAYOUT: Self = Self(1 << 27);
    /// A descriptor may stand for a table of them.
    pub const INDIRECT_DESC: Self = Self(1 << 28);
    /// Kicks and interrupts are asked for at an index.
    pub const EVENT_IDX: Self = Self(1 << 29);
    /// vhost-user: there are protocol features.
    pub const PROTOCOL_FEATURES: Self = Self(1 << 30);
    /// Virtio 1.0 and later.
    pub const VERSION_1: Self = Self(1 << 32);
    /// Rings of the packed layout.
    pub const RING_PACKED: Self = Self(1 << 34);
    /// Buffers are used in the order in which they were made available.
    pub const IN_ORDER: Self = Self(1 << 35);

    /// Whether all bits of `other` are in.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without the bits of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Bytes of the virtio-net header: `num_buffers` is in it if it means something (5.1.6.1).
    pub const fn header_len(self) -> u32 {
        let long = Self::MRG_RXBUF.with(Self::VERSION_1).with(Self::RING_PACKED);
        if self.0 & long.0 != 0 { 12 } else { 10 }
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl BitAnd for Features {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// A set of protocol feature bits, as GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProtocolFeatures(pub u64);

impl ProtocolFeatures {
    /// There can be several queue pairs.
    pub const MQ: Self = Self(1);
    /// The dirty log comes as a file.
    pub const LOG_SHMFD: Self = Self(1 << 1);
    /// SEND_RARP.
    pub const RARP: Self = Self(1 << 2);
    /// Every request can be answered.
    pub const REPLY_ACK: Self = Self(1 << 3);
    /// NET_SET_MTU.
    pub const NET_MTU: Self = Self(1 << 4);
    /// GET_CONFIG and SET_CONFIG.
    pub const CONFIG: Self = Self(1 << 9);
    /// GET_INFLIGHT_FD and SET_INFLIGHT_FD.
    pub const INFLIGHT_SHMFD: Self = Self(1 << 12);
    /// RESET_DEVICE.
    pub const RESET_DEVICE: Self = Self(1 << 13);
    /// Memory regions come and go one by one.
    pub const CONFIGURE_MEM_SLOTS: Self = Self(1 << 15);
    /// SET_STATUS and GET_STATUS.
    pub const STATUS: Self = Self(1 << 16);

    /// Whether all bits of `other` are in.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without the bits of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}
