//! What a wire should be, as data: the wanted state that [`Engine`](crate::Engine) is given.
//!
//! The types carry checked values only; text becomes one of them by `FromStr`, whose errors say
//! what is wrong with the text. What can be judged without touching the machine (a wire between
//! an IP end and an Ethernet end, say) is judged by [`WireSpec::check`].

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;

/// One wire: two ends and what to do when one of them does not take frames as fast as they come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireSpec {
    /// Unique among the wires of one forwarder.
    pub name: String,
    /// The two ends; the order decides only how counters and tables are labelled.
    pub ends: [EndSpec; 2],
    /// What happens to a frame whose target has no room.
    pub full: Full,
    /// The peers trust each other: the one at the memif client end gets the memory of the one at the memif server
    /// end, and only descriptors cross.
    pub trusted: bool,
}

/// What a link does with a frame when its target is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Full {
    /// Leave it in the source's ring: back-pressure, nothing lost.
    #[default]
    Hold,
    /// Drop it and count it.
    Drop,
}

/// One end of a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndSpec {
    /// A memif 2.0 shared-memory interface.
    Memif(MemifSpec),
    /// The device of a virtual machine or of a virtio-user process.
    VhostUser(VhostUserSpec),
    /// A network interface of the kernel.
    Kernel(KernelSpec),
}

/// A memif end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemifSpec {
    /// Where the control socket is.
    pub socket: SocketAddress,
    /// The namespace whose abstract names are meant; none: the forwarder's own. Path sockets ignore it.
    pub netns: Option<NetNs>,
    /// Interface id: several interfaces can share one listening socket.
    pub id: u32,
    /// Which side of the protocol we play.
    pub role: Role,
    /// What the frames are.
    pub mode: Mode,
    /// Both sides must name the same one, if the server names one.
    pub secret: Option<Secret>,
    /// Queue pairs that we make as client, as far as the server takes them. As server the peer chooses, up to
    /// [`QUEUES_MAX`].
    pub queues: u16,
    /// Descriptors of each ring as client: a power of two. As server the peer chooses.
    pub ring: u32,
    /// Bytes of each buffer as client. As server the peer chooses.
    pub buffer: u32,
}

impl MemifSpec {
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
        }
    }
}

/// The two roles of memif: the server listens, the client connects and owns the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Listens (DPDK: server, VPP: master).
    Server,
    /// Connects and makes the shared memory (DPDK: client, VPP: slave).
    Client,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Client => "client",
        })
    }
}

/// What a frame of a memif interface begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// An IPv4 or IPv6 header.
    Ip,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ethernet => "ethernet",
            Self::Ip => "ip",
        })
    }
}

/// A vhost-user end: we are the backend, whoever listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserSpec {
    /// Where the control socket is. An abstract name is one of the forwarder's own namespace.
    pub socket: SocketAddress,
    /// Whether we listen there or connect.
    pub mode: SocketMode,
    /// Queue pairs that the frontend may use.
    pub queues: u16,
    /// What is offered to the frontend.
    pub features: VhostFeatures,
    /// The MTU that the guest is told; none: it is told nothing.
    pub mtu: Option<u16>,
    /// The MAC address that the guest is told; none: the frontend knows.
    pub mac: Option<MacAddress>,
}

impl VhostUserSpec {
    /// An end with one queue pair that offers everything.
    pub fn new(socket: SocketAddress, mode: SocketMode) -> Self {
        Self { socket, mode, queues: 1, features: VhostFeatures::default(), mtu: None, mac: None }
    }
}

/// Who listens on a vhost-user socket; the roles of the protocol do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketMode {
    /// We listen (DPDK: `server=0` of its virtio-user, QEMU: `server=off`).
    Server,
    /// The frontend listens and we connect, again and again: guests survive a restart of ours.
    Client,
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Client => "client",
        })
    }
}

/// What a vhost-user end offers; all of it, unless something is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a feature that is switched by itself")]
pub struct VhostFeatures {
    /// Rings of the packed layout.
    pub packed: bool,
    /// Buffers are used in their order.
    pub in_order: bool,
    /// A received frame may lie in several buffers.
    pub mrg_rxbuf: bool,
    /// Tables of descriptors.
    pub indirect: bool,
    /// Kicks and interrupts at an index.
    pub event_idx: bool,
    /// Unfinished checksums and large TCP frames, if the other end is one that takes and gives them.
    pub offloads: bool,
}

impl Default for VhostFeatures {
    fn default() -> Self {
        Self { packed: true, in_order: true, mrg_rxbuf: true, indirect: true, event_idx: true, offloads: true }
    }
}

/// The address of a Unix socket: a path, or an abstract name written with a leading `@`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SocketAddress {
    /// A file.
    Path(PathBuf),
    /// A name in the abstract space of a network namespace, without the `@`.
    Abstract(String),
}

impl FromStr for SocketAddress {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let room = SOCKET_NAME_MAX;
        let address = match text.strip_prefix('@') {
            Some(name) => Self::Abstract(name.to_owned()),
            None => Self::Path(PathBuf::from(text)),
        };
        let (length, problem) = match &address {
            Self::Abstract(name) => (name.len(), "an abstract name needs something behind the `@`"),
            Self::Path(_) => (text.len(), "the address is empty"),
        };
        if length == 0 {
            return Err(SpecError::new("socket", text, problem));
        }
        if length > room {
            return Err(SpecError::new("socket", text, format!("{length} bytes; a Unix socket address holds {room}")));
        }
        if text.contains('\0') {
            return Err(SpecError::new("socket", text, "it holds a NUL byte"));
        }
        if matches!(address, Self::Path(_)) && !text.starts_with('/') {
            return Err(SpecError::new(
                "socket",
                text,
                "a path must be absolute (or begin with `@` for an abstract name)",
            ));
        }
        Ok(address)
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

/// A secret of at most 24 bytes. Neither `Debug` nor any error shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_MAX]);

impl Secret {
    /// The 24 bytes of the INIT message, padded with zeros.
    pub fn bytes(&self) -> &[u8; SECRET_MAX] {
        &self.0
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

/// An interface of the kernel, made inside a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSpec {
    /// Where it lives; none: the forwarder's own namespace.
    pub netns: Option<NetNs>,
    /// Its name there.
    pub name: InterfaceName,
    /// Its MAC address; none: the kernel picks one.
    pub mac: Option<MacAddress>,
    /// Its MTU; none: 1500.
    pub mtu: Option<u32>,
    /// Addresses to give it.
    pub addresses: Vec<IpNet>,
    /// Routes through it.
    pub routes: Vec<Route>,
}

/// A route through a kernel interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub to: IpNet,
    /// Next hop; none: the destination is on the link.
    pub via: Option<IpAddr>,
}

/// A network namespace, by file or by a process inside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NetNs {
    /// A file such as `/run/netns/pod` or `/proc/42/ns/net`.
    Path(PathBuf),
    /// The namespace of this process.
    Pid(u32),
}

impl NetNs {
    /// The file to open.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }
}

impl fmt::Display for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Pid(pid) => write!(f, "pid {pid}"),
        }
    }
}

/// The name of a kernel interface: 1 to 15 bytes, no slash, space or colon, not `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        // The kernel's own rule: dev_valid_name() in net/core/dev.c.
        if text.is_empty() || text.len() > INTERFACE_NAME_MAX {
            return Err(SpecError::new(
                "name",
                text,
                format!("{} bytes; the kernel takes 1 to {INTERFACE_NAME_MAX}", text.len()),
            ));
        }
        if text == "."
            || text == ".."
            || text.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace())
        {
            return Err(SpecError::new("name", text, "the kernel takes no `/`, `:`, space, `.` or `..`"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A unicast MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let problem =
            || SpecError::new("mac", text, "six hexadecimal bytes with colons are wanted, as in 02:00:00:00:00:01");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()))
                .ok_or_else(problem)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| problem())?;
        }
        if parts.next().is_some() {
            return Err(problem());
        }
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(SpecError::new("mac", text, "an interface needs a unicast address that is not all zeros"));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl WireSpec {
    /// Everything that is wrong with this wire on its own, each with the field it is about.
    pub fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.name.is_empty() || self.name.len() > WIRE_NAME_MAX || self.name.chars().any(char::is_control) {
            errors.push(FieldError::new(
                "name",
                format!("a wire needs a name of 1 to {WIRE_NAME_MAX} bytes without control characters"),
            ));
        }
        for (index, end) in self.ends.iter().enumerate() {
            errors.extend(end.check().into_iter().map(|error| error.below(&format!("ends[{index}]"))));
        }
        let [a, b] = &self.ends;
        if a.mode() != b.mode() {
            let problem =
                format!("one end carries {} frames and the other {}; both must be the same", a.mode(), b.mode());
            errors.push(FieldError::new("ends", problem));
        }
        match (a, b) {
            (EndSpec::Memif(a), EndSpec::Memif(b)) if a.socket == b.socket && a.netns == b.netns && a.id == b.id => {
                errors.push(FieldError::new("ends", format!("both ends are memif {} id {}", a.socket, a.id)));
            }
            (EndSpec::VhostUser(a), EndSpec::VhostUser(b)) if a.socket == b.socket => {
                errors.push(FieldError::new("ends", format!("both ends are vhost-user {}", a.socket)));
            }
            (EndSpec::Kernel(a), EndSpec::Kernel(b)) if a.netns == b.netns && a.name == b.name => {
                errors
                    .push(FieldError::new("ends", format!("both ends are interface {} of the same namespace", a.name)));
            }
            _ => {}
        }
        if self.trusted && self.full == Full::Drop {
            let problem = "a trusted wire cannot drop what a full end has no room for, since slots go back to their \
                           owner in order; use `full: hold`, or leave `trusted` out";
            errors.push(FieldError::new("full", problem));
        }
        if self.trusted && self.borrower().is_none() {
            let problem = "a trusted wire has a memif server end, whose peer lends its memory, and a memif client end";
            errors.push(FieldError::new("trusted", problem.to_owned()));
        }
        errors
    }

    /// Of a trusted wire, the end whose peer gets the other's memory.
    pub fn borrower(&self) -> Option<usize> {
        let role = |end: &EndSpec| match end {
            EndSpec::Memif(memif) => Some(memif.role),
            EndSpec::VhostUser(_) | EndSpec::Kernel(_) => None,
        };
        match self.ends.each_ref().map(role) {
            _ if !self.trusted => None,
            [Some(Role::Server), Some(Role::Client)] => Some(1),
            [Some(Role::Client), Some(Role::Server)] => Some(0),
            _ => None,
        }
    }
}

impl EndSpec {
    /// What its frames begin with.
    pub fn mode(&self) -> Mode {
        match self {
            Self::Memif(memif) => memif.mode,
            Self::VhostUser(_) | Self::Kernel(_) => Mode::Ethernet,
        }
    }

    fn check(&self) -> Vec<FieldError> {
        match self {
            Self::Memif(memif) => memif.check(),
            Self::VhostUser(vhost) => vhost.check(),
            Self::Kernel(kernel) => kernel.check(),
        }
    }
}

impl fmt::Display for EndSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memif(memif) => write!(f, "memif {} id {} {}", memif.socket, memif.id, memif.role),
            Self::VhostUser(vhost) => write!(f, "vhost-user {} {}", vhost.socket, vhost.mode),
            Self::Kernel(kernel) => match &kernel.netns {
                Some(netns) => write!(f, "kernel {} in {netns}", kernel.name),
                None => write!(f, "kernel {}", kernel.name),
            },
        }
    }
}

impl MemifSpec {
    fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.queues == 0 || self.queues > QUEUES_MAX {
            errors.push(FieldError::new(
                "memif.queues",
                format!("{} queues; 1 to {QUEUES_MAX} are possible", self.queues),
            ));
        }
        if !self.ring.is_power_of_two() || self.ring < RING_MIN || self.ring > RING_MAX {
            errors.push(FieldError::new(
                "memif.ring",
                format!("{} descriptors; a power of two from {RING_MIN} to {RING_MAX} is wanted", self.ring),
            ));
        }
        if self.buffer < BUFFER_MIN || self.buffer > BUFFER_MAX || !self.buffer.is_multiple_of(64) {
            errors.push(FieldError::new(
                "memif.buffer",
                format!("{} bytes; a multiple of 64 from {BUFFER_MIN} to {BUFFER_MAX} is wanted", self.buffer),
            ));
        }
        errors
    }
}

impl VhostUserSpec {
    fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.queues == 0 || self.queues > QUEUES_MAX {
            let problem = format!("{} queue pairs; 1 to {QUEUES_MAX} are possible", self.queues);
            errors.push(FieldError::new("vhost-user.queues", problem));
        }
        if let Some(mtu) = self.mtu
            && !(MTU_MIN..=MTU_MAX).contains(&u32::from(mtu))
        {
            let problem = format!("{mtu} bytes; {MTU_MIN} to {MTU_MAX} are possible");
            errors.push(FieldError::new("vhost-user.mtu", problem));
        }
        errors
    }
}

impl KernelSpec {
    fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if let Some(mtu) = self.mtu
            && !(MTU_MIN..=MTU_MAX).contains(&mtu)
        {
            errors.push(FieldError::new("kernel.mtu", format!("{mtu} bytes; {MTU_MIN} to {MTU_MAX} are possible")));
        }
        for (index, route) in self.routes.iter().enumerate() {
            if let Some(via) = route.via
                && via.is_ipv4() != route.to.addr().is_ipv4()
            {
                let problem = format!("destination {} and next hop {via} are of different families", route.to);
                errors.push(FieldError::new(&format!("kernel.routes[{index}].via"), problem));
            }
        }
        errors
    }
}

/// A text that is not a value of its kind.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{field} `{text}`: {problem}")]
pub struct SpecError {
    field: &'static str,
    text: String,
    problem: String,
}

impl SpecError {
    fn new(field: &'static str, text: &str, problem: impl Into<String>) -> Self {
        Self { field, text: text.to_owned(), problem: problem.into() }
    }
}

/// What is wrong with one field of a wire.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// Where: a path such as `ends[1].memif.ring`.
    pub field: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl FieldError {
    fn new(field: &str, problem: impl Into<String>) -> Self {
        Self { field: field.to_owned(), problem: problem.into() }
    }

    fn below(self, parent: &str) -> Self {
        Self { field: format!("{parent}.{}", self.field), ..self }
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
const INTERFACE_NAME_MAX: usize = 15;
/// `sun_path` has 108 bytes; one is the NUL of a path or the leading NUL of an abstract name.
const SOCKET_NAME_MAX: usize = 107;
const WIRE_NAME_MAX: usize = 64;
/// The kernel's ETH_MIN_MTU.
const MTU_MIN: u32 = 68;
/// What a TAP device takes: 65535 less its Ethernet header.
const MTU_MAX: u32 = 65_521;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_address_is_a_path_or_an_abstract_name() {
        assert_eq!("/run/m.sock".parse(), Ok(SocketAddress::Path("/run/m.sock".into())));
        assert_eq!("@/run/m.sock".parse(), Ok(SocketAddress::Abstract("/run/m.sock".into())));
        for bad in ["", "@", "relative.sock", &format!("/{}", "x".repeat(107))] {
            assert!(bad.parse::<SocketAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mac_address_is_six_unicast_bytes() {
        assert_eq!("02:00:00:00:00:01".parse(), Ok(MacAddress([2, 0, 0, 0, 0, 1])));
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secret: Secret = "hunter2".parse().unwrap();
        assert!(!format!("{secret:?}").contains("hunter2"));
        let error = "x".repeat(25).parse::<Secret>().unwrap_err();
        assert!(!error.to_string().contains("xxx"));
    }

    #[test]
    fn a_wire_reports_everything_that_is_wrong_with_it_at_once() {
        let mut memif = MemifSpec::new("@m".parse().unwrap(), Role::Client);
        memif.mode = Mode::Ip;
        memif.ring = 1000;
        memif.queues = 99;
        let kernel = KernelSpec {
            netns: None,
            name: "eth9".parse().unwrap(),
            mac: None,
            mtu: Some(10),
            addresses: vec![],
            routes: vec![],
        };
        let wire = WireSpec {
            name: String::new(),
            ends: [EndSpec::Memif(memif), EndSpec::Kernel(kernel)],
            full: Full::Hold,
            trusted: true,
        };
        let fields: Vec<_> = wire.check().into_iter().map(|error| error.field).collect();
        assert_eq!(
            fields,
            ["name", "ends[0].memif.queues", "ends[0].memif.ring", "ends[1].kernel.mtu", "ends", "trusted"]
        );
    }
}
