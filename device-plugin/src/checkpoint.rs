//! The manager's last lists, kept on disk: while it is away, a plugin that starts knows what it told the kubelet before.
//!
//! Only of the same start of the machine: the next has other VFs, and nobody has any of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use sriov_manager_client::v1;

use crate::inventory::Lists;

/// The file.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    boot_id: String,
    /// What it holds.
    written: Option<Vec<u8>>,
}

/// What it holds.
#[derive(Clone, PartialEq, Message)]
struct Saved {
    #[prost(string, tag = "1")]
    boot_id: String,
    #[prost(message, optional, tag = "2")]
    kernel: Option<v1::ListResponse>,
    #[prost(message, optional, tag = "3")]
    vfio: Option<v1::ListResponse>,
}

impl Checkpoint {
    /// In this directory, for this start of the machine.
    pub fn new(directory: &Path, boot_id: String) -> Self {
        Self { path: directory.join("lists"), boot_id, written: None }
    }

    /// What was known last; none: nothing of this start of the machine.
    pub fn read(&self) -> Option<Lists> {
        let saved = Saved::decode(&*fs::read(&self.path).ok()?).ok()?;
        let is_of_now = !self.boot_id.is_empty() && saved.boot_id == self.boot_id;
        let (kernel, vfio) = (saved.kernel?, saved.vfio?);
        is_of_now.then(|| Lists { kernel: Arc::new(kernel), vfio: Arc::new(vfio) })
    }

    /// Keeps these for the next start. Returns whether the file was written.
    pub fn write(&mut self, lists: &Lists) -> io::Result<bool> {
        let (mut kernel, mut vfio) = ((*lists.kernel).clone(), (*lists.vfio).clone());
        // It grows with what is of no interest here.
        (kernel.node, vfio.node) = (None, None);
        let saved = Saved { boot_id: self.boot_id.clone(), kernel: Some(kernel), vfio: Some(vfio) }.encode_to_vec();
        if self.written.as_ref() == Some(&saved) {
            return Ok(false);
        }
        let new = self.path.with_extension("new");
        fs::create_dir_all(self.path.parent().unwrap_or(Path::new("/")))?;
        fs::write(&new, &saved).and_then(|()| fs::rename(&new, &self.path)).inspect_err(|_| {
            let _ = fs::remove_file(&new);
        })?;
        self.written = Some(saved);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_back_at_the_same_boot_and_no_other_and_are_written_when_they_differ() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let vf = v1::Vf { address: "0000:02:10.0".into(), ..Default::default() };
        let mut list = v1::ListResponse { vfs: vec![vf], ..Default::default() };
        let mut lists = Lists { kernel: Arc::new(list.clone()), vfio: Arc::new(list.clone()) };
        let mut checkpoint = Checkpoint::new(&state, "one".into());
        assert!(checkpoint.read().is_none());
        assert!(checkpoint.write(&lists).unwrap());
        assert_eq!(checkpoint.read(), Some(lists.clone()));
        list.node = Some(v1::Node { generation: 7, ..Default::default() });
        lists.kernel = Arc::new(list);
        assert!(!checkpoint.write(&lists).unwrap(), "nothing that matters has changed");
        assert!(Checkpoint::new(&state, "two".into()).read().is_none());
        fs::write(state.join("lists"), "nonsense").unwrap();
        assert!(checkpoint.read().is_none());
        let no_room = Checkpoint::new(Path::new("/dev/full/x"), "one".into()).write(&lists);
        assert!(no_room.is_err());
    }
}
