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
