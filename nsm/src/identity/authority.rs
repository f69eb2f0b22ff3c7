//! An authority of our own, for one machine.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::bundles::{BundleError, Bundles};
use super::spiffe_id::{SpiffeId, TrustDomain};

/// Makes identities of one trust domain. Its key is in memory only: another start is another authority.
pub struct Authority {
    domain: TrustDomain,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a process needs to be somebody.
pub struct Issued {
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivatePkcs8KeyDer<'static>,
}

/// Why an identity could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The library says so.
    #[error("cannot make the certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// It is asked for somebody else's.
    #[error("{0} is not of the trust domain {1}: ask that one's authority")]
    TrustDomain(SpiffeId, TrustDomain),
}

impl Authority {
    /// A new one.
    pub fn new(domain: TrustDomain) -> Result<Self, AuthorityError> {
        let now = SystemTime::now();
        let mut params = params(&format!("spiffe://{domain}"), "ferrule authority", now, AUTHORITY_LIFETIME)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { domain, issuer })
    }

    /// A new identity, from now on for `lifetime`.
    pub fn issue(&self, id: &SpiffeId, lifetime: Duration) -> Result<Issued, AuthorityError> {
        if *id.trust_domain() != self.domain {
            return Err(AuthorityError::TrustDomain(id.clone(), self.domain.clone()));
        }
        let mut params = params(id.as_str(), "ferrule process", SystemTime::now(), lifetime)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate: certificate.into(), key: key.serialize_der().into() })
    }

    /// Whose authority it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Its own certificate, which others trust.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        self.issuer.der()
    }

    /// Trust in this authority alone.
    pub fn bundles(&self) -> Result<Bundles, BundleError> {
        let mut bundles = Bundles::default();
        bundles.set(self.domain.clone(), std::slice::from_ref(self.certificate()))?;
        Ok(bundles)
    }
}

fn params(
    uri: &str,
    common_name: &str,
    now: SystemTime,
    lifetime: Duration,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + lifetime).into();
    Ok(params)
}

/// Longer than a machine is up.
const AUTHORITY_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// A process whose clock is behind ours believes a new certificate all the same.
const CLOCK_SKEW: Duration = Duration::from_mins(1);
