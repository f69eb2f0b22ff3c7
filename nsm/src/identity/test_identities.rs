//! Identities for tests.

use std::sync::Arc;
use std::time::Duration;

use super::{Authority, Bundles, Certificate, Identity, Svid};

/// An authority that gives whatever a test needs.
pub(crate) struct Identities(pub(crate) Authority);

impl Identities {
    pub(crate) fn new(domain: &str) -> Self {
        Self(Authority::new(domain.parse().unwrap()).unwrap())
    }

    /// The process of this path, for an hour.
    pub(crate) fn identity(&self, path: &str) -> Identity {
        self.identity_for(path, Duration::from_hours(1), self.0.bundles().unwrap())
    }

    /// The process of this path, for so long, trusting these.
    pub(crate) fn identity_for(&self, path: &str, lifetime: Duration, bundles: Bundles) -> Identity {
        let id = super::SpiffeId::new(self.0.trust_domain(), path).unwrap();
        let issued = self.0.issue(&id, lifetime).unwrap();
        let svid = Svid::new(vec![issued.certificate], &issued.key).unwrap();
        Identity { svid: Arc::new(svid), bundles: Arc::new(bundles) }
    }
}

/// What others read of the process of this path.
pub(crate) fn certificate_of(identities: &Identities, path: &str) -> Certificate {
    identities.identity(path).svid.certificate().clone()
}
