//! What is under way and what is lent, in one file that is written before anything is done.
//!
//! The file is a list of facts, one JSON text a line, each about one VF or one PF; a later fact about the same
//! one replaces the earlier. A line counts when it ends: what a kill cut short was not acted on. At the start,
//! and when the file has grown, it is written anew with what is still true, beside the old one, and renamed.
//!
//! Behind the last line is room for the next ones, of zeros that are on the disk: a line that takes their place is there after one
//! flush. To make a file longer takes the file system a record of its own, which costs more than that.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use tracing::warn;

use crate::address::PciAddress;
use crate::lease::{Claim, Cordon, Lease, PolicyDocument, Resize};
use crate::num_vfs::MadeByHand;

/// The journal of a state directory, locked against a second writer. What it says is [`Facts`], which whoever writes keeps:
/// the disk may be slow, and what is true is asked for meanwhile.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// None: it could not be written, and is written anew with the next record.
    file: Option<File>,
    /// Lines in the file.
    lines: usize,
    /// Their length.
    bytes: usize,
    /// The length of the file, with the zeros behind them.
    room: usize,
    /// Lines from which on it is written anew.
    rewrite_at: usize,
    /// The length from which on it is.
    rewrite_at_bytes: usize,
    _lock: Flock<File>,
    #[cfg(feature = "fake")]
    disk: FakeDisk,
}

/// What is true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Leases by their VF.
    pub leases: BTreeMap<PciAddress, Lease>,
    /// Changes of the number of VFs that are under way, by PF.
    pub resizes: BTreeMap<PciAddress, Resize>,
    /// Numbers of VFs that somebody made, whatever the policies say, by PF.
    pub by_hand: BTreeMap<PciAddress, MadeByHand>,
    /// VFs that only their owners' clients may have, by the name of the owner.
    pub claims: BTreeMap<String, Claim>,
    /// PFs of which no VF is lent to anybody new.
    pub cordons: BTreeMap<PciAddress, Cordon>,
    /// The policies that were given over the API.
    pub policies: Option<PolicyDocument>,
    /// The boot during which the last start was; empty: there was none.
    pub boot: String,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A VF is lent, or being lent or taken back; none: it is free.
    Lease {
        /// The VF.
        vf: PciAddress,
        /// To whom.
        lease: Option<Box<Lease>>,
    },
    /// Several VFs are lent, or being lent, together: all of it is true, or none.
    Leases {
        /// The leases.
        leases: Vec<Lease>,
    },
    /// Leases follow their cards to other addresses, all at once: two cards may have each other's.
    Moved {
        /// Where their VFs were.
        from: Vec<PciAddress>,
        /// The leases, with the addresses where they are.
        leases: Vec<Lease>,
        /// All cordons, which go with the cards as well; none: they are as they were.
        #[serde(default)]
        cordons: Option<BTreeMap<PciAddress, Cordon>>,
    },
    /// The number of VFs is being changed; none: it was.
    Resize {
        /// The PF.
        pf: PciAddress,
        /// How.
        resize: Option<Resize>,
    },
    /// Somebody made the number of VFs of a PF; none: it is the policies' affair.
    ByHand {
        /// The PF.
        pf: PciAddress,
        /// When, and instead of what.
        made: Option<MadeByHand>,
    },
    /// VFs have an owner; none: they have that owner no more.
    Claim {
        /// The owner.
        owner: String,
        /// What it owns.
        claim: Option<Claim>,
    },
    /// No VF of a PF is lent to anybody new; none: they are again.
    Cordon {
        /// The PF.
        pf: PciAddress,
        /// Why.
        cordon: Option<Cordon>,
    },
    /// Policies were given over the API.
    Policies {
        /// What they are.
        document: PolicyDocument,
    },
    /// The manager was started.
    Boot {
        /// `/proc/sys/kernel/random/boot_id`.
        id: String,
    },
}

impl Facts {
    /// The lease of this name that is in force. One that is to begin when a VF is handed over is none yet.
    pub fn lease_named(&self, id: &str) -> Option<&Lease> {
        self.leases.values().find(|lease| lease.in_force().id == id)
    }

    /// Takes over what a record says.
    pub fn learn(&mut self, record: Record) {
        match record {
            Record::Lease { vf, lease: Some(lease) } => drop(self.leases.insert(vf, *lease)),
            Record::Lease { vf, lease: None } => drop(self.leases.remove(&vf)),
            Record::Leases { leases } => self.leases.extend(leases.into_iter().map(|lease| (lease.vf, lease))),
            Record::Moved { from, leases, cordons } => {
                self.leases.retain(|vf, _| !from.contains(vf));
                self.leases.extend(leases.into_iter().map(|lease| (lease.vf, lease)));
                self.cordons = cordons.unwrap_or_else(|| std::mem::take(&mut self.cordons));
            }
            Record::Resize { pf, resize: Some(resize) } => drop(self.resizes.insert(pf, resize)),
            Record::Resize { pf, resize: None } => drop(self.resizes.remove(&pf)),
            Record::ByHand { pf, made: Some(made) } => drop(self.by_hand.insert(pf, made)),
            Record::ByHand { pf, made: None } => drop(self.by_hand.remove(&pf)),
            Record::Claim { owner, claim: Some(claim) } => drop(self.claims.insert(owner, claim)),
            Record::Claim { owner, claim: None } => drop(self.claims.remove(&owner)),
            Record::Cordon { pf, cordon: Some(cordon) } => drop(self.cordons.insert(pf, cordon)),
            Record::Cordon { pf, cordon: None } => drop(self.cordons.remove(&pf)),
            Record::Policies { document } => self.policies = Some(document),
            Record::Boot { id } => self.boot = id,
        }
    }

    fn records(&self) -> impl Iterator<Item = Record> {
        let boot = Record::Boot { id: self.boot.clone() };
        let leases = self.leases.iter().map(|(&vf, lease)| Record::Lease { vf, lease: Some(Box::new(lease.clone())) });
        let resizes = self.resizes.iter().map(|(&pf, resize)| Record::Resize { pf, resize: Some(resize.clone()) });
        let by_hand = self.by_hand.iter().map(|(&pf, made)| Record::ByHand { pf, made: Some(made.clone()) });
        let claims = self.claims.iter();
        let claims = claims.map(|(owner, claim)| Record::Claim { owner: owner.clone(), claim: Some(claim.clone()) });
        let cordons = self.cordons.iter().map(|(&pf, cordon)| Record::Cordon { pf, cordon: Some(cordon.clone()) });
        let policies = self.policies.iter().map(|document| Record::Policies { document: document.clone() });
        [boot].into_iter().chain(leases).chain(resizes).chain(by_hand).chain(claims).chain(cordons).chain(policies)
    }
}

impl Journal {
    /// Locks a state directory, which is made if it is not there, and reads what it remembers.
    pub fn open(directory: &Path) -> Result<(Self, Facts), JournalError> {
        let failed = |tried, source| JournalError::Failed { tried, path: directory.to_owned(), source };
        make_directory(directory, |folder| File::open(folder)?.sync_all()).map_err(|error| failed("make", error))?;
        let lock = directory.join("lock");
        // A disk that is full or only read has it from an earlier start.
        let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&lock);
        let lock = open.or_else(|error| File::open(&lock).map_err(|_| error));
        let lock = lock.map_err(|error| failed("lock", error))?;
        // Whoever can open it can hold it. On a disk that is only read it is as an earlier start left it.
        let _ = lock.set_permissions(Permissions::from_mode(0o600));
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => JournalError::Locked { path: directory.to_owned() },
            errno => failed("lock", errno.into()),
        })?;
        let path = directory.join("journal");
        let facts = read(&path)?;
        let mut journal = Self {
            path,
            file: None,
            lines: 0,
            bytes: 0,
            room: 0,
            rewrite_at: 0,
            rewrite_at_bytes: 0,
            _lock: lock,
            #[cfg(feature = "fake")]
            disk: FakeDisk::default(),
        };
        // A journal that cannot be written can still be read: VFs are shown, and each change says why not.
        if let Err(error) = journal.rewrite(&facts) {
            warn!(path = %journal.path.display(), %error, "the journal cannot be written: nothing is lent before it can be");
        }
        Ok((journal, facts))
    }

    /// How its disk behaves from now on.
    #[cfg(feature = "fake")]
    pub fn set_disk(&mut self, disk: FakeDisk) {
        self.disk = disk;
    }

    /// Makes a fact last: it is on the disk when this returns. `facts_with` tells everything that is true with it.
    pub fn write(&mut self, record: &Record, facts_with: impl FnOnce() -> Facts) -> Result<(), JournalError> {
        let written = self.try_write(record, facts_with);
        written.map_err(|source| JournalError::Failed { tried: "write", path: self.path.clone(), source })
    }

    fn try_write(&mut self, record: &Record, facts_with: impl FnOnce() -> Facts) -> io::Result<()> {
        #[cfg(feature = "fake")]
        self.disk.before_record()?;
        let is_long = self.lines >= self.rewrite_at || self.bytes >= self.rewrite_at_bytes;
        let Some(file) = self.file.as_ref().filter(|_| !is_long) else {
            return self.rewrite(&facts_with());
        };
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let end = self.bytes + line.len();
        if end > self.room {
            line.resize(line.len() + ROOM, 0);
        }
        if let Err(error) = file.write_all_at(&line, self.bytes as u64).and_then(|()| file.sync_data()) {
            // Half a line may be there.
            self.file = None;
            return Err(error);
        }
        self.lines += 1;
        self.room = self.room.max(self.bytes + line.len());
        self.bytes = end;
        Ok(())
    }

    /// Writes the file anew, with what is true and nothing else.
    fn rewrite(&mut self, facts: &Facts) -> io::Result<()> {
        // If this fails after its rename, what is open is no longer the journal.
        self.file = None;
        let beside = self.path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&beside)?;
        let mut text = Vec::new();
        let mut lines = 0;
        for record in facts.records() {
            serde_json::to_writer(&mut text, &record)?;
            text.push(b'\n');
            lines += 1;
        }
        let bytes = text.len();
        text.resize(bytes + ROOM, 0);
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        #[cfg(feature = "fake")]
        self.disk.after_rename()?;
        // The rename itself lasts only when the directory does.
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        self.file = Some(file);
        self.lines = lines;
        self.rewrite_at = REWRITE_AT.max(2 * lines);
        (self.bytes, self.room) = (bytes, text.len());
        self.rewrite_at_bytes = REWRITE_AT_BYTES.max(2 * bytes);
        Ok(())
    }
}

/// How the disk below a journal behaves, in tests.
#[cfg(feature = "fake")]
#[derive(Clone, Debug, Default)]
pub struct FakeDisk {
    /// It is full at the record of this number, counting from one.
    pub full_at: usize,
    /// It fails after the next rename.
    pub fails_after_rename: bool,
    /// No record comes back while somebody holds this.
    pub frozen: Option<std::sync::Arc<std::sync::Mutex<()>>>,
}

#[cfg(feature = "fake")]
impl FakeDisk {
    fn before_record(&mut self) -> io::Result<()> {
        if let Some(frozen) = &self.frozen {
            drop(frozen.lock());
        }
        let left = self.full_at;
        self.full_at = left.saturating_sub(1);
        if left == 1 { Err(io::Error::from_raw_os_error(nix::libc::ENOSPC)) } else { Ok(()) }
    }

    fn after_rename(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.fails_after_rename) {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        Ok(())
    }
}

/// Makes a directory that only its owner may use, and those above it, each of which lasts when this returns: an entry does only when the
/// directory that has it does. One that is there is somebody's, who says what it is like.
fn make_directory(directory: &Path, sync: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let missing: Vec<_> = directory.ancestors().take_while(|folder| !folder.exists()).collect();
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent)?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // From above, as they were made.
    missing
        .iter()
        .rev()
        .filter_map(|folder| folder.parent())
        .try_for_each(|above| sync(if above.as_os_str().is_empty() { Path::new(".") } else { above }))
}

fn read(path: &Path) -> Result<Facts, JournalError> {
    let failed = |source| JournalError::Failed { tried: "read", path: path.to_owned(), source };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed(error)),
    };
    let mut facts = Facts::default();
    // What is behind the last line end was cut short.
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(&[][..], |end| &bytes[..end]);
    let mut lines: Vec<_> = whole.split(|&byte| byte == b'\n').enumerate().collect();
    // Its end may have come to the disk without what is before it.
    lines.pop_if(|(_, line)| line.contains(&0));
    for (index, line) in lines.into_iter().filter(|(_, line)| !line.is_empty()) {
        let record = understand(line).map_err(|error| JournalError::Damaged {
            path: path.to_owned(),
            line: index + 1,
            problem: error.to_string(),
        })?;
        facts.learn(record);
    }
    Ok(facts)
}

/// A line of this release, or of one before it, which had the stages `acquiring` (with `previous`, what was asked before)
/// and `held`.
fn understand(line: &[u8]) -> serde_json::Result<Record> {
    let mut value: Value = serde_json::from_slice(line)?;
    if let Some(lease) = value.pointer_mut("/lease/lease").and_then(Value::as_object_mut) {
        let previous = lease.remove("previous").unwrap_or_default();
        let stage = match lease.get("stage").and_then(Value::as_str) {
            Some("held") => Some(json!("lent")),
            Some("acquiring") if previous.is_null() => Some(json!("new")),
            Some("acquiring") => Some(json!({ "changing": { "from": previous } })),
            _ => None,
        };
        if let Some(stage) = stage {
            lease.insert("stage".to_owned(), stage);
        }
    }
    serde_json::from_value(value)
}

/// Why the journal cannot be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// Somebody else writes.
    #[error("use the state directory {}: another sriov-manager has it; stop that one first", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A line cannot be understood.
    #[error(
        "{}:{line}: {problem}; this is no line of a journal of this release: move the file away to begin without leases, \
         and look at every VF with `ferrule vf list`",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, counting from 1.
        line: usize,
        /// Why not.
        problem: String,
    },
    /// The disk said no.
    #[error("{tried} {}: {source}", path.display())]
    Failed {
        /// What was tried.
        tried: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// So many zeros are written at once behind the last line: room for some forty.
const ROOM: usize = 32 << 10;
/// Lines from which on the file is written anew when most of them are no longer true.
const REWRITE_AT: usize = 1000;
/// And at this length, if no fact is longer: leases may have long names and paths.
const REWRITE_AT_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Driver;
    use crate::attributes::Attributes;
    use crate::lease::{Stage, Wanted};
    use crate::num_vfs::NumVfs;

    /// A journal with its facts, as its owner keeps them.
    struct Kept {
        journal: Journal,
        facts: Facts,
    }

    impl Kept {
        fn open(directory: &Path) -> Self {
            let (journal, facts) = Journal::open(directory).unwrap();
            Self { journal, facts }
        }

        fn record(&mut self, record: &Record) -> Result<(), JournalError> {
            let mut facts = self.facts.clone();
            facts.learn(record.clone());
            self.journal.write(record, || facts.clone())?;
            self.facts = facts;
            Ok(())
        }
    }

    fn resize(to: u32) -> Record {
        Record::Resize {
            pf: PF,
            resize: Some(Resize {
                from: 0,
                to,
                autoprobe: true,
                drivers: BTreeMap::new(),
                force: false,
                by_hand: false,
            }),
        }
    }

    /// A journal without the room behind its lines.
    fn lines_of(path: &Path) -> Vec<u8> {
        let mut bytes = fs::read(path).unwrap();
        bytes.truncate(bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1));
        bytes
    }

    const PF: PciAddress = PciAddress::new(0, 1, 0, 0);

    #[test]
    fn what_was_recorded_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(directory.path());
        kept.record(&resize(4)).unwrap();
        kept.record(&resize(7)).unwrap();
        let made = MadeByHand { boot: "x".into(), wanted: NumVfs::Exactly(4) };
        kept.record(&Record::ByHand { pf: PF, made: Some(made) }).unwrap();
        let claim = Claim { uid: 7, pools: ["fast".into()].into(), vfs: [PF].into(), since: 1 };
        kept.record(&Record::Claim { owner: "plugin".into(), claim: Some(claim) }).unwrap();
        let cordon = Cordon { uid: 0, why: "firmware".into(), card: None };
        kept.record(&Record::Cordon { pf: PF, cordon: Some(cordon) }).unwrap();
        kept.record(&Record::Policies { document: PolicyDocument { generation: 3, text: "pools: []".into() } })
            .unwrap();
        let facts = kept.facts.clone();
        drop(kept);
        // Twice: the second time it was written anew.
        for _ in 0..2 {
            assert_eq!(Kept::open(directory.path()).facts, facts);
        }
        assert_eq!(facts.resizes[&PF].to, 7);
    }

    #[test]
    fn a_line_that_a_kill_cut_short_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        Kept::open(directory.path()).record(&resize(4)).unwrap();
        let path = directory.path().join("journal");
        let whole = lines_of(&path);
        let line = serde_json::to_vec(&Record::Resize { pf: PF, resize: None }).unwrap();
        for cut in 0..=line.len() {
            for room in [0, ROOM] {
                fs::write(&path, [&whole[..], &line[..cut], &vec![0; room]].concat()).unwrap();
                assert_eq!(Kept::open(directory.path()).facts.resizes.len(), 1, "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_line_of_which_a_power_cut_left_only_the_end_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        Kept::open(directory.path()).record(&resize(4)).unwrap();
        let path = directory.path().join("journal");
        let whole = lines_of(&path);
        let mut line = serde_json::to_vec(&Record::Resize { pf: PF, resize: None }).unwrap();
        line.push(b'\n');
        for lost in 1..line.len() {
            let mut torn = line.clone();
            torn[..lost].fill(0);
            fs::write(&path, [&whole[..], &torn, &vec![0; ROOM]].concat()).unwrap();
            assert_eq!(Kept::open(directory.path()).facts.resizes.len(), 1, "the first {lost} bytes are lost");
        }
        // Zeros in the middle are no power cut: each line was on the disk before the next.
        fs::write(&path, [&whole[..], b"\0\n", &line].concat()).unwrap();
        Journal::open(directory.path()).unwrap_err();
    }

    #[test]
    fn lines_take_the_room_that_is_there_and_make_more_when_it_is_used_up() {
        let directory = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(directory.path());
        let path = directory.path().join("journal");
        let length = || fs::metadata(&path).unwrap().len() as usize;
        let mut lengths = BTreeMap::<usize, usize>::new();
        for to in 0..900 {
            kept.record(&resize(to)).unwrap();
            *lengths.entry(length()).or_default() += 1;
        }
        let written = lines_of(&path).len();
        assert!(lengths.len() <= written / ROOM + 2, "{lengths:?} for {written} bytes");
        assert!(length() > written && length() <= written + ROOM, "{} for {written} bytes", length());
        let facts = kept.facts.clone();
        drop(kept);
        assert_eq!(Kept::open(directory.path()).facts, facts);
    }

    #[test]
    fn a_damaged_line_is_named_and_nothing_is_guessed() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("journal"), "{\"boot\":{\"id\":\"x\"}}\nnonsense\n").unwrap();
        let error = Journal::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("journal:2: "), "{error}");
    }

    #[test]
    fn a_journal_of_the_release_before_is_understood() {
        let directory = tempfile::tempdir().unwrap();
        let lease = |vf: &str, stage: &str, previous: &str| {
            format!(
                r#"{{"lease":{{"vf":"{vf}","lease":{{"id":"{vf}","holder":"x","uid":0,"gid":0,"since":1,"pool":null,"vf":"{vf}",
                "pf":"0000:01:00.0","index":0,"wanted":{{"driver":"vfio-pci","attributes":{{}}}},"previous":{previous},
                "before":{{"driver":null,"settings":{{"vlan":{{"id":3,"qos":0,"protocol":"802.1q"}}}},"mtu":null,"members":{{}}}},
                "stage":"{stage}","trouble":"t"}}}}}}"#
            )
            .replace('\n', "")
        };
        let from = r#"{"driver":"kernel","attributes":{}}"#;
        let lines = [
            lease("0000:01:10.0", "acquiring", "null"),
            lease("0000:01:10.1", "acquiring", from),
            lease("0000:01:10.2", "held", "null"),
            lease("0000:01:10.3", "releasing", "null"),
        ];
        fs::write(directory.path().join("journal"), format!("{}\n", lines.join("\n"))).unwrap();
        let facts = Kept::open(directory.path()).facts;
        let stages: Vec<_> = facts.leases.values().map(|lease| lease.stage.clone()).collect();
        let from = Wanted { driver: Driver::Kernel, attributes: Attributes::default() };
        assert_eq!(stages, [Stage::New, Stage::Changing { from }, Stage::Lent, Stage::Releasing]);
        let lease = facts.leases.values().next().unwrap();
        assert_eq!((lease.fault.as_deref(), lease.before.state.as_ref().unwrap().vlan.id), (Some("t"), 3));
        assert_eq!(Kept::open(directory.path()).facts, facts, "and is written anew as one of this release");
    }

    #[test]
    fn a_second_writer_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let first = Journal::open(directory.path()).unwrap();
        let error = Journal::open(directory.path()).unwrap_err();
        assert!(matches!(error, JournalError::Locked { .. }), "{error}");
        drop(first);
        Journal::open(directory.path()).unwrap();
    }

    #[test]
    fn a_directory_that_is_made_lasts_with_those_above_it() {
        let root = tempfile::tempdir().unwrap();
        let synced = std::cell::RefCell::new(Vec::new());
        let make = || {
            make_directory(&root.path().join("a/b/state"), |folder| {
                synced.borrow_mut().push(folder.to_owned());
                Ok(())
            })
        };
        make().unwrap();
        assert_eq!(synced.take(), [root.path().to_owned(), root.path().join("a"), root.path().join("a/b")]);
        make().unwrap();
        assert!(synced.take().is_empty(), "it is there");
    }

    #[test]
    fn only_its_user_can_hold_its_lock() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        drop(Journal::open(&state).unwrap());
        assert_eq!((mode(&state), mode(&state.join("lock"))), (0o700, 0o600));
        // As an earlier release left the lock, in a directory of somebody who wants it so.
        fs::set_permissions(&state, Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(state.join("lock"), Permissions::from_mode(0o644)).unwrap();
        drop(Journal::open(&state).unwrap());
        assert_eq!((mode(&state), mode(&state.join("lock"))), (0o755, 0o600));
    }

    #[test]
    fn a_journal_that_cannot_be_written_is_read_and_says_so_with_each_record_until_it_can() {
        let directory = tempfile::tempdir().unwrap();
        Kept::open(directory.path()).record(&resize(4)).unwrap();
        // In the way of the file that is to take the journal's place.
        let beside = directory.path().join("journal.new");
        fs::create_dir(&beside).unwrap();
        let mut kept = Kept::open(directory.path());
        assert_eq!(kept.facts.resizes[&PF].to, 4);
        kept.record(&resize(5)).unwrap_err();
        fs::remove_dir(&beside).unwrap();
        kept.record(&resize(6)).unwrap();
        drop(kept);
        assert_eq!(Kept::open(directory.path()).facts.resizes[&PF].to, 6);
    }

    #[test]
    fn what_is_written_after_a_failure_behind_the_rename_is_in_the_file_that_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(directory.path());
        kept.journal.lines = kept.journal.rewrite_at;
        kept.journal.set_disk(FakeDisk { fails_after_rename: true, ..FakeDisk::default() });
        kept.record(&resize(4)).unwrap_err();
        kept.record(&resize(5)).unwrap();
        drop(kept);
        assert_eq!(Kept::open(directory.path()).facts.resizes[&PF].to, 5);
    }

    #[test]
    fn the_file_does_not_grow_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(directory.path());
        for to in 0..REWRITE_AT as u32 + 10 {
            kept.record(&resize(to)).unwrap();
        }
        let lines = fs::read_to_string(directory.path().join("journal")).unwrap().lines().count();
        assert!(lines < 20, "{lines}");
    }

    #[test]
    fn long_facts_do_not_make_it_grow_either() {
        let directory = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(directory.path());
        let drivers: BTreeMap<_, _> = (0..4).map(|index| (index, "x".repeat(2000))).collect();
        for to in 0..500 {
            let Record::Resize { pf, resize: Some(resize) } = resize(to) else { unreachable!("it is one") };
            let long = Resize { drivers: drivers.clone(), ..resize };
            kept.record(&Record::Resize { pf, resize: Some(long) }).unwrap();
        }
        let length = fs::metadata(directory.path().join("journal")).unwrap().len();
        assert!(length < (REWRITE_AT_BYTES + ROOM) as u64 + 20_000, "{length}");
    }
}
