//! File systems (FUSE) that do not answer until they are unmounted: a file whose `close` waits for FLUSH, and a directory in
//! which every look for a name waits.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::{NamedTempFile, TempDir};

/// A file that cannot be closed. It is the root of its file system.
pub struct UnansweredFile {
    file: Option<File>,
    // In this order: the file system goes before the place where it is mounted.
    mounted: Mounted,
    _place: NamedTempFile,
}

impl UnansweredFile {
    /// Mounts its file system on a file, and opens it.
    ///
    /// # Panics
    /// It cannot be mounted: without root, for example.
    pub fn new() -> Self {
        let place = NamedTempFile::new().expect("make a file");
        let mounted = Mounted::at(place.path(), FILE_MODE);
        let file = File::open(place.path()).expect("the file system answers OPEN");
        Self { file: Some(file), mounted, _place: place }
    }

    /// The file, open.
    pub fn file(&self) -> &File {
        self.file.as_ref().expect("it is there until the value is dropped")
    }
}

impl Default for UnansweredFile {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for UnansweredFile {
    fn drop(&mut self) {
        // Whoever waits for an answer gets an error first.
        self.mounted.abort();
        self.file = None;
    }
}

/// A directory in which nothing can be looked for.
pub struct UnansweredDirectory {
    _mounted: Mounted,
    place: TempDir,
}

impl UnansweredDirectory {
    /// Mounts its file system.
    ///
    /// # Panics
    /// It cannot be mounted: without root, for example.
    pub fn new() -> Self {
        let place = TempDir::new().expect("make a directory");
        Self { _mounted: Mounted::at(place.path(), DIRECTORY_MODE), place }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.place.path()
    }
}

impl Default for UnansweredDirectory {
    fn default() -> Self {
        Self::new()
    }
}

/// A file system, until it is dropped.
struct Mounted {
    place: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Mounted {
    fn at(place: &Path, mode: u32) -> Self {
        let device = OpenOptions::new().read(true).write(true).open(FUSE).expect("open /dev/fuse");
        let options = format!("fd={},rootmode={mode:o},user_id=0,group_id=0", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("unanswered"), place, Some("fuse"), flags, Some(options.as_str())).expect("mount FUSE");
        let device = Arc::new(device);
        let server = thread::spawn(move || serve(&device, mode));
        Self { place: place.to_owned(), server: Some(server) }
    }

    /// All that waits for an answer gets an error, and nothing waits any more.
    fn abort(&self) {
        let _ = umount2(&self.place, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.abort();
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

/// `struct fuse_attr_out`: something empty.
fn attributes(mode: u32) -> [u8; 104] {
    let mut out = [0; 104];
    for (at, value) in [(16, 1u32), (16 + 60, mode), (16 + 64, 1), (16 + 80, 4096)] {
        out[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    out
}

const FILE_MODE: u32 = 0o100_666;
const DIRECTORY_MODE: u32 = 0o040_755;
const FUSE: &str = "/dev/fuse";
const REQUEST_MAX: usize = 1 << 17;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const INIT: u32 = 26;
