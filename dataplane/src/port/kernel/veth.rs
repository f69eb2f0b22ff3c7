//! A pair of interfaces joined by the kernel: what goes into one comes out of the other.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ferrule_ffi::netlink::{Answer, Netlink, NetlinkError, Request};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage, Stats64};
use nix::errno::Errno;

use super::error::{InterfaceId, KernelError};
use super::message::{Link, far_link_request, link_request};
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
        // What asks after the pair later is there from now on: then there may be no descriptor for it.
        let keep = owner.with_netlink(|_| Ok::<_, io::Error>(()));
        keep.map_err(|error| (0, KernelError::failed("create", &a.into(), error)))?;
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
            for (early, (end, found)) in pair.early_drops.iter_mut().zip(ends.iter_mut().zip(&pair.ends)) {
                *early = end.dropped(found.index);
            }
        }
        Ok(pair)
    }

    /// Makes both interfaces under numbers that nobody has, the first one with its alias from the first moment on: between two system
    /// calls this process can be killed, and whoever finds that one removes both. To give an interface another name later would cost as
    /// much as to make it: the kernel waits until nobody reads the old one.
    fn make(
        owner: &Arc<InterfaceOwner>,
        wire: &str,
        spec: Id,
        ends: &mut [NewEnd<'_>; 2],
    ) -> Result<Self, (usize, KernelError)> {
        let pair = owner.add_pair();
        let aliases = [0, 1].map(|end| owner.alias(pair, end, spec, wire).to_string());
        let indexes = [(); 2].map(|()| free_index());
        make_link(ends, indexes, &aliases[0]).inspect_err(|_| owner.forget(pair, false))?;
        match finish(ends, indexes, aliases) {
            Ok(found) => Ok(Self::new(owner, pair, found)),
            Err(error) => {
                let removed = ends[0].remove(indexes[0]);
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

    /// Whether somebody has the name here.
    fn is_taken(&mut self) -> bool {
        Link::named(&mut self.netlink, self.spec.name.as_str()).is_ok()
    }

    /// What the kernel has dropped of what the interface was to send; 0, if it does not say.
    fn dropped(&mut self, index: u32) -> u64 {
        let asked = link_request(RouteNetlinkMessage::GetLink, index, Vec::new());
        let stats = Link::from_answer(self.netlink.request(asked)).ok().and_then(|link| link.stats);
        stats.map_or(0, |stats| stats.tx_dropped)
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

/// Makes both interfaces under these numbers, the first one with its alias. A failure is about an end.
fn make_link(
    [near, far]: &mut [NewEnd<'_>; 2],
    [index, far_index]: [u32; 2],
    alias: &str,
) -> Result<(), (usize, KernelError)> {
    let mut peer = LinkMessage::default();
    peer.header.index = far_index;
    peer.attributes =
        vec![LinkAttribute::IfName(far.spec.name.to_string()), LinkAttribute::NetNsFd(far.namespace.fd())];
    let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))];
    let name = LinkAttribute::IfName(near.spec.name.to_string());
    let mut create = link_request(RouteNetlinkMessage::NewLink, index, vec![name, LinkAttribute::LinkInfo(info)]);
    create.flags = NLM_F_CREATE | NLM_F_EXCL;
    // By its number: where nothing was made, it is nobody's.
    let answers = near.netlink.exchange(vec![create, mark_request(index, alias)]);
    let interface = InterfaceId::from(near.spec);
    let failed = |refusal| (0, KernelError::failed("create", &interface, refusal));
    let mut answers = answers.map_err(failed)?.into_iter();
    match answers.next() {
        Some(Err(refusal)) if refusal.errno == Errno::EOPNOTSUPP => {
            let reason = refusal.to_string();
            return Err((0, KernelError::DriverMissing { driver: "veth", interface, reason }));
        }
        // The kernel does not say which name it is about.
        Some(Err(refusal)) if refusal.errno == Errno::EEXIST => {
            for (number, end) in [&mut *near, far].into_iter().enumerate() {
                if end.is_taken() {
                    return Err((number, KernelError::NameTaken { interface: InterfaceId::from(end.spec) }));
                }
            }
            return Err(failed(refusal));
        }
        Some(Err(refusal)) => return Err(failed(refusal)),
        _ => {}
    }
    answers.next().unwrap_or(Ok(None)).map(drop).map_err(|refusal| {
        near.remove(index);
        failed(refusal)
    })
}

/// Marks the second interface too.
fn finish(
    [first, second]: &mut [NewEnd<'_>; 2],
    [index, far_index]: [u32; 2],
    [alias, far_alias]: [String; 2],
) -> Result<[VethEnd; 2], (usize, KernelError)> {
    let marked = second.netlink.request(mark_request(far_index, &far_alias));
    marked.map_err(|refusal| (1, KernelError::failed("create", &second.spec.into(), refusal)))?;
    let near = first.found(index, alias).map_err(|error| (0, error))?;
    let far = second.found(far_index, far_alias).map_err(|error| (1, error))?;
    Ok([near, far])
}

/// Gives an interface its alias.
fn mark_request(index: u32, alias: &str) -> Request {
    link_request(RouteNetlinkMessage::SetLink, index, vec![LinkAttribute::IfAlias(alias.to_owned())])
}

/// A number for an interface that no other one has, in whichever namespace: far above those that the kernel gives by itself, and above
/// those of another process by chance.
fn free_index() -> u32 {
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    // The keys of a new `RandomState` are those of no other one.
    let first = || AtomicU32::new((RandomState::new().hash_one(0) & u64::from(INDEX_SPREAD)) as u32);
    let next = NEXT.get_or_init(first).fetch_add(1, Ordering::Relaxed);
    INDEX_MIN + (next & INDEX_SPREAD)
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

/// The kernel counts from 1 in each namespace.
const INDEX_MIN: u32 = 1 << 28;
/// Together with the first one they are positive as the kernel's `int`.
const INDEX_SPREAD: u32 = (1 << 30) - 1;
const GONE: NetlinkError = NetlinkError { errno: Errno::ENODEV, hint: None };
