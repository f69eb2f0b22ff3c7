//! Files of settings: text in, checked values out, or everything that is wrong in one go, each at its line.
//!
//! Modules in reading order: `tree` (text to a tree with positions), `reader` (tree to values, collecting errors),
//! `file` (a file that was read), `watch` (one that gets new contents), `follow` (one that a daemon was started with).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use tree::Node;

mod file;
mod follow;
mod reader;
mod tree;
mod watch;

pub use file::{FileSettings, SettingsFile};
pub use follow::{Cause, Followed};
pub use reader::{Diagnostics, Field, Table, closest, socket_path};
pub use watch::FileWatch;

/// Parses a text and reads it. Every error that `read` noted comes back in one go; `file` is what they call the text.
pub fn parse<T>(file: &str, text: &str, read: impl FnOnce(&Field<'_>, &Diagnostics) -> T) -> Result<T, ConfigErrors> {
    let node = Node::parse(text).map_err(|error| ConfigErrors { file: file.to_owned(), errors: vec![error] })?;
    without_errors(file, |diagnostics| read(&Field::root(&node, diagnostics), diagnostics))
}

/// [`parse`] for a text of several documents, which `---` separates.
pub fn parse_documents<T>(
    file: &str,
    text: &str,
    read: impl FnOnce(&[Field<'_>], &Diagnostics) -> T,
) -> Result<T, ConfigErrors> {
    let nodes = Node::parse_all(text).map_err(|error| ConfigErrors { file: file.to_owned(), errors: vec![error] })?;
    without_errors(file, |diagnostics| {
        let documents: Vec<_> = nodes.iter().map(|node| Field::root(node, diagnostics)).collect();
        read(&documents, diagnostics)
    })
}

/// What was read, if nothing was found wrong.
fn without_errors<T>(file: &str, read: impl FnOnce(&Diagnostics) -> T) -> Result<T, ConfigErrors> {
    let diagnostics = Diagnostics::default();
    let value = read(&diagnostics);
    let errors = diagnostics.into_errors();
    if errors.is_empty() { Ok(value) } else { Err(ConfigErrors { file: file.to_owned(), errors }) }
}

/// The text of a file that was read already.
pub fn decode<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, LoadError> {
    std::str::from_utf8(bytes)
        .map_err(|error| LoadError::Encoding { path: path.to_owned(), offset: error.valid_up_to() })
}

/// Why a file of settings could not be used.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("read the {what} {}: {source}", path.display())]
    Read {
        /// What it is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not text.
    #[error("{}: the byte at offset {offset} is not UTF-8", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// Bytes before the first bad one.
        offset: usize,
    },
    /// The contents are wrong.
    #[error(transparent)]
    Wrong(#[from] ConfigErrors),
}

impl LoadError {
    /// One line for each thing that is wrong.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Wrong(errors) => errors.lines().collect(),
            other => vec![other.to_string()],
        }
    }
}

/// Everything that is wrong with a text, in the order of the text. Displayed as one line each.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}", self.lines().collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors {
    /// What the text is called.
    pub file: String,
    /// At least one.
    pub errors: Vec<ConfigError>,
}

impl ConfigErrors {
    /// One line for each.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.errors.iter().map(|error| format!("{}:{error}", self.file))
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where in the text.
    pub at: Position,
    /// Which field, as in `wires[1].ends[0].memif.ring`; empty for an error of syntax.
    pub field: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { line, column } = self.at;
        match self.field.as_str() {
            "" => write!(f, "{line}:{column}: {}", self.problem),
            field => write!(f, "{line}:{column}: {field}: {}", self.problem),
        }
    }
}

/// A place in a text; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character within it.
    pub column: usize,
}
