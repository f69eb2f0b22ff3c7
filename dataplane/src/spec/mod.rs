//! What a wire should be, as data: the wanted state that [`Engine`](crate::Engine) is given.
//!
//! The types carry checked values only; text becomes one of them by `FromStr`, whose errors say
//! what is wrong with the text. What can be checked without touching the machine (a wire between
//! an IP end and an Ethernet end, say) is checked by [`WireSpec::check`].
//!
//! This file holds the wire; `end` is the one enum that joins the kinds of ends, `port` what is asked of each of them, and
//! what an end of a kind may be is in `port/<kind>/spec.rs`. The values that they share: `role` (server or client,
//! frames), `socket` (addresses and who may connect), `netns`, `interface` (names and MAC addresses), `size` (bytes),
//! `full` (what happens when a target is), `error`.

use std::collections::BTreeMap;

mod end;
mod error;
mod full;
mod interface;
mod netns;
mod port;
mod role;
mod size;
mod socket;

pub use crate::port::external::{ExternalPort, ExternalSpec};
pub use crate::port::kernel::spec::{KernelSpec, Route};
pub use crate::port::memif::spec::{
    BUFFER_MAX, BUFFER_MIN, MemifSpec, Prealloc, QUEUES_MAX, RING_MAX, RING_MIN, SECRET_MAX, Secret,
};
pub use crate::port::vhost_user::spec::{VhostFeatures, VhostUserSpec};
pub use end::EndSpec;
pub use error::{FieldError, SpecError};
pub use full::Full;
pub use interface::{InterfaceName, MacAddress};
pub(crate) use interface::{MTU_MAX, MTU_MIN};
pub use netns::{NetNs, OpenNetNs, Process};
pub use port::EndIdentity;
pub(crate) use port::{Attachment, PeerProtocol, PeerSocket, PortSpec};
pub use role::{Mode, Role};
pub use size::ByteSize;
pub(crate) use socket::check_access;

pub use socket::{FileMode, Group, SocketAccess, SocketAddress, User};

/// What people call an end, by its number: `A` or `B`.
pub fn end_name(end: usize) -> &'static str {
    if end == 0 { "A" } else { "B" }
}

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
    /// Who the wire belongs to, as a word of the owner's; empty: nobody said.
    pub owner: String,
    /// What the owner wants to find it by.
    pub labels: BTreeMap<String, String>,
}

impl WireSpec {
    /// A wire that holds back, is not trusted and belongs to nobody.
    pub fn new(name: impl Into<String>, ends: [EndSpec; 2]) -> Self {
        Self {
            name: name.into(),
            ends,
            full: Full::Hold,
            trusted: false,
            owner: String::new(),
            labels: BTreeMap::new(),
        }
    }

    /// Everything that is wrong with this wire on its own, each with the field it is about.
    pub fn check(&self) -> Vec<FieldError> {
        let mut errors = self.check_words();
        for (index, end) in self.ends.iter().enumerate() {
            errors.extend(end.check().into_iter().map(|error| error.below(&format!("ends[{index}]"))));
        }
        let [a, b] = &self.ends;
        if a.mode() != b.mode() {
            let problem =
                format!("one end carries {} frames and the other {}; both must be the same", a.mode(), b.mode());
            errors.push(FieldError::new("ends", problem));
        }
        if let Some(identity) = a.identity()
            && Some(&identity) == b.identity().as_ref()
        {
            errors.push(FieldError::new("ends", format!("both ends are {}", identity.words)));
        }
        if self.trusted && self.full == Full::Drop {
            let problem = "a trusted wire cannot drop what a full end has no room for, since slots go back to their \
                           owner in order; use `hold`, or leave `trusted` out";
            errors.push(FieldError::new("full", problem));
        }
        if self.trusted && self.borrower().is_none() {
            let problem = "a trusted wire has a memif server end, whose peer lends its memory, and a memif client end";
            errors.push(FieldError::new("trusted", problem));
        }
        errors
    }

    fn check_words(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut check = |good: bool, field: &str, problem: String| {
            if !good {
                errors.push(FieldError::new(field, problem));
            }
        };
        let plain = |text: &str, lengths: std::ops::RangeInclusive<usize>| {
            lengths.contains(&text.len()) && !text.chars().any(char::is_control)
        };
        let problem = format!("a wire needs a name of 1 to {WIRE_NAME_MAX} bytes without control characters");
        check(plain(&self.name, 1..=WIRE_NAME_MAX), "name", problem);
        let problem = format!("an owner has at most {OWNER_MAX} bytes without control characters");
        check(plain(&self.owner, 0..=OWNER_MAX), "owner", problem);
        let problem = format!("{} labels; at most {LABELS_MAX} are possible", self.labels.len());
        check(self.labels.len() <= LABELS_MAX, "labels", problem);
        for (key, value) in &self.labels {
            let of_key = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
            let problem = format!(
                "the key `{}` is not one: 1 to {LABEL_KEY_MAX} letters, digits, `-`, `_`, `.` and `/` are possible",
                key.escape_debug()
            );
            check(plain(key, 1..=LABEL_KEY_MAX) && key.bytes().all(of_key), "labels", problem);
            let problem = format!(
                "the value of `{}` has at most {LABEL_VALUE_MAX} bytes without control characters",
                key.escape_debug()
            );
            check(plain(value, 0..=LABEL_VALUE_MAX), "labels", problem);
        }
        errors
    }

    /// Of a trusted wire, the end whose peer gets the other's memory.
    pub fn borrower(&self) -> Option<usize> {
        match self.ends.each_ref().map(EndSpec::lending_role) {
            _ if !self.trusted => None,
            [Some(Role::Server), Some(Role::Client)] => Some(1),
            [Some(Role::Client), Some(Role::Server)] => Some(0),
            _ => None,
        }
    }

    /// The same, with each process that a namespace is named by told from later ones of its number.
    #[must_use]
    pub fn pinned(mut self) -> Self {
        for end in &mut self.ends {
            if let Some(netns) = end.netns_mut() {
                *netns = netns.take().map(NetNs::pinned);
            }
        }
        self
    }
}

const WIRE_NAME_MAX: usize = 64;
const OWNER_MAX: usize = 64;
const LABELS_MAX: usize = 32;
const LABEL_KEY_MAX: usize = 128;
const LABEL_VALUE_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wire_reports_everything_that_is_wrong_with_it_at_once() {
        let mut memif = MemifSpec::new("@m".parse().unwrap(), Role::Client);
        memif.mode = Mode::Ip;
        memif.ring = 1000;
        memif.queues = 99;
        memif.access.group = Some(Group::Id(7));
        let kernel = KernelSpec { mtu: Some(10), ..KernelSpec::new("eth9".parse().unwrap()) };
        let mut wire = WireSpec::new("", [EndSpec::Memif(memif), EndSpec::Kernel(kernel)]);
        wire.trusted = true;
        wire.owner = "x".repeat(65);
        wire.labels = BTreeMap::from([("a b".to_owned(), String::new()), ("good/key".to_owned(), "\n".to_owned())]);
        let fields: Vec<_> = wire.check().into_iter().map(|error| error.field).collect();
        assert_eq!(
            fields,
            [
                "name",
                "owner",
                "labels",
                "labels",
                "ends[0].memif.queues",
                "ends[0].memif.ring",
                "ends[0].memif.socket_group",
                "ends[1].kernel.mtu",
                "ends",
                "trusted"
            ]
        );
    }

    #[test]
    fn group_and_mode_are_those_of_a_path_that_we_listen_on() {
        let end = |address: &str, role| {
            let mut vhost = VhostUserSpec::new(address.parse().unwrap(), role);
            vhost.access =
                SocketAccess { owner: Some(User::Id(9)), group: Some(Group::Id(7)), mode: "0660".parse().ok() };
            vhost.check().into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        assert_eq!(end("/run/vm.sock", Role::Server), [""; 0]);
        assert_eq!(
            end("/run/vm.sock", Role::Client),
            ["vhost-user.socket_owner", "vhost-user.socket_group", "vhost-user.socket_mode"]
        );
        assert_eq!(
            end("@vm", Role::Server),
            ["vhost-user.socket_owner", "vhost-user.socket_group", "vhost-user.socket_mode"]
        );
    }
}
