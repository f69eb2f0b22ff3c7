//! The messages of memif 2.0: always 128 bytes, host byte order, no padding between fields
//! (`extras/libmemif/src/memif.h` of VPP is where the format lives).

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::spec::Mode;

/// One message of the control channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemifMessage {
    /// Type 1, server to client: the last message was accepted.
    Ack,
    /// Type 2, server to client, once after accept: what the server takes.
    Hello(Hello),
    /// Type 3, client to server: which interface is meant.
    Init(Init),
    /// Type 4, client to server, with a memory file.
    AddRegion(AddRegion),
    /// Type 5, client to server, with an eventfd.
    AddRing(AddRing),
    /// Type 6, client to server: everything was announced.
    Connect {
        /// The client's name for the interface.
        name: String,
    },
    /// Type 7, server to client: data may flow.
    Connected {
        /// The server's name for the interface.
        name: String,
    },
    /// Type 8, either way: the connection ends.
    Disconnect {
        /// A number without a meaning in the field; 0 here.
        code: u32,
        /// Why, for people.
        reason: String,
    },
}

/// What a server takes. The three `max_` fields are the highest index, not a count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The server's program.
    pub name: String,
    /// Oldest version it speaks.
    pub min_version: u16,
    /// Newest version it speaks.
    pub max_version: u16,
    /// Highest region index.
    pub max_region: u16,
    /// Highest ring index, server to client.
    pub max_m2s_ring: u16,
    /// Highest ring index, client to server.
    pub max_s2m_ring: u16,
    /// Largest ring, as a power of two.
    pub max_log2_ring_size: u8,
}

/// Which interface a client means, and who it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Init {
    /// The version it chose.
    pub version: u16,
    /// The interface id.
    pub id: u32,
    /// 0 ethernet, 1 IP, 2 punt/inject.
    pub mode: u8,
    /// All zeros: none.
    pub secret: [u8; 24],
    /// The client's program.
    pub name: String,
}

impl std::fmt::Debug for Init {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { version, id, mode, name, .. } = self;
        write!(f, "Init {{ version: {version:#06x}, id: {id}, mode: {mode}, secret: .., name: {name:?} }}")
    }
}

/// A memory file of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddRegion {
    /// 0, 1, 2 .. without gaps.
    pub index: u16,
    /// Bytes.
    pub size: u64,
}

/// Where a ring lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddRing {
    /// Which way its frames go.
    pub direction: Direction,
    /// 0, 1, 2 .. without gaps in each direction.
    pub index: u16,
    /// The region that holds it.
    pub region: u16,
    /// Where its header begins in that region.
    pub offset: u32,
    /// Its length, as a power of two.
    pub log2_size: u8,
    /// Bytes before each frame; only 0 is in use.
    pub private_header: u16,
}

/// Which way the frames of a ring go. The names keep the protocol's historic words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// Client to server ("slave to master").
    S2M,
    /// Server to client ("master to slave").
    M2S,
}

/// The number of mode `mode` in INIT.
pub fn mode_number(mode: Mode) -> u8 {
    match mode {
        Mode::Ethernet => 0,
        Mode::Ip => 1,
    }
}

impl MemifMessage {
    /// The message as it goes over the socket.
    pub fn emit(&self) -> [u8; MESSAGE_LEN] {
        let mut out = Writer { bytes: [0; MESSAGE_LEN], at: 0 };
        match self {
            Self::Ack => out.u16(1),
            Self::Hello(hello) => {
                out.u16(2);
                out.text(&hello.name, 32);
                out.u16(hello.min_version);
                out.u16(hello.max_version);
                out.u16(hello.max_region);
                out.u16(hello.max_m2s_ring);
                out.u16(hello.max_s2m_ring);
                out.u8(hello.max_log2_ring_size);
            }
            Self::Init(init) => {
                out.u16(3);
                out.u16(init.version);
                out.u32(init.id);
                out.u8(init.mode);
                out.bytes(&init.secret);
                out.text(&init.name, 32);
            }
            Self::AddRegion(region) => {
                out.u16(4);
                out.u16(region.index);
                out.u64(region.size);
            }
            Self::AddRing(ring) => {
                out.u16(5);
                out.u16(match ring.direction {
                    Direction::S2M => FLAG_S2M,
                    Direction::M2S => 0,
                });
                out.u16(ring.index);
                out.u16(ring.region);
                out.u32(ring.offset);
                out.u8(ring.log2_size);
                out.u16(ring.private_header);
            }
            Self::Connect { name } => {
                out.u16(6);
                out.text(name, 32);
            }
            Self::Connected { name } => {
                out.u16(7);
                out.text(name, 32);
            }
            Self::Disconnect { code, reason } => {
                out.u16(8);
                out.u32(*code);
                out.text(reason, 96);
            }
        }
        out.bytes
    }

    /// The message in a packet that was received.
    pub fn parse(packet: &[u8]) -> Result<Self, MemifMessageError> {
        let bytes: &[u8; MESSAGE_LEN] = packet.try_into().map_err(|_| MemifMessageError::Length(packet.len()))?;
        let mut at = Reader { bytes, at: 0 };
        Ok(match at.u16() {
            1 => Self::Ack,
            2 => Self::Hello(Hello {
                name: at.text(32),
                min_version: at.u16(),
                max_version: at.u16(),
                max_region: at.u16(),
                max_m2s_ring: at.u16(),
                max_s2m_ring: at.u16(),
                max_log2_ring_size: at.u8(),
            }),
            3 => Self::Init(Init {
                version: at.u16(),
                id: at.u32(),
                mode: at.u8(),
                secret: at.array(),
                name: at.text(32),
            }),
            4 => Self::AddRegion(AddRegion { index: at.u16(), size: at.u64() }),
            5 => Self::AddRing(AddRing {
                direction: match at.u16() & FLAG_S2M {
                    0 => Direction::M2S,
                    _ => Direction::S2M,
                },
                index: at.u16(),
                region: at.u16(),
                offset: at.u32(),
                log2_size: at.u8(),
                private_header: at.u16(),
            }),
            6 => Self::Connect { name: at.text(32) },
            7 => Self::Connected { name: at.text(32) },
            8 => Self::Disconnect { code: at.u32(), reason: at.text(96) },
            other => return Err(MemifMessageError::Type(other)),
        })
    }

    /// The message's name in the protocol.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Ack => "ACK",
            Self::Hello(_) => "HELLO",
            Self::Init(_) => "INIT",
            Self::AddRegion(_) => "ADD_REGION",
            Self::AddRing(_) => "ADD_RING",
            Self::Connect { .. } => "CONNECT",
            Self::Connected { .. } => "CONNECTED",
            Self::Disconnect { .. } => "DISCONNECT",
        }
    }
}

/// What makes a packet no message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MemifMessageError {
    /// Not 128 bytes.
    #[error("a message of {0} bytes; memif messages have {MESSAGE_LEN}")]
    Length(usize),
    /// A type that the protocol does not have.
    #[error("message type {0}, which memif 2.0 does not have")]
    Type(u16),
}

/// Fills a message from its front.
struct Writer {
    bytes: [u8; MESSAGE_LEN],
    at: usize,
}

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_ne_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_ne_bytes());
    }

    /// Text in a field of `room` bytes, cut so that a NUL ends it.
    fn text(&mut self, text: &str, room: usize) {
        let len = text.floor_char_boundary(room - 1);
        self.bytes[self.at..self.at + len].copy_from_slice(&text.as_bytes()[..len]);
        self.at += room;
    }
}

/// Reads a message from its front. All fields of all messages lie inside the 128 bytes.
struct Reader<'a> {
    bytes: &'a [u8; MESSAGE_LEN],
    at: usize,
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.bytes[self.at..self.at + N]);
        self.at += N;
        out
    }

    fn u8(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.array())
    }

    /// The text up to the first NUL; what is not printable is shown as `\u{fffd}`, since it ends in logs.
    fn text(&mut self, room: usize) -> String {
        let field = &self.bytes[self.at..self.at + room];
        self.at += room;
        let len = field.iter().position(|&byte| byte == 0).unwrap_or(room);
        let text = String::from_utf8_lossy(&field[..len]);
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
    }
}

/// Every message has this many bytes.
pub const MESSAGE_LEN: usize = 128;
/// The one version in use, 2.0.
pub const VERSION: u16 = 0x0200;
const FLAG_S2M: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// The HELLO of DPDK 22.11.11, as seen on a socket.
    fn hello_of_dpdk() -> [u8; MESSAGE_LEN] {
        let mut bytes = [0; MESSAGE_LEN];
        bytes[0] = 2;
        bytes[2..15].copy_from_slice(b"DPDK 22.11.11");
        bytes[34..45].copy_from_slice(&[0, 2, 0, 2, 0xff, 0, 0xff, 0, 0xff, 0, 0x0e]);
        bytes
    }

    #[test]
    fn the_hello_of_dpdk_is_understood_and_written_back_to_the_byte() {
        let hello = MemifMessage::parse(&hello_of_dpdk()).unwrap();
        let expected = Hello {
            name: "DPDK 22.11.11".into(),
            min_version: VERSION,
            max_version: VERSION,
            max_region: 255,
            max_m2s_ring: 255,
            max_s2m_ring: 255,
            max_log2_ring_size: 14,
        };
        assert_eq!(hello, MemifMessage::Hello(expected));
        assert_eq!(hello.emit(), hello_of_dpdk());
    }

    #[test]
    fn the_fields_of_a_ring_lie_where_the_protocol_says() {
        let ring = AddRing {
            direction: Direction::S2M,
            index: 0x0102,
            region: 0x0304,
            offset: 0x0506_0708,
            log2_size: 9,
            private_header: 0x0a0b,
        };
        let bytes = MemifMessage::AddRing(ring).emit();
        assert_eq!(bytes[..15], [5, 0, 1, 0, 2, 1, 4, 3, 8, 7, 6, 5, 9, 0x0b, 0x0a]);
        assert_eq!(MemifMessage::parse(&bytes), Ok(MemifMessage::AddRing(ring)));
    }

    #[test]
    fn every_message_survives_the_way_there_and_back() {
        let messages = [
            MemifMessage::Ack,
            MemifMessage::Init(Init { version: VERSION, id: 7, mode: 1, secret: [3; 24], name: "x".into() }),
            MemifMessage::AddRegion(AddRegion { index: 1, size: 1 << 40 }),
            MemifMessage::Connect { name: "a".into() },
            MemifMessage::Connected { name: "b".into() },
            MemifMessage::Disconnect { code: 5, reason: "because".into() },
        ];
        for message in messages {
            assert_eq!(MemifMessage::parse(&message.emit()), Ok(message));
        }
    }

    #[test]
    fn text_longer_than_its_field_is_cut_and_still_ends_with_a_nul() {
        let bytes = MemifMessage::Connect { name: "é".repeat(40) }.emit();
        assert_eq!(bytes[33], 0);
        assert_eq!(MemifMessage::parse(&bytes), Ok(MemifMessage::Connect { name: "é".repeat(15) }));
    }

    #[test]
    fn what_is_no_message_is_told_apart() {
        assert_eq!(MemifMessage::parse(&[1; 3]), Err(MemifMessageError::Length(3)));
        assert_eq!(MemifMessage::parse(&[9; 128]), Err(MemifMessageError::Type(0x0909)));
        assert_eq!(MemifMessage::parse(&[0; 128]), Err(MemifMessageError::Type(0)));
    }
}
