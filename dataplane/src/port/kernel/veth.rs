//! A pair of interfaces joined by the kernel: what goes into one comes out of the other.

use std::sync::{Arc, Mutex, PoisonError};

use ferrule_ffi::netlink::{Answer, Netlink, NetlinkError, Request};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage, Stats64};
use nix::errno::Errno;

use super::error::{InterfaceId, KernelError};
use super::message::{Link, far_link_request, link_request, named_link_request};
use super::namespace::{Namespace, NamespaceId};
use super::owner::{Alias, Id, InterfaceOwner};
use super::setup::Setup;
use crate::spec::KernelSpec;
use crate::status::{DropReason, Traffic};

/// A veth pair, each end in its own namespace, both set up and up. Dropping it removes the pair, from any thread.
#[derive(Debug)]
pub struct VethPair {
    owner: Arc<InterfaceOwner>,
    pair: Id,
    ends: [VethEnd; 2],
    /// What the kernel counted when it was last asked with success.
    traffic: Mutex<[Traffic; 2]>,
    /// Frames of each end that the kernel dropped before the pair was complete: no loss of the wire.
    early_drops: [u64; 2],
    /// It is to stay when this value goes.
    left: bool,
}

/// How to find an end again from our own namespace.
#[derive(Debug)]
struct VethEnd {
    interface: InterfaceId,
    namespace: NamespaceId,
    index: u32,
    /// Indexes and namespace ids are used again once they are free: an interface with another alias is somebody
    /// else's.
    alias: String,
}

/// What a pair is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairStatus {
    /// What the kernel carried from the first end to the second, and back, since the pair was complete. It never goes back:
    /// what cannot be read is what it was. A large segment that was never cut counts as one frame.
    pub traffic: [Traffic; 2],
    /// Each end.
    pub ends: [PairEnd; 2],
}

/// What is known of one end of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PairEnd {
    /// It is there.
    Up,
    /// The kernel could not be asked now, for want of a descriptor or of memory. It is most likely there.
    Unknown(KernelError),
    /// It is not there, and will not come back.
    Gone(KernelError),
}

impl VethPair {
    /// Makes the pair; a failure leaves nothing behind, and says which end it is about. What a former process of the
    /// same owner left for the wire is taken over if it was made from the same specifications (its traffic does not
    /// stop), and removed if not.
    pub fn create(
        owner: &Arc<InterfaceOwner>,
        wire: &str,
        [a, b]: [&KernelSpec; 2],
    ) -> Result<Self, (usize, KernelError)> {
        let mut ends = [NewEnd::open(a).map_err(|error| (0, error))?, NewEnd::open(b).map_err(|error| (1, error))?];
        let spec = fingerprint([a, b]);
        let leftover = if owner.may_have_leftovers() { take_leftover(owner, wire, spec, &mut ends)? } else { None };
        let adopted = leftover.is_some();
        let mut pair = match leftover {
            Some(pair) => Self::adopt(owner, pair, &mut ends)?,
            None => Self::make(owner, wire, spec, &mut ends)?,
        };
        // From here on a failure drops the pair.
        for (number, (end, found)) in ends.iter_mut().zip(&pair.ends).enumerate() {
            end.set_up(found.index, adopted).map_err(|error| (number, error))?;
        }
        if !adopted {
            // An interface announces itself as soon as it is up, and the other one may not take it yet.
            pair.early_drops = pair.status().traffic.map(|traffic| traffic.dropped());
        }
        Ok(pair)
    }

    /// Makes both interfaces under names that nobody has, with their aliases from the first moment on: between two
    /// system calls this process can be killed.
    fn make(
        owner: &Arc<InterfaceOwner>,
        wire: &str,
        spec: Id,
        ends: &mut [NewEnd<'_>; 2],
    ) -> Result<Self, (usize, KernelError)> {
        let pair = owner.add_pair();
        let aliases = [0, 1].map(|end| owner.alias(pair, end, spec, wire).to_string());
        let names = [0, 1].map(|end| temporary_name(pair, end));
        let [first, second] = &mut *ends;
        let index = make_link(first, second, [&names[0], &names[1]], &aliases[0]).map_err(|error| {
            owner.forget(pair, false);
            (0, error)
        })?;
        match finish(ends, index, &names[1], aliases) {
            Ok(found) => Ok(Self::new(owner, pair, found)),
            Err(error) => {
                let removed = ends[0].remove(index);
                owner.forget(pair, removed);
                Err(error)
            }
        }
    }

    fn adopt(
        owner: &Arc<InterfaceOwner>,
        leftover: Leftover,
        ends: &mut [NewEnd<'_>; 2],
    ) -> Result<Self, (usize, KernelError)> {
        let Leftover { pair, links } = leftover;
        let [near, far] = links;
        let near = ends[0].found(near.index, near.alias).map_err(|error| (0, error))?;
        let far = ends[1].found(far.index, far.alias).map_err(|error| (1, error))?;
        owner.adopt(pair);
        tracing::info!(a = %near.interface, b = %far.interface, "took over a veth pair that a forwarder left");
        Ok(Self::new(owner, pair, [near, far]))
    }

    fn new(owner: &Arc<InterfaceOwner>, pair: Id, ends: [VethEnd; 2]) -> Self {
        Self { owner: Arc::clone(owner), pair, ends, traffic: Mutex::default(), early_drops: [0; 2], left: false }
    }

    /// Lets go of the pair, which stays and works: the next process of the same owner takes it over.
    pub fn leave(mut self) {
        self.left = true;
    }

    /// What it is doing. Asks the kernel, which takes some 50 us.
    pub fn status(&self) -> PairStatus {
        // Held while asking, so that an older answer never replaces a newer one.
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self
            .owner
            .with_netlink(|netlink| self.find(netlink))
            .unwrap_or_else(|refusal| [FindError::Unknown(refusal.clone()), FindError::Unknown(refusal)].map(Err));
        let mut ends = [PairEnd::Up, PairEnd::Up];
        for (number, found) in found.into_iter().enumerate() {
            let failed = |refusal| KernelError::failed("read the counters of", &self.ends[number].interface, refusal);
            match found {
                Ok(stats) => traffic[number] = sent(&stats, self.early_drops[number]),
                Err(FindError::Gone) => ends[number] = PairEnd::Gone(failed(GONE)),
                Err(FindError::Unknown(refusal)) => ends[number] = PairEnd::Unknown(failed(refusal)),
            }
        }
        PairStatus { traffic: *traffic, ends }
    }

    /// The kernel's counters of each end that is still there and still ours.
    fn find(&self, netlink: &mut Netlink) -> Result<[Result<Stats64, FindError>; 2], NetlinkError> {
        let requests =
            self.ends.iter().map(|end| far_link_request(RouteNetlinkMessage::GetLink, end.index, end.namespace));
        let mut answers = netlink.exchange(requests.collect())?.into_iter();
        Ok(self.ends.each_ref().map(|end| end.stats_of(answers.next().unwrap_or(Ok(None)))))
    }

    fn remove(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        let mut unknown = None;
        for (end, found) in self.ends.iter().zip(self.find(netlink)?) {
            match found {
                Ok(_) => {
                    netlink.request(far_link_request(RouteNetlinkMessage::DelLink, end.index, end.namespace))?;
                    return Ok(());
                }
                Err(FindError::Gone) => {}
                Err(FindError::Unknown(refusal)) => unknown = Some(refusal),
            }
        }
        unknown.map_or(Ok(()), Err)
    }
}

impl Drop for VethPair {
    /// Removing one end removes the other. A pair that is gone already is what we want.
    fn drop(&mut self) {
        if self.left {
            return self.owner.forget(self.pair, false);
        }
        // A socket of its own, so that removals wait for the kernel side by side.
        let removed = match Netlink::open() {
            Ok(mut netlink) => self.remove(&mut netlink),
            Err(_) => self.owner.with_netlink(|netlink| self.remove(netlink)),
        };
        if let Err(refusal) = &removed {
            let [a, b] = &self.ends;
            tracing::warn!(a = %a.interface, b = %b.interface, %refusal, "a veth pair could not be removed; a wire that needs its names removes it");
        }
        self.owner.forget(self.pair, removed.is_ok());
    }
}

/// Why an end was not found.
enum FindError {
    /// It is not there, or what is there is somebody else's.
    Gone,
    /// The kernel could not be asked.
    Unknown(NetlinkError),
}

impl VethEnd {
    fn stats_of(&self, answer: Answer) -> Result<Stats64, FindError> {
        let link = Link::from_answer(answer).map_err(|refusal| match refusal.errno {
            // EINVAL: the namespace id means nothing any more.
            Errno::ENODEV | Errno::EINVAL => FindError::Gone,
            _ => FindError::Unknown(refusal),
        })?;
        if link.alias.as_ref() != Some(&self.alias) {
            return Err(FindError::Gone);
        }
        let unread = || NetlinkError { errno: Errno::EBADMSG, hint: Some("no counters in the answer".to_owned()) };
        link.stats.ok_or_else(|| FindError::Unknown(unread()))
    }
}

/// One end while the pair is being made.
struct NewEnd<'a> {
    spec: &'a KernelSpec,
    namespace: Namespace,
    netlink: Netlink,
}

impl<'a> NewEnd<'a> {
    fn open(spec: &'a KernelSpec) -> Result<Self, KernelError> {
        let namespace = Namespace::open(spec)?;
        let netlink = namespace.netlink().map_err(|error| KernelError::failed("create", &spec.into(), error))?;
        Ok(Self { spec, namespace, netlink })
    }

    /// Gives the new interface its alias, and says which number it has.
    fn mark(&mut self, name: &str, alias: &str) -> Result<u32, KernelError> {
        let answers = self.netlink.exchange(mark_requests(name, alias).into());
        let index = answers.and_then(|answers| marked(answers.into_iter()));
        index.map_err(|refusal| KernelError::failed("create", &self.spec.into(), refusal))
    }

    /// Gives the interface its last name.
    fn rename(&mut self, index: u32) -> Result<(), KernelError> {
        let name = LinkAttribute::IfName(self.spec.name.to_string());
        let renamed = self.netlink.request(link_request(RouteNetlinkMessage::SetLink, index, vec![name]));
        let interface = InterfaceId::from(self.spec);
        renamed.map(drop).map_err(|refusal| match refusal.errno {
            Errno::EEXIST => KernelError::NameTaken { interface },
            _ => KernelError::failed("name", &interface, refusal),
        })
    }

    /// How to find the interface again.
    fn found(&self, index: u32, alias: String) -> Result<VethEnd, KernelError> {
        let interface = InterfaceId::from(self.spec);
        match self.namespace.id() {
            Ok(namespace) => Ok(VethEnd { interface, namespace, index, alias }),
            Err(refusal) => Err(KernelError::failed("find", &interface, refusal)),
        }
    }

    fn set_up(&mut self, index: u32, adopted: bool) -> Result<(), KernelError> {
        let Self { spec, namespace, netlink } = self;
        Setup { netlink, namespace, index, spec, adopted }.apply()
    }

    /// Removes an interface here, and with it the other end. Whether it could; if not, a later look finds its alias.
    fn remove(&mut self, index: u32) -> bool {
        self.netlink.request(link_request(RouteNetlinkMessage::DelLink, index, Vec::new())).is_ok()
    }

    /// What the owner left here.
    fn leftovers(&mut self, owner: &InterfaceOwner) -> Result<Vec<(Link, Alias)>, KernelError> {
        let links = Link::all(&mut self.netlink);
        let links = links.map_err(|refusal| KernelError::failed("look for a former", &self.spec.into(), refusal))?;
        Ok(owner.left(links))
    }
}

/// A pair that was left and fits.
struct Leftover {
    pair: Id,
    links: [LeftLink; 2],
}

struct LeftLink {
    index: u32,
    alias: String,
}

/// Looks for what a former process left: what fits comes back, and what is in the way is removed.
fn take_leftover(
    owner: &InterfaceOwner,
    wire: &str,
    spec: Id,
    ends: &mut [NewEnd<'_>; 2],
) -> Result<Option<Leftover>, (usize, KernelError)> {
    let [first, second] = &mut *ends;
    let near = first.leftovers(owner).map_err(|error| (0, error))?;
    let far = second.leftovers(owner).map_err(|error| (1, error))?;
    let fits = |end: usize, name: &str, link: &Link, alias: &Alias| {
        link.name == name && (alias.end, alias.spec, alias.wire.as_str()) == (end, spec, wire)
    };
    let [near_name, far_name] = [first.spec.name.as_str(), second.spec.name.as_str()];
    let fitting = near.iter().filter(|(link, alias)| fits(0, near_name, link, alias)).find_map(|(link, alias)| {
        let mate = |(mate, other): &&(Link, Alias)| other.pair == alias.pair && fits(1, far_name, mate, other);
        let left = |link: &Link, alias: &Alias| LeftLink { index: link.index, alias: alias.to_string() };
        far.iter().find(mate).map(|(mate, other)| (alias.pair, [left(link, alias), left(mate, other)]))
    });
    if let Some((pair, links)) = fitting {
        return Ok(Some(Leftover { pair, links }));
    }
    for (end, left) in [(first, near), (second, far)] {
        for (link, alias) in left {
            if alias.wire == wire || link.name == end.spec.name.as_str() {
                tracing::info!(interface = link.name, %alias, "removing a veth pair that a forwarder left");
                end.remove(link.index);
            }
        }
    }
    Ok(None)
}

/// Makes both interfaces, the first one with its alias, and says which number that one has.
fn make_link(
    near: &mut NewEnd<'_>,
    far: &NewEnd<'_>,
    [name, far_name]: [&str; 2],
    alias: &str,
) -> Result<u32, KernelError> {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![LinkAttribute::IfName(far_name.to_owned()), LinkAttribute::NetNsFd(far.namespace.fd())];
    let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))];
    let mut create = named_link_request(RouteNetlinkMessage::NewLink, name, [LinkAttribute::LinkInfo(info)]);
    create.flags = NLM_F_CREATE | NLM_F_EXCL;
    let [mark, find] = mark_requests(name, alias);
    let interface = InterfaceId::from(near.spec);
    let failed = |refusal| KernelError::failed("create", &interface, refusal);
    let mut answers = near.netlink.exchange(vec![create, mark, find]).map_err(failed)?.into_iter();
    match answers.next() {
        Some(Err(refusal)) if refusal.errno == Errno::EOPNOTSUPP => {
            let (interface, reason) = (interface.clone(), refusal.to_string());
            return Err(KernelError::DriverMissing { driver: "veth", interface, reason });
        }
        Some(Err(refusal)) => return Err(failed(refusal)),
        _ => {}
    }
    marked(answers).map_err(|refusal| {
        let _ = near.netlink.request(named_link_request(RouteNetlinkMessage::DelLink, name, []));
        failed(refusal)
    })
}

/// Marks the second interface too, and gives both their last names.
fn finish(
    [first, second]: &mut [NewEnd<'_>; 2],
    index: u32,
    far_name: &str,
    [alias, far_alias]: [String; 2],
) -> Result<[VethEnd; 2], (usize, KernelError)> {
    let far_index = second.mark(far_name, &far_alias).map_err(|error| (1, error))?;
    first.rename(index).map_err(|error| (0, error))?;
    second.rename(far_index).map_err(|error| (1, error))?;
    let near = first.found(index, alias).map_err(|error| (0, error))?;
    let far = second.found(far_index, far_alias).map_err(|error| (1, error))?;
    Ok([near, far])
}

/// Gives the interface of that name its alias, and asks for its number.
fn mark_requests(name: &str, alias: &str) -> [Request; 2] {
    let alias = LinkAttribute::IfAlias(alias.to_owned());
    [
        named_link_request(RouteNetlinkMessage::SetLink, name, [alias]),
        named_link_request(RouteNetlinkMessage::GetLink, name, []),
    ]
}

/// The number that the answers to [`mark_requests`] tell.
fn marked(mut answers: impl Iterator<Item = Answer>) -> Result<u32, NetlinkError> {
    answers.next().unwrap_or(Ok(None))?;
    Link::from_answer(answers.next().unwrap_or(Ok(None))).map(|link| link.index)
}

/// What an interface is called until it is set up: the kernel takes 15 bytes.
fn temporary_name(pair: Id, end: usize) -> String {
    let pair = pair.to_string();
    format!("fe{end}{}", &pair[..12])
}

/// The same for the same specifications. The names are those of interfaces, and the namespaces are where they are found.
fn fingerprint(specs: [&KernelSpec; 2]) -> Id {
    let text = specs.map(|spec| {
        let KernelSpec { netns: _, name, mac, mtu, addresses, routes } = spec;
        format!("{name} {mac:?} {mtu:?} {addresses:?} {routes:?}")
    });
    Id::of(text.join("\n").as_bytes())
}

/// What an interface sent, which is what the other one received: the kernel counts a frame of a
/// veth as sent when the other end took it.
fn sent(stats: &Stats64, early_drops: u64) -> Traffic {
    let mut traffic = Traffic { frames: stats.tx_packets, bytes: stats.tx_bytes, ..Traffic::default() };
    traffic.drops[DropReason::Refused as usize] = stats.tx_dropped.saturating_sub(early_drops);
    traffic
}

const GONE: NetlinkError = NetlinkError { errno: Errno::ENODEV, hint: None };
