//! Reads a tree into values, noting everything that is wrong instead of stopping at the first.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use super::tree::{Key, Node, Value};
use super::{ConfigError, Position};

/// What was found wrong so far.
#[derive(Default)]
pub struct Diagnostics {
    errors: RefCell<Vec<ConfigError>>,
    unique: Cell<usize>,
}

impl Diagnostics {
    /// Notes an error.
    pub fn add(&self, at: Position, field: impl Into<String>, problem: impl Into<String>) {
        self.errors.borrow_mut().push(ConfigError { at, field: field.into(), problem: problem.into() });
    }

    /// A number that was not given before, for stand-ins that must not collide with anything.
    pub fn unique(&self) -> usize {
        self.unique.replace(self.unique.get() + 1)
    }

    /// Everything, in the order of the text.
    pub fn into_errors(self) -> Vec<ConfigError> {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|error| error.at);
        errors
    }
}

/// One value, by its path from the root.
#[derive(Clone)]
pub struct Field<'a> {
    node: &'a Node,
    path: String,
    diagnostics: &'a Diagnostics,
}

impl<'a> Field<'a> {
    /// The whole text.
    pub(super) fn root(node: &'a Node, diagnostics: &'a Diagnostics) -> Self {
        Self { node, path: String::new(), diagnostics }
    }

    /// Notes an error of this field.
    pub fn wrong(&self, problem: impl Into<String>) {
        self.diagnostics.add(self.node.at, self.path.clone(), problem);
    }

    /// An error of this field that is not noted: the caller decides what becomes of it.
    pub fn error(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError { at: self.node.at, field: self.path.clone(), problem: problem.into() }
    }

    /// Notes an error of a field below this one, at its own place if it has one.
    pub fn wrong_below(&self, relative: &str, problem: impl Into<String>) {
        self.diagnostics.add(self.node.locate(relative), join(&self.path, relative), problem);
    }

    /// The line of a field below this one.
    pub fn line_of(&self, relative: &str) -> usize {
        self.node.locate(relative).line
    }

    /// Whether it is a mapping.
    pub fn is_table(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// Whether it is a list.
    pub fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// Whether nothing is written.
    pub fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    /// Whether it is one value.
    pub fn is_text(&self) -> bool {
        matches!(self.node.value, Value::Scalar(_))
    }

    /// Whether it holds nothing: no value, a text of no character, a list or mapping of no entry.
    pub fn is_empty(&self) -> bool {
        match &self.node.value {
            Value::Null => true,
            Value::Scalar(text) => text.is_empty(),
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
        }
    }

    /// A mapping that may hold `keys` and no others.
    pub fn table(&self, keys: &'static [&'static str]) -> Option<Table<'a>> {
        let entries = match &self.node.value {
            Value::Map(entries) => entries.as_slice(),
            Value::Null => &[],
            _ => {
                self.wrong(format!("a mapping is wanted, with the keys {}", keys.join(", ")));
                return None;
            }
        };
        let mut table = Table { field: self.clone(), entries, excused: Vec::new() };
        table.check_keys(keys);
        Some(table)
    }

    /// The entries of a mapping whose keys are free.
    pub fn entries(&self) -> Option<Vec<(&'a str, Field<'a>)>> {
        match &self.node.value {
            Value::Map(entries) => {
                let field = |(key, node): &'a (Key, Node)| {
                    (key.text.as_str(), Field { node, path: join(&self.path, &key.text), ..*self })
                };
                Some(entries.iter().map(field).collect())
            }
            Value::Null => Some(Vec::new()),
            _ => {
                self.wrong("a mapping (in JSON: an object) is wanted");
                None
            }
        }
    }

    /// The value of one key, whatever else the mapping holds and without judging it.
    pub fn peek(&self, key: &str) -> Option<Field<'a>> {
        let Value::Map(entries) = &self.node.value else { return None };
        let (_, node) = entries.iter().find(|(entry, _)| entry.text == key)?;
        Some(Field { node, path: join(&self.path, key), ..*self })
    }

    /// The items of a list; nothing written is an empty list.
    pub fn items(&self) -> Option<Vec<Field<'a>>> {
        match &self.node.value {
            Value::List(items) => Some(
                items
                    .iter()
                    .enumerate()
                    .map(|(index, node)| Field { node, path: format!("{}[{index}]", self.path), ..*self })
                    .collect(),
            ),
            Value::Null => Some(Vec::new()),
            _ => {
                self.wrong("a list is wanted");
                None
            }
        }
    }

    /// One value, as it is written.
    pub fn text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar(text) => return Some(text),
            Value::Null => self.wrong("the value is missing"),
            Value::List(_) => self.wrong("one value is wanted, not a list"),
            Value::Map(_) => self.wrong("one value is wanted, not a mapping"),
        }
        None
    }

    /// A text that its type understands. The error may begin with the field's name; the path says it already.
    pub fn parse<T: FromStr<Err: Display>>(&self) -> Option<T> {
        let text = self.text()?;
        let problem = match text.parse() {
            Ok(value) => return Some(value),
            Err(error) => format!("{error}"),
        };
        let name = self.path.rsplit('.').next().unwrap_or_default();
        self.wrong(problem.strip_prefix(&format!("{name} ")).unwrap_or(&problem));
        None
    }

    /// A text that its type understands, and what one looks like for when it does not.
    pub fn parse_as<T: FromStr>(&self, wanted: &str) -> Option<T> {
        let text = self.text()?;
        let value = text.parse().ok();
        if value.is_none() {
            self.wrong(format!("`{text}`; {wanted} is wanted"));
        }
        value
    }

    /// A number within limits.
    pub fn number<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Option<T> {
        let text = self.text()?;
        let number =
            text.parse().ok().filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
        if number.is_none() {
            self.wrong(format!("`{text}`; a number from {} to {} is wanted", range.start(), range.end()));
        }
        number
    }

    /// One of some words.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let choice = choices.iter().find(|(word, _)| *word == text).map(|&(_, value)| value);
        if choice.is_none() {
            let words: Vec<_> = choices.iter().map(|(word, _)| format!("`{word}`")).collect();
            self.wrong(format!("`{text}`; {} is wanted", words.join(" or ")));
        }
        choice
    }
}

/// A mapping whose keys were checked.
pub struct Table<'a> {
    field: Field<'a>,
    entries: &'a [(Key, Node)],
    /// Keys that were probably meant by an unknown one: not reported a second time as missing.
    excused: Vec<&'static str>,
}

impl<'a> Table<'a> {
    /// The value of a key, if it is there.
    pub fn optional(&self, key: &str) -> Option<Field<'a>> {
        let (_, node) = self.entries.iter().find(|(entry, _)| entry.text == key)?;
        Some(Field { node, path: join(&self.field.path, key), ..self.field })
    }

    /// The value of a key that must be there; `what` says what it would be.
    pub fn required(&self, key: &str, what: &str) -> Option<Field<'a>> {
        let found = self.optional(key);
        if found.is_none() && !self.excused.contains(&key) {
            self.field.wrong_below(key, format!("missing; {what} is wanted"));
        }
        found
    }

    /// The first entry, for mappings that hold exactly one.
    pub fn only(&self) -> Option<(&'a str, Field<'a>)> {
        match self.entries {
            [(key, _)] => self.optional(&key.text).map(|field| (key.text.as_str(), field)),
            _ => None,
        }
    }

    fn check_keys(&mut self, known: &'static [&'static str]) {
        for (index, (key, _)) in self.entries.iter().enumerate() {
            let path = join(&self.field.path, &key.text);
            if let Some((first, _)) = self.entries[..index].iter().find(|(other, _)| other.text == key.text) {
                self.field.diagnostics.add(
                    key.at,
                    path,
                    format!("given twice; it is on line {} already", first.at.line),
                );
            } else if !known.contains(&key.text.as_str()) {
                let problem = if let Some(meant) = closest(&key.text, known) {
                    self.excused.push(meant);
                    format!("unknown key; did you mean `{meant}`?")
                } else {
                    format!("unknown key; the keys here are {}", known.join(", "))
                };
                self.field.diagnostics.add(key.at, path, problem);
            }
        }
    }
}

/// The known word that was probably meant.
pub fn closest(text: &str, known: &[&'static str]) -> Option<&'static str> {
    let distance = |word: &str| strsim::damerau_levenshtein(text, word);
    let best = known.iter().copied().min_by_key(|word| distance(word))?;
    // One slip in a short word, two in a longer one: more would be guessing.
    let slips_max = if best.len() <= 3 { 1 } else { 2 };
    (distance(best) <= slips_max || text.eq_ignore_ascii_case(best)).then_some(best)
}

fn join(parent: &str, child: &str) -> String {
    if parent.is_empty() { child.to_owned() } else { format!("{parent}.{child}") }
}

/// The path of an API's socket, as a file or a flag gives it; the error says what is wanted. Clients connect by the path
/// itself, so it must fit into an address.
pub fn socket_path(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') || text.len() > SOCKET_PATH_MAX {
        return Err(format!("`{text}`; an absolute path of at most {SOCKET_PATH_MAX} bytes is wanted"));
    }
    Ok(PathBuf::from(text))
}

/// `sun_path` has 108 bytes, one of them the closing NUL.
const SOCKET_PATH_MAX: usize = 107;
