//! What the driver of a network interface says of itself, by the call that kernels of every age have.

use std::io;
use std::os::fd::AsRawFd;

use libc::c_char;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Where the device of an interface is, such as `0000:02:10.0`; empty: the driver does not say. The interface is one of the calling
/// thread's network namespace.
pub fn bus_info(netdev: &str) -> io::Result<String> {
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, ..DriverInfo::default() };
    let name = netdev.as_bytes();
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], data: (&raw mut info).cast(), rest: [0; 16] };
    if name.len() >= request.name.len() || name.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, &from) in request.name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the request is as large as the kernel's `struct ifreq`, names what follows the name, and lives until the call is
    // over, as does the information that it points to: a whole `struct ethtool_drvinfo`, which the kernel fills and no more.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let text = info.bus_info.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// `struct ifreq` of linux/if.h, as `SIOCETHTOOL` reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [c_char; libc::IFNAMSIZ],
    data: *mut c_char,
    /// The union is as long as its longest member, `struct ifmap`.
    rest: [u8; 16],
}

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
#[derive(Default)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus_info: [u8; 32],
    rom: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 0x3;
const _: () = assert!(size_of::<DriverInfo>() == 196 && size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_without_a_device_has_no_place_and_one_that_is_not_there_is_an_error() {
        // The loopback device has no driver that could be asked.
        assert_eq!(bus_info("lo").unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        assert_eq!(bus_info("not-there").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert!(bus_info("a name that is too long").is_err());
    }
}
