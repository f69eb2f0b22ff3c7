//! The messages of vhost-user (QEMU, docs/interop/vhost-user.rst): a header of 12 bytes, a payload in host byte order.
//!
//! A [`VhostUserRequest`] goes from the frontend to the backend, a [`VhostUserReply`] back. The other way round nothing is asked: the
//! channel for it (BACKEND_REQ) is not offered.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::port::vhost_user::memory::MemoryRegion;

/// The 12 bytes before every payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which request this is, or answers.
    pub request: u32,
    /// Whether it is a request, and which sort of one, or a reply.
    pub flags: u32,
    /// Bytes of the payload.
    pub size: u32,
}

impl Header {
    /// Reads a header; the size is known to be possible afterwards.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, VhostUserMessageError> {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let header = Self { request: word(0), flags: word(4), size: word(8) };
        if header.flags & FLAGS_VERSION != VERSION {
            return Err(VhostUserMessageError::Version { request: word_of(header.request), flags: header.flags });
        }
        if header.size as usize > PAYLOAD_MAX {
            return Err(VhostUserMessageError::TooLong { request: word_of(header.request), size: header.size });
        }
        Ok(header)
    }

    /// The header as it goes over the socket.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }

    /// Whether the frontend wants an answer also to a request that has none of its own (REPLY_ACK).
    pub fn needs_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// Whether this is a reply.
    pub fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }
}

/// What a frontend asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VhostUserRequest {
    /// 1: which features there are. Reply: a value.
    GetFeatures,
    /// 2: the features chosen.
    SetFeatures(u64),
    /// 3: the frontend takes the device.
    SetOwner,
    /// 4: all rings are to be disabled; deprecated.
    ResetOwner,
    /// 5: all memory, with a file for each region.
    SetMemTable(Vec<MemoryRegion>),
    /// 6: where to log what is written, with a file. Reply: empty, if LOG_SHMFD was chosen.
    SetLogBase(LogArea),
    /// 7: what to notify when something was logged: an eventfd.
    SetLogFd,
    /// 8: descriptors of a ring.
    SetVringNum(VringState),
    /// 9: where a ring lies.
    SetVringAddr(VringAddress),
    /// 10: where a ring begins.
    SetVringBase(VringState),
    /// 11: stop a ring. Reply: where a successor begins.
    GetVringBase(VringState),
    /// 12: what the guest notifies us by: an eventfd, or none.
    SetVringKick(VringFile),
    /// 13: what we notify the guest by: an eventfd, or none.
    SetVringCall(VringFile),
    /// 14: what we notify the frontend by when a ring breaks: an eventfd, or none.
    SetVringErr(VringFile),
    /// 15: which protocol features there are. Reply: a value.
    GetProtocolFeatures,
    /// 16: the protocol features chosen.
    SetProtocolFeatures(u64),
    /// 17: how many queue pairs there can be. Reply: a value.
    GetQueueNum,
    /// 18: whether a ring carries frames.
    SetVringEnable(VringState),
    /// 19: announce this MAC address to the network: its guest has moved here.
    SendRarp([u8; 6]),
    /// 20: the guest's MTU.
    NetSetMtu(u64),
    /// 24: a part of the device's configuration. Reply: the same with its bytes.
    GetConfig(Config),
    /// 25: writes a part of it.
    SetConfig(Config),
    /// 31: make memory for what is in flight. Reply: the same with its size, and a file.
    GetInflightFd(Inflight),
    /// 32: that memory again, with its file.
    SetInflightFd(Inflight),
    /// 34: everything back to the beginning.
    ResetDevice,
    /// 36: how many memory regions there can be. Reply: a value.
    GetMaxMemSlots,
    /// 37: one region more, with its file.
    AddMemReg(MemoryRegion),
    /// 38: one region less.
    RemMemReg(MemoryRegion),
    /// 39: the virtio device status.
    SetStatus(u64),
    /// 40: what it is. Reply: a value.
    GetStatus,
    /// Any other: none of them is for a net device, or it is for a feature that is not offered.
    Other(u32),
}

/// Two numbers of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringState {
    /// The ring.
    pub index: u32,
    /// What is said of it.
    pub num: u32,
}

/// Where a ring lies, by user addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VringAddress {
    /// The ring.
    pub index: u32,
    /// Whether writes to its used ring are logged.
    pub log: bool,
    /// Its descriptors.
    pub desc: u64,
    /// Its used ring; packed: the device's event structure.
    pub used: u64,
    /// Its available ring; packed: the driver's event structure.
    pub avail: u64,
    /// The guest address of its used ring, to be logged.
    pub log_guest: u64,
}

/// A ring, and whether an eventfd comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringFile {
    /// The ring: 8 bits.
    pub index: u8,
    /// An eventfd comes; without, the frontend wants polling.
    pub has_file: bool,
}

/// Where the dirty log lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogArea {
    /// Bytes of the bitmap.
    pub size: u64,
    /// Where they begin.
    pub offset: u64,
}

/// A part of the device's configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it begins.
    pub offset: u32,
    /// Who may write: 1, a migration may.
    pub flags: u32,
    /// Its bytes; in a reply none of them means that there is no such part.
    pub data: Vec<u8>,
}

/// Memory for what is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inflight {
    /// Bytes of it.
    pub mmap_size: u64,
    /// Where they begin in the file.
    pub mmap_offset: u64,
    /// Rings.
    pub queues: u16,
    /// Descriptors of each.
    pub queue_size: u16,
}

/// What a backend answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserReply {
    /// The number of the request.
    pub request: u32,
    /// The answer.
    pub body: ReplyBody,
}

/// The payload of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyBody {
    /// Nothing: it is the answer itself that counts.
    Empty,
    /// A value; for an acknowledgement 0 is success.
    Value(u64),
    /// A ring's number.
    Vring(VringState),
    /// A part of the configuration.
    Config(Config),
    /// Memory for what is in flight.
    Inflight(Inflight),
}

impl VhostUserRequest {
    /// Reads the payload of request `number`.
    pub fn parse(number: u32, payload: &[u8]) -> Result<Self, VhostUserMessageError> {
        let error = VhostUserMessageError::Size { request: word_of(number), size: payload.len() };
        let mut at = PayloadReader { rest: payload };
        let request = Self::read(number, &mut at).ok_or_else(|| error.clone())?;
        // The tail of the C structure is padding that some send and some do not.
        let padding = if matches!(request, Self::GetInflightFd(_) | Self::SetInflightFd(_)) { 4 } else { 0 };
        match (&request, at.rest.len()) {
            // What is not understood may be as long as it likes, and what is said without need too.
            (Self::Other(_) | Self::SetLogFd, _) | (_, 0) => Ok(request),
            (_, rest) if rest == padding => Ok(request),
            _ => Err(error),
        }
    }

    fn read(number: u32, at: &mut PayloadReader<'_>) -> Option<Self> {
        Some(match number {
            1 => Self::GetFeatures,
            2 => Self::SetFeatures(at.u64()?),
            3 => Self::SetOwner,
            4 => Self::ResetOwner,
            5 => Self::SetMemTable(at.memory_table()?),
            6 => Self::SetLogBase(LogArea { size: at.u64()?, offset: at.u64()? }),
            7 => Self::SetLogFd,
            8 => Self::SetVringNum(at.vring()?),
            9 => Self::SetVringAddr(VringAddress {
                index: at.u32()?,
                log: at.u32()? & FLAG_LOG != 0,
                desc: at.u64()?,
                used: at.u64()?,
                avail: at.u64()?,
                log_guest: at.u64()?,
            }),
            10 => Self::SetVringBase(at.vring()?),
            11 => Self::GetVringBase(at.vring()?),
            12 => Self::SetVringKick(at.vring_file()?),
            13 => Self::SetVringCall(at.vring_file()?),
            14 => Self::SetVringErr(at.vring_file()?),
            15 => Self::GetProtocolFeatures,
            16 => Self::SetProtocolFeatures(at.u64()?),
            17 => Self::GetQueueNum,
            18 => Self::SetVringEnable(at.vring()?),
            19 => {
                let [a, b, c, d, e, g, _, _] = at.array()?;
                Self::SendRarp([a, b, c, d, e, g])
            }
            20 => Self::NetSetMtu(at.u64()?),
            24 => Self::GetConfig(at.config()?),
            25 => Self::SetConfig(at.config()?),
            31 => Self::GetInflightFd(at.inflight()?),
            32 => Self::SetInflightFd(at.inflight()?),
            34 => Self::ResetDevice,
            36 => Self::GetMaxMemSlots,
            37 => Self::AddMemReg(at.one_region()?),
            38 => Self::RemMemReg(at.one_region()?),
            39 => Self::SetStatus(at.u64()?),
            40 => Self::GetStatus,
            other => Self::Other(other),
        })
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        match self {
            Self::GetFeatures => 1,
            Self::SetFeatures(_) => 2,
            Self::SetOwner => 3,
            Self::ResetOwner => 4,
            Self::SetMemTable(_) => 5,
            Self::SetLogBase(_) => 6,
            Self::SetLogFd => 7,
            Self::SetVringNum(_) => 8,
            Self::SetVringAddr(_) => 9,
            Self::SetVringBase(_) => 10,
            Self::GetVringBase(_) => 11,
            Self::SetVringKick(_) => 12,
            Self::SetVringCall(_) => 13,
            Self::SetVringErr(_) => 14,
            Self::GetProtocolFeatures => 15,
            Self::SetProtocolFeatures(_) => 16,
            Self::GetQueueNum => 17,
            Self::SetVringEnable(_) => 18,
            Self::SendRarp(_) => 19,
            Self::NetSetMtu(_) => 20,
            Self::GetConfig(_) => 24,
            Self::SetConfig(_) => 25,
            Self::GetInflightFd(_) => 31,
            Self::SetInflightFd(_) => 32,
            Self::ResetDevice => 34,
            Self::GetMaxMemSlots => 36,
            Self::AddMemReg(_) => 37,
            Self::RemMemReg(_) => 38,
            Self::SetStatus(_) => 39,
            Self::GetStatus => 40,
            Self::Other(number) => *number,
        }
    }

    /// Its name in the protocol.
    pub fn word(&self) -> &'static str {
        word_of(self.number())
    }

    /// The message as it goes over the socket.
    pub fn emit(&self, need_reply: bool) -> Vec<u8> {
        let flags = VERSION | if need_reply { FLAG_NEED_REPLY } else { 0 };
        let mut out = PayloadWriter::new(self.number(), flags);
        match self {
            Self::GetFeatures
            | Self::SetOwner
            | Self::ResetOwner
            | Self::SetLogFd
            | Self::GetProtocolFeatures
            | Self::GetQueueNum
            | Self::ResetDevice
            | Self::GetMaxMemSlots
            | Self::GetStatus
            | Self::Other(_) => {}
            Self::SetFeatures(value)
            | Self::SetProtocolFeatures(value)
            | Self::NetSetMtu(value)
            | Self::SetStatus(value) => out.u64(*value),
            Self::SetMemTable(regions) => {
                // At most what one message holds, by whoever made it.
                out.u32(regions.len() as u32);
                out.u32(0);
                for region in regions {
                    out.region(region);
                }
            }
            Self::SetLogBase(log) => {
                out.u64(log.size);
                out.u64(log.offset);
            }
            Self::SetVringNum(state)
            | Self::SetVringBase(state)
            | Self::GetVringBase(state)
            | Self::SetVringEnable(state) => out.vring(*state),
            Self::SetVringAddr(address) => {
                out.u32(address.index);
                out.u32(if address.log { FLAG_LOG } else { 0 });
                out.u64(address.desc);
                out.u64(address.used);
                out.u64(address.avail);
                out.u64(address.log_guest);
            }
            Self::SetVringKick(file) | Self::SetVringCall(file) | Self::SetVringErr(file) => {
                out.u64(u64::from(file.index) | if file.has_file { 0 } else { FLAG_NO_FILE });
            }
            Self::SendRarp(mac) => {
                out.0.extend_from_slice(mac);
                out.0.extend_from_slice(&[0; 2]);
            }
            Self::GetConfig(config) | Self::SetConfig(config) => out.config(config),
            Self::GetInflightFd(inflight) | Self::SetInflightFd(inflight) => out.inflight(inflight),
            Self::AddMemReg(region) | Self::RemMemReg(region) => {
                out.u64(0);
                out.region(region);
            }
        }
        out.finish()
    }
}

impl VhostUserReply {
    /// The message as it goes over the socket. Its flags are these and no others: DPDK's virtio-user compares them.
    pub fn emit(&self) -> Vec<u8> {
        let mut out = PayloadWriter::new(self.request, VERSION | FLAG_REPLY);
        match &self.body {
            ReplyBody::Empty => {}
            ReplyBody::Value(value) => out.u64(*value),
            ReplyBody::Vring(state) => out.vring(*state),
            ReplyBody::Config(config) => out.config(config),
            ReplyBody::Inflight(inflight) => out.inflight(inflight),
        }
        out.finish()
    }

    /// Reads a reply to the request of its number.
    pub fn parse(number: u32, payload: &[u8]) -> Result<Self, VhostUserMessageError> {
        let mut at = PayloadReader { rest: payload };
        let body = match number {
            _ if payload.is_empty() => Some(ReplyBody::Empty),
            11 => at.vring().map(ReplyBody::Vring),
            24 => at.config().map(ReplyBody::Config),
            31 => at.inflight().map(ReplyBody::Inflight),
            _ => at.u64().map(ReplyBody::Value),
        };
        let body = body.ok_or(VhostUserMessageError::Size { request: word_of(number), size: payload.len() })?;
        Ok(Self { request: number, body })
    }
}

/// What makes bytes no message.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum VhostUserMessageError {
    /// Another version, or none.
    #[error("{request} with flags {flags:#x}: only version 1 of vhost-user is spoken here")]
    Version {
        /// The request.
        request: &'static str,
        /// Its flags.
        flags: u32,
    },
    /// A payload that no message has.
    #[error("{request} with a payload of {size} bytes; none has more than {PAYLOAD_MAX}")]
    TooLong {
        /// The request.
        request: &'static str,
        /// What its header says.
        size: u32,
    },
    /// A payload that this message does not have.
    #[error("{request} with a payload of {size} bytes, which is not what it has")]
    Size {
        /// The request.
        request: &'static str,
        /// What came.
        size: usize,
    },
}

/// The name of a request by its number.
pub fn word_of(number: u32) -> &'static str {
    WORDS.get(number as usize).copied().unwrap_or("a request that vhost-user does not have")
}

/// Names by number.
const WORDS: [&str; 45] = [
    "NONE",
    "GET_FEATURES",
    "SET_FEATURES",
    "SET_OWNER",
    "RESET_OWNER",
    "SET_MEM_TABLE",
    "SET_LOG_BASE",
    "SET_LOG_FD",
    "SET_VRING_NUM",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "GET_VRING_BASE",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ERR",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "GET_QUEUE_NUM",
    "SET_VRING_ENABLE",
    "SEND_RARP",
    "NET_SET_MTU",
    "SET_BACKEND_REQ_FD",
    "IOTLB_MSG",
    "SET_VRING_ENDIAN",
    "GET_CONFIG",
    "SET_CONFIG",
    "CREATE_CRYPTO_SESSION",
    "CLOSE_CRYPTO_SESSION",
    "POSTCOPY_ADVISE",
    "POSTCOPY_LISTEN",
    "POSTCOPY_END",
    "GET_INFLIGHT_FD",
    "SET_INFLIGHT_FD",
    "GPU_SET_SOCKET",
    "RESET_DEVICE",
    "VRING_KICK",
    "GET_MAX_MEM_SLOTS",
    "ADD_MEM_REG",
    "REM_MEM_REG",
    "SET_STATUS",
    "GET_STATUS",
    "GET_SHARED_OBJECT",
    "SET_DEVICE_STATE_FD",
    "CHECK_DEVICE_STATE",
    "GET_SHMEM_CONFIG",
];

/// Fills a message; the size in its header is set at the end.
struct PayloadWriter(Vec<u8>);

impl PayloadWriter {
    fn new(request: u32, flags: u32) -> Self {
        Self(Header { request, flags, size: 0 }.emit().to_vec())
    }

    fn finish(mut self) -> Vec<u8> {
        let size = (self.0.len() - HEADER_LEN) as u32;
        self.0[8..HEADER_LEN].copy_from_slice(&size.to_ne_bytes());
        self.0
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn vring(&mut self, state: VringState) {
        self.u32(state.index);
        self.u32(state.num);
    }

    fn region(&mut self, region: &MemoryRegion) {
        self.u64(region.guest);
        self.u64(region.size);
        self.u64(region.user);
        self.u64(region.offset);
    }

    fn config(&mut self, config: &Config) {
        self.u32(config.offset);
        // At most CONFIG_MAX.
        self.u32(config.data.len() as u32);
        self.u32(config.flags);
        self.0.extend_from_slice(&config.data);
    }

    /// With the padding of the C structure, which is what QEMU reads.
    fn inflight(&mut self, inflight: &Inflight) {
        self.u64(inflight.mmap_size);
        self.u64(inflight.mmap_offset);
        self.u16(inflight.queues);
        self.u16(inflight.queue_size);
        self.u32(0);
    }
}

/// Reads a payload from its front; `None`: it ends too early, or cannot be that long.
struct PayloadReader<'a> {
    rest: &'a [u8],
}

impl PayloadReader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*array)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_ne_bytes)
    }

    fn vring(&mut self) -> Option<VringState> {
        Some(VringState { index: self.u32()?, num: self.u32()? })
    }

    fn vring_file(&mut self) -> Option<VringFile> {
        let value = self.u64()?;
        Some(VringFile { index: (value & 0xff) as u8, has_file: value & FLAG_NO_FILE == 0 })
    }

    fn region(&mut self) -> Option<MemoryRegion> {
        Some(MemoryRegion { guest: self.u64()?, size: self.u64()?, user: self.u64()?, offset: self.u64()? })
    }

    fn one_region(&mut self) -> Option<MemoryRegion> {
        self.u64()?;
        self.region()
    }

    fn memory_table(&mut self) -> Option<Vec<MemoryRegion>> {
        let count = self.u32()? as usize;
        self.u32()?;
        // Before anything is allocated for it.
        if count > PAYLOAD_MAX / REGION_LEN {
            return None;
        }
        (0..count).map(|_| self.region()).collect()
    }

    fn config(&mut self) -> Option<Config> {
        let (offset, size, flags) = (self.u32()?, self.u32()? as usize, self.u32()?);
        if size > CONFIG_MAX || size > self.rest.len() {
            return None;
        }
        let (data, rest) = self.rest.split_at(size);
        self.rest = rest;
        Some(Config { offset, flags, data: data.to_vec() })
    }

    fn inflight(&mut self) -> Option<Inflight> {
        Some(Inflight {
            mmap_size: self.u64()?,
            mmap_offset: self.u64()?,
            queues: self.u16()?,
            queue_size: self.u16()?,
        })
    }
}

/// Bytes of a header.
pub const HEADER_LEN: usize = 12;
/// Bytes of a payload: more than any request has; rust-vmm's limit too.
pub const PAYLOAD_MAX: usize = 4096;
/// Files that one message can carry: a memory table of so many regions.
pub const FILES_MAX: usize = 32;
/// Bytes of configuration in one message (VHOST_USER_MAX_CONFIG_SIZE).
pub const CONFIG_MAX: usize = 256;
const REGION_LEN: usize = 32;
const VERSION: u32 = 1;
const FLAGS_VERSION: u32 = 3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
/// In SET_VRING_ADDR (VHOST_VRING_F_LOG).
const FLAG_LOG: u32 = 1;
/// In SET_VRING_KICK and its like (VHOST_USER_VRING_NOFD_MASK).
const FLAG_NO_FILE: u64 = 1 << 8;

#[cfg(test)]
mod tests;
