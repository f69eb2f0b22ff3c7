//! Interfaces of the kernel whose other end is a file descriptor.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use ferrule_ffi::tap::Tap;
use ferrule_ffi::tun::Tun;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use nix::errno::Errno;

use super::error::{InterfaceId, KernelError};
use super::message::{Link, link_request};
use super::namespace::{Namespace, staging};
use super::setup::Setup;
use crate::spec::KernelSpec;
use ferrule_ffi::netlink::{Netlink, NetlinkError};

/// A TAP interface, set up and up, with its carrier down until someone serves the other end.
/// Dropping the [`Tap`] removes the interface.
#[derive(Debug)]
pub struct TapInterface {
    /// The other end of the interface.
    pub tap: Tap,
    /// The number of the interface in its namespace.
    pub index: u32,
}

impl TapInterface {
    /// Makes the interface; a failure leaves nothing behind.
    pub fn create(spec: &KernelSpec) -> Result<Self, KernelError> {
        let without_carrier = |name: &str| {
            let tap = Tap::create(name)?;
            tap.set_carrier(false)?;
            Ok(tap)
        };
        let (tap, index) = create(spec, without_carrier)?;
        Ok(Self { tap, index })
    }
}

/// Makes a TUN interface that is set up and up, as the specification says; a failure leaves nothing behind. It has no Ethernet, so no MAC
/// address can be wanted of it. Dropping the [`Tun`] removes the interface.
pub fn create_tun(spec: &KernelSpec) -> Result<Tun, KernelError> {
    create(spec, Tun::create).map(|(tun, _)| tun)
}

/// Makes and sets up a device, and says its number in its namespace.
fn create<D: Send>(spec: &KernelSpec, make: impl Fn(&str) -> io::Result<D> + Sync) -> Result<(D, u32), KernelError> {
    let interface = InterfaceId::from(spec);
    let namespace = Namespace::open(spec)?;
    let name = spec.name.as_str();
    let made = if namespace.is_home() { make(name).map_err(Into::into) } else { make_inside(&namespace, spec, make) };
    let device = made.map_err(|refusal| creation_failed(&interface, refusal))?;
    let mut netlink = namespace.netlink().map_err(|error| KernelError::failed("set up", &interface, error))?;
    let found = Link::named(&mut netlink, spec.name.as_str());
    let index = found.map_err(|refusal| KernelError::failed("find", &interface, refusal))?.index;
    Setup { netlink: &mut netlink, namespace: &namespace, index, spec, adopted: false }.apply()?;
    Ok((device, index))
}

/// Makes the device in the staging namespace and moves it. The move makes the kernel wait for all readers of
/// the device (about 14 ms on a machine of two CPUs); what it buys is told at [`staging`].
fn make_inside<D: Send>(
    namespace: &Namespace,
    spec: &KernelSpec,
    make: impl Fn(&str) -> io::Result<D> + Sync,
) -> Result<D, NetlinkError> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let name = format!("tap{}", MADE.fetch_add(1, Ordering::Relaxed));
    staging()?.run(|| {
        let device = make(&name)?;
        let mut netlink = Netlink::open()?;
        let index = Link::named(&mut netlink, &name)?.index;
        let target = vec![LinkAttribute::NetNsFd(namespace.fd()), LinkAttribute::IfName(spec.name.to_string())];
        netlink.request(link_request(RouteNetlinkMessage::SetLink, index, target))?;
        Ok(device)
    })?
}

fn creation_failed(interface: &InterfaceId, refusal: NetlinkError) -> KernelError {
    let interface = interface.clone();
    match refusal.errno {
        Errno::EEXIST | Errno::EBUSY => KernelError::NameTaken { interface },
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO | Errno::EACCES => {
            KernelError::DriverMissing { driver: "tun", interface, reason: refusal.to_string() }
        }
        _ => KernelError::failed("create", &interface, refusal),
    }
}
