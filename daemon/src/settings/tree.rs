//! A YAML document as a tree that remembers where everything stood.
//!
//! Scalars stay text: what a text means is the reader's business, so `no` is never a boolean and
//! `1e3` never a float by surprise. Aliases are refused, which also bounds what a text can grow to.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::{ConfigError, Position};

/// One value and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub at: Position,
    pub value: Value,
}

/// What a node holds.
#[derive(Debug)]
pub(super) enum Value {
    /// Nothing, `~` or `null`, unquoted.
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug)]
pub(super) struct Key {
    pub at: Position,
    pub text: String,
}

impl Node {
    /// Parses one document. An empty text is a null.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut documents = Self::parse_all(text)?.into_iter();
        let first = documents.next();
        if let Some(second) = documents.next() {
            return Err(syntax(second.at, "a second document; everything belongs in one"));
        }
        Ok(first.unwrap_or(Self { at: Position { line: 1, column: 1 }, value: Value::Null }))
    }

    /// Parses the documents of a text, which `---` separates. Those that hold nothing are left out.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, ConfigError> {
        let mut builder = Builder::default();
        let mut parser = Parser::new_from_str(text);
        let not_what = if text.trim_start().starts_with(['{', '[']) { "neither JSON nor YAML" } else { "not YAML" };
        while let Some(event) = parser.next_event() {
            let (event, span) =
                event.map_err(|error| syntax(position(error.marker()), &format!("{not_what}: {}", error.info())))?;
            builder.take(event, position(&span.start))?;
        }
        builder.done.retain(|document| !matches!(document.value, Value::Null));
        Ok(builder.done)
    }

    /// Where the field of this path below this node stands, or its nearest ancestor that exists.
    pub fn locate(&self, path: &str) -> Position {
        let mut node = self;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let next = match (&node.value, step.strip_suffix(']')) {
                (Value::List(items), Some(index)) => index.parse().ok().and_then(|index: usize| items.get(index)),
                (Value::Map(entries), None) => {
                    entries.iter().find_map(|(key, value)| (key.text == step).then_some(value))
                }
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.at
    }
}

/// Folds the parser's events into a tree without recursion: a hostile text must not exhaust the stack.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    /// Whole documents.
    done: Vec<Node>,
}

/// A list or mapping whose end has not come yet.
enum Open {
    List(Position, Vec<Node>),
    Map(Position, Vec<(Key, Node)>, Option<Key>),
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: Position) -> Result<(), ConfigError> {
        match event {
            Event::Alias(_) => return Err(syntax(at, "aliases (`*name`) are not supported; write the value out")),
            Event::Scalar(text, style, ..) => {
                let null = style == ScalarStyle::Plain && matches!(text.as_ref(), "" | "~" | "null");
                let value = if null { Value::Null } else { Value::Scalar(text.into_owned()) };
                self.put(Node { at, value })?;
            }
            Event::SequenceStart(..) => self.enter(Open::List(at, Vec::new()))?,
            Event::MappingStart(..) => self.enter(Open::Map(at, Vec::new(), None))?,
            Event::SequenceEnd | Event::MappingEnd => {
                let node = match self.open.pop() {
                    Some(Open::List(at, items)) => Node { at, value: Value::List(items) },
                    Some(Open::Map(at, entries, _)) => Node { at, value: Value::Map(entries) },
                    None => return Ok(()),
                };
                self.put(node)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn enter(&mut self, open: Open) -> Result<(), ConfigError> {
        if self.open.len() == DEPTH_MAX {
            let (Open::List(at, _) | Open::Map(at, ..)) = open;
            return Err(syntax(at, &format!("nested more than {DEPTH_MAX} deep")));
        }
        self.open.push(open);
        Ok(())
    }

    fn put(&mut self, node: Node) -> Result<(), ConfigError> {
        match self.open.last_mut() {
            Some(Open::List(_, items)) => items.push(node),
            Some(Open::Map(_, entries, key)) => match (key.take(), node.value) {
                (Some(key), value) => entries.push((key, Node { at: node.at, value })),
                (None, Value::Scalar(text)) => *key = Some(Key { at: node.at, text }),
                (None, _) => return Err(syntax(node.at, "a key must be a word")),
            },
            None => self.done.push(node),
        }
        Ok(())
    }
}

fn syntax(at: Position, problem: &str) -> ConfigError {
    ConfigError { at, field: String::new(), problem: problem.to_owned() }
}

fn position(marker: &Marker) -> Position {
    Position { line: marker.line().max(1), column: marker.col() + 1 }
}

/// Far more than any field lies deep.
const DEPTH_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_knows_where_it_stands() {
        let node = Node::parse("a: 1\nb:\n  - x: 2\n    y: { z: [3, 4] }\n").unwrap();
        let at = |path| {
            let Position { line, column } = node.locate(path);
            (line, column)
        };
        assert_eq!(at("a"), (1, 4));
        assert_eq!(at("b[0].x"), (3, 8));
        assert_eq!(at("b[0].y.z[1]"), (4, 17));
        assert_eq!(at("b[0].y.nothing"), (4, 8), "the nearest ancestor");
        assert_eq!(at("b[0]"), (3, 5));
    }

    #[test]
    fn a_syntax_error_has_a_line_and_a_column() {
        let error = Node::parse("workers: [0\nwires: []\n").unwrap_err();
        assert!(error.at.line >= 1 && error.at.column >= 1, "{error:?}");
        assert!(error.problem.starts_with("not YAML: "), "{error:?}");
        let error = Node::parse("{\"resourceList\": [}").unwrap_err();
        assert!(error.problem.starts_with("neither JSON nor YAML: "), "{error:?}");
    }

    #[test]
    fn documents_are_told_apart_and_keep_their_places() {
        let all = Node::parse_all("---\n# nothing\n---\na: 1\n---\n- b\n...\n").unwrap();
        let lines: Vec<_> = all.iter().map(|document| document.at.line).collect();
        assert_eq!(lines, [4, 6]);
        assert!(Node::parse_all("").unwrap().is_empty());
    }

    #[test]
    fn what_could_exhaust_memory_or_stack_is_refused() {
        assert!(Node::parse("a: &x [1]\nb: *x\n").unwrap_err().problem.contains("aliases"));
        assert!(Node::parse(&"[".repeat(100_000)).is_err());
        assert!(Node::parse(&"- ".repeat(100_000)).is_err());
        assert!(Node::parse("a: 1\n---\nb: 2\n").unwrap_err().problem.contains("second document"));
    }
}
