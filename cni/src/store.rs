//! What has to be known later, on the disk: a record for each attachment, written before what it says is done.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::network::Network;
use crate::protocol::{Attachment, CniError};

/// The records of one kind of attachments.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

/// What every record says, whatever its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<T> {
    /// The network's name.
    pub network: String,
    /// The conflist whose pods' devices are attached to it; none: a runtime knows it.
    #[serde(default)]
    pub chain: Option<String>,
    /// The container.
    pub container: String,
    /// Its interface.
    pub interface: String,
    /// The file of its namespace.
    pub netns: PathBuf,
    /// The start of the machine in which it was written.
    pub boot: String,
    /// What was done for it, or was about to be.
    pub what: T,
}

impl<T> Record<T> {
    /// Of an attachment.
    pub fn new(network: &Network, attachment: &Attachment, boot: String, what: T) -> Self {
        Self {
            network: network.name.clone(),
            chain: network.chain.clone(),
            container: attachment.container.clone(),
            interface: attachment.interface.clone(),
            netns: attachment.netns.clone().unwrap_or_default(),
            boot,
            what,
        }
    }

    /// Whether it is of this attachment.
    pub fn is_of(&self, attachment: &Attachment) -> bool {
        self.container == attachment.container && self.interface == attachment.interface
    }

    /// Whether its container is surely gone: with the start of the machine that it was written in, or with its namespace.
    pub fn is_over(&self, boot: &str) -> bool {
        self.boot != boot || !self.netns.exists()
    }

    /// Whether it is garbage of a network of the runtime.
    pub fn is_stale(&self, network: &Network) -> bool {
        let is =
            |(container, interface): &(String, String)| *container == self.container && *interface == self.interface;
        self.chain.is_none() && self.network == network.name && !network.valid.iter().any(is)
    }

    /// Whether it is garbage of a conflist: of its pods the runtime knows nothing but their own interface.
    pub fn is_stale_of_chain(&self, network: &Network) -> bool {
        self.chain.as_ref() == Some(&network.name) && !network.has_valid(&self.container)
    }
}

/// Nobody else works on the same as long as this value lives, or its process.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the lock ends with it")] Flock<File>);

/// No other command about the same attachment is at work: a DEL waits for an ADD that its runtime has given up, and undoes it.
#[derive(Debug)]
pub struct AttachmentLock {
    path: PathBuf,
    _lock: Lock,
}

impl AttachmentLock {
    /// Waits until it is this command's turn.
    pub fn wait(state: &Path, attachment: &Attachment) -> Result<Self, CniError> {
        let folder = state.join(LOCKS);
        let path = folder.join(format!("{}:{}", attachment.container, attachment.interface));
        let failed = |error: io::Error| CniError::failed(&format!("lock {}", path.display()), error);
        make(&folder)?;
        loop {
            let file = open_lock(&path).map_err(failed)?;
            let inode = file.metadata().map_err(failed)?.ino();
            let lock = lock_file(file).map_err(failed)?;
            // Whoever had it has removed the file, and somebody else may have another one of its name.
            if fs::metadata(&path).is_ok_and(|now| now.ino() == inode) {
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

impl Drop for AttachmentLock {
    /// Containers come and go, so their files do.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Store {
    /// That of a kind, below the folder of all state.
    pub fn open(state: &Path, kind: &str) -> Result<Self, CniError> {
        let folder = state.join(kind);
        make(&folder)?;
        make(&state.join(LOCKS))?;
        Ok(Self { folder })
    }

    /// Waits until nobody else works on what is called so.
    pub fn lock(&self, name: &str) -> Result<Lock, CniError> {
        let path = self.folder.with_file_name(LOCKS).join(name);
        let failed = |error: io::Error| CniError::failed(&format!("lock {}", path.display()), error);
        open_lock(&path).and_then(lock_file).map_err(failed)
    }

    /// The record of an attachment; none: nothing was done for it, or all of it was undone.
    pub fn find<T: DeserializeOwned>(&self, attachment: &Attachment) -> Result<Option<Record<T>>, CniError> {
        read(&self.path(&attachment.container, &attachment.interface))
    }

    /// All records.
    pub fn all<T: DeserializeOwned>(&self) -> Result<Vec<Record<T>>, CniError> {
        let failed = |error| CniError::failed(&format!("list {}", self.folder.display()), error);
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|ending| ending == ENDING) {
                records.extend(read(&path)?);
            }
        }
        Ok(records)
    }

    /// Writes a record. It is on the disk when this returns: whole, or as it was before.
    pub fn write<T: Serialize>(&self, record: &Record<T>) -> Result<(), CniError> {
        let path = self.path(&record.container, &record.interface);
        let write = || -> io::Result<()> {
            let new = path.with_extension("new");
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec_pretty(record)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|error| CniError::failed(&format!("write {}", path.display()), error))
    }

    /// Nothing is left of what a record says.
    pub fn remove<T>(&self, record: &Record<T>) -> Result<(), CniError> {
        let path = self.path(&record.container, &record.interface);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CniError::failed(&format!("remove {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }

    /// No name of an interface has a colon, and neither has a container's.
    fn path(&self, container: &str, interface: &str) -> PathBuf {
        self.folder.join(format!("{container}:{interface}.{ENDING}"))
    }
}

fn make(folder: &Path) -> Result<(), CniError> {
    fs::create_dir_all(folder).map_err(|error| CniError::failed(&format!("make {}", folder.display()), error))
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

fn lock_file(file: File) -> io::Result<Lock> {
    Flock::lock(file, FlockArg::LockExclusive).map(Lock).map_err(|(_, errno)| errno.into())
}

/// A record that cannot be read is not one that is not there: what it says was done.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<Record<T>>, CniError> {
    let contents = match fs::read(path) {
        Ok(contents) => contents,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CniError::failed(&format!("read {}", path.display()), error)),
    };
    let record = serde_json::from_slice(&contents);
    record.map(Some).map_err(|error| {
        CniError::failed(
            &format!("read {}", path.display()),
            format!("{error}: undo by hand what it says, and remove it"),
        )
    })
}

/// Which start of the machine this is.
pub fn boot(root: &Path) -> String {
    fs::read_to_string(root.join("proc/sys/kernel/random/boot_id")).unwrap_or_default().trim().to_owned()
}

const LOCKS: &str = "locks";
const ENDING: &str = "json";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_record_is_found_until_it_is_removed_and_one_that_cannot_be_read_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), "vf").unwrap();
        let attachment = Attachment {
            container: "c.1".into(),
            interface: "net1".into(),
            netns: Some("/run/netns/pod".into()),
            args: BTreeMap::new(),
        };
        assert_eq!(store.find::<u32>(&attachment).unwrap(), None);
        let network = Network::read(br#"{"cniVersion": "1.0.0", "name": "net"}"#).unwrap();
        let record = Record::new(&network, &attachment, "boot".into(), 7);
        store.write(&record).unwrap();
        // A write that was cut off.
        fs::write(directory.path().join("vf/other:net1.new"), "{").unwrap();
        assert_eq!(store.all().unwrap(), std::slice::from_ref(&record));
        assert_eq!(store.find(&attachment).unwrap(), Some(record.clone()));
        fs::write(store.path("c.1", "net1"), "{").unwrap();
        assert!(store.find::<u32>(&attachment).unwrap_err().message.contains("c.1:net1.json"));
        store.remove(&record).unwrap();
        store.remove(&record).unwrap();
        assert_eq!(store.all::<u32>().unwrap(), []);
    }
}
