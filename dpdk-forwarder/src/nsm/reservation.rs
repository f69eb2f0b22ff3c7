//! What the tunnel of a connection has of us: a number of VXLAN, a port and a key of WireGuard. Both are its own from the moment that
//! somebody is told of them, and free when nobody makes, has or removes the tunnel any more, in whichever way that ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::vxlan::Vnis;
use super::wireguard_ends::WireGuardEnds;

/// How many keep what the tunnels of each connection have, by its id.
#[derive(Clone, Default)]
pub(super) struct Holders(Arc<Mutex<BTreeMap<String, usize>>>);

/// One of them. With the last one it is free.
pub(super) struct Reservation {
    id: String,
    holders: Holders,
    vnis: Arc<Vnis>,
    wireguards: Arc<WireGuardEnds>,
}

impl Reservation {
    /// For a connection of this id.
    pub(super) fn new(id: &str, holders: &Holders, vnis: &Arc<Vnis>, wireguards: &Arc<WireGuardEnds>) -> Self {
        *holders.lock().entry(id.to_owned()).or_default() += 1;
        let (vnis, wireguards) = (Arc::clone(vnis), Arc::clone(wireguards));
        Self { id: id.to_owned(), holders: holders.clone(), vnis, wireguards }
    }
}

impl Clone for Reservation {
    fn clone(&self) -> Self {
        Self::new(&self.id, &self.holders, &self.vnis, &self.wireguards)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // Whoever comes next waits, and begins with none.
        let mut holders = self.holders.lock();
        let Some(count) = holders.get_mut(&self.id) else { return };
        *count -= 1;
        if *count == 0 {
            holders.remove(&self.id);
            self.vnis.settle(&self.id, None);
            self.wireguards.give_back(&self.id);
        }
    }
}

impl Holders {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::vxlan::TunnelSite;
    use super::*;

    #[test]
    fn a_number_and_a_port_are_a_connections_own_until_the_last_who_keeps_them_ends() {
        let site = TunnelSite { address: [127, 0, 0, 1].into(), port: 4789, link_mtu: 1500 };
        let (holders, vnis, wireguards) = (Holders::default(), Arc::default(), Arc::<WireGuardEnds>::default());
        let call = Reservation::new("a", &holders, &vnis, &wireguards);
        site.answer("a", &site.preference(), &vnis).unwrap();
        let port = wireguards.preference("a", &site).unwrap();
        let thread = call.clone();
        // The call is cut off, and the client calls again at once.
        drop(call);
        let again = Reservation::new("a", &holders, &vnis, &wireguards);
        drop(thread);
        assert_eq!((vnis.has("a"), wireguards.preference("a", &site).unwrap()), (true, port.clone()));
        drop(again);
        assert!(!vnis.has("a") && holders.lock().is_empty());
        assert_ne!(wireguards.preference("a", &site).unwrap(), port);
    }
}
