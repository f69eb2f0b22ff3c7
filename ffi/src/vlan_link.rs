//! Frames of one VLAN, led between two interfaces by programs in the kernel: what comes in at an uplink with the tag leaves by a branch
//! without it, and back.
//!
//! ```text
//!   uplink --in, tag 7--> tag off --> out of the branch
//!   uplink <--out, tag 7-- tag on <-- in at the branch
//! ```
//! The uplink is promiscuous meanwhile: the stations behind the branch have addresses of their own, which its NIC would throw away, and its
//! driver has no VLAN to filter by. It needs no VLAN device of the kernel, takes nothing from those that there are but the frames of its VLAN, and goes when this process ends,
//! in whichever way: the programs hang at two descriptors (TCX, Linux 6.6). The instructions are those of the eBPF standard, RFC 9669.

use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_long, c_uint};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// A VLAN of an uplink that leads to a branch, as long as this value lives.
#[derive(Debug)]
pub struct VlanLink {
    _uplink: OwnedFd,
    _branch: OwnedFd,
    _promiscuous: OwnedFd,
}

impl VlanLink {
    /// Joins two interfaces of the namespace of the calling thread, which are named by their numbers. VLAN 0 means frames without a tag:
    /// those that are not for the uplink's own host alone are copied, since that has them too.
    pub fn attach(uplink: u32, branch: u32, vlan: u16) -> io::Result<Self> {
        let from_uplink = load(&if vlan == 0 { copy_untagged(branch) } else { take_tagged(branch, vlan) })?;
        let to_uplink = load(&if vlan == 0 { send_untagged(uplink) } else { send_tagged(uplink, vlan) })?;
        let (uplink_link, branch_link) = (link(&from_uplink, uplink)?, link(&to_uplink, branch)?);
        Ok(Self { _uplink: uplink_link, _branch: branch_link, _promiscuous: promiscuous(uplink)? })
    }
}

/// Frames with the tag lose it, and leave by `branch`; others go on.
fn take_tagged(branch: u32, vlan: u16) -> Vec<u64> {
    vec![
        move_register(6, 1),
        load_context(2, VLAN_PRESENT),
        skip_if_equal(2, 0, 11),
        load_context(2, VLAN_PROTO),
        skip_unless_equal(2, tag_type(), 9),
        load_context(2, VLAN_TCI),
        and(2, VLAN_MASK),
        skip_unless_equal(2, i32::from(vlan), 6),
        move_register(1, 6),
        call(SKB_VLAN_POP),
        set(1, branch.cast_signed()),
        set(2, 0),
        call(REDIRECT),
        exit(),
        set(0, NEXT),
        exit(),
    ]
}

/// Frames leave by `uplink` with the tag. One that has no room for it is dropped.
fn send_tagged(uplink: u32, vlan: u16) -> Vec<u64> {
    let tag = [
        set(2, tag_type()),
        set(3, i32::from(vlan)),
        call(SKB_VLAN_PUSH),
        skip_if_equal(0, 0, 2),
        set(0, DROP),
        exit(),
    ];
    tag.into_iter().chain(send(uplink)).collect()
}

/// Frames without a tag leave by `branch` too, but for those that are for the host alone.
fn copy_untagged(branch: u32) -> Vec<u64> {
    vec![
        move_register(6, 1),
        load_context(2, VLAN_PRESENT),
        skip_unless_equal(2, 0, 6),
        load_context(2, PACKET_TYPE),
        skip_if_equal(2, libc::PACKET_HOST.into(), 4),
        move_register(1, 6),
        set(2, branch.cast_signed()),
        set(3, 0),
        call(CLONE_REDIRECT),
        set(0, NEXT),
        exit(),
    ]
}

/// Frames leave by `uplink`, if they have no tag: one of their own would lead them into any VLAN.
fn send_untagged(uplink: u32) -> Vec<u64> {
    let tag = [move_register(6, 1), load_context(2, VLAN_PRESENT), skip_if_equal(2, 0, 2), set(0, DROP), exit()];
    tag.into_iter().chain(send(uplink)).collect()
}

/// Frames leave by `to`.
fn send(to: u32) -> Vec<u64> {
    vec![set(1, to.cast_signed()), set(2, 0), call(REDIRECT), exit()]
}

fn move_register(to: u64, from: u64) -> u64 {
    0xbf | to << 8 | from << 12
}

/// A word of the frame's description (`struct __sk_buff`), whose address register 6 has.
fn load_context(to: u64, offset: u64) -> u64 {
    0x61 | to << 8 | 6 << 12 | offset << 16
}

fn set(register: u64, value: i32) -> u64 {
    0xb7 | register << 8 | immediate(value)
}

fn and(register: u64, value: i32) -> u64 {
    0x57 | register << 8 | immediate(value)
}

fn skip_if_equal(register: u64, value: i32, instructions: u64) -> u64 {
    0x15 | register << 8 | instructions << 16 | immediate(value)
}

fn skip_unless_equal(register: u64, value: i32, instructions: u64) -> u64 {
    0x55 | register << 8 | instructions << 16 | immediate(value)
}

fn call(helper: i32) -> u64 {
    0x85 | immediate(helper)
}

fn exit() -> u64 {
    0x95
}

fn immediate(value: i32) -> u64 {
    u64::from(value.cast_unsigned()) << 32
}

/// As the kernel's helpers want and tell it: in the order of the wire.
fn tag_type() -> i32 {
    i32::from(TAG_TYPE.to_be())
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    // In the order of its bytes an instruction begins with its code.
    let program: Vec<_> = program.iter().map(|instruction| instruction.to_le()).collect();
    let attributes = LoadAttributes {
        program_type: SCHED_CLS,
        instructions_len: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes are those of this command, and the instructions and the license that they point to live until it returns.
    unsafe { bpf(PROG_LOAD, &attributes) }
}

/// Has a program look at what comes in at an interface, before all that are there already: one of those may take every frame.
fn link(program: &OwnedFd, interface: u32) -> io::Result<OwnedFd> {
    let attributes = LinkAttributes {
        program: program.as_raw_fd().cast_unsigned(),
        interface,
        attach_type: TCX_INGRESS,
        flags: BEFORE,
        ..LinkAttributes::default()
    };
    // SAFETY: the attributes are those of this command, and point to nothing.
    unsafe { bpf(LINK_CREATE, &attributes) }
}

/// Has an interface take all frames, as long as what this returns is open.
fn promiscuous(interface: u32) -> io::Result<OwnedFd> {
    // Of no protocol: nothing is read from it.
    let packets = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let asked =
        libc::packet_mreq { mr_ifindex: interface.cast_signed(), mr_type: PROMISCUOUS, mr_alen: 0, mr_address: [0; 8] };
    let (level, option) = (libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP);
    // SAFETY: the kernel reads one `packet_mreq`, which `asked` is, during the call only.
    let done = unsafe {
        libc::setsockopt(
            packets.as_raw_fd(),
            level,
            option,
            (&raw const asked).cast(),
            size_of_val(&asked) as libc::socklen_t,
        )
    };
    Errno::result(done)?;
    Ok(packets)
}

/// A command that answers with a descriptor.
///
/// # Safety
/// `attributes` are those of the command, and what they point to can be read for as long as they say.
unsafe fn bpf<T>(command: c_int, attributes: &T) -> io::Result<OwnedFd> {
    let size = size_of_val(attributes) as c_uint;
    // SAFETY: the kernel reads `size` bytes of the attributes, which have as many; the caller vouches for what they point to.
    let answer: c_long = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size) };
    let descriptor = Errno::result(answer)? as c_int;
    // SAFETY: both commands answer with a new descriptor, which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Of `BPF_PROG_LOAD` in linux/bpf.h, as far as it is used: the kernel takes what is not there as zeros.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instructions_len: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// Of `BPF_LINK_CREATE`.
#[repr(C)]
#[derive(Default)]
struct LinkAttributes {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    _padding: u32,
    revision: u64,
}

const PROMISCUOUS: u16 = libc::PACKET_MR_PROMISC.cast_unsigned() as u16;
const PROG_LOAD: c_int = 5;
const LINK_CREATE: c_int = 28;
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
/// `BPF_F_BEFORE`: of no other program, so of all.
const BEFORE: u32 = 1 << 3;
const LICENSE: &[u8] = b"Apache-2.0\0";
/// Where `struct __sk_buff` has whom a frame is for, and what its tag was.
const PACKET_TYPE: u64 = 4;
const VLAN_PRESENT: u64 = 20;
const VLAN_TCI: u64 = 24;
const VLAN_PROTO: u64 = 28;
/// The number in a tag.
const VLAN_MASK: i32 = 0xfff;
/// 802.1Q.
const TAG_TYPE: u16 = 0x8100;
/// Helpers of the kernel, `BPF_FUNC_*`.
const CLONE_REDIRECT: i32 = 13;
const SKB_VLAN_PUSH: i32 = 18;
const SKB_VLAN_POP: i32 = 19;
const REDIRECT: i32 = 23;
/// What a program answers: `TCX_NEXT` and `TCX_DROP`.
const NEXT: i32 = -1;
const DROP: i32 = 2;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::netlink::{Netlink, Request};
    use crate::netns::NetNs;
    use crate::tap::{HEADER_LEN, Tap};

    /// Makes a TAP that is up. Its number.
    fn tap(name: &str) -> (Tap, u32) {
        let tap = Tap::create(name).unwrap();
        let index = found(name).header.index;
        let mut up = LinkMessage::default();
        up.header.index = index;
        (up.header.flags, up.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
        let up = Request { message: RouteNetlinkMessage::SetLink(up), flags: 0 };
        Netlink::open().unwrap().request(up).unwrap();
        (tap, index)
    }

    fn found(name: &str) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let asked = Request { message: RouteNetlinkMessage::GetLink(link), flags: 0 };
        let Some(RouteNetlinkMessage::NewLink(found)) = Netlink::open().unwrap().request(asked).unwrap() else {
            panic!("no link")
        };
        found
    }

    fn mac(name: &str) -> Vec<u8> {
        let address = |attribute| if let LinkAttribute::Address(mac) = attribute { Some(mac) } else { None };
        found(name).attributes.into_iter().find_map(address).unwrap()
    }

    fn promiscuity(name: &str) -> u32 {
        let count = |attribute| if let LinkAttribute::Promiscuity(count) = attribute { Some(count) } else { None };
        found(name).attributes.into_iter().find_map(count).unwrap()
    }

    /// A frame from a station to all, with these tags.
    fn frame(station: u8, tags: &[u16]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, station]);
        for tag in tags {
            frame.extend([0x81, 0]);
            frame.extend(tag.to_be_bytes());
        }
        frame.extend([0x88, 0xb5]);
        frame.extend([station; 60]);
        frame
    }

    fn write(tap: &Tap, frame: &[u8]) {
        tap.write(&[0; HEADER_LEN], &[frame.into()]).unwrap();
    }

    /// The next frame of a station: the kernel says things of its own too.
    fn read(tap: &Tap, station: u8) -> Option<Vec<u8>> {
        let mut buffer = [0; 2048];
        loop {
            match tap.read(&mut buffer) {
                Ok(len) if buffer[HEADER_LEN + 11] == station => return Some(buffer[HEADER_LEN..len].to_vec()),
                Ok(_) => {}
                Err(_) => {
                    let mut events = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
                    if poll(&mut events, PollTimeout::from(200_u16)).unwrap() == 0 {
                        return None;
                    }
                }
            }
        }
    }

    #[test]
    fn a_program_that_was_there_before_does_not_take_the_frames_first() {
        let netns = match NetNs::private() {
            Ok(netns) => netns,
            Err(error) => return println!("skipped: a namespace of its own ({error})"),
        };
        let test = || {
            let ((uplink, at_uplink), (branch, at_branch)) = (tap("uplink"), tap("branch"));
            let greedy = load(&[set(0, DROP), exit()]).unwrap();
            let _before = match [at_uplink, at_branch].map(|interface| link(&greedy, interface)) {
                [Err(error), _] if error.raw_os_error() == Some(libc::EINVAL) => {
                    return println!("skipped: Linux 6.6, for programs at an interface");
                }
                links => links.map(Result::unwrap),
            };
            let _link = VlanLink::attach(at_uplink, at_branch, 7).unwrap();
            write(&uplink, &frame(1, &[7]));
            assert_eq!(read(&branch, 1), Some(frame(1, &[])));
            write(&branch, &frame(2, &[]));
            assert_eq!(read(&uplink, 2), Some(frame(2, &[7])));
        };
        netns.run(test).unwrap();
    }

    #[test]
    fn frames_of_a_vlan_cross_without_their_tag_and_come_back_with_it() {
        let netns = match NetNs::private() {
            Ok(netns) => netns,
            Err(error) => return println!("skipped: a namespace of its own ({error})"),
        };
        let test = || {
            let ((uplink, at_uplink), (branch, at_branch)) = (tap("uplink"), tap("branch"));
            let (other, at_other) = tap("other");
            let link = match VlanLink::attach(at_uplink, at_branch, 7) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    return println!("skipped: Linux 6.6, for programs at an interface");
                }
                link => link.unwrap(),
            };
            let _beside = VlanLink::attach(at_uplink, at_other, 0).unwrap();
            for (station, tags, to_branch, to_other) in [
                (1, &[7][..], true, false),
                (2, &[8], false, false),
                (3, &[], false, true),
                (4, &[0xe007], true, false),
            ] {
                write(&uplink, &frame(station, tags));
                let untagged = frame(station, &[]);
                assert_eq!(read(&branch, station), to_branch.then(|| untagged.clone()), "station {station}");
                assert_eq!(read(&other, station), to_other.then_some(untagged), "station {station}");
            }
            write(&branch, &frame(5, &[]));
            assert_eq!(read(&uplink, 5), Some(frame(5, &[7])));
            write(&other, &frame(6, &[]));
            assert_eq!(read(&uplink, 6), Some(frame(6, &[])));
            // A tag of the client's own is inside ours.
            write(&branch, &frame(7, &[9]));
            assert_eq!(read(&uplink, 7), Some(frame(7, &[7, 9])));
            // One that would lead into any VLAN, and one for the host itself.
            write(&other, &frame(9, &[200]));
            assert_eq!(read(&uplink, 9), None);
            let mut to_host = frame(10, &[]);
            to_host[..6].copy_from_slice(&mac("uplink"));
            write(&uplink, &to_host);
            assert_eq!(read(&other, 10), None);
            let mut to_station = frame(11, &[]);
            to_station[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x77]);
            write(&uplink, &to_station);
            assert_eq!(read(&other, 11), Some(to_station));
            assert_eq!(promiscuity("uplink"), 2);
            drop(link);
            assert_eq!(promiscuity("uplink"), 1);
            write(&uplink, &frame(8, &[7]));
            assert_eq!(read(&branch, 8), None, "it has gone");
        };
        netns.run(test).unwrap();
    }
}
