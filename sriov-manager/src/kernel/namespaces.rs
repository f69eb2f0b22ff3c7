//! Network namespaces other than ours, and a file by which each of them can be opened.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ferrule_ffi::netns::NetNs;
use nix::sys::stat::fstat;

use crate::gone::{link_target, unless_gone};

/// A file of a network namespace.
pub(super) struct NamespaceFile {
    pub path: PathBuf,
    /// A process that has it; none: only a file has.
    pub pid: Option<u32>,
}

/// Looks into each namespace but ours until something is found. What cannot be looked at may have what is looked for: that is
/// an error.
pub(super) fn find_elsewhere<T, E: From<io::Error>>(
    look: impl Fn(&NetNs, &NamespaceFile) -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let own = fs::metadata("/proc/self/ns/net")?;
    let mut seen = BTreeSet::from([(own.dev(), own.ino())]);
    for files in [of_processes_and_names, of_threads_and_files] {
        for _ in 0..LOOKS {
            let mut has_missed = false;
            for file in files()? {
                match open_unseen(&file.path, &mut seen)? {
                    Opened::New(namespace) => {
                        if let Some(found) = look(&namespace, &file)? {
                            return Ok(Some(found));
                        }
                    }
                    Opened::Seen => {}
                    // Another process may have the same namespace, and may have come after the list was made.
                    Opened::Gone => has_missed = true,
                }
            }
            if !has_missed {
                break;
            }
        }
    }
    Ok(None)
}

enum Opened {
    New(NetNs),
    Seen,
    Gone,
}

fn open_unseen(file: &Path, seen: &mut BTreeSet<(u64, u64)>) -> io::Result<Opened> {
    let Some(metadata) = unless_gone(fs::metadata(file))? else { return Ok(Opened::Gone) };
    if seen.contains(&(metadata.dev(), metadata.ino())) {
        return Ok(Opened::Seen);
    }
    let Some(namespace) = unless_gone(NetNs::open(file))? else { return Ok(Opened::Gone) };
    // The number of the process may be another one's by now.
    let opened = fstat(namespace.as_fd())?;
    Ok(if seen.insert((opened.st_dev, opened.st_ino)) { Opened::New(namespace) } else { Opened::Seen })
}

/// Those of processes, then those that have a name somewhere, as `ip netns` and container engines give them: here, or where the
/// first process is.
fn of_processes_and_names() -> io::Result<Vec<NamespaceFile>> {
    let mut files: Vec<_> = processes()?
        .into_iter()
        .map(|(pid, folder)| NamespaceFile { path: folder.join("ns/net"), pid: Some(pid) })
        .collect();
    for process in ["self", "1"].map(|process| Path::new("/proc").join(process)) {
        let mounts = unless_gone(fs::read(process.join("mountinfo")))?.unwrap_or_default();
        let root = process.join("root");
        let below = |mount: PathBuf| root.join(mount.strip_prefix("/").unwrap_or(&mount));
        let path = |mount| if process.ends_with("self") { mount } else { below(mount) };
        files.extend(namespace_mounts(&mounts).map(|mount| NamespaceFile { path: path(mount), pid: None }));
    }
    Ok(files)
}

/// Those that only threads are in, or that have no name any more and are kept by an open file. That is a look at every file of
/// every process.
fn of_threads_and_files() -> io::Result<Vec<NamespaceFile>> {
    let mut files = Vec::new();
    for (pid, folder) in processes()? {
        let threads = entries(&folder.join("task"))?.into_iter().map(|thread| thread.join("ns/net"));
        files.extend(threads.map(|path| NamespaceFile { path, pid: Some(pid) }));
        for path in entries(&folder.join("fd"))? {
            if link_target(&path)?.is_some_and(|target| target.as_os_str().as_bytes().starts_with(PREFIX)) {
                files.push(NamespaceFile { path, pid: Some(pid) });
            }
        }
    }
    Ok(files)
}

fn processes() -> io::Result<Vec<(u32, PathBuf)>> {
    let pid = |folder: PathBuf| Some((folder.file_name()?.to_str()?.parse().ok()?, folder));
    Ok(entries(Path::new("/proc"))?.into_iter().filter_map(pid).collect())
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(entries) = unless_gone(fs::read_dir(folder))? else { return Ok(Vec::new()) };
    let path = |entry: io::Result<fs::DirEntry>| unless_gone(entry.map(|entry| entry.path())).transpose();
    entries.filter_map(path).collect()
}

/// Where network namespaces are mounted, by a `mountinfo` (proc_pid_mountinfo(5)). Others' mounts may have any bytes for names.
fn namespace_mounts(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ').skip(3);
        let (root, mount) = (fields.next()?, fields.next()?);
        let is_namespace = root.starts_with(PREFIX) && fields.skip_while(|field| field != b"-").nth(1)? == b"nsfs";
        is_namespace.then(|| PathBuf::from(OsStr::from_bytes(&unescaped(mount))))
    })
}

/// Spaces, line ends and backslashes stand as `\040`.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = name;
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|_| first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            out.push(byte);
            rest = &behind[3..];
        } else {
            out.push(first);
            rest = behind;
        }
    }
    out
}

/// So often it is looked again when something went away meanwhile: on a busy node something always does.
const LOOKS: usize = 3;
/// What links to network namespaces and mounts of them are called: `net:[4026531840]`.
const PREFIX: &[u8] = b"net:[";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_network_namespaces_are_found_whatever_others_are_called() {
        let mountinfo = b"22 1 0:20 / /proc rw - proc proc rw\n\
            31 22 0:4 net:[4026532288] /run/docker/netns/a\\040b rw shared:5 - nsfs nsfs rw\n\
            32 22 0:4 pid:[4026532289] /run/pid rw - nsfs nsfs rw\n\
            33 22 8:1 / /mnt/\xff\xfe rw - ext4 /dev/sda1 rw\n\
            34 22 0:4 net:[4026532290] /run/\xff rw - nsfs nsfs rw\n";
        let mounts: Vec<_> = namespace_mounts(mountinfo).collect();
        assert_eq!(mounts, [Path::new("/run/docker/netns/a b"), Path::new(OsStr::from_bytes(b"/run/\xff"))]);
    }
}
