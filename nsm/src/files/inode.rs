//! How a message names a file that is passed beside it: by device and number.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::str::FromStr;

use rustix::fs::{AtFlags, StatxFlags, makedev, statx};

/// A file, as `inode://DEVICE/NUMBER` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub number: u64,
}

/// A url names no file that was passed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not inode://DEVICE/NUMBER: from others only files that they pass are taken, never paths")]
pub struct InodeError(String);

impl Inode {
    /// The one that is open here. Nobody is asked but the kernel: the owner of a FUSE file system could take for ever to answer.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(file, "", flags, StatxFlags::INO)?;
        Ok(Self { device: makedev(stat.stx_dev_major, stat.stx_dev_minor), number: stat.stx_ino })
    }
}

impl fmt::Display for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.device, self.number)
    }
}

impl FromStr for Inode {
    type Err = InodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = || {
            let (device, number) = text.strip_prefix(SCHEME)?.split_once('/')?;
            Some(Self { device: decimal(device)?, number: decimal(number)? })
        };
        parsed().ok_or_else(|| InodeError(text.chars().take(SHOWN_MAX).collect()))
    }
}

fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

const SCHEME: &str = "inode://";
const SHOWN_MAX: usize = 80;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_is_named_by_device_and_number() {
        let file = File::open("/proc/self/ns/net").unwrap();
        let inode = Inode::of(&file).unwrap();
        let stat = file.metadata().unwrap();
        assert_eq!((inode.device, inode.number), (stat.dev(), stat.ino()));
        assert_eq!(inode.to_string().parse(), Ok(inode));
        assert_eq!("inode://4/4026532246".parse(), Ok(Inode { device: 4, number: 4_026_532_246 }));
    }

    #[test]
    fn other_urls_are_refused() {
        for text in [
            "file:///proc/1/ns/net",
            "inode://4",
            "inode://4/",
            "inode://+4/1",
            "inode:///1",
            "inode://4/18446744073709551616",
            "",
        ] {
            assert!(text.parse::<Inode>().is_err(), "{text}");
        }
    }
}
