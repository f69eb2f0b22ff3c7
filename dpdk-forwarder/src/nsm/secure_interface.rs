//! An end of a WireGuard tunnel as an interface: a TUN device in the namespace of a client or an endpoint.

use std::io;

use ferrule_dataplane::port::kernel::create_tun;
use ferrule_dataplane::spec::{KernelSpec, NetNs};
use ferrule_dataplane::status::Traffic;
use ferrule_ffi::tun::Tun;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::interface::InterfacePlace;
use super::secure_tunnel::{Packets, waited_for};
use super::wireguard::WireGuardPeer;
use super::wireguard_ends::WireGuardEnds;

/// One end of a tunnel, as an interface.
#[derive(Clone, Debug)]
pub(super) struct SecureInterface {
    pub(super) connection: String,
    pub(super) place: InterfacePlace,
    pub(super) peer: WireGuardPeer,
    pub(super) mtu: u32,
}

/// What the kernel did not do.
#[derive(Debug, thiserror::Error)]
#[error("make the tunnel {} in {}: {problem}", place.name, NetNs::Open(place.netns.clone()))]
pub(super) struct SecureInterfaceError {
    place: InterfacePlace,
    problem: String,
}

impl SecureInterface {
    /// Makes it, unless it is there; the other side may be another one than before. Whether it is new. Blocks.
    pub(super) fn make(&self, ends: &WireGuardEnds) -> Result<bool, SecureInterfaceError> {
        let failed = |problem: String| SecureInterfaceError { place: self.place.clone(), problem };
        let end = ends.tell(&self.connection, self.peer).map_err(|error| failed(error.to_string()))?;
        let (netns, name) = (Some(NetNs::Open(self.place.netns.clone())), self.place.name.clone());
        let spec = KernelSpec { netns, mtu: Some(self.mtu), ..KernelSpec::new(name) };
        let open = || Ok(TunPackets(waited_for(create_tun(&spec).map_err(io::Error::other)?)?));
        end.run_at(&self.place, self.mtu, open).map_err(|error| failed(error.to_string()))
    }

    /// Removes it, if it is there. Blocks.
    pub(super) fn remove(&self, ends: &WireGuardEnds) {
        if let Some(end) = ends.get(&self.connection) {
            end.stop();
        }
    }

    /// What has crossed: sent, and received.
    pub(super) fn traffic(&self, ends: &WireGuardEnds) -> Option<[Traffic; 2]> {
        Some(ends.get(&self.connection)?.counters()?.read())
    }
}

/// Those of an interface.
struct TunPackets(AsyncFd<Tun>);

impl Packets for TunPackets {
    async fn next(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |tun| tun.read(buffer)).await
    }

    fn next_now(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.0.get_ref().read(buffer) {
            Ok(len) => Ok(Some(len)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn put(&mut self, packet: &[u8]) -> io::Result<()> {
        self.0.get_ref().write(packet)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::OwnedFd;
    use std::thread;
    use std::time::Duration;

    use defguard_boringtun::x25519::{PublicKey, StaticSecret};
    use ferrule_dataplane::port::kernel::message::{Link, link_request, up_request};
    use ferrule_dataplane::spec::OpenNetNs;
    use ferrule_ffi::netlink::Netlink;
    use ferrule_ffi::netns;
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::LinkFlags;

    use super::super::interface::InterfaceState;
    use super::super::vxlan::TunnelSite;
    use super::*;

    #[test]
    fn a_tunnel_to_whom_there_is_no_way_for_a_moment_begins_when_there_is_one() {
        let name = "a_tunnel_to_whom_there_is_no_way_for_a_moment_begins_when_there_is_one";
        let (Ok(node), Ok(pod)) = (netns::NetNs::private(), netns::NetNs::private()) else {
            return println!("skipped: {name}: lacks namespaces of its own");
        };
        let pod = OpenNetNs::try_from(OwnedFd::from(pod)).unwrap();
        let place = InterfacePlace { netns: pod, name: "nsm-1".parse().unwrap() };
        let test = || {
            let mut netlink = Netlink::open().unwrap();
            let lo = Link::named(&mut netlink, "lo").unwrap().index;
            let mut down = link_request(RouteNetlinkMessage::SetLink, lo, Vec::new());
            if let RouteNetlinkMessage::SetLink(link) = &mut down.message {
                link.header.change_mask = LinkFlags::Up;
            }
            netlink.request(up_request(lo)).unwrap();
            let (ends, site) =
                (WireGuardEnds::default(), TunnelSite { address: [127, 0, 0, 1].into(), port: 4789, link_mtu: 1500 });
            ends.preference("a", &site).unwrap();
            let far = UdpSocket::bind("127.0.0.2:0").unwrap();
            far.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            netlink.request(down).unwrap();
            let key = PublicKey::from(&StaticSecret::random());
            let peer = WireGuardPeer { address: far.local_addr().unwrap(), key, waits: true };
            let interface = SecureInterface { connection: "a".to_owned(), place: place.clone(), peer, mtu: 1400 };
            if let Err(error) = interface.make(&ends) {
                return println!("skipped: {name}: lacks a TUN device ({error})");
            }
            let addresses = ["10.9.0.1/24".parse().unwrap()].into();
            place.set_up(&InterfaceState { addresses, ..InterfaceState::default() }, true).unwrap();
            let pod = NetNs::Open(place.netns.clone()).open().unwrap();
            let sender = pod.run(|| UdpSocket::bind("10.9.0.1:0")).unwrap().unwrap();
            // Until a packet is lost it has not tried.
            while interface.traffic(&ends).unwrap()[0].dropped() == 0 {
                let _ = sender.send_to(&[1], "10.9.0.2:9");
                assert!(!interface.make(&ends).unwrap(), "it had to be made anew");
                thread::yield_now();
            }
            netlink.request(up_request(lo)).unwrap();
            let length = far.recv(&mut [0; 2048]);
            interface.remove(&ends);
            // The first message of a handshake.
            assert_eq!(length.unwrap(), 148);
        };
        node.run(test).unwrap();
    }
}
