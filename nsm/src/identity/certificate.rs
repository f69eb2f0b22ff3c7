//! The certificate of a process: who it is, with which key, how long.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::spiffe_id::{SCHEME, SpiffeId, SpiffeIdError};

/// What an X.509-SVID says of its owner. Who made it is the verifier's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    id: SpiffeId,
    public_key: P256PublicKey,
    not_after: SystemTime,
}

/// A point of P-256, uncompressed.
pub(crate) type P256PublicKey = [u8; 65];

/// Why a certificate is no X.509-SVID that tokens can be checked with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No certificate at all.
    #[error("it is no X.509 certificate in DER")]
    Malformed,
    /// It names nobody, or several.
    #[error("it has {0} URI names: an X.509-SVID has exactly one, its SPIFFE ID")]
    Names(usize),
    /// The name is no SPIFFE ID.
    #[error("its URI name is no SPIFFE ID: {0}")]
    SpiffeId(#[from] SpiffeIdError),
    /// It may sign other certificates.
    #[error("it is an authority's: the certificate of a process may sign no others")]
    Authority,
    /// It may not sign.
    #[error("its key usage lacks digitalSignature")]
    KeyUsage,
    /// Its key is of another kind.
    #[error("its key is not of P-256: tokens are signed with it, as ES256")]
    Key,
}

impl Certificate {
    /// Reads a leaf certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed);
        }
        check_usage(&parsed)?;
        let public_key = p256_key(parsed.public_key().raw).ok_or(CertificateError::Key)?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self { id: name(&parsed)?, public_key, not_after: UNIX_EPOCH + Duration::from_secs(seconds) })
    }

    /// Whose it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The moment from which on it is nobody's.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    pub(crate) fn public_key(&self) -> &P256PublicKey {
        &self.public_key
    }
}

/// X.509-SVID, sections 4.1 and 4.3.
fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), CertificateError> {
    if certificate.is_ca() {
        return Err(CertificateError::Authority);
    }
    let usage = certificate.key_usage().map_err(|_| CertificateError::Malformed)?.ok_or(CertificateError::KeyUsage)?;
    if usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err(CertificateError::Authority);
    }
    if usage.value.digital_signature() { Ok(()) } else { Err(CertificateError::KeyUsage) }
}

fn name(certificate: &X509Certificate<'_>) -> Result<SpiffeId, CertificateError> {
    let names = certificate.subject_alternative_name().map_err(|_| CertificateError::Malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let [uri] = uris[..] else { return Err(CertificateError::Names(uris.len())) };
    Ok(uri.parse()?)
}

/// The point of a SubjectPublicKeyInfo, if it is one of P-256: all of these begin with the same bytes.
fn p256_key(info: &[u8]) -> Option<P256PublicKey> {
    info.strip_prefix(&P256_PREFIX)?.try_into().ok()
}

/// Whether a trust domain may have this authority: it need not say so, but must not say another.
pub(super) fn is_authority_of(der: &[u8], domain: &super::TrustDomain) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(der) else { return false };
    let names = parsed.subject_alternative_name().ok().flatten();
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
        _ => None,
    });
    parsed.is_ca() && uris.all(|uri| uri.strip_prefix(SCHEME) == Some(domain.as_str()))
}

/// A sequence of an algorithm (ecPublicKey, prime256v1) and a bit string of 65 bytes, the first of which says: uncompressed.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, IsCa, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType, SignatureAlgorithm};

    use super::*;

    /// A self-signed certificate with these names, uses and key.
    fn read(
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
        key: &'static SignatureAlgorithm,
    ) -> Result<Certificate, CertificateError> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        change(&mut params);
        let key = KeyPair::generate_for(key).unwrap();
        Certificate::from_der(params.self_signed(&key).unwrap().der())
    }

    #[test]
    fn a_certificate_tells_who_with_which_key_until_when() {
        let until = time::OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let certificate =
            read(&["spiffe://example.org/fwd"], |params| params.not_after = until, &rcgen::PKCS_ECDSA_P256_SHA256)
                .unwrap();
        assert_eq!(certificate.id().as_str(), "spiffe://example.org/fwd");
        assert_eq!(certificate.public_key()[0], 4);
        assert_eq!(certificate.not_after(), UNIX_EPOCH + Duration::from_hours(500_000));
    }

    #[test]
    fn what_is_no_svid_is_refused() {
        let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
        let id = ["spiffe://example.org/fwd"];
        assert_eq!(read(&[], |_| (), p256), Err(CertificateError::Names(0)));
        assert_eq!(read(&[id[0], "spiffe://example.org/nsc"], |_| (), p256), Err(CertificateError::Names(2)));
        assert_eq!(read(&["spiffe://example.org"], |_| (), p256), Err(SpiffeIdError::Path.into()));
        assert_eq!(read(&id, |_| (), &PKCS_ED25519), Err(CertificateError::Key));
        let ca = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        assert_eq!(read(&id, ca, p256), Err(CertificateError::Authority));
        let signs = |params: &mut CertificateParams| params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        assert_eq!(read(&id, signs, p256), Err(CertificateError::Authority));
        assert_eq!(read(&id, |params| params.key_usages.clear(), p256), Err(CertificateError::KeyUsage));
        assert_eq!(Certificate::from_der(b"\x30\x03\x02\x01"), Err(CertificateError::Malformed));
    }
}
