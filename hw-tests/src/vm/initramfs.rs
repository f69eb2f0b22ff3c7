//! An initramfs: what a kernel unpacks into memory as its first file system.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use cpio::newc;

/// Files by their absolute path inside.
#[derive(Default)]
pub struct Initramfs {
    entries: BTreeMap<PathBuf, Entry>,
}

enum Entry {
    Folder,
    Link(PathBuf),
    Console,
    File { content: Vec<u8>, mode: u32 },
}

impl Initramfs {
    /// An empty folder.
    pub fn folder(&mut self, path: &str) {
        self.put(Path::new(path), Entry::Folder);
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.put(Path::new(path), Entry::Link(to.into()));
    }

    /// `/dev/console`, which the kernel opens for the first process before anything is mounted.
    pub fn console(&mut self) {
        self.put(Path::new("/dev/console"), Entry::Console);
    }

    /// A file that is read.
    pub fn text(&mut self, path: &str, content: &str) {
        self.put(Path::new(path), Entry::File { content: content.into(), mode: 0o644 });
    }

    /// A program or library of this machine, stripped, with the libraries it needs at the paths they have here.
    pub fn program(&mut self, from: &Path, path: &str) -> Result<()> {
        self.put(Path::new(path), Entry::File { content: stripped(from)?, mode: 0o755 });
        for library in libraries(from)? {
            if !self.entries.contains_key(&library) {
                let content = stripped(&library)?;
                self.put(&library, Entry::File { content, mode: 0o755 });
            }
        }
        Ok(())
    }

    /// Kernel modules and those they depend on, unpacked, with the tables that `modprobe` reads.
    ///
    /// `folder` is `/lib/modules/RELEASE` of a kernel that `depmod` has seen.
    pub fn modules(&mut self, folder: &Path, names: &[&str]) -> Result<()> {
        let release = folder.file_name().context("a folder of modules is named after the kernel's release")?;
        let inside = Path::new("/lib/modules").join(release);
        let table = ModuleTable::read(folder)?;
        let mut dependencies = Vec::new();
        for module in table.closure(names)? {
            let output = Command::new("xz").arg("-dc").arg(folder.join(&module)).output().context("run xz")?;
            ensure!(output.status.success(), "unpack {module}: {}", String::from_utf8_lossy(&output.stderr));
            self.put(&inside.join(unpacked(&module)), Entry::File { content: output.stdout, mode: 0o644 });
            let needed: Vec<_> = table.needs(&module).iter().map(|needed| unpacked(needed)).collect();
            dependencies.push(format!("{}: {}\n", unpacked(&module), needed.join(" ")));
        }
        self.text(&inside.join("modules.dep").to_string_lossy(), &dependencies.concat());
        self.text("/etc/modules", &names.join("\n"));
        Ok(())
    }

    /// Writes the archive. Several of them one after the other are an initramfs too.
    pub fn write(&self, to: &Path) -> Result<()> {
        let archive = || {
            let mut out = BufWriter::new(File::create(to)?);
            for (number, (path, entry)) in self.entries.iter().enumerate() {
                let name = path.to_string_lossy();
                let header = newc::Builder::new(name.trim_start_matches('/')).ino(number as u32 + 1).nlink(1);
                let target;
                let (header, content): (_, &[u8]) = match entry {
                    Entry::Folder => (header.mode(0o040_755), &[]),
                    Entry::Console => (header.mode(0o020_600).rdev_major(5).rdev_minor(1), &[]),
                    Entry::File { content, mode } => (header.mode(0o100_000 | mode), content),
                    Entry::Link(to) => {
                        target = to.to_string_lossy();
                        (header.mode(0o120_777), target.as_bytes())
                    }
                };
                let mut file = header.write(out, content.len() as u32);
                file.write_all(content)?;
                out = file.finish()?;
            }
            newc::trailer(out)?.flush()
        };
        archive().with_context(|| format!("write {}", to.display()))
    }

    /// An entry after the folders it is in.
    fn put(&mut self, path: &Path, entry: Entry) {
        for folder in path.ancestors().skip(1).filter(|folder| *folder != Path::new("/")) {
            self.entries.entry(folder.to_owned()).or_insert(Entry::Folder);
        }
        self.entries.insert(path.to_owned(), entry);
    }
}

/// `modules.dep`: each module's file, and those it needs, the last of them first.
struct ModuleTable(BTreeMap<String, Vec<String>>);

impl ModuleTable {
    fn read(folder: &Path) -> Result<Self> {
        let file = folder.join("modules.dep");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (module, needs) = line.split_once(':')?;
            Some((module.to_owned(), needs.split_whitespace().map(str::to_owned).collect()))
        };
        Self(text.lines().filter_map(line).collect())
    }

    fn needs(&self, module: &str) -> &[String] {
        self.0.get(module).map_or(&[], Vec::as_slice)
    }

    /// The files of these modules and of all they need, each after what it needs.
    fn closure(&self, names: &[&str]) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for name in names {
            let Some((module, needs)) = self.0.iter().find(|(module, _)| module_name(module) == *name) else {
                bail!("the kernel has no module {name}");
            };
            for module in needs.iter().rev().chain([module]) {
                if !all.contains(module) {
                    all.push(module.clone());
                }
            }
        }
        Ok(all)
    }
}

/// `kernel/net/8021q/8021q.ko.xz` is `8021q`.
fn module_name(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name)
}

fn unpacked(module: &str) -> &str {
    module.strip_suffix(".xz").unwrap_or(module)
}

/// A program without its symbols: what a guest unpacks in software emulation should be small.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let output = tempfile::NamedTempFile::new().context("make a temporary file")?;
    let strip = Command::new("strip").arg("-o").arg(output.path()).arg(program).output().context("run strip")?;
    ensure!(strip.status.success(), "strip {}: {}", program.display(), String::from_utf8_lossy(&strip.stderr));
    fs::read(output.path()).with_context(|| format!("read what was stripped of {}", program.display()))
}

fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!text.contains("not found"), "{} lacks libraries here:\n{text}", program.display());
    // `NAME => PATH (0xADDRESS)`, or `PATH (0xADDRESS)` for the loader; nothing for a static program.
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let table = ModuleTable::parse("k/igb.ko.xz: k/dca.ko.xz k/algo.ko.xz\nk/igbvf.ko.xz:\nk/algo.ko.xz:\n");
        let closure = table.closure(&["igb", "igbvf", "igb"]).unwrap();
        assert_eq!(closure, ["k/algo.ko.xz", "k/dca.ko.xz", "k/igb.ko.xz", "k/igbvf.ko.xz"]);
        assert_eq!(table.closure(&["ixgbe"]).unwrap_err().to_string(), "the kernel has no module ixgbe");
    }

    #[test]
    fn an_archive_has_folders_before_files_and_ends() {
        let mut initramfs = Initramfs::default();
        initramfs.text("/etc/modules", "igb");
        initramfs.link("/sbin/init", "/bin/busybox");
        initramfs.console();
        let file = tempfile::NamedTempFile::new().unwrap();
        initramfs.write(file.path()).unwrap();
        let mut archive = File::open(file.path()).unwrap();
        let mut names = Vec::new();
        loop {
            let reader = newc::Reader::new(archive).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().mode()));
            archive = reader.finish().unwrap();
        }
        let expected = [
            ("dev", 0o040_755),
            ("dev/console", 0o020_600),
            ("etc", 0o040_755),
            ("etc/modules", 0o100_644),
            ("sbin", 0o040_755),
            ("sbin/init", 0o120_777),
        ];
        assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode)));
    }
}
