//! Files as a layer: sorted, of root, without times, so that the same files are the same bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};

use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Files by their absolute path in the image.
#[derive(Clone, Debug, Default)]
pub struct Files(BTreeMap<String, File>);

#[derive(Clone, Debug)]
enum File {
    Regular { contents: Vec<u8>, mode: u32 },
    Link { to: String },
}

impl Files {
    /// Adds a file, with its permission bits.
    pub fn add(&mut self, path: impl Into<String>, contents: Vec<u8>, mode: u32) {
        self.0.insert(path.into(), File::Regular { contents, mode });
    }

    /// Adds another name of a file.
    pub fn link(&mut self, path: impl Into<String>, to: impl Into<String>) {
        self.0.insert(path.into(), File::Link { to: to.into() });
    }
}

/// A layer as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// A tar archive, compressed with gzip.
    pub compressed: Vec<u8>,
    /// SHA-256 of the archive before it was compressed, in hexadecimal digits.
    pub diff_id: String,
    /// How long that is.
    pub unpacked_size: usize,
}

impl Layer {
    /// Packs files, and the directories above them.
    pub fn pack(files: &Files) -> io::Result<Self> {
        let mut archive = Builder::new(Vec::new());
        for directory in directories(files) {
            add(&mut archive, &directory, EntryType::Directory, 0o755, &[])?;
        }
        for (path, file) in &files.0 {
            match file {
                File::Regular { contents, mode } => add(&mut archive, path, EntryType::Regular, *mode, contents)?,
                File::Link { to } => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    archive.append_link(&mut header, path.trim_start_matches('/'), to)?;
                }
            }
        }
        let archive = archive.into_inner()?;
        let mut packer = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        packer.write_all(&archive)?;
        Ok(Self { compressed: packer.finish()?, diff_id: sha256(&archive), unpacked_size: archive.len() })
    }
}

/// In hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Adds an entry as of root and of 1970.
pub fn add<W: Write>(
    archive: &mut Builder<W>,
    path: &str,
    kind: EntryType,
    mode: u32,
    contents: &[u8],
) -> io::Result<()> {
    archive.append_data(&mut header(kind, mode, contents.len() as u64), path.trim_start_matches('/'), contents)
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Each once, parents first.
fn directories(files: &Files) -> Vec<String> {
    let above = |path: &String| -> Vec<String> {
        path.match_indices('/').skip(1).map(|(end, _)| format!("{}/", &path[..end])).collect()
    };
    let mut all: Vec<_> = files.0.keys().flat_map(above).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_are_the_same_bytes_in_whatever_order() {
        let pack = |names: [&str; 2]| {
            let mut files = Files::default();
            for name in names {
                files.add(name, name.into(), 0o755);
            }
            files.link("/bin/c", "/usr/bin/a");
            Layer::pack(&files).unwrap()
        };
        let layer = pack(["/usr/bin/a", "/lib64/b"]);
        assert_eq!(layer, pack(["/lib64/b", "/usr/bin/a"]));
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&layer.compressed[..]));
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                let owner = (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap());
                assert_eq!(owner, (0, 0, 0));
                (entry.path().unwrap().display().to_string(), header.mode().unwrap())
            })
            .collect();
        let expected = ["bin/", "lib64/", "usr/", "usr/bin/", "bin/c", "lib64/b", "usr/bin/a"];
        let expected = expected.map(|name| (name.to_owned(), if name == "bin/c" { 0o777 } else { 0o755 }));
        assert_eq!(entries, expected);
    }
}
