//! Who makes interfaces, so that a forwarder that was killed finds its own again and nobody else's.
//!
//! A veth pair outlives the process that made it. The alias of each of its interfaces names the owner, the pair, the
//! end and the wire. The owner is the id in a file that the living forwarder holds locked: `flock` works across
//! containers and pid namespaces, where a pid in the alias would mean another process or none. So an interface with
//! our id, which is of no pair that this process has, was left behind by a process that is dead.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ferrule_ffi::netlink::{Netlink, NetlinkError};
use netlink_packet_route::RouteNetlinkMessage;
use thiserror::Error;

use super::message::{Link, link_request};

/// The forwarder as the owner of interfaces.
pub struct InterfaceOwner {
    id: Id,
    file: Option<IdFile>,
    pairs: Mutex<Pairs>,
    netlink: Mutex<Option<Netlink>>,
}

impl InterfaceOwner {
    /// One that lives as long as this process, and finds nothing again.
    pub fn process() -> Self {
        Self::new(Id::random(), None, false)
    }

    /// The one whose id is in the file at `path`, which is made if there is none. One process has it at a time. Its
    /// clean end removes the file, unless it was left by a process that was killed: there may be interfaces of that
    /// one that nobody has asked for again.
    pub fn open(path: &Path) -> Result<Self, InterfaceOwnerError> {
        let (file, known) = IdFile::open(path)?;
        Ok(match known {
            Some(id) => Self::new(id, Some(file), true),
            None => Self::new(file.store(Id::random())?, Some(file), false),
        })
    }

    fn new(id: Id, file: Option<IdFile>, leftovers: bool) -> Self {
        Self { id, file, pairs: Mutex::new(Pairs { present: HashSet::new(), leftovers }), netlink: Mutex::new(None) }
    }

    /// A new pair of this process, for `wire`.
    pub(super) fn add_pair(&self) -> Id {
        let pair = Id::random();
        self.adopt(pair);
        pair
    }

    /// A pair that is this process's from now on.
    pub(super) fn adopt(&self, pair: Id) {
        self.pairs().present.insert(pair);
    }

    /// A pair that is not this process's any more; `removed`: nor is it there.
    pub(super) fn forget(&self, pair: Id, removed: bool) {
        let mut pairs = self.pairs();
        pairs.present.remove(&pair);
        pairs.leftovers |= !removed;
    }

    /// A word that nobody else has: others who make interfaces for this owner mark theirs with it.
    pub fn word(&self) -> String {
        self.id.to_string()
    }

    /// Removes what a former process left for wires in the namespace of the socket, and says for how many. `claim` says which wires
    /// nobody wants: they stay so as long as it lives what it returns.
    ///
    /// # Errors
    /// The kernel does not say what is there.
    pub fn remove_left<C>(
        &self,
        netlink: &mut Netlink,
        claim: impl Fn(&str) -> Option<C>,
    ) -> Result<usize, NetlinkError> {
        let mut removed = 0;
        for (link, alias) in self.left(Link::all(netlink)?) {
            let Some(_claimed) = claim(&alias.wire) else { continue };
            // It may have gone with its other end, which is in this namespace too.
            if netlink.request(link_request(RouteNetlinkMessage::DelLink, link.index, Vec::new())).is_ok() {
                tracing::info!(interface = link.name, %alias, "removed a veth pair that a forwarder left");
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Those that were left behind.
    pub(super) fn left(&self, links: Vec<Link>) -> Vec<(Link, Alias)> {
        let left = |link: Link| {
            let alias = link.alias.as_ref()?.parse().ok().filter(|alias| self.has_left(alias))?;
            Some((link, alias))
        };
        links.into_iter().filter_map(left).collect()
    }

    /// Whether there may be interfaces of ours that no value stands for.
    pub fn may_have_leftovers(&self) -> bool {
        self.pairs().leftovers
    }

    /// Whether an interface of this alias was left behind.
    fn has_left(&self, alias: &Alias) -> bool {
        alias.owner == self.id && !self.pairs().present.contains(&alias.pair)
    }

    /// What the interface at `end` of a pair is called.
    pub(super) fn alias(&self, pair: Id, end: usize, spec: Id, wire: &str) -> Alias {
        Alias { owner: self.id, pair, end, spec, wire: wire.to_owned() }
    }

    /// Works with a netlink socket of our own namespace that is kept open: a process that is out of descriptors can
    /// still ask.
    pub(super) fn with_netlink<T, E: From<io::Error>>(
        &self,
        work: impl FnOnce(&mut Netlink) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut kept = self.netlink.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *kept {
            Some(netlink) => work(netlink),
            None => work(kept.insert(Netlink::open()?)),
        }
    }

    fn pairs(&self) -> MutexGuard<'_, Pairs> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for InterfaceOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InterfaceOwner({})", self.id)
    }
}

impl Drop for InterfaceOwner {
    fn drop(&mut self) {
        let pairs = self.pairs();
        if let Some(file) = &self.file
            && pairs.present.is_empty()
            && !pairs.leftovers
        {
            // The lock is still held, so nobody else relies on the file. One that stays does no harm.
            let _ = fs::remove_file(&file.path);
        }
    }
}

/// The pairs of an owner.
struct Pairs {
    /// Those that a value in this process stands for.
    present: HashSet<Id>,
    /// Whether there may be others.
    leftovers: bool,
}

/// A file with an id, locked as long as this value lives.
struct IdFile {
    file: File,
    path: PathBuf,
}

impl IdFile {
    fn open(path: &Path) -> Result<(Self, Option<Id>), InterfaceOwnerError> {
        let failed = |source| InterfaceOwnerError::File { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        loop {
            let mut file = options.open(path).map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(InterfaceOwnerError::InUse { path: path.to_owned() }),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            if !leads_to(path, &file).map_err(failed)? {
                // Its former holder removed it between the two calls.
                continue;
            }
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(failed)?;
            let known = match text.trim_end() {
                "" => None,
                text => Some(text.parse().map_err(|()| InterfaceOwnerError::Foreign { path: path.to_owned() })?),
            };
            return Ok((Self { file, path: path.to_owned() }, known));
        }
    }

    fn store(&self, id: Id) -> Result<Id, InterfaceOwnerError> {
        let mut file = &self.file;
        let written = file.rewind().and_then(|()| file.write_all(format!("{id}\n").as_bytes()));
        written.map_err(|source| InterfaceOwnerError::File { path: self.path.clone(), source })?;
        Ok(id)
    }
}

fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Why a forwarder cannot have its id.
#[derive(Debug, Error)]
pub enum InterfaceOwnerError {
    /// Another process has it.
    #[error("lock {}: another forwarder runs with it; stop that one, or give this one a file of its own", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("read {}: it is not the id file of a forwarder; name another file", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be used.
    #[error("open {}: {source}; the forwarder needs a directory where it may make this file", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What an interface of ours has as its alias, at most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alias {
    /// Whose it is.
    pub owner: Id,
    /// Of which pair. Indexes and namespace ids are used again once they are free; this is not.
    pub pair: Id,
    /// Which end of it: 0 or 1.
    pub end: usize,
    /// What was asked for, as [`Id::of`] both specifications: a pair of the same fits.
    pub spec: Id,
    /// For which wire: of at most 64 bytes, the last field since it may hold anything.
    pub wire: String,
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, pair, end, spec, wire } = self;
        write!(f, "ferrule owner={owner} pair={pair} spec={spec} end={end} wire={wire}")
    }
}

impl FromStr for Alias {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut rest = text.strip_prefix("ferrule ").ok_or(())?;
        let mut field = |name: &str| {
            let (value, behind) = rest.strip_prefix(name)?.strip_prefix('=')?.split_once(' ')?;
            rest = behind;
            Some(value)
        };
        let (owner, pair, spec) = (field("owner").ok_or(())?, field("pair").ok_or(())?, field("spec").ok_or(())?);
        let end = match field("end") {
            Some("0") => 0,
            Some("1") => 1,
            _ => return Err(()),
        };
        let wire = rest.strip_prefix("wire=").ok_or(())?.to_owned();
        Ok(Self { owner: owner.parse()?, pair: pair.parse()?, spec: spec.parse()?, end, wire })
    }
}

/// A number written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id(u64);

impl Id {
    /// One that nothing else has: the keys of a new `RandomState` are those of no other one.
    pub fn random() -> Self {
        Self(RandomState::new().hash_one(0))
    }

    /// The same for the same bytes in every process (FNV-1a).
    pub fn of(bytes: &[u8]) -> Self {
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self(bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Id {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u64::from_str_radix(text, 16)).and_then(Result::ok).map(Self).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_read_as_it_was_written_whatever_the_wire_is_called() {
        let owner = InterfaceOwner::process();
        for wire in ["pod-gateway", "a wire=b end=1 ", "", &"x".repeat(64)] {
            let alias = owner.alias(Id::random(), 1, Id::of(b"spec"), wire);
            let text = alias.to_string();
            assert!(text.len() < 256, "{text}");
            assert_eq!(text.parse(), Ok(alias));
        }
    }

    #[test]
    fn what_somebody_else_wrote_is_no_alias_of_ours() {
        let ours = InterfaceOwner::process().alias(Id::random(), 0, Id::of(b"spec"), "w").to_string();
        for bad in [
            "",
            "ferrule",
            "server-4b1c",
            &ours[1..],
            &ours.replace("end=0", "end=2"),
            &ours.replace("pair=", "pair=+"),
        ] {
            assert_eq!(bad.parse::<Alias>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn an_id_survives_a_process_that_was_killed_and_not_a_clean_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id");
        let first = InterfaceOwner::open(&path).unwrap();
        let (id, pair) = (first.id, first.add_pair());
        let alias = first.alias(pair, 0, Id::of(b""), "w");
        assert!(!first.has_left(&alias) && !first.may_have_leftovers());
        assert!(
            matches!(InterfaceOwner::open(&path), Err(InterfaceOwnerError::InUse { .. })),
            "one process has it at a time"
        );
        // The pair was not removed, as when the process is killed.
        drop(first);
        let second = InterfaceOwner::open(&path).unwrap();
        assert_eq!(second.id, id);
        assert!(second.may_have_leftovers() && second.has_left(&alias));
        second.adopt(pair);
        assert!(!second.has_left(&alias));
        second.forget(pair, true);
        assert!(!InterfaceOwner::process().has_left(&alias), "somebody else's");
    }

    #[test]
    fn a_clean_end_leaves_no_file_and_a_failed_removal_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id");
        for removed in [true, false] {
            let owner = InterfaceOwner::open(&path).unwrap();
            owner.forget(owner.add_pair(), removed);
            assert_eq!(owner.may_have_leftovers(), !removed);
            drop(owner);
            assert_eq!(path.exists(), !removed);
        }
    }

    #[test]
    fn a_file_of_another_kind_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        fs::write(&path, "do not lose this").unwrap();
        assert!(matches!(InterfaceOwner::open(&path), Err(InterfaceOwnerError::Foreign { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "do not lose this");
        let error = InterfaceOwner::open(&folder.path().join("none/id")).unwrap_err().to_string();
        assert!(error.contains("none/id") && error.contains("directory"), "{error}");
    }
}
