//! What every guest has inside: busybox, `ip`, `vm-guest`, kernel modules, and what its user adds.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use super::initramfs::Initramfs;
use super::pieces::{Pieces, own_program, program};

/// What a kind of guest has inside.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Kernel modules, loaded at boot in this order.
    pub modules: Vec<&'static str>,
    /// Programs and libraries of this machine, and where they are inside.
    pub programs: Vec<(PathBuf, String)>,
    /// Our own programs, put into `/bin`.
    pub own: Vec<&'static str>,
    /// Files that are put there instead of those of this build.
    pub instead: BTreeMap<&'static str, PathBuf>,
    /// A greeting, for a shell on the serial line. None: no shell.
    pub shell: Option<String>,
}

impl Image {
    /// Builds the initramfs. What is not ours is kept for the next time.
    pub fn build(&self, pieces: &Pieces) -> Result<NamedTempFile> {
        let mut whole = NamedTempFile::new_in(&pieces.folder).context("make a file for an initramfs")?;
        let kept = self.kept(pieces)?;
        let own = NamedTempFile::new_in(&pieces.folder).context("make a file for an initramfs")?;
        self.own_part()?.write(own.path())?;
        for part in [&kept, own.path()] {
            let copy = File::open(part).and_then(|mut part| io::copy(&mut part, &mut whole));
            copy.with_context(|| format!("copy {}", part.display()))?;
        }
        Ok(whole)
    }

    fn own_part(&self) -> Result<Initramfs> {
        let mut own = Initramfs::default();
        for name in self.own.iter().chain([&"vm-guest"]) {
            let file = match self.instead.get(name) {
                Some(file) => file.clone(),
                None => own_program(name)?,
            };
            own.program(&file, &format!("/bin/{name}"))?;
        }
        let mut inittab = INITTAB.to_owned();
        if let Some(greeting) = &self.shell {
            inittab.push_str("ttyS0::respawn:-/bin/sh\n");
            own.text("/etc/profile", "export PS1='lab:\\w# '\ncat /etc/motd\n");
            own.text("/etc/motd", greeting);
        }
        own.text("/etc/inittab", &inittab);
        Ok(own)
    }

    /// The part that is the same each time: its archive, made now if it is not there.
    fn kept(&self, pieces: &Pieces) -> Result<PathBuf> {
        let mut programs = self.programs.clone();
        programs.push((program("ip")?, "/bin/ip".to_owned()));
        let busybox = program("busybox")?;
        let mut key = DefaultHasher::new();
        (&pieces.release, &self.modules, age(&busybox)).hash(&mut key);
        for (from, to) in &programs {
            (from, to, age(from)).hash(&mut key);
        }
        let path = pieces.folder.join(format!("kept-{:016x}.cpio", key.finish()));
        if path.exists() {
            return Ok(path);
        }
        let mut kept = Initramfs::default();
        kept.console();
        for folder in ["/proc", "/sys", "/run", "/tmp", "/state", "/root", "/var/run"] {
            kept.folder(folder);
        }
        kept.program(&busybox, "/bin/busybox")?;
        kept.link("/init", "/bin/busybox");
        for (from, to) in &programs {
            kept.program(from, to)?;
        }
        kept.modules(&pieces.modules(), &self.modules)?;
        // Written beside and renamed: another test may be doing the same.
        let temporary = NamedTempFile::new_in(&pieces.folder).context("make a file for an initramfs")?;
        kept.write(temporary.path())?;
        temporary.persist(&path).with_context(|| format!("keep {}", path.display()))?;
        Ok(path)
    }
}

/// Tells one version of a file from another.
fn age(file: &Path) -> Option<(u64, std::time::SystemTime)> {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

/// busybox as the first process collects the orphans, `vm-guest` does the work.
const INITTAB: &str = "\
::sysinit:/bin/busybox --install -s /bin
::sysinit:/bin/vm-guest boot
::respawn:/bin/vm-guest agent
::shutdown:/bin/umount -a -r
";
