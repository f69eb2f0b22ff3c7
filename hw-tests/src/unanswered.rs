//! A file whose `close` waits until somebody says otherwise: of a FUSE file system that does not answer FLUSH.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::NamedTempFile;

/// The file system. Its only file is its root.
pub struct UnansweredFile {
    place: NamedTempFile,
    file: Option<File>,
    server: Option<JoinHandle<()>>,
}

impl UnansweredFile {
    /// Mounts it on a file of its own, and opens it.
    ///
    /// # Panics
    /// It cannot be mounted: without root, for example.
    pub fn new() -> Self {
        let place = NamedTempFile::new().expect("make a file");
        let device = OpenOptions::new().read(true).write(true).open(FUSE).expect("open /dev/fuse");
        let options = format!("fd={},rootmode=100666,user_id=0,group_id=0", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("unanswered"), place.path(), Some("fuse"), flags, Some(options.as_str())).expect("mount FUSE");
        let device = Arc::new(device);
        let server = thread::spawn(move || serve(&device));
        let file = File::open(place.path()).expect("the file system answers OPEN");
        Self { place, file: Some(file), server: Some(server) }
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
        // All that waits for an answer gets an error, and nothing waits any more.
        let _ = umount2(self.place.path(), MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        self.file = None;
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn serve(mut device: &File) {
    let mut request = vec![0; REQUEST_MAX];
    // Ends with ENODEV once it is unmounted by force.
    while let Ok(len) = device.read(&mut request) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("four bytes"));
        let body: &[u8] = match word(4) {
            INIT => &init(),
            GETATTR => &attributes(),
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

/// `struct fuse_attr_out`: an empty file that everybody may use.
fn attributes() -> [u8; 104] {
    let mut out = [0; 104];
    for (at, value) in [(16, 1u32), (16 + 60, 0o100_666), (16 + 64, 1), (16 + 80, 4096)] {
        out[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    out
}

const FUSE: &str = "/dev/fuse";
const REQUEST_MAX: usize = 1 << 17;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const INIT: u32 = 26;
