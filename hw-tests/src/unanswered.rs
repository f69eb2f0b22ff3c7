//! FUSE file systems that do not answer: a file whose `close` waits until somebody says otherwise, and a directory in which
//! nothing can be looked up.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::{NamedTempFile, TempPath};

/// The file. It is the root of its file system, which does not answer FLUSH.
pub struct UnansweredFile {
    _mount: Mount,
    // Closed once nothing waits any more.
    file: File,
    _place: TempPath,
}

impl UnansweredFile {
    /// Mounts it on a file of its own, and opens it.
    ///
    /// # Panics
    /// It cannot be mounted: without root, for example.
    pub fn new() -> Self {
        let place = NamedTempFile::new().expect("make a file").into_temp_path();
        let mount = Mount::new(&place, 0o100_666);
        let file = File::open(&place).expect("the file system answers OPEN");
        Self { _mount: mount, file, _place: place }
    }

    /// The file, open.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Default for UnansweredFile {
    fn default() -> Self {
        Self::new()
    }
}

/// A directory that is there, and in which every lookup waits until this is dropped. What was there before is beneath.
pub struct UnansweredFolder {
    _mount: Mount,
}

impl UnansweredFolder {
    /// Mounts it on a directory.
    ///
    /// # Panics
    /// It cannot be mounted: without root, for example.
    pub fn on(place: &Path) -> Self {
        Self { _mount: Mount::new(place, 0o40_777) }
    }
}

struct Mount {
    place: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Mount {
    fn new(place: &Path, mode: u32) -> Self {
        let device = OpenOptions::new().read(true).write(true).open(FUSE).expect("open /dev/fuse");
        let options = format!("fd={},rootmode={mode:o},user_id=0,group_id=0", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("unanswered"), place, Some("fuse"), flags, Some(options.as_str())).expect("mount FUSE");
        let device = Arc::new(device);
        Self { place: place.to_path_buf(), server: Some(thread::spawn(move || serve(&device, mode))) }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // All that waits for an answer gets an error, and nothing waits any more.
        let _ = umount2(&self.place, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn serve(mut device: &File, mode: u32) {
    let mut request = vec![0; REQUEST_MAX];
    // Ends with ENODEV once it is unmounted by force.
    while let Ok(len) = device.read(&mut request) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("four bytes"));
        let body: &[u8] = match word(4) {
            INIT => &init(),
            GETATTR => &attributes(mode),
            OPEN => &[0; 16],
            _ => continue,
        };
        assert!(len >= 40, "a request has a header");
        let mut answer = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
        answer.extend([0; 4]);
        answer.extend(&request[8..16]);
        answer.extend(body);
        let _ = device.write_all(&answer);
    }
}

/// `struct fuse_init_out`: version 7.31, no feature.
fn init() -> [u8; 64] {
    let mut out = [0; 64];
    for (at, value) in [(0, 7u32), (4, 31), (20, 4096)] {
        out[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    out
}

/// `struct fuse_attr_out`: an empty file or directory that everybody may use.
fn attributes(mode: u32) -> [u8; 104] {
    let mut out = [0; 104];
    for (at, value) in [(16, 1u32), (16 + 60, mode), (16 + 64, 1), (16 + 80, 4096)] {
        out[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    out
}

const FUSE: &str = "/dev/fuse";
const REQUEST_MAX: usize = 1 << 17;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const INIT: u32 = 26;
