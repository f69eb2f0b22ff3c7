//! What a program loads, by the word of the dynamic loader that it names.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Architecture, Endianness, Object};
use oci_spec::image::Arch;
use thiserror::Error;

/// What of a program an image has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The machine that it is for.
    pub arch: Arch,
    /// The loader first, then the libraries; none for a static program.
    pub libraries: Vec<PathBuf>,
}

impl Program {
    /// Looks into the file, and asks its loader.
    pub fn read(path: &Path) -> Result<Self, ProgramError> {
        let failed = |why| ProgramError { path: path.to_owned(), why };
        let bytes = fs::read(path).map_err(|error| failed(Why::Read(error)))?;
        let (arch, loader) = parse(&bytes).map_err(failed)?;
        let mut libraries = Vec::new();
        if let Some(loader) = loader {
            let listed = list(&loader, path).map_err(failed)?;
            libraries.push(loader);
            libraries.extend(listed);
        }
        Ok(Self { arch, libraries })
    }

    /// What a library needs that such a program loads while it runs.
    pub fn libraries_of(&self, library: &Path) -> Result<Vec<PathBuf>, ProgramError> {
        let Some(loader) = self.libraries.first() else { return Ok(Vec::new()) };
        list(loader, library).map_err(|why| ProgramError { path: library.to_owned(), why })
    }
}

/// A program cannot be put into an image.
#[derive(Debug, Error)]
#[error("look at {}: {why}", path.display())]
pub struct ProgramError {
    path: PathBuf,
    #[source]
    why: Why,
}

#[derive(Debug, Error)]
enum Why {
    #[error("{0}; build it first (`make images` does)")]
    Read(io::Error),
    #[error("no 64-bit ELF program: {0}")]
    Parse(#[from] object::Error),
    #[error("a program for {0:?}, which images are not made for")]
    Arch(Architecture),
    #[error("run its loader {}: {error}", loader.display())]
    Loader { loader: PathBuf, error: io::Error },
    #[error("its loader {} says: {words}", loader.display())]
    Unresolved { loader: PathBuf, words: String },
}

/// The machine, and the loader that is named.
fn parse(bytes: &[u8]) -> Result<(Arch, Option<PathBuf>), Why> {
    let arch = match object::File::parse(bytes)?.architecture() {
        Architecture::X86_64 => Arch::Amd64,
        Architecture::Aarch64 => Arch::ARM64,
        other => return Err(Why::Arch(other)),
    };
    let header = FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let mut segments = header.program_headers(endian, bytes)?.iter();
    let loader = segments.find(|segment| segment.p_type(endian) == PT_INTERP);
    let path = match loader {
        Some(segment) => segment.interpreter(endian, bytes)?,
        None => None,
    };
    Ok((arch, path.map(|path| PathBuf::from(OsStr::from_bytes(path)))))
}

/// Without this machine's cache of libraries, its environment and what it has for its own CPU only: what is found then is found in the
/// image too, on any CPU.
fn list(loader: &Path, program: &Path) -> Result<Vec<PathBuf>, Why> {
    let mut command = Command::new(loader);
    command.args(["--inhibit-cache", "--glibc-hwcaps-mask", "", "--list"]).arg(program).env_clear();
    let output = command.output().map_err(|error| Why::Loader { loader: loader.to_owned(), error })?;
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let unresolved = text.lines().find(|line| line.contains("not found"));
    if !output.status.success() || unresolved.is_some() {
        let words = unresolved.unwrap_or(&errors).trim().to_owned();
        return Err(Why::Unresolved { loader: loader.to_owned(), words });
    }
    // `NAME => PATH (ADDRESS)`; the loader itself and the kernel's page have no arrow.
    let path = |line: &str| Some(PathBuf::from(line.split_once(" => ")?.1.rsplit_once(" (")?.0));
    Ok(text.lines().filter_map(path).filter(|path| path != loader).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_comes_first_and_libc_is_found() {
        let own = Program::read(&std::env::current_exe().unwrap()).unwrap();
        assert!(own.libraries[0].to_str().unwrap().contains("ld-linux"), "{own:?}");
        assert!(own.libraries.iter().any(|path| path.ends_with("libc.so.6")), "{own:?}");
        assert!(own.libraries.iter().all(|path| path.is_file()), "{own:?}");
    }

    #[test]
    fn what_is_no_program_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "#!/bin/sh\n").unwrap();
        let error = Program::read(file.path()).unwrap_err().to_string();
        assert!(error.contains("no 64-bit ELF program"), "{error}");
        let error = Program::read(Path::new("/no/such")).unwrap_err().to_string();
        assert!(error.contains("look at /no/such") && error.contains("make images"), "{error}");
    }
}
