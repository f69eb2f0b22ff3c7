//! SPIFFE IDs: the names of processes.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name of a process: `spiffe://TRUST-DOMAIN/PATH`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    domain: TrustDomain,
}

/// Those who trust one authority: the part of a SPIFFE ID between `spiffe://` and the path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

/// Why a text is no SPIFFE ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Longer than the standard allows.
    #[error("a SPIFFE ID has at most {ID_MAX} bytes")]
    TooLong,
    /// Of another kind.
    #[error("a SPIFFE ID begins with {SCHEME}")]
    NoScheme,
    /// Its trust domain is no name.
    #[error("a trust domain has 1 to {DOMAIN_MAX} lower-case letters, digits, dots, dashes and underscores")]
    TrustDomain,
    /// It names no process.
    #[error(
        "the SPIFFE ID of a process has a path of letters, digits, dots, dashes and underscores, without empty parts, . and .."
    )]
    Path,
}

impl SpiffeId {
    /// The process `path` of `domain`, such as `/fwd`.
    ///
    /// # Errors
    /// The path is none.
    pub fn new(domain: &TrustDomain, path: &str) -> Result<Self, SpiffeIdError> {
        format!("{SCHEME}{domain}{path}").parse()
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whose it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > ID_MAX {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::NoScheme)?;
        let (domain, path) = rest.split_once('/').ok_or(SpiffeIdError::Path)?;
        let domain = domain.parse()?;
        let is_part = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(is_path_byte);
        if !path.split('/').all(is_part) {
            return Err(SpiffeIdError::Path);
        }
        Ok(Self { text: text.into(), domain })
    }
}

impl TrustDomain {
    /// The name alone.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    /// From its name, or its SPIFFE ID, which has no path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.strip_prefix(SCHEME).unwrap_or(text);
        let is_name = (1..=DOMAIN_MAX).contains(&name.len()) && name.bytes().all(is_domain_byte);
        if is_name { Ok(Self(name.into())) } else { Err(SpiffeIdError::TrustDomain) }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_domain_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
}

fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

pub(super) const SCHEME: &str = "spiffe://";
/// SPIFFE-ID, section 2.3.
const ID_MAX: usize = 2048;
const DOMAIN_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_a_trust_domain_and_a_path() {
        let id: SpiffeId = "spiffe://example.org/ns/a_b/fwd-1.x".parse().unwrap();
        assert_eq!((id.as_str(), id.trust_domain().as_str()), ("spiffe://example.org/ns/a_b/fwd-1.x", "example.org"));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        let long = format!("spiffe://example.org/{}", "a".repeat(ID_MAX));
        for (text, error) in [
            ("https://example.org/a", SpiffeIdError::NoScheme),
            ("spiffe://example.org", SpiffeIdError::Path),
            ("spiffe://example.org/", SpiffeIdError::Path),
            ("spiffe://example.org/a//b", SpiffeIdError::Path),
            ("spiffe://example.org/a/../b", SpiffeIdError::Path),
            ("spiffe://example.org/a%20b", SpiffeIdError::Path),
            ("spiffe://Example.org/a", SpiffeIdError::TrustDomain),
            ("spiffe://example.org:80/a", SpiffeIdError::TrustDomain),
            ("spiffe:///a", SpiffeIdError::TrustDomain),
            (&long, SpiffeIdError::TooLong),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(error), "{text}");
        }
    }
}
