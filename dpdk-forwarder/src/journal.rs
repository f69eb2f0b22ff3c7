//! The wires of the admin API that outlive the forwarder (`persist`), in one file that is written before anything is done.
//!
//! The file is a list of records, one JSON text a line, each about one wire; a later record about the same wire replaces
//! the earlier. A line counts when it ends: what a kill or a full disk cut short was not acted on. A change that turns
//! out to be impossible is cut off again, which takes no room. At the start, and when the file has grown, it is written
//! anew beside the old one and renamed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::{error, warn};

use dpdk_forwarder_client::v1;

/// The journal, locked against a second writer.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of the file that are whole records.
    length: u64,
    /// Records in the file.
    records: usize,
    /// What the records say together.
    wires: BTreeMap<String, v1::WireSpec>,
    /// What is behind `length` could not be cut off: the file is written anew before the next record.
    dirty: bool,
    /// Grows with every change of the file.
    version: u64,
    _lock: Flock<File>,
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    /// This wire is to be there.
    Put(Box<v1::WireSpec>),
    /// The wire of this name is not.
    Remove(String),
}

/// What a journal said of a wire before a change, to go back to.
#[derive(Debug)]
pub struct Undo {
    name: String,
    wire: Option<v1::WireSpec>,
    place: Option<RecordSpan>,
}

/// Where a change lies in the file. As long as it is the last one, it can be cut off.
#[derive(Clone, Copy, Debug)]
struct RecordSpan {
    length: u64,
    records: usize,
    /// Of the file, before the change and after it.
    versions: (u64, u64),
}

impl Undo {
    /// Goes back behind both of two changes of one wire.
    pub fn of_both(earlier: Option<Self>, later: Option<Self>) -> Option<Self> {
        let (Some(earlier), Some(later)) = (&earlier, &later) else { return earlier.or(later) };
        let place = match (earlier.place, later.place) {
            (Some(first), Some(second)) if first.versions.1 == second.versions.0 => {
                Some(RecordSpan { versions: (first.versions.0, second.versions.1), ..first })
            }
            _ => None,
        };
        Some(Self { name: earlier.name.clone(), wire: earlier.wire.clone(), place })
    }

    /// Goes to this instead.
    #[must_use]
    pub fn to(self, wire: Option<v1::WireSpec>) -> Self {
        Self { name: self.name, wire, place: None }
    }
}

impl Journal {
    /// Locks and reads a journal; one that is not there is empty. Makes missing directories.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let failed = |tried, source| JournalError::Failed { tried, path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(|source| failed("make the directory of", source))?;
        }
        let lock = options().create(true).open(beside(path, "lock")).map_err(|source| failed("lock", source))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => JournalError::Locked { path: path.to_owned() },
            errno => failed("lock", errno.into()),
        })?;
        let contents = Contents::read(path)?;
        let file = options().create(true).open(path).map_err(|source| failed("open", source))?;
        let Contents { wires, length, records, dirty } = contents;
        let mut journal = Self { path: path.to_owned(), file, length, records, wires, dirty, version: 0, _lock: lock };
        if !journal.dirty {
            journal.cut().map_err(|source| failed("cut", source))?;
        }
        if (journal.dirty || journal.records != journal.wires.len())
            && let Err(error) = journal.rewrite()
        {
            // What it says is in use; the next change tries again.
            warn!(path = %path.display(), %error, "the journal could not be written anew");
        }
        Ok(journal)
    }

    /// The wires that are to be there, in the order of their names.
    pub fn wires(&self) -> impl Iterator<Item = &v1::WireSpec> {
        self.wires.values()
    }

    /// Whether a wire is to be there.
    pub fn has(&self, name: &str) -> bool {
        self.wires.contains_key(name)
    }

    /// Records that a wire is to be there: it is on the disk when this returns.
    pub fn put(&mut self, wire: v1::WireSpec) -> Result<Undo, JournalError> {
        self.append(wire.name.clone(), Record::Put(Box::new(wire)))
    }

    /// Records that a wire is not to be there.
    pub fn remove(&mut self, name: &str) -> Result<Undo, JournalError> {
        self.append(name.to_owned(), Record::Remove(name.to_owned()))
    }

    /// Takes a change back. The last one is cut off, which takes no room.
    pub fn undo(&mut self, undo: Undo) -> Result<(), JournalError> {
        let Undo { name, wire, place } = undo;
        let Some(place) = place.filter(|place| place.versions.1 == self.version) else {
            let record = wire.map_or_else(|| Record::Remove(name.clone()), |wire| Record::Put(Box::new(wire)));
            return self.append(name, record).map(drop);
        };
        match wire {
            Some(wire) => self.wires.insert(name, wire),
            None => self.wires.remove(&name),
        };
        (self.length, self.records) = (place.length, place.records);
        self.version += 1;
        let cut = self.cut();
        self.dirty = cut.is_err();
        cut.map_err(|source| self.failed("write", source))
    }

    fn append(&mut self, name: String, record: Record) -> Result<Undo, JournalError> {
        if self.dirty {
            self.rewrite().map_err(|source| self.failed("write", source))?;
        } else if self.records >= REWRITE_AT
            && self.records > 2 * self.wires.len()
            && let Err(error) = self.rewrite()
        {
            // A disk without room for a second file may have some for a record.
            warn!(path = %self.path.display(), %error, "the journal has grown and could not be written anew");
        }
        let mut line = serde_json::to_vec(&record).map_err(|error| self.failed("write", error.into()))?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Half a line may be there.
            self.dirty = self.cut().is_err();
            return Err(self.failed("write", source));
        }
        let place =
            RecordSpan { length: self.length, records: self.records, versions: (self.version, self.version + 1) };
        self.length += line.len() as u64;
        self.records += 1;
        self.version += 1;
        let wire = match record {
            Record::Put(wire) => self.wires.insert(name.clone(), *wire),
            Record::Remove(name) => self.wires.remove(&name),
        };
        Ok(Undo { name, wire, place: Some(place) })
    }

    /// Cuts off what is not to count.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.sync_data()
    }

    /// Writes what is true beside the file, and renames it.
    fn rewrite(&mut self) -> io::Result<()> {
        let fresh = beside(&self.path, "new");
        let mut file = options().create(true).truncate(true).open(&fresh)?;
        let mut text = Vec::new();
        for wire in self.wires.values() {
            serde_json::to_writer(&mut text, &Record::Put(Box::new(wire.clone())))?;
            text.push(b'\n');
        }
        let written = file.write_all(&text).and_then(|()| file.sync_all());
        if let Err(error) = written.and_then(|()| fs::rename(&fresh, &self.path)) {
            let _ = fs::remove_file(&fresh);
            return Err(error);
        }
        // From here on the name leads to the new file, whatever becomes of the next call.
        self.version += 1;
        (self.file, self.length, self.records, self.dirty) = (file, text.len() as u64, self.wires.len(), false);
        // So that the name lasts as well.
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn failed(&self, tried: &'static str, source: io::Error) -> JournalError {
        let path = self.path.clone();
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => JournalError::Full { path, source },
            _ => JournalError::Failed { tried, path, source },
        }
    }
}

/// What a file says.
#[derive(Default)]
struct Contents {
    wires: BTreeMap<String, v1::WireSpec>,
    length: u64,
    records: usize,
    dirty: bool,
}

impl Contents {
    fn read(path: &Path) -> Result<Self, JournalError> {
        let failed = |tried, source| JournalError::Failed { tried, path: path.to_owned(), source };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed("read", error)),
        };
        let mut contents = Self::default();
        let mut damaged = Vec::new();
        for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let whole = line.ends_with(b"\n");
            match serde_json::from_slice(line) {
                Ok(record) if whole => contents.learn(record),
                // What was cut short is the last line. Behind it there is none, unless something else wrote here.
                _ => damaged.push(index + 1),
            }
            if whole && damaged.is_empty() {
                contents.length += line.len() as u64;
            }
        }
        // Nobody was told that a record was written which has no end yet.
        let is_torn = !bytes.is_empty() && !bytes.ends_with(b"\n");
        let torn_only = damaged.is_empty() || (is_torn && damaged == [count_lines(&bytes)]);
        contents.dirty = !torn_only;
        if contents.dirty {
            let kept = beside(path, "damaged");
            fs::copy(path, &kept).map_err(|source| failed("keep a copy of the damaged", source))?;
            error!(path = %path.display(), lines = ?damaged, kept = %kept.display(), "the journal is damaged; its other lines are used");
        }
        Ok(contents)
    }

    fn learn(&mut self, record: Record) {
        self.records += 1;
        match record {
            Record::Put(wire) => drop(self.wires.insert(wire.name.clone(), *wire)),
            Record::Remove(name) => drop(self.wires.remove(&name)),
        }
    }
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.split_inclusive(|&byte| byte == b'\n').count()
}

/// Wires may hold secrets: nobody else reads the file.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

/// Why the journal cannot be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// Another forwarder writes it.
    #[error("the journal {} is in use by another forwarder; give each one its own", path.display())]
    Locked {
        /// The journal.
        path: PathBuf,
    },
    /// There is no room for another record.
    #[error("write the journal {}: {source}; nothing was changed: make room there, then ask again", path.display())]
    Full {
        /// The journal.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel said no.
    #[error("{tried} the journal {}: {source}", path.display())]
    Failed {
        /// What was tried.
        tried: &'static str,
        /// The journal.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Records before a file of mostly outdated ones is written anew.
const REWRITE_AT: usize = 1000;

#[cfg(test)]
mod tests {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use tempfile::TempDir;

    use super::*;

    fn wire(name: &str) -> v1::WireSpec {
        v1::WireSpec { name: name.to_owned(), owner: "test".to_owned(), ..v1::WireSpec::default() }
    }

    fn place() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/wires.journal");
        (directory, path)
    }

    fn names(journal: &Journal) -> Vec<&str> {
        journal.wires().map(|wire| wire.name.as_str()).collect()
    }

    #[test]
    fn what_was_recorded_is_there_after_a_restart() {
        let (_directory, path) = place();
        let mut journal = Journal::open(&path).unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::Locked { .. })));
        for name in ["a", "b", "c"] {
            journal.put(wire(name)).unwrap();
        }
        journal.remove("b").unwrap();
        let undo = journal.put(wire("d")).unwrap();
        journal.undo(undo).unwrap();
        let undo = journal.remove("a").unwrap();
        journal.undo(undo).unwrap();
        assert_eq!(names(&journal), ["a", "c"]);
        drop(journal);
        let again = Journal::open(&path).unwrap();
        assert_eq!(names(&again), ["a", "c"]);
        assert_eq!(again.wires["a"], wire("a"));
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o777, 0o600, "it may hold secrets");
    }

    #[test]
    fn a_kill_at_any_byte_leaves_everything_before_it() {
        let (_directory, path) = place();
        let mut journal = Journal::open(&path).unwrap();
        journal.put(wire("a")).unwrap();
        journal.put(wire("b")).unwrap();
        journal.remove("a").unwrap();
        drop(journal);
        let whole = fs::read(&path).unwrap();
        let mut seen = Vec::new();
        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let mut journal = Journal::open(&path).unwrap();
            let state = names(&journal).join(",");
            if seen.last() != Some(&state) {
                seen.push(state.clone());
            }
            journal.put(wire("z")).unwrap();
            drop(journal);
            let after = names(&Journal::open(&path).unwrap()).join(",");
            assert_eq!(after.trim_start_matches(','), format!("{state},z").trim_start_matches(','), "cut at {length}");
        }
        assert_eq!(seen, ["", "a", "a,b", "b"]);
        assert!(!beside(&path, "damaged").exists(), "a torn last line is no damage");
    }

    #[test]
    fn a_damaged_line_costs_its_own_wire_and_the_file_is_kept() {
        for (damaged, left) in [("a", "b"), ("b", "a")] {
            let (_directory, path) = place();
            let mut journal = Journal::open(&path).unwrap();
            journal.put(wire("a")).unwrap();
            journal.put(wire("b")).unwrap();
            drop(journal);
            // The last line may be one that a newer release wrote: it was acted on.
            let name = format!("\"name\":\"{damaged}\"");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(&name), "{text}");
            let text = text.replace(&name, "\"name\":{}");
            fs::write(&path, &text).unwrap();
            assert_eq!(names(&Journal::open(&path).unwrap()), [left]);
            assert_eq!(fs::read_to_string(beside(&path, "damaged")).unwrap(), text);
            assert_eq!(names(&Journal::open(&path).unwrap()), [left]);
        }
    }

    #[test]
    fn a_change_is_taken_back_also_when_others_came_after_it() {
        let (_directory, path) = place();
        let mut journal = Journal::open(&path).unwrap();
        let length = |path: &Path| fs::metadata(path).unwrap().len();
        journal.put(wire("a")).unwrap();
        let before = length(&path);
        let other = v1::WireSpec { owner: "other".to_owned(), ..wire("a") };
        let first = journal.put(other.clone()).unwrap();
        let second = journal.remove("a").unwrap();
        let both = Undo::of_both(Some(first), Some(second)).unwrap();
        journal.undo(both).unwrap();
        assert_eq!((length(&path), &journal.wires["a"]), (before, &wire("a")), "both were cut off");

        let first = journal.put(other.clone()).unwrap();
        journal.put(wire("b")).unwrap();
        let second = journal.remove("a").unwrap();
        journal.undo(Undo::of_both(Some(first), Some(second)).unwrap()).unwrap();
        let new = journal.put(wire("c")).unwrap();
        journal.put(wire("d")).unwrap();
        journal.undo(new).unwrap();
        let changed = journal.put(other.clone()).unwrap();
        journal.undo(changed.to(Some(other.clone()))).unwrap();
        drop(journal);
        let again = Journal::open(&path).unwrap();
        assert_eq!(names(&again), ["a", "b", "d"]);
        assert_eq!((&again.wires["a"], &again.wires["b"]), (&other, &wire("b")));
    }

    #[test]
    fn a_file_that_grew_is_written_anew() {
        let (_directory, path) = place();
        let mut journal = Journal::open(&path).unwrap();
        for _ in 0..=REWRITE_AT {
            journal.put(wire("a")).unwrap();
        }
        assert!(journal.records < 10, "{}", journal.records);
        journal.put(wire("b")).unwrap();
        drop(journal);
        assert_eq!(names(&Journal::open(&path).unwrap()), ["a", "b"]);
    }

    /// In a process of its own, whose files may not grow: the limit would meet every other test.
    #[test]
    fn a_full_disk_is_told_and_loses_nothing() {
        const INSIDE: &str = "FERRULE_TEST_FULL_DISK";
        let Ok(path) = std::env::var(INSIDE).map(PathBuf::from) else {
            let (_directory, path) = place();
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["journal::tests::a_full_disk_is_told_and_loses_nothing", "--exact", "--nocapture"])
                .env(INSIDE, &path)
                .status()
                .unwrap();
            assert!(status.success());
            return;
        };
        let mut journal = Journal::open(&path).unwrap();
        journal.put(wire("a")).unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        // The signal would end us; blocked, the write says EFBIG.
        block_file_size_signal();
        setrlimit(Resource::RLIMIT_FSIZE, journal.length + 20, hard).unwrap();
        let error = journal.put(wire("b")).unwrap_err();
        assert!(matches!(error, JournalError::Full { .. }), "{error}");
        assert!(error.to_string().contains("nothing was changed: make room there"), "{error}");
        assert_eq!(fs::metadata(&path).unwrap().len(), journal.length, "half a record was cut off");
        assert_eq!(names(&journal), ["a"]);
        setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
        journal.put(wire("c")).unwrap();
        drop(journal);
        assert_eq!(names(&Journal::open(&path).unwrap()), ["a", "c"]);
    }

    fn block_file_size_signal() {
        let mut signals = nix::sys::signal::SigSet::empty();
        signals.add(nix::sys::signal::Signal::SIGXFSZ);
        signals.thread_block().unwrap();
    }
}
