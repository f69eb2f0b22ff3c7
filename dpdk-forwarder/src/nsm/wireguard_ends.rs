//! Our ends of WireGuard tunnels: a key and a port for each connection, and what runs once the other side is known.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use defguard_boringtun::x25519::{PublicKey, StaticSecret};
use ferrule_dataplane::status::Traffic;
use ferrule_nsm::proto::connection::Mechanism;
use tonic::Status;

use super::interface::InterfacePlace;
use super::secure_tunnel::{RunningTunnel, SecureTunnelError};
use super::vxlan::{MTU, REMOTE, TunnelSite, parameter};
use super::wireguard::{WIREGUARD, WireGuardPeer, mtu, own_parameters};

/// Our ends of tunnels, by the ids of their connections.
#[derive(Default)]
pub(super) struct WireGuardEnds(Mutex<BTreeMap<String, Arc<WireGuardEnd>>>);

/// One of them: a key and a port for each connection, so that what one sends never is another's.
struct WireGuardEnd {
    secret: StaticSecret,
    socket: UdpSocket,
    /// What runs, once the other side is known.
    running: Mutex<Option<RunningTunnel>>,
}

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
        let end = Arc::new(WireGuardEnd { secret: StaticSecret::random(), socket, running: Mutex::default() });
        all.insert(id.to_owned(), Arc::clone(&end));
        Ok(end)
    }

    /// That of a connection, if it has one.
    fn get(&self, id: &str) -> Option<Arc<WireGuardEnd>> {
        self.lock().get(id).cloned()
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

/// One end of a tunnel, as an interface.
#[derive(Clone, Debug)]
pub(super) struct SecureTunnel {
    pub(super) connection: String,
    pub(super) place: InterfacePlace,
    pub(super) peer: WireGuardPeer,
    pub(super) mtu: u32,
}

impl SecureTunnel {
    /// Makes it, unless it is there; the other side may be another one than before. Whether its interface is new. Blocks.
    pub(super) fn make(&self, ends: &WireGuardEnds) -> Result<bool, SecureTunnelError> {
        let end = ends.get(&self.connection);
        let end = end.ok_or_else(|| SecureTunnelError::new(&self.place, "its key is gone: ask again".to_owned()))?;
        let mut running = end.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(is) = running.as_ref().filter(|is| is.is_there(&self.place, self.mtu)) {
            is.change(self.peer);
            return Ok(false);
        }
        if let Some(before) = running.take() {
            before.stop();
        }
        *running = Some(RunningTunnel::start(&self.place, self.mtu, self.peer, &end.secret, &end.socket)?);
        Ok(true)
    }

    /// Removes it with its interface, if it is there. Blocks.
    pub(super) fn remove(&self, ends: &WireGuardEnds) {
        let Some(end) = ends.get(&self.connection) else { return };
        let running = end.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(running) = running {
            running.stop();
        }
    }

    /// What has crossed: sent, and received.
    pub(super) fn traffic(&self, ends: &WireGuardEnds) -> Option<[Traffic; 2]> {
        let end = ends.get(&self.connection)?;
        let running = end.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().map(RunningTunnel::traffic)
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
