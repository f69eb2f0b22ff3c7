//! A pair of interfaces joined by the kernel: what goes into one comes out of the other.

use std::hash::{BuildHasher as _, RandomState};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage, Stats64};
use nix::errno::Errno;

use super::error::{KernelError, Place};
use super::namespace::{Namespace, NamespaceId};
use super::setup::{far_link_request, find, link_request, set_up};
use crate::spec::KernelSpec;
use crate::status::{DropReason, Traffic};
use ferrule_ffi::netlink::{Answer, Netlink, NetlinkError, Request};

/// A veth pair, each end in its own namespace, both set up and up. Dropping it removes the pair.
#[derive(Debug)]
pub struct VethPair {
    ends: [End; 2],
    /// What both interfaces have as their alias. Indexes and namespace ids are used again once
    /// they are free: an interface without this alias is somebody else's.
    alias: String,
}

/// How to find an end again from our own namespace.
#[derive(Debug)]
struct End {
    place: Place,
    namespace: NamespaceId,
    index: u32,
}

impl VethPair {
    /// Makes the pair; a failure leaves nothing behind.
    pub fn create(a: &KernelSpec, b: &KernelSpec) -> Result<Self, KernelError> {
        let mut sites = [Site::open(a)?, Site::open(b)?];
        make(&mut sites)?;
        // A new RandomState has keys that no other one has: its hash of anything is a fresh number.
        let alias = format!("ferrule {:016x}", RandomState::new().hash_one(0));
        let [site_a, site_b] = &mut sites;
        let ends = match site_a.mark(&alias).and_then(|end_a| Ok([end_a, site_b.mark(&alias)?])) {
            Ok(ends) => ends,
            Err(error) => {
                site_a.remove();
                return Err(error);
            }
        };
        // From here on a failure drops the pair.
        let pair = Self { ends, alias };
        for (site, end) in sites.iter_mut().zip(&pair.ends) {
            set_up(&mut site.netlink, end.index, site.spec)?;
        }
        Ok(pair)
    }

    /// What the kernel carried from the first end to the second, and back, since the pair was made.
    /// A large segment that was never cut counts as one frame.
    pub fn stats(&self) -> Result<[Traffic; 2], KernelError> {
        const TRIED: &str = "read the counters of";
        let failed = |end: usize, refusal| KernelError::failed(TRIED, &self.ends[end].place, refusal);
        let [a, b] = self.refresh().map_err(|refusal| failed(0, refusal))?;
        Ok([sent(&a.map_err(|refusal| failed(0, refusal))?), sent(&b.map_err(|refusal| failed(1, refusal))?)])
    }

    /// The kernel's counters of each end that is still there and still ours.
    fn refresh(&self) -> Result<[Result<Stats64, NetlinkError>; 2], NetlinkError> {
        let requests =
            self.ends.iter().map(|end| far_link_request(RouteNetlinkMessage::GetLink, end.index, end.namespace));
        let mut answers = Netlink::open()?.exchange(requests.collect())?.into_iter();
        let mut next = || self.counters(answers.next().unwrap_or(Ok(None)));
        Ok([next(), next()])
    }

    fn counters(&self, answer: Answer) -> Result<Stats64, NetlinkError> {
        let gone = NetlinkError { errno: Errno::ENODEV, hint: None };
        let link = match answer {
            Ok(Some(RouteNetlinkMessage::NewLink(link))) => link,
            // The namespace id means nothing any more.
            Err(refusal) if refusal.errno == Errno::EINVAL => return Err(gone),
            Err(refusal) => return Err(refusal),
            Ok(_) => return Err(gone),
        };
        let mut stats = None;
        let mut ours = false;
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::Stats64(counters) => stats = Some(counters),
                LinkAttribute::IfAlias(alias) => ours = alias == self.alias,
                _ => {}
            }
        }
        stats.filter(|_| ours).ok_or(gone)
    }

    fn remove(&self) -> Result<(), NetlinkError> {
        let Some(end) = self.ends.iter().zip(self.refresh()?).find_map(|(end, found)| found.is_ok().then_some(end))
        else {
            return Ok(());
        };
        Netlink::open()?.request(far_link_request(RouteNetlinkMessage::DelLink, end.index, end.namespace))?;
        Ok(())
    }
}

impl Drop for VethPair {
    /// Removing one end removes the other. A pair that is gone already is what we want.
    fn drop(&mut self) {
        if let Err(refusal) = self.remove() {
            tracing::debug!(a = %self.ends[0].place, b = %self.ends[1].place, %refusal, "a veth pair could not be removed");
        }
    }
}

/// One end while the pair is being made.
struct Site<'a> {
    spec: &'a KernelSpec,
    place: Place,
    namespace: Namespace,
    netlink: Netlink,
}

impl<'a> Site<'a> {
    fn open(spec: &'a KernelSpec) -> Result<Self, KernelError> {
        let place = Place::from(spec);
        let namespace = Namespace::open(spec)?;
        let netlink = namespace.netlink().map_err(|error| KernelError::failed("create", &place, error))?;
        Ok(Self { spec, place, namespace, netlink })
    }

    fn name(&self) -> &'a str {
        self.spec.name.as_str()
    }

    /// Gives the new interface its alias, and says how to find it again.
    fn mark(&mut self, alias: &str) -> Result<End, KernelError> {
        let mut mark = || {
            let index = find(&mut self.netlink, self.spec.name.as_str())?;
            let alias = vec![LinkAttribute::IfAlias(alias.to_owned())];
            self.netlink.request(link_request(RouteNetlinkMessage::SetLink, index, alias))?;
            Ok(End { place: self.place.clone(), namespace: self.namespace.id()?, index })
        };
        mark().map_err(|refusal: NetlinkError| KernelError::failed("find", &self.place, refusal))
    }

    /// Undoes what [`make`] did. There is nobody to tell if that fails too.
    fn remove(&mut self) {
        let name = vec![LinkAttribute::IfName(self.name().to_owned())];
        let _ = self.netlink.request(link_request(RouteNetlinkMessage::DelLink, 0, name));
    }
}

/// Makes both interfaces at once, each in its namespace and with its last name.
fn make([a, b]: &mut [Site<'_>; 2]) -> Result<(), KernelError> {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![LinkAttribute::IfName(b.name().to_owned()), LinkAttribute::NetNsFd(b.namespace.fd())];
    let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))];
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(a.name().to_owned()), LinkAttribute::LinkInfo(info)];
    let request = Request { message: RouteNetlinkMessage::NewLink(link), flags: NLM_F_CREATE | NLM_F_EXCL };
    let Err(refusal) = a.netlink.request(request) else { return Ok(()) };
    let place = a.place.clone();
    Err(match refusal.errno {
        Errno::EOPNOTSUPP => KernelError::DriverMissing { driver: "veth", place, reason: refusal.to_string() },
        // The kernel does not say which of the two names it means.
        Errno::EEXIST if find(&mut a.netlink, a.spec.name.as_str()).is_err() => {
            KernelError::NameTaken { place: b.place.clone() }
        }
        Errno::EEXIST => KernelError::NameTaken { place },
        _ => KernelError::failed("create", &place, refusal),
    })
}

/// What an interface sent, which is what the other one received: the kernel counts a frame of a
/// veth as sent when the other end took it.
fn sent(stats: &Stats64) -> Traffic {
    let mut traffic = Traffic { frames: stats.tx_packets, bytes: stats.tx_bytes, ..Traffic::default() };
    traffic.drops[DropReason::Refused as usize] = stats.tx_dropped;
    traffic
}
