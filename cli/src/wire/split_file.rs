//! Splits a YAML document into its wires without understanding them.
//!
//! Each wire is the original text at its original line, so that the forwarder's errors name lines of the person's
//! file, and no scalar changes its meaning on the way.

use std::path::PathBuf;

use saphyr_parser::{Event, Marker, Parser, ScanError, Span, StrInput};
use thiserror::Error;

/// One wire for the forwarder.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Its name, or where it is in the document.
    pub(super) label: String,
    /// What the forwarder is sent.
    pub(super) yaml: String,
    /// Where it is in the document; none: it is of no document.
    pub(super) place: Option<WirePlace>,
}

/// Where a wire is in a document.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WirePlace {
    /// The line of its name, or its first one.
    pub(super) line: usize,
    /// And the character there; both from 1 on.
    pub(super) column: usize,
    /// What errors have in front of its fields, such as `wires[1]`; empty: it is the document.
    pub(super) field: String,
}

/// The wires of a document: one wire, a list of wires, or a wires file, of which only `wires:` is looked at. It is read to
/// its end: what is behind the first wires is not left out without a word.
pub(super) fn split(text: &str) -> Result<Vec<Item>, DocumentError> {
    let document = Node::read(text)?;
    let wires = match &document.content {
        Content::List(items) => items,
        Content::Map(entries) => {
            let mut lists = entries.iter().filter(|(key, _)| key == "wires").map(|(_, wires)| wires);
            match (lists.next().map(|wires| &wires.content), lists.next()) {
                (_, Some(again)) => return Err(DocumentError::ListTwice { line: again.start.line() }),
                (None, None) => std::slice::from_ref(&document),
                (Some(Content::List(items)), None) => items,
                (Some(_), None) => return Err(DocumentError::NoList),
            }
        }
        Content::Other(_) => return Err(DocumentError::NoWire),
    };
    if wires.is_empty() {
        return Err(DocumentError::NoWire);
    }
    let is_document = std::ptr::eq(wires.as_ptr(), &raw const document);
    let field = |index| if is_document { String::new() } else { format!("wires[{index}]") };
    Ok(wires.iter().enumerate().map(|(index, wire)| wire.item(index, field(index), text)).collect())
}

/// As much of a YAML node as splitting needs.
struct Node {
    start: Marker,
    end: Marker,
    content: Content,
}

enum Content {
    Map(Vec<(String, Node)>),
    List(Vec<Node>),
    /// A scalar's text; empty for an alias.
    Other(String),
}

impl Node {
    fn read(text: &str) -> Result<Self, DocumentError> {
        let mut parser = Parser::new_from_str(text);
        let document = loop {
            match next(&mut parser)? {
                (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
                (Event::StreamEnd, _) => return Err(DocumentError::NoWire),
                first => break Self::below(first, &mut parser, DEPTH_MAX),
            }
        }?;
        loop {
            match next(&mut parser)? {
                (Event::StreamEnd, _) => return Ok(document),
                (Event::DocumentStart(_), span) => {
                    return Err(DocumentError::SecondDocument { line: span.start.line() });
                }
                _ => {}
            }
        }
    }

    /// The node that begins with the event `first`.
    fn below<'a>((first, span): Spanned<'a>, parser: &mut Yaml<'a>, depth: usize) -> Result<Self, DocumentError> {
        let depth = depth.checked_sub(1).ok_or(DocumentError::TooDeep)?;
        let mut end = span.end;
        let content = match first {
            Event::MappingStart(..) => {
                let mut entries = Vec::new();
                loop {
                    let key = match next(parser)? {
                        (Event::MappingEnd, span) => break end = span.end,
                        key => Self::below(key, parser, depth)?,
                    };
                    let value = next(parser)?;
                    let key = if let Content::Other(key) = key.content { key } else { String::new() };
                    entries.push((key, Self::below(value, parser, depth)?));
                }
                Content::Map(entries)
            }
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    match next(parser)? {
                        (Event::SequenceEnd, span) => break end = span.end,
                        item => items.push(Self::below(item, parser, depth)?),
                    }
                }
                Content::List(items)
            }
            Event::Scalar(text, ..) => Content::Other(text.into_owned()),
            _ => Content::Other(String::new()),
        };
        Ok(Self { start: span.start, end, content })
    }

    fn item(&self, index: usize, field: String, text: &str) -> Item {
        let (start, end) = (self.start.index(), self.end.index());
        let own = text.chars().skip(start).take(end.saturating_sub(start));
        let indent = "\n".repeat(self.start.line() - 1) + &" ".repeat(self.start.col());
        let name = match &self.content {
            Content::Map(entries) => entries.iter().find(|(key, _)| key == "name").map(|(_, name)| name),
            _ => None,
        };
        let at = name.map_or(&self.start, |name| &name.start);
        let place = WirePlace { line: at.line(), column: at.col() + 1, field };
        let label = match name.map(|name| &name.content) {
            Some(Content::Other(name)) if !name.is_empty() => name.clone(),
            _ => format!("wire number {} (line {})", index + 1, self.start.line()),
        };
        Item { label, yaml: indent + own.collect::<String>().trim_end() + "\n", place: Some(place) }
    }
}

type Yaml<'a> = Parser<'a, StrInput<'a>>;
type Spanned<'a> = (Event<'a>, Span);

fn next<'a>(parser: &mut Yaml<'a>) -> Result<Spanned<'a>, ScanError> {
    // The end of the stream is an event too, and nothing reads behind it.
    parser.next_event().unwrap_or_else(|| Ok((Event::StreamEnd, Span::default())))
}

/// Why there is nothing to add.
#[derive(Debug, Error)]
pub enum DocumentError {
    /// The file cannot be read.
    #[error("read {file}: {source}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not YAML.
    #[error("read the wires: {0}")]
    NotYaml(#[from] ScanError),
    /// It is YAML of something else.
    #[error(
        "there is no wire in this document: one wire (`name:` and `ends:`), a list of wires, or `wires:` is wanted"
    )]
    NoWire,
    /// `wires` is not a list.
    #[error("`wires:` of this document is not a list")]
    NoList,
    /// There are two lists, one of which nobody would see.
    #[error("line {line}: `wires:` is there a second time; put all of the wires into one list")]
    ListTwice {
        /// Of the second one.
        line: usize,
    },
    /// There is more behind the first document.
    #[error(
        "line {line}: a second document begins here; put all of the wires into one list, without `---` between them"
    )]
    SecondDocument {
        /// Where it begins.
        line: usize,
    },
    /// It is nested without end.
    #[error("this document is nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
}

/// A wires file has 7 levels.
const DEPTH_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
workers: [0]
wires:
  - name: a-b
    ends:
      - memif: { socket: \"@ä\", id: 0x10, role: server, secret: 0123 }
      - kernel: { name: nsm-1 }
  # the second
  - name: b-c
    ends: []

idle: poll
";

    #[test]
    fn each_wire_of_a_file_is_its_own_text_on_its_own_line() {
        let items = split(FILE).unwrap();
        let labels: Vec<_> = items.iter().map(|item| item.label.as_str()).collect();
        assert_eq!(labels, ["a-b", "b-c"]);
        let second = WirePlace { line: 8, column: 11, field: "wires[1]".to_owned() };
        assert_eq!(items[1].place.as_ref(), Some(&second));
        for item in &items {
            for (line, original) in item.yaml.lines().zip(FILE.lines()) {
                assert!(line.trim().is_empty() || original.ends_with(line.trim_start()), "{line} of {original}");
            }
        }
        assert!(items[0].yaml.contains("secret: 0123"));
        assert!(!items[0].yaml.contains("b-c") && !items[1].yaml.contains("idle"), "{items:?}");
        assert_eq!(items[1].yaml, "\n".repeat(7) + "    name: b-c\n    ends: []\n");
    }

    #[test]
    fn what_is_sent_is_one_wire_again() {
        for item in split(FILE).unwrap() {
            let again = split(&item.yaml).unwrap();
            assert_eq!((&again[0].label, &again[0].yaml, again.len()), (&item.label, &item.yaml, 1));
        }
    }

    #[test]
    fn one_wire_a_list_and_json_are_taken_too() {
        let one = "name: a-b\nends: []\n";
        let list = "- name: a-b\n  ends: []\n- { name: b-c,\n    ends: [] }\n";
        let json = r#"{"wires": [{"name": "a-b", "ends": []}, {"ends": []}]}"#;
        let labels = |text| split(text).unwrap().into_iter().map(|item| item.label).collect::<Vec<_>>();
        assert_eq!(labels(one), ["a-b"]);
        assert_eq!(labels(list), ["a-b", "b-c"]);
        assert_eq!(split(list).unwrap()[1].yaml, "\n\n  { name: b-c,\n    ends: [] }\n");
        assert_eq!(labels(json), ["a-b", "wire number 2 (line 1)"]);
        assert_eq!(split(json).unwrap()[1].yaml.trim(), r#"{"ends": []}"#);
    }

    #[test]
    fn a_document_without_a_wire_says_so() {
        let message = |text: &str| split(text).unwrap_err().to_string();
        for text in ["", "# nothing\n", "wires: []\n", "just words"] {
            assert!(message(text).starts_with("there is no wire"), "{text}");
        }
        assert!(message("wires: { a: b }").contains("not a list"));
        let two = "name: a\nends: []\n---\nname: b\nends: []\n";
        assert!(message(two).starts_with("line 3: a second document"), "{}", message(two));
        assert!(message("name: a\nends: []\n---\n[").contains("line"));
        assert!(message("wires: [{name: a}]\nwires: [{name: b}]\n").starts_with("line 2: `wires:`"));
        assert_eq!(split("---\nname: a\nends: []\n...\n").unwrap().len(), 1);
        assert!(message("wires:\n  - name: [\n").contains("line"));
        assert!(message(&"[".repeat(40)).contains("deeper"));
    }
}
