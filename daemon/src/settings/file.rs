//! A file of settings that was read and is good.

use std::fs;
use std::path::{Path, PathBuf};

use super::LoadError;

/// The settings that a daemon reads from its file.
pub trait FileSettings: Sized {
    /// What errors and the log call the file.
    const FILE: &'static str;

    /// Checks the contents of the file at `path`.
    fn from_bytes(path: &Path, contents: &[u8]) -> Result<Self, LoadError>;
}

/// A good file as it was read, to tell later whether it changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsFile<C> {
    /// Where it is.
    pub path: PathBuf,
    /// What it held.
    pub contents: Vec<u8>,
    /// What that means.
    pub config: C,
}

impl<C> SettingsFile<C> {
    /// Whether it holds nothing but comments.
    pub fn is_empty(&self) -> bool {
        let mut lines = self.contents.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        lines.all(|line| line.is_empty() || line.starts_with(b"#") || line == b"---")
    }
}

impl<C: FileSettings> SettingsFile<C> {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let read = |source| LoadError::Read { what: C::FILE, path: path.to_owned(), source };
        let contents = fs::read(path).map_err(read)?;
        let config = C::from_bytes(path, &contents)?;
        Ok(Self { path: path.to_owned(), contents, config })
    }
}
