//! The identity that this process shows: its certificates and its key.

use std::fmt;
use std::sync::Arc;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::certificate::{Certificate, CertificateError};

/// A certificate with its key. Tokens are signed with the same key, so each connection keeps the one that it was made with.
pub struct Svid {
    certificate: Certificate,
    tls: Arc<CertifiedKey>,
    key: EcdsaKeyPair,
    random: SystemRandom,
}

/// Why certificates and a key are no identity.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// Nobody's.
    #[error("there is no certificate")]
    Empty,
    /// The first certificate is not fit.
    #[error("the certificate is not fit: {0}")]
    Certificate(#[from] CertificateError),
    /// The key is not fit, or another's.
    #[error("the key is no PKCS#8 key of P-256, or not the one of the certificate")]
    Key,
}

impl Svid {
    /// From certificates, the process's own first, and the key of that one.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &PrivatePkcs8KeyDer<'_>) -> Result<Self, SvidError> {
        let certificate = Certificate::from_der(chain.first().ok_or(SvidError::Empty)?)?;
        let random = SystemRandom::new();
        let pkcs8 = key.secret_pkcs8_der();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random).map_err(|_| SvidError::Key)?;
        if pair.public_key().as_ref() != certificate.public_key() {
            return Err(SvidError::Key);
        }
        let signer = rustls::crypto::ring::sign::any_ecdsa_type(&key.clone_key().into()).map_err(|_| SvidError::Key)?;
        Ok(Self { certificate, tls: Arc::new(CertifiedKey::new(chain, signer)), key: pair, random })
    }

    /// What others read of it.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    pub(crate) fn tls(&self) -> &Arc<CertifiedKey> {
        &self.tls
    }

    /// Signs as ES256 does: 64 bytes, none of them DER.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature = self.key.sign(&self.random, message).expect("the kernel has random numbers");
        signature.as_ref().to_vec()
    }
}

impl fmt::Debug for Svid {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}
