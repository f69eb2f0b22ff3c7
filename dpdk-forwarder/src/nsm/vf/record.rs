//! What VFs were before connections changed them: written before they are, so that a forwarder that comes after one that was killed can give
//! them back.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use prost::Message;
use serde::{Deserialize, Serialize};
use sriov_manager_client::v1;

/// One VF that a connection has changed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct UsedVf {
    pub(super) connection: String,
    /// By which its interface is found, wherever it is; empty: it has none.
    pub(super) alias: String,
    /// What that was called; empty: it has none.
    pub(super) interface: String,
    /// The lease as it was.
    pub(super) before: v1::Lease,
}

#[derive(Serialize, Deserialize)]
struct Line {
    connection: String,
    alias: String,
    interface: String,
    /// The message, in hexadecimal digits.
    before: String,
}

/// Those of this forwarder, in a directory that it has alone.
pub(super) struct Records {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Records {
    /// Makes the directory if it is not there.
    pub(super) fn open(directory: &Path) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!(
                "what VFs were before is kept in {}: {error}; name another directory by `sriov_state`",
                directory.display()
            )
        };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|error| failed(&error))?;
        let path = directory.join(LOCK);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(|error| failed(&error))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => failed(&"another forwarder has it"),
            errno => failed(&errno),
        })?;
        Ok(Self { directory: directory.to_owned(), _lock: lock })
    }

    /// The one of a VF.
    pub(super) fn of(&self, vf: &str) -> io::Result<Option<UsedVf>> {
        match fs::read(self.directory.join(vf)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => UsedVf::read(&read?).map(Some),
        }
    }

    /// All of them. What cannot be read is left where it is, and told in the log.
    pub(super) fn all(&self) -> io::Result<Vec<UsedVf>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            // Neither the lock nor what was begun is one.
            let is_record = path.extension().is_none_or(|extension| extension != BEGUN && extension != "lock");
            if is_record {
                match fs::read(&path).and_then(|text| UsedVf::read(&text)) {
                    Ok(used) => all.push(used),
                    Err(error) => tracing::warn!(path = %path.display(), %error, "what a VF was before cannot be read"),
                }
            }
        }
        Ok(all)
    }

    pub(super) fn put(&self, used: &UsedVf) -> io::Result<()> {
        let path = self.directory.join(&used.before.vf);
        let mut begun = path.clone().into_os_string();
        begun.push(format!(".{BEGUN}"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&begun)?;
        file.write_all(&used.text()?)?;
        file.sync_all()?;
        fs::rename(begun, path)
    }

    pub(super) fn remove(&self, vf: &str) -> io::Result<()> {
        match fs::remove_file(self.directory.join(vf)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl UsedVf {
    /// Whether the VF was lent by this lease. The next one for the same pod's resource and the same VF has its name.
    pub(super) fn is_under(&self, lease: &v1::Lease) -> bool {
        (&self.before.id, self.before.since) == (&lease.id, lease.since)
    }

    fn text(&self) -> io::Result<Vec<u8>> {
        let before = self.before.encode_to_vec();
        let line = Line {
            connection: self.connection.clone(),
            alias: self.alias.clone(),
            interface: self.interface.clone(),
            before: before.iter().flat_map(|byte| [byte >> 4, byte & 0xf]).filter_map(digit).collect(),
        };
        Ok(serde_json::to_vec(&line)?)
    }

    fn read(text: &[u8]) -> io::Result<Self> {
        let Line { connection, alias, interface, before } = serde_json::from_slice(text)?;
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = before.as_bytes().chunks(2).map(byte).collect();
        let before = bytes.and_then(|bytes| v1::Lease::decode(&*bytes).ok());
        let before = before.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no lease is in it"))?;
        Ok(Self { connection, alias, interface, before })
    }
}

/// Of a number below 16.
fn digit(number: u8) -> Option<char> {
    char::from_digit(number.into(), 16)
}

const LOCK: &str = "forwarder.lock";
const BEGUN: &str = "begun";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_vf_was_is_there_until_it_is_removed_and_one_forwarder_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("vfs");
        let records = Records::open(&at).unwrap();
        let refused = Records::open(&at).err().unwrap();
        assert!(refused.contains("another forwarder has it"), "{refused}");
        let vlan = v1::Vlan { id: 7, ..v1::Vlan::default() };
        let before = v1::Lease {
            id: "worker.domain/10G@0000:3b:02.0".to_owned(),
            vf: "0000:3b:02.0".to_owned(),
            driver: v1::Driver::VfioPci.into(),
            attributes: Some(v1::Attributes { vlan: Some(vlan), ..v1::Attributes::default() }),
            ..v1::Lease::default()
        };
        let [connection, alias, interface] = ["a", "b", "eth7"].map(ToOwned::to_owned);
        let used = UsedVf { connection, alias, interface, before };
        records.put(&used).unwrap();
        fs::write(at.join("broken"), "{}").unwrap();
        drop(records);
        let records = Records::open(&at).unwrap();
        assert_eq!((records.all().unwrap(), records.of("0000:3b:02.0").unwrap()), (vec![used.clone()], Some(used)));
        records.remove("0000:3b:02.0").unwrap();
        assert_eq!((records.all().unwrap(), records.of("0000:3b:02.0").unwrap()), (vec![], None));
    }
}
