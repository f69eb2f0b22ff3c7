//! Where an interface is to live: an open namespace, for as long as the interface is being made.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::fd::{AsFd as _, RawFd};
use std::sync::OnceLock;

use ferrule_ffi::netns::NetNs;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::errno::Errno;

use super::error::{InterfaceId, KernelError};
use crate::spec::KernelSpec;
use ferrule_ffi::netlink::{Netlink, NetlinkError, Request};

/// An open namespace. While it lives the namespace cannot go away.
pub(super) struct Namespace {
    handle: NetNs,
    /// Whether it is the one we live in: entering that needs no capability.
    home: bool,
}

/// A namespace as our own one calls it, which unlike a file descriptor does not keep it alive.
/// None: our own.
pub(super) type NamespaceId = Option<i32>;

impl Namespace {
    /// Opens the namespace of an interface.
    pub fn open(spec: &KernelSpec) -> Result<Self, KernelError> {
        Self::open_file(spec).map_err(|error| {
            let interface = InterfaceId::from(spec);
            match error.raw_os_error() {
                Some(libc) if matches!(Errno::from_raw(libc), Errno::EPERM | Errno::EACCES) => {
                    KernelError::NotPermitted { tried: "open the namespace of".to_owned(), interface }
                }
                _ => KernelError::Namespace { interface, reason: error.to_string() },
            }
        })
    }

    fn open_file(spec: &KernelSpec) -> io::Result<Self> {
        let here = NetNs::current()?;
        let Some(netns) = &spec.netns else { return Ok(Self { handle: here, home: true }) };
        let handle = netns.open()?;
        let home = handle.is_same(&here)?;
        Ok(Self { handle, home })
    }

    /// Whether it is the one we live in.
    pub fn is_home(&self) -> bool {
        self.home
    }

    /// A netlink socket inside.
    pub fn netlink(&self) -> io::Result<Netlink> {
        if self.home { Netlink::open() } else { self.handle.run(Netlink::open)? }
    }

    /// Switches IPv6 on for an interface inside, if it is off.
    pub fn enable_ipv6(&self, interface: &str) -> io::Result<()> {
        // Below /proc/sys/net is the namespace of the thread that opens it.
        let enable = || {
            let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
            match fs::read_to_string(&path) {
                Ok(off) if off.trim_end() == "0" => Ok(()),
                Ok(_) => fs::write(&path, "0"),
                // The kernel has no IPv6, or the MTU is too small for it: the address is refused with the reason.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
        };
        if self.home { enable() } else { self.handle.run(enable)? }
    }

    /// The number by which netlink messages name it while this value lives.
    pub fn fd(&self) -> RawFd {
        self.handle.as_fd().as_raw_fd()
    }

    /// How our own namespace calls this one, which may have to be settled first.
    pub fn id(&self) -> Result<NamespaceId, NetlinkError> {
        if self.home {
            return Ok(None);
        }
        let mut netlink = Netlink::open()?;
        let id = self.ask_id(&mut netlink)?;
        if id != UNASSIGNED {
            return Ok(Some(id));
        }
        let attributes = vec![self.as_attribute(), NsidAttribute::Id(UNASSIGNED)];
        match netlink.request(nsid_request(RouteNetlinkMessage::NewNsId, attributes)) {
            // Someone else was faster: any id will do.
            Err(refusal) if refusal.errno != Errno::EEXIST => Err(refusal),
            _ => Ok(Some(self.ask_id(&mut netlink)?)),
        }
    }

    fn ask_id(&self, netlink: &mut Netlink) -> Result<i32, NetlinkError> {
        let answer = netlink.request(nsid_request(RouteNetlinkMessage::GetNsId, vec![self.as_attribute()]))?;
        let attributes = match answer {
            Some(RouteNetlinkMessage::NewNsId(message)) => message.attributes,
            _ => Vec::new(),
        };
        let id = attributes.into_iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(id) => Some(id),
            _ => None,
        });
        Ok(id.unwrap_or(UNASSIGNED))
    }

    fn as_attribute(&self) -> NsidAttribute {
        NsidAttribute::Fd(self.fd().cast_unsigned())
    }
}

/// A namespace without a name where TAP devices are made before they are moved to their own.
///
/// A TAP keeps the namespace alive that its descriptor was opened in, so a pod's must not be that
/// one. Nor may our own: there udev and network managers would seize the interface on its way.
pub(super) fn staging() -> io::Result<&'static NetNs> {
    static STAGING: OnceLock<NetNs> = OnceLock::new();
    if let Some(staging) = STAGING.get() {
        return Ok(staging);
    }
    let made = NetNs::private()?;
    Ok(STAGING.get_or_init(|| made))
}

fn nsid_request(kind: fn(NsidMessage) -> RouteNetlinkMessage, attributes: Vec<NsidAttribute>) -> Request {
    let mut message = NsidMessage::default();
    message.attributes = attributes;
    Request { message: kind(message), flags: 0 }
}

/// The kernel's `NETNSA_NSID_NOT_ASSIGNED`.
const UNASSIGNED: i32 = -1;
