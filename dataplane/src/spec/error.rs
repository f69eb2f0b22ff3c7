//! What is wrong with a text or with a field.

use thiserror::Error;

/// A text that is not a value of its kind.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{field} `{text}`: {problem}")]
pub struct SpecError {
    field: &'static str,
    text: String,
    problem: String,
}

impl SpecError {
    pub(crate) fn new(field: &'static str, text: &str, problem: impl Into<String>) -> Self {
        Self { field, text: text.to_owned(), problem: problem.into() }
    }

    /// What is wrong, without the text that it is wrong with.
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

/// What is wrong with one field of a wire.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// Where: a path such as `ends[1].memif.ring`.
    pub field: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl FieldError {
    /// What is wrong with `field`, and what would be right.
    pub fn new(field: &str, problem: impl Into<String>) -> Self {
        Self { field: field.to_owned(), problem: problem.into() }
    }

    pub(crate) fn below(self, parent: &str) -> Self {
        Self { field: format!("{parent}.{}", self.field), ..self }
    }
}
