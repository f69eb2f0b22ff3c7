//! Our ends of WireGuard tunnels: a key and a port for each connection, and what runs once the other side is known.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use defguard_boringtun::x25519::{PublicKey, StaticSecret};
use ferrule_nsm::proto::connection::Mechanism;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tonic::Status;

use super::interface::InterfacePlace;
use super::secure_tunnel::{Packets, RunningTunnel, TunnelCounters};
use super::vxlan::{MTU, REMOTE, TunnelSite, parameter};
use super::wireguard::{WIREGUARD, WireGuardPeer, mtu, own_parameters};

/// Our ends of tunnels, by the ids of their connections.
#[derive(Default)]
pub(super) struct WireGuardEnds(Mutex<BTreeMap<String, Arc<WireGuardEnd>>>);

/// One of them: a key and a port for each connection, so that what one sends never is another's.
pub(super) struct WireGuardEnd {
    secret: StaticSecret,
    socket: UdpSocket,
    /// The other side, once it is known.
    peer: watch::Sender<Option<WireGuardPeer>>,
    /// What runs.
    running: Mutex<Option<RunningTunnel>>,
}

/// The connection has no key and no port any more.
#[derive(Debug, thiserror::Error)]
#[error("the key of the tunnel is gone: ask again")]
pub(super) struct NoKeyError;

impl WireGuardEnds {
    /// That of a connection, which has one from now on.
    fn open(&self, id: &str, address: IpAddr) -> Result<Arc<WireGuardEnd>, Status> {
        let mut all = self.lock();
        if let Some(end) = all.get(id) {
            return Ok(Arc::clone(end));
        }
        let socket = UdpSocket::bind((address, 0)).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        let socket = socket.map_err(|error| {
            Status::resource_exhausted(format!("open a UDP port of {address}, `tunnel_ip`, for a tunnel: {error}"))
        })?;
        let (secret, peer, running) = (StaticSecret::random(), watch::Sender::default(), Mutex::default());
        let end = Arc::new(WireGuardEnd { secret, socket, peer, running });
        all.insert(id.to_owned(), Arc::clone(&end));
        Ok(end)
    }

    /// That of a connection, if it has one.
    pub(super) fn get(&self, id: &str) -> Option<Arc<WireGuardEnd>> {
        self.lock().get(id).cloned()
    }

    /// That of a connection, whose other side is this one from now on.
    pub(super) fn tell(&self, id: &str, peer: WireGuardPeer) -> Result<Arc<WireGuardEnd>, NoKeyError> {
        let end = self.get(id).ok_or(NoKeyError)?;
        end.peer.send_if_modified(|is| is.replace(peer) != Some(peer));
        Ok(end)
    }

    /// The connection is there no more.
    pub(super) fn give_back(&self, id: &str) {
        self.lock().remove(id);
    }

    /// What we ask another node for by a connection of this id. Again and again it is the same.
    pub(super) fn preference(&self, id: &str, site: &TunnelSite) -> Result<Mechanism, Status> {
        let parameters = self.own(id, site, false)?.into();
        let mut mechanism = Mechanism { cls: REMOTE.to_owned(), r#type: WIREGUARD.to_owned(), parameters };
        mechanism.parameters.insert(MTU.to_owned(), mtu(site).to_string());
        Ok(mechanism)
    }

    /// What another node asks us for, with what is ours to say. Again and again it is the same.
    pub(super) fn answer(&self, id: &str, asked: &Mechanism, site: &TunnelSite) -> Result<Mechanism, Status> {
        WireGuardPeer::answered(asked, site)?;
        let mut mechanism = asked.clone();
        mechanism.parameters.extend(self.own(id, site, true)?);
        let theirs = parameter(asked, MTU).ok().filter(|mtu: &u32| *mtu > 0);
        let mtu = theirs.map_or(mtu(site), |theirs| theirs.min(mtu(site)));
        mechanism.parameters.insert(MTU.to_owned(), mtu.to_string());
        Ok(mechanism)
    }

    fn own(&self, id: &str, site: &TunnelSite, is_asked: bool) -> Result<[(String, String); 3], Status> {
        let end = self.open(id, site.address)?;
        let address = end.socket.local_addr();
        let address = address.map_err(|error| Status::internal(format!("the port of a tunnel: {error}")))?;
        Ok(own_parameters(address, &PublicKey::from(&end.secret), is_asked))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<WireGuardEnd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WireGuardEnd {
    /// Carries the packets of an interface in this place, unless it does so already. Whether it is new. Blocks.
    pub(super) fn run_at<P: Packets>(
        &self,
        place: &InterfacePlace,
        mtu: u32,
        open: impl FnOnce() -> io::Result<P>,
    ) -> io::Result<bool> {
        let mut running = self.running();
        if running.as_ref().is_some_and(|is| is.is_at(place, mtu)) {
            return Ok(false);
        }
        self.start(&mut running, Some(place.clone()), mtu, open).map(|_| true)
    }

    /// Carries other packets than before. What ends it, and what has crossed. Blocks.
    pub(super) fn run<P: Packets>(
        &self,
        mtu: u32,
        open: impl FnOnce() -> io::Result<P>,
    ) -> io::Result<(AbortHandle, Arc<TunnelCounters>)> {
        let mut running = self.running();
        let started = self.start(&mut running, None, mtu, open)?;
        Ok((started.abort_handle(), Arc::clone(started.counters())))
    }

    fn start<'a, P: Packets>(
        &self,
        running: &'a mut Option<RunningTunnel>,
        place: Option<InterfacePlace>,
        mtu: u32,
        open: impl FnOnce() -> io::Result<P>,
    ) -> io::Result<&'a RunningTunnel> {
        if let Some(before) = running.take() {
            before.stop();
        }
        let started = RunningTunnel::start(place, mtu, open, self.peer.subscribe(), &self.secret, &self.socket)?;
        Ok(running.insert(started))
    }

    /// Carries nothing any more. Blocks.
    pub(super) fn stop(&self) {
        let running = self.running().take();
        if let Some(running) = running {
            running.stop();
        }
    }

    /// What has crossed, if something runs.
    pub(super) fn counters(&self) -> Option<Arc<TunnelCounters>> {
        self.running().as_ref().map(|running| Arc::clone(running.counters()))
    }

    /// The other side, if it is known.
    pub(super) fn peer(&self) -> Option<WireGuardPeer> {
        *self.peer.borrow()
    }

    fn running(&self) -> MutexGuard<'_, Option<RunningTunnel>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> TunnelSite {
        TunnelSite { address: [127, 0, 0, 1].into(), port: 4789, link_mtu: 1500 }
    }

    #[test]
    fn each_side_learns_the_other_ones_address_and_key() {
        let (near, far, site) = (WireGuardEnds::default(), WireGuardEnds::default(), site());
        let asked = near.preference("a", &site).unwrap();
        assert_eq!(asked.parameters.keys().collect::<Vec<_>>(), ["MTU", "src_ip", "src_port", "src_public_key"]);
        let answer = far.answer("b", &asked, &TunnelSite { link_mtu: 1400, ..site }).unwrap();
        assert_eq!(answer.parameters[MTU], "1340");
        let (ours, theirs) =
            (WireGuardPeer::asked(&answer, &site).unwrap(), WireGuardPeer::answered(&answer, &site).unwrap());
        assert_eq!(ours.key, PublicKey::from(&far.get("b").unwrap().secret));
        assert_eq!(theirs.key, PublicKey::from(&near.get("a").unwrap().secret));
        assert_eq!(ours.address, far.get("b").unwrap().socket.local_addr().unwrap());
        assert!(ours.waits != theirs.waits);
    }

    #[test]
    fn a_connection_keeps_its_key_and_port_and_another_one_has_others() {
        let (ends, site) = (WireGuardEnds::default(), site());
        let first = ends.preference("a", &site).unwrap();
        assert_eq!(ends.preference("a", &site).unwrap(), first);
        let other = ends.preference("b", &site).unwrap();
        assert!(["src_port", "src_public_key"].iter().all(|key| first.parameters[*key] != other.parameters[*key]));
        ends.give_back("a");
        assert!(ends.get("a").is_none());
        assert_ne!(ends.preference("a", &site).unwrap(), first);
    }

    #[test]
    fn nonsense_is_refused() {
        let (ends, site) = (WireGuardEnds::default(), site());
        let asked = ends.preference("a", &site).unwrap();
        for (key, value) in [
            ("src_ip", ""),
            ("src_ip", "::1"),
            ("src_port", "70000"),
            ("src_public_key", ""),
            ("src_public_key", "AAAA"),
            ("src_public_key", "no base64"),
        ] {
            let mut wrong = asked.clone();
            wrong.parameters.insert(key.to_owned(), value.to_owned());
            assert!(ends.answer("b", &wrong, &site).is_err(), "{key} {value}");
        }
        assert!(ends.get("b").is_none(), "what was refused has no port");
    }
}
