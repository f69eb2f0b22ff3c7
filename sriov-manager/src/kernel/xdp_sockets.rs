//! AF_XDP sockets, as sock_diag tells of them (`xsk_diag_dump` of net/xdp/xsk_diag.c): they take frames of an interface also
//! where no XDP program is attached yet.

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use ferrule_ffi::netlink::NetlinkError;
use nix::errno::Errno;
use nix::libc;

use super::attribute::{ALIGNMENT, Attribute, NLMSG_ERROR, NLMSG_HEADER, read_u16, read_u32};

/// How many of our network namespace are bound to an interface; none: the kernel does not tell (it was built without
/// `CONFIG_XDP_SOCKETS_DIAG`, or the module `xsk_diag` is not there).
pub(super) fn bound_to(interface: u32) -> Result<Option<usize>, NetlinkError> {
    let socket = match Socket::new(NETLINK_SOCK_DIAG) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(None),
        socket => socket?,
    };
    socket.send(&request(), 0)?;
    let mut bound = 0;
    loop {
        let mut answer = Vec::with_capacity(DATAGRAM_MAX);
        socket.recv(&mut answer, 0)?;
        match count(&answer, interface)? {
            Part::More(more) => bound += more,
            Part::Last(more) => return Ok(Some(bound + more)),
            Part::NotTold => return Ok(None),
        }
    }
}

/// `struct nlmsghdr` and `struct xdp_diag_req`: all sockets, with the interface of each.
fn request() -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request[NLMSG_HEADER] = libc::AF_XDP as u8;
    request[SHOW..SHOW + 4].copy_from_slice(&XDP_SHOW_INFO.to_ne_bytes());
    request
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    More(usize),
    Last(usize),
    NotTold,
}

/// Those in one datagram that are bound to an interface.
pub(super) fn count(mut messages: &[u8], interface: u32) -> Result<Part, NetlinkError> {
    let mut bound = 0;
    while let (Some(length), Some(kind)) = (read_u32(messages, 0), read_u16(messages, 4)) {
        let length = length as usize;
        let message = messages.get(..length).filter(|_| length >= NLMSG_HEADER);
        let Some(message) = message else {
            return Err(NetlinkError { errno: Errno::EBADMSG, hint: Some("a message is cut short".to_owned()) });
        };
        match kind {
            NLMSG_DONE => return Ok(Part::Last(bound)),
            NLMSG_ERROR => {
                let code = read_u32(message, NLMSG_HEADER).map_or(0, u32::cast_signed);
                // There is nobody who tells of this family.
                if code == -libc::ENOENT {
                    return Ok(Part::NotTold);
                }
                return Err(std::io::Error::from_raw_os_error(code.saturating_neg()).into());
            }
            SOCK_DIAG_BY_FAMILY => {
                let is_bound = interface_of(message.get(DIAG_ATTRIBUTES..).unwrap_or_default()) == Some(interface);
                bound += usize::from(is_bound);
            }
            _ => {}
        }
        messages = messages.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    Ok(Part::More(bound))
}

fn interface_of(attributes: &[u8]) -> Option<u32> {
    read_u32(Attribute::find(attributes, XDP_DIAG_INFO)?, 0)
}

/// What the kernel puts into one datagram of a dump at most.
const DATAGRAM_MAX: usize = 64 << 10;

// linux/netlink.h, linux/sock_diag.h and linux/xdp_diag.h.
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// A `struct xdp_diag_req` has 20 bytes.
const REQUEST: usize = NLMSG_HEADER + 20;
/// Its `xdiag_show`.
const SHOW: usize = NLMSG_HEADER + 8;
const XDP_SHOW_INFO: u32 = 1;
/// Behind the header is a `struct xdp_diag_msg`.
const DIAG_ATTRIBUTES: usize = NLMSG_HEADER + 16;
const XDP_DIAG_INFO: u16 = 1;
