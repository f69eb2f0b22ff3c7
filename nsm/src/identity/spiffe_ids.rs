//! Sets of names, as a configuration says them.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use super::spiffe_id::{SCHEME, SpiffeId, SpiffeIdError, TrustDomain};

/// Some SPIFFE IDs: each by itself, or all below a path (`spiffe://example.org/nsm/*`). Clones are one set, to which may be added.
#[derive(Clone, Debug, Default)]
pub struct SpiffeIds(Arc<RwLock<Patterns>>);

#[derive(Debug, Default)]
struct Patterns {
    ids: BTreeSet<String>,
    /// With the slash at the end.
    below: BTreeSet<String>,
}

impl SpiffeIds {
    /// Adds an ID, or all below a path.
    pub fn add(&self, pattern: &str) -> Result<(), SpiffeIdError> {
        let Some(below) = pattern.strip_suffix('*') else {
            self.add_id(&pattern.parse()?);
            return Ok(());
        };
        let rest = below.strip_prefix(SCHEME).ok_or(SpiffeIdError::NoScheme)?;
        let (domain, path) = rest.split_once('/').ok_or(SpiffeIdError::Path)?;
        let domain: TrustDomain = domain.parse()?;
        if !path.is_empty() {
            SpiffeId::new(&domain, &format!("/{}", path.strip_suffix('/').ok_or(SpiffeIdError::Path)?))?;
        }
        self.0.write().unwrap_or_else(PoisonError::into_inner).below.insert(below.to_owned());
        Ok(())
    }

    /// Adds one.
    pub fn add_id(&self, id: &SpiffeId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).ids.insert(id.to_string());
    }

    /// Whether nobody is named.
    pub fn is_empty(&self) -> bool {
        let patterns = self.0.read().unwrap_or_else(PoisonError::into_inner);
        patterns.ids.is_empty() && patterns.below.is_empty()
    }

    /// Whether it is one of them.
    pub fn contains(&self, id: &str) -> bool {
        let patterns = self.0.read().unwrap_or_else(PoisonError::into_inner);
        patterns.ids.contains(id) || patterns.below.iter().any(|below| id.starts_with(below))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_of_them_by_itself_or_by_its_path() {
        let ids = SpiffeIds::default();
        ids.add("spiffe://example.org/nsmgr").unwrap();
        ids.add("spiffe://example.org/ns/nsm-system/*").unwrap();
        ids.add("spiffe://mesh.example/*").unwrap();
        for id in [
            "spiffe://example.org/nsmgr",
            "spiffe://example.org/ns/nsm-system/pod/nsmgr-x7",
            "spiffe://mesh.example/whoever",
        ] {
            assert!(ids.contains(id), "{id}");
        }
        for id in [
            "spiffe://example.org/nsmgr-2",
            "spiffe://example.org/ns/nsm-system",
            "spiffe://example.org/ns/nsm-system2/pod/x",
            "spiffe://mesh.example.org/whoever",
            "",
        ] {
            assert!(!ids.contains(id), "{id}");
        }
    }

    #[test]
    fn what_names_nobody_is_refused() {
        let ids = SpiffeIds::default();
        for pattern in
            ["", "*", "spiffe://*", "spiffe://example.org*", "spiffe:///*", "spiffe://example.org/a*", "/nsm/*"]
        {
            assert!(ids.add(pattern).is_err(), "{pattern}");
        }
    }
}
