//! Mutual TLS between SPIFFE identities: no host names, only who somebody is.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, ServerConfig,
    SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage};

use crate::identity::{Bundles, Certificate, Identity, SpiffeId};

/// Who may be at the other end.
#[derive(Clone, Debug, Default)]
pub enum Allowed {
    /// Whoever an authority that we trust vouches for, as in all of Network Service Mesh.
    #[default]
    AnyTrusted,
    /// These, of those.
    Only(Arc<BTreeSet<SpiffeId>>),
}

/// What a listening socket shows and asks for.
pub(super) fn server_config(identity: &Identity, allowed: Allowed) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(PeerVerifier::new(identity, allowed)))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity.svid.tls()))));
    config.alpn_protocols = vec![HTTP2.to_vec()];
    // A resumed session would show the certificate of an earlier one.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What a connecting socket shows and asks for.
pub(super) fn client_config(identity: &Identity, allowed: Allowed) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PeerVerifier::new(identity, allowed)))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity.svid.tls()))));
    config.alpn_protocols = vec![HTTP2.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// Believes whoever the authorities of its own trust domain vouch for.
#[derive(Debug)]
struct PeerVerifier {
    bundles: Arc<Bundles>,
    allowed: Allowed,
}

impl PeerVerifier {
    fn new(identity: &Identity, allowed: Allowed) -> Self {
        Self { bundles: Arc::clone(&identity.bundles), allowed }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let certificate =
            Certificate::from_der(leaf).map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?;
        let anchors = self.bundles.of(certificate.id().trust_domain());
        let algorithms = provider_algorithms().all;
        EndEntityCert::try_from(leaf)
            .and_then(|parsed| {
                parsed.verify_for_usage(algorithms, anchors, intermediates, now, usage, None, None).map(|_| ())
            })
            .map_err(|error| match error {
                webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
                webpki::Error::CertExpired { .. } => CertificateError::Expired,
                webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
                other => CertificateError::Other(OtherError(Arc::new(other))),
            })?;
        match &self.allowed {
            Allowed::Only(ids) if !ids.contains(certificate.id()) => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(()),
        }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signed, provider_algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, provider_algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider_algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signed, provider_algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, provider_algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider_algorithms().supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    Arc::clone(&PROVIDER)
}

fn provider_algorithms() -> &'static rustls::crypto::WebPkiSupportedAlgorithms {
    static ALGORITHMS: LazyLock<rustls::crypto::WebPkiSupportedAlgorithms> =
        LazyLock::new(|| provider().signature_verification_algorithms);
    &ALGORITHMS
}

/// Go's gRPC cuts a connection that has agreed on no protocol.
const HTTP2: &[u8] = b"h2";
