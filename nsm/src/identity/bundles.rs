//! Whom we trust: the authorities of each trust domain.

use std::collections::BTreeMap;

use rustls::pki_types::{CertificateDer, TrustAnchor};

use super::certificate::is_authority_of;
use super::spiffe_id::TrustDomain;

/// The authorities by trust domain. A certificate is checked against those of the domain in its own SPIFFE ID only.
#[derive(Clone, Debug, Default)]
pub struct Bundles(BTreeMap<TrustDomain, Vec<TrustAnchor<'static>>>);

/// Why certificates are no authorities of a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Nobody could be trusted.
    #[error("the trust domain {0} has no authority")]
    Empty(TrustDomain),
    /// One of them is of no use.
    #[error("certificate {1} of the trust domain {0} is no authority of it")]
    NoAuthority(TrustDomain, usize),
}

impl Bundles {
    /// Trusts these authorities of a domain, and no others of it.
    pub fn set(&mut self, domain: TrustDomain, authorities: &[CertificateDer<'_>]) -> Result<(), BundleError> {
        if authorities.is_empty() {
            return Err(BundleError::Empty(domain));
        }
        let mut anchors = Vec::with_capacity(authorities.len());
        for (at, der) in authorities.iter().enumerate() {
            let anchor = webpki::anchor_from_trusted_cert(der).ok().filter(|_| is_authority_of(der, &domain));
            let Some(anchor) = anchor else { return Err(BundleError::NoAuthority(domain, at)) };
            anchors.push(anchor.to_owned());
        }
        self.0.insert(domain, anchors);
        Ok(())
    }

    pub(crate) fn of(&self, domain: &TrustDomain) -> &[TrustAnchor<'static>] {
        self.0.get(domain).map_or(&[], Vec::as_slice)
    }
}
