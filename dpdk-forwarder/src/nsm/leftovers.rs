//! What a forwarder that was killed has left in pods, and nobody has asked for again: found by its aliases, in every namespace that a
//! process or a file keeps.

use std::collections::BTreeSet;

use ferrule_dataplane::port::kernel::InterfaceOwner;
use ferrule_dataplane::spec::NetNs;
use ferrule_ffi::netlink::{Netlink, NetlinkError};
use ferrule_ffi::netns;

use super::joint::connection_of;
use super::namespaces::namespaces;
use super::{rules, tunnel};

/// Removes what is left of connections that `claim` says nobody wants, which it goes on saying as long as it lives what it returns.
/// Blocks. How much it was.
pub(super) fn remove_everywhere<C>(owner: &InterfaceOwner, claim: impl Fn(&str) -> Option<C> + Sync) -> usize {
    let mut seen = BTreeSet::new();
    let mut removed = 0;
    for path in namespaces() {
        // One that is another file by now, or none any more, is looked at as what it is.
        let Ok(Some(found)) = netns::namespace_at(&path) else { continue };
        if !seen.insert(found.inode) {
            continue;
        }
        match netns::NetNs::open(&path).map_err(NetlinkError::from).and_then(|netns| remove_in(&netns, owner, &claim)) {
            Ok(count) => removed += count,
            Err(error) => tracing::debug!(path = %path.display(), %error, "a namespace is not looked at"),
        }
    }
    removed
}

/// Removes what is left of one connection in a namespace. Blocks.
pub(super) fn remove_of(owner: &InterfaceOwner, netns: &NetNs, connection: &str) -> Result<usize, NetlinkError> {
    remove_in(&netns.open()?, owner, &|id: &str| (id == connection).then_some(()))
}

fn remove_in<C>(
    netns: &netns::NetNs,
    owner: &InterfaceOwner,
    claim: &(impl Fn(&str) -> Option<C> + Sync),
) -> Result<usize, NetlinkError> {
    netns.run(|| {
        let mut netlink = Netlink::open()?;
        let wires = owner.remove_left(&mut netlink, |wire| claim(connection_of(wire)?))?;
        let tunnels = tunnel::remove_left(&mut netlink, &owner.word(), claim)?;
        // They are of the namespace, and lead nowhere now.
        Ok(wires + tunnels + rules::remove_idle(&mut netlink)?)
    })?
}
