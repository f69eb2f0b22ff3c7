//! The Workload API, the client's side: who we are, from whoever runs this machine.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status, Streaming};

use super::bundles::{BundleError, Bundles};
use super::source::{Identity, IdentitySource};
use super::spiffe_id::SpiffeIdError;
use super::svid::{Svid, SvidError};
use crate::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::proto::workload::{X509svidRequest, X509svidResponse};

/// Where the Workload API is, as `SPIFFE_ENDPOINT_SOCKET` says it: `unix:///path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadSocket(PathBuf);

/// Why no identity can be had.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The address is none.
    #[error("{0} is no address of a Workload API: it is unix:///path")]
    Address(String),
    /// It says that asking again is of no use.
    #[error("the Workload API at {0} refuses for good: {1}")]
    Refused(String, Box<Status>),
}

/// Why an answer of the Workload API gives no identity.
#[derive(Debug, thiserror::Error)]
pub enum ResponseError {
    /// None for us.
    #[error("there is no identity in it")]
    Empty,
    /// Certificates and key do not go together.
    #[error("{0}")]
    Svid(#[from] SvidError),
    /// It names no trust domain.
    #[error("a bundle of {0}: {1}")]
    Domain(String, SpiffeIdError),
    /// Not one certificate behind the other.
    #[error("a list of certificates is cut off, or holds something else")]
    Certificates,
    /// The authorities are none.
    #[error("{0}")]
    Bundle(#[from] BundleError),
}

impl WorkloadSocket {
    /// The socket at this path.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Waits until the Workload API gives an identity, however long that takes, and follows its rotation as long as anybody has the source.
    pub async fn identity(&self) -> Result<IdentitySource, WorkloadError> {
        let mut backoff = Backoff::default();
        let (mut stream, first) = loop {
            match self.first().await {
                Ok(found) => break found,
                Err(status) if is_final(&status) => {
                    return Err(WorkloadError::Refused(self.0.display().to_string(), Box::new(status)));
                }
                Err(status) => tracing::warn!(socket = %self.0.display(), %status, "no identity yet, asking again"),
            }
            backoff.wait().await;
        };
        let (sender, source) = IdentitySource::new(first);
        let socket = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = sender.closed() => {}
                () = socket.follow(&mut stream, &sender) => {}
            }
        });
        Ok(source)
    }

    /// Sets each identity that comes, for ever: what the Workload API says while it is started anew is not for good.
    async fn follow(&self, stream: &mut Streaming<X509svidResponse>, sender: &watch::Sender<Identity>) {
        let mut backoff = Backoff::default();
        loop {
            while let Ok(Some(response)) = stream.message().await {
                match identity(&response) {
                    Ok(identity) => {
                        sender.send_replace(identity);
                        backoff = Backoff::default();
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the Workload API's new identity is not fit: the old one stays");
                    }
                }
            }
            *stream = loop {
                backoff.wait().await;
                match self.first().await {
                    Ok((stream, identity)) => {
                        sender.send_replace(identity);
                        break stream;
                    }
                    Err(status) => {
                        tracing::warn!(%status, "the Workload API does not answer: the identity stays as it is");
                    }
                }
            };
        }
    }

    /// A new stream with its first identity.
    async fn first(&self) -> Result<(Streaming<X509svidResponse>, Identity), Status> {
        let late = |_| Status::unavailable(format!("no identity came within {FIRST_TIMEOUT:?}"));
        let (stream, response) = timeout(FIRST_TIMEOUT, self.ask()).await.map_err(late)??;
        let identity =
            identity(&response).map_err(|error| Status::unavailable(format!("its answer is not fit: {error}")))?;
        Ok((stream, identity))
    }

    async fn ask(&self) -> Result<(Streaming<X509svidResponse>, X509svidResponse), Status> {
        let mut client = SpiffeWorkloadApiClient::new(self.connect().await?);
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().insert(HEADER, MetadataValue::from_static("true"));
        let mut stream = client.fetch_x509svid(request).await?.into_inner();
        let response = stream.message().await?.ok_or_else(|| Status::unavailable("the stream ended"))?;
        Ok((stream, response))
    }

    pub(super) async fn connect(&self) -> Result<Channel, Status> {
        let path = self.0.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let connecting = endpoint.connect_with_connector(connector);
        let channel =
            timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| Status::unavailable("it does not accept"))?;
        channel.map_err(|error| Status::unavailable(format!("cannot connect: {}", crate::causes(&error))))
    }
}

impl FromStr for WorkloadSocket {
    type Err = WorkloadError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:"));
        match path {
            Some(path) if path.starts_with('/') => Ok(Self::at(path)),
            _ => Err(WorkloadError::Address(text.to_owned())),
        }
    }
}

/// The wait before each further try.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(RETRY_MIN)
    }
}

impl Backoff {
    async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(RETRY_MAX);
    }
}

fn identity(response: &X509svidResponse) -> Result<Identity, ResponseError> {
    let svid = response.svids.first().ok_or(ResponseError::Empty)?;
    let key = PrivatePkcs8KeyDer::from(svid.x509_svid_key.as_slice());
    let ours = Svid::new(certificates(&svid.x509_svid)?, &key)?;
    let mut bundles = Bundles::default();
    for (domain, authorities) in &response.federated_bundles {
        // Others' faults are not to cost us our identity.
        if let Err(error) = federate(&mut bundles, domain, authorities) {
            tracing::warn!(domain, %error, "nobody of this federated trust domain is believed");
        }
    }
    bundles.set(ours.certificate().id().trust_domain().clone(), &certificates(&svid.bundle)?)?;
    Ok(Identity { svid: Arc::new(ours), bundles: Arc::new(bundles) })
}

fn federate(bundles: &mut Bundles, domain: &str, authorities: &[u8]) -> Result<(), ResponseError> {
    let domain = domain.parse().map_err(|error| ResponseError::Domain(domain.to_owned(), error))?;
    Ok(bundles.set(domain, &certificates(authorities)?)?)
}

/// Certificates that lie one behind the other.
fn certificates(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, ResponseError> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (certificate, rest) = der
            .split_at_checked(der_len(der).ok_or(ResponseError::Certificates)?)
            .ok_or(ResponseError::Certificates)?;
        found.push(CertificateDer::from(certificate.to_vec()));
        der = rest;
    }
    Ok(found)
}

/// How long the DER sequence is that begins here; a certificate has two bytes of length, or one if it is tiny.
fn der_len(der: &[u8]) -> Option<usize> {
    match *der {
        [0x30, short @ 0..=0x7f, ..] => Some(2 + usize::from(short)),
        [0x30, 0x81, len, ..] => Some(3 + usize::from(len)),
        [0x30, 0x82, high, low, ..] => Some(4 + usize::from(u16::from_be_bytes([high, low]))),
        _ => None,
    }
}

/// Who has no identity yet and hears this never gets one.
fn is_final(status: &Status) -> bool {
    status.code() == Code::InvalidArgument
}

/// Every call has it: a proxy that is tricked into calling does not.
pub(super) const HEADER: &str = "workload.spiffe.io";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An attestor may take its time.
const FIRST_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SpiffeId;
    use crate::identity::test_identities::Identities;
    use crate::proto::workload::X509svid;

    #[test]
    fn an_address_is_a_unix_socket() {
        assert_eq!(
            "unix:///run/spire/agent.sock".parse::<WorkloadSocket>().unwrap(),
            WorkloadSocket::at("/run/spire/agent.sock")
        );
        for text in ["/run/spire/agent.sock", "tcp://127.0.0.1:8081", "unix:agent.sock"] {
            assert!(matches!(text.parse::<WorkloadSocket>(), Err(WorkloadError::Address(_))), "{text}");
        }
    }

    #[test]
    fn a_federated_bundle_that_is_none_costs_that_domain_only() {
        let [ours, theirs] = ["example.org", "other.example"].map(Identities::new);
        let id = SpiffeId::new(ours.0.trust_domain(), "/fwd").unwrap();
        let issued = ours.0.issue(&id, Duration::from_hours(1)).unwrap();
        let svid = X509svid {
            x509_svid: issued.certificate.to_vec(),
            x509_svid_key: issued.key.secret_pkcs8_der().to_vec(),
            bundle: ours.0.certificate().to_vec(),
            ..X509svid::default()
        };
        let leaf = issued.certificate.to_vec();
        let federated_bundles = [
            ("empty.example", Vec::new()),
            ("leaf.example", leaf),
            ("cut.example", b"\x30\x02a".to_vec()),
            ("NO DOMAIN", theirs.0.certificate().to_vec()),
            ("other.example", theirs.0.certificate().to_vec()),
        ];
        let federated_bundles = federated_bundles.map(|(domain, bundle)| (domain.to_owned(), bundle)).into();
        let mut response = X509svidResponse { svids: vec![svid], federated_bundles, ..X509svidResponse::default() };
        let found = identity(&response).unwrap();
        assert_eq!(found.bundles.of(theirs.0.trust_domain()).len(), 1);
        assert_eq!(found.bundles.of(ours.0.trust_domain()).len(), 1);
        assert!(found.bundles.of(&"leaf.example".parse().unwrap()).is_empty());
        response.svids[0].bundle.clear();
        assert!(identity(&response).is_err(), "our own is another matter");
    }

    #[test]
    fn certificates_lie_one_behind_the_other() {
        assert_eq!(
            certificates(b"\x30\x01a\x30\x81\x02bc").unwrap(),
            [b"\x30\x01a"[..].into(), b"\x30\x81\x02bc"[..].into()]
        );
        for cut in [&b"\x30"[..], b"\x30\x02a", b"\x30\x82\x01", b"\x31\x01a", b"\x30\x83\x00\x00\x01a"] {
            assert!(matches!(certificates(cut), Err(ResponseError::Certificates)), "{cut:?}");
        }
    }
}
