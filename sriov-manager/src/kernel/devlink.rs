//! What the switch of a card does, asked of the generic netlink family `devlink` (net/devlink/dev.c).

use std::io;

use ferrule_ffi::netlink::NetlinkError;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;
use nix::libc::NLM_F_REQUEST;

use super::EswitchMode;
use super::attribute::{ALIGNMENT, ATTRIBUTE_HEADER, Attribute, NLMSG_ERROR, NLMSG_HEADER, read_u16, read_u32};
use crate::address::PciAddress;

/// Asks about the switch of a card; none: it has no switch, its driver no devlink, or the kernel neither.
pub(super) fn eswitch_mode(pf: PciAddress) -> Result<Option<EswitchMode>, NetlinkError> {
    let socket = Socket::new(NETLINK_GENERIC)?;
    let ask = |question: &[u8]| -> Result<Vec<u8>, NetlinkError> {
        socket.send(question, 0)?;
        let mut answer = Vec::with_capacity(ANSWER_MAX);
        socket.recv(&mut answer, 0)?;
        Ok(answer)
    };
    let family = ask(&family_question()).and_then(|answer| read_family(&answer));
    read_mode(family.and_then(|family| ask(&mode_question(family, pf))))
}

pub(super) fn family_question() -> Vec<u8> {
    message(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_VERSION, &[(CTRL_ATTR_FAMILY_NAME, DEVLINK.to_owned())])
}

pub(super) fn mode_question(family: u16, pf: PciAddress) -> Vec<u8> {
    let device = [(DEVLINK_ATTR_BUS_NAME, "pci".to_owned()), (DEVLINK_ATTR_DEV_NAME, pf.to_string())];
    message(family, DEVLINK_CMD_ESWITCH_GET, DEVLINK_VERSION, &device)
}

/// The number of the family in an answer.
pub(super) fn read_family(answer: &[u8]) -> Result<u16, NetlinkError> {
    let id = Attribute::find(attributes(answer)?, CTRL_ATTR_FAMILY_ID);
    id.and_then(|id| read_u16(id, 0)).ok_or_else(unreadable)
}

/// The mode in an answer.
pub(super) fn read_mode(answer: Result<Vec<u8>, NetlinkError>) -> Result<Option<EswitchMode>, NetlinkError> {
    let read = answer.and_then(|answer| {
        let mode = Attribute::find(attributes(&answer)?, DEVLINK_ATTR_ESWITCH_MODE);
        mode.and_then(|mode| read_u16(mode, 0)).ok_or_else(unreadable)
    });
    match read {
        Ok(DEVLINK_ESWITCH_MODE_LEGACY) => Ok(Some(EswitchMode::Legacy)),
        Ok(DEVLINK_ESWITCH_MODE_SWITCHDEV) => Ok(Some(EswitchMode::Switchdev)),
        // One that is newer than this.
        Ok(_) => Ok(None),
        // No such family, no such device of it, no switch.
        Err(refusal) if matches!(refusal.errno, Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// `struct nlmsghdr`, `struct genlmsghdr`, and attributes that are texts.
fn message(kind: u16, command: u8, version: u8, texts: &[(u16, String)]) -> Vec<u8> {
    let mut body = vec![command, version, 0, 0];
    for (kind, text) in texts {
        let length = ATTRIBUTE_HEADER + text.len() + 1;
        body.extend_from_slice(&(length as u16).to_ne_bytes());
        body.extend_from_slice(&kind.to_ne_bytes());
        body.extend_from_slice(text.as_bytes());
        body.resize(body.len() + 1 + length.next_multiple_of(ALIGNMENT) - length, 0);
    }
    let mut message = Vec::with_capacity(NLMSG_HEADER + body.len());
    message.extend_from_slice(&((NLMSG_HEADER + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST as u16).to_ne_bytes());
    // Neither a number nor a port: there is one question and one answer.
    message.extend_from_slice(&[0; 8]);
    message.extend(body);
    message
}

/// What an answer says, or why it is none.
fn attributes(answer: &[u8]) -> Result<&[u8], NetlinkError> {
    if read_u16(answer, 4) == Some(NLMSG_ERROR) {
        let code = read_u32(answer, NLMSG_HEADER).map_or(0, u32::cast_signed);
        return Err(io::Error::from_raw_os_error(code.saturating_neg()).into());
    }
    answer.get(NLMSG_HEADER + GENL_HEADER..).ok_or_else(unreadable)
}

fn unreadable() -> NetlinkError {
    NetlinkError { errno: Errno::EBADMSG, hint: Some("devlink answered something else".to_owned()) }
}

/// The family tells of its commands and groups: some KiB.
const ANSWER_MAX: usize = 32 << 10;

// linux/genetlink.h.
const GENL_HEADER: usize = 4;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_VERSION: u8 = 1;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
// linux/devlink.h.
const DEVLINK: &str = "devlink";
const DEVLINK_VERSION: u8 = 1;
const DEVLINK_CMD_ESWITCH_GET: u8 = 29;
const DEVLINK_ATTR_BUS_NAME: u16 = 1;
const DEVLINK_ATTR_DEV_NAME: u16 = 2;
const DEVLINK_ATTR_ESWITCH_MODE: u16 = 25;
const DEVLINK_ESWITCH_MODE_LEGACY: u16 = 0;
const DEVLINK_ESWITCH_MODE_SWITCHDEV: u16 = 1;
