//! The interface of a VF: into the namespace of a pod, and back into our own, which is the node's.

use std::os::fd::{AsFd, AsRawFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ferrule_dataplane::port::kernel::message::{Link, link_request, up_request};
use ferrule_dataplane::spec::{MacAddress, NetNs as NetNsSpec};
use ferrule_ffi::netlink::{Netlink, NetlinkError, Request};
use ferrule_ffi::netns::NetNs;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use nix::errno::Errno;

use super::super::interface::InterfacePlace;

/// Whether an interface is where it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// As it was left.
    AtPlace,
    /// The pod had renamed it. It has its name again, and lost what goes with being down.
    Renamed,
    /// It is not in this namespace.
    None,
}

/// Whether an interface of this alias is at its place already. One that the pod has renamed gets its name back.
pub(super) fn look_at(place: &InterfacePlace, alias: &str) -> Result<Presence, NetlinkError> {
    let netns = NetNsSpec::Open(place.netns.clone()).open()?;
    netns.run(|| {
        let mut netlink = Netlink::open()?;
        let Some(link) = find(&mut netlink, alias)? else { return Ok(Presence::None) };
        if link.name == place.name.as_str() {
            return Ok(Presence::AtPlace);
        }
        netlink.request(down_request(link.index))?;
        let renamed = set(&mut netlink, link.index, vec![LinkAttribute::IfName(place.name.to_string())]);
        netlink.request(up_request(link.index))?;
        renamed.map(|()| Presence::Renamed)
    })?
}

/// Brings an interface of our own namespace to its place, and up. When that fails half-way, it is found by its alias.
pub(super) fn bring(
    name: &str,
    place: &InterfacePlace,
    alias: &str,
    mac: MacAddress,
    mtu: Option<u32>,
) -> Result<(), NetlinkError> {
    let target = NetNsSpec::Open(place.netns.clone()).open()?;
    // Moved first and renamed then, it would be there under its own name.
    target.run(|| match Link::named(&mut Netlink::open()?, place.name.as_str()) {
        Ok(_) => Err(NetlinkError {
            errno: Errno::EEXIST,
            hint: Some(format!("the name {} is taken in the pod", place.name)),
        }),
        Err(refusal) if refusal.errno == Errno::ENODEV => Ok(()),
        Err(refusal) => Err(refusal),
    })??;
    let mut netlink = Netlink::open()?;
    let index = Link::named(&mut netlink, name)?.index;
    netlink.request(down_request(index))?;
    set(&mut netlink, index, vec![LinkAttribute::IfAlias(alias.to_owned())])?;
    let there = LinkAttribute::NetNsFd(target.as_fd().as_raw_fd());
    set(&mut netlink, index, vec![LinkAttribute::IfName(place.name.to_string()), there])?;
    target.run(|| {
        let mut netlink = Netlink::open()?;
        let index = Link::named(&mut netlink, place.name.as_str())?.index;
        if let Some(mtu) = mtu {
            set(&mut netlink, index, vec![LinkAttribute::Mtu(mtu)])?;
        }
        netlink.request(up_request(index))?;
        wait_until_up(&mut netlink, index, mac)
    })?
}

/// Takes the interface of this alias out of a namespace, under the name that it had. Whether it was there.
pub(super) fn take_back(from: &NetNs, alias: &str, name: &str) -> Result<bool, NetlinkError> {
    let own = NetNs::current()?;
    let moved = from.run(|| {
        let mut netlink = Netlink::open()?;
        let Some(link) = find(&mut netlink, alias)? else { return Ok(None) };
        netlink.request(down_request(link.index))?;
        let there = LinkAttribute::NetNsFd(own.as_fd().as_raw_fd());
        Ok::<_, NetlinkError>(Some(set(&mut netlink, link.index, vec![LinkAttribute::IfName(name.to_owned()), there])))
    })??;
    let Some(moved) = moved else { return Ok(false) };
    let mut netlink = Netlink::open()?;
    match (find(&mut netlink, alias)?, moved) {
        (Some(link), moved) => {
            if moved.is_err() {
                // It came, and somebody has its name.
                set(&mut netlink, link.index, vec![LinkAttribute::IfName(ANY_NAME.to_owned())])?;
            }
            set(&mut netlink, link.index, vec![LinkAttribute::IfAlias(String::new())])?;
            Ok(true)
        }
        (None, Err(refusal)) => Err(refusal),
        (None, Ok(())) => Err(NetlinkError { errno: Errno::ENODEV, hint: Some(format!("{name} did not come back")) }),
    }
}

fn find(netlink: &mut Netlink, alias: &str) -> Result<Option<Link>, NetlinkError> {
    Ok(Link::all(netlink)?.into_iter().find(|link| link.alias.as_deref() == Some(alias)))
}

/// The driver of a VF takes its address from the PF when it comes up, some of them a moment later, and its link takes a moment too.
fn wait_until_up(netlink: &mut Netlink, index: u32, mac: MacAddress) -> Result<(), NetlinkError> {
    let end = Instant::now() + UP_MAX;
    loop {
        let Some(RouteNetlinkMessage::NewLink(link)) =
            netlink.request(link_request(RouteNetlinkMessage::GetLink, index, Vec::new()))?
        else {
            return Err(NetlinkError { errno: Errno::EBADMSG, hint: Some("no interface in the answer".to_owned()) });
        };
        let has_mac = link.attributes.contains(&LinkAttribute::Address(mac.0.to_vec()));
        let has_link = link.header.flags.contains(LinkFlags::LowerUp);
        if has_mac && has_link {
            return Ok(());
        }
        if Instant::now() > end {
            if !has_mac {
                set(netlink, index, vec![LinkAttribute::Address(mac.0.to_vec())])?;
            }
            // Its cable may be plugged in later.
            return Ok(());
        }
        sleep(UP_POLL);
    }
}

fn set(netlink: &mut Netlink, index: u32, attributes: Vec<LinkAttribute>) -> Result<(), NetlinkError> {
    netlink.request(link_request(RouteNetlinkMessage::SetLink, index, attributes)).map(drop)
}

fn down_request(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.change_mask = LinkFlags::Up;
    Request { message: RouteNetlinkMessage::SetLink(link), flags: 0 }
}

/// What an interface is called whose name somebody else has by now; the kernel puts a number in.
const ANY_NAME: &str = "vf%d";
const UP_MAX: Duration = Duration::from_secs(4);
const UP_POLL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use ferrule_dataplane::port::kernel::create_tun;
    use ferrule_dataplane::spec::{KernelSpec, OpenNetNs};

    use super::*;

    #[test]
    fn an_interface_that_the_pod_has_renamed_gets_its_name_back() {
        let Ok(netns) = NetNs::private() else {
            return println!("skipped: a renamed interface: a namespace of its own");
        };
        let netns = OpenNetNs::try_from(OwnedFd::from(netns)).unwrap();
        let place = InterfacePlace { netns: netns.clone(), name: "nsm-1".parse().unwrap() };
        let netns = NetNsSpec::Open(netns);
        let spec = KernelSpec { netns: Some(netns.clone()), ..KernelSpec::new(place.name.clone()) };
        let _device = match create_tun(&spec) {
            Ok(device) => device,
            Err(error) => return println!("skipped: a renamed interface: no TUN device ({error})"),
        };
        let change = |from: &str, attribute: LinkAttribute| {
            let changed = netns.open().unwrap().run(|| {
                let mut netlink = Netlink::open()?;
                let index = Link::named(&mut netlink, from)?.index;
                set(&mut netlink, index, vec![attribute])
            });
            changed.unwrap().unwrap();
        };
        change("nsm-1", LinkAttribute::IfAlias("ours".to_owned()));
        assert_eq!(look_at(&place, "ours").unwrap(), Presence::AtPlace);
        change("nsm-1", LinkAttribute::IfName("x".to_owned()));
        assert_eq!(look_at(&place, "another").unwrap(), Presence::None);
        assert_eq!(look_at(&place, "ours").unwrap(), Presence::Renamed);
        assert_eq!(look_at(&place, "ours").unwrap(), Presence::AtPlace);
    }
}
