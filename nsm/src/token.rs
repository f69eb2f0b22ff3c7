//! The tokens that processes show each other: JSON web tokens, signed with the key of the TLS certificate of the connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost_types::Timestamp;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::identity::{Certificate, SpiffeId, Svid};

/// A token as a message carries it.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// The compact form.
    pub text: String,
    /// When it runs out. Finer than the whole seconds that the text says.
    pub expires: SystemTime,
}

/// What a token says. Whether it is true, [`Claims::verify`] tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Whose it is: the SPIFFE ID of the caller.
    #[serde(rename = "sub")]
    pub subject: String,
    /// Whom it is for. An array, even of one: others are refused.
    #[serde(rename = "aud")]
    pub audience: Vec<String>,
    /// Seconds since 1970.
    #[serde(rename = "exp")]
    pub expires: u64,
}

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not there.
    #[error("there is no token")]
    Missing,
    /// Longer than any that there is.
    #[error("the token is longer than {TOKEN_MAX} bytes")]
    TooLong,
    /// No token at all.
    #[error("the token is not three parts of base64 with sub, aud (an array) and exp")]
    Malformed,
    /// Signed in another way, or not at all.
    #[error("the token is not of ES256")]
    Algorithm,
    /// Signed by somebody else.
    #[error("the token is not signed with the key of the certificate of this connection")]
    Signature,
    /// Its time is over.
    #[error("the token has run out")]
    Expired,
}

impl Token {
    /// A token of `svid` for whoever has the SPIFFE ID `audience`, for `lifetime` but not longer than our certificate.
    pub fn sign(svid: &Svid, audience: &SpiffeId, lifetime: Duration, now: SystemTime) -> Self {
        let expires = (now + lifetime).min(svid.certificate().not_after());
        let claims = Claims {
            subject: svid.certificate().id().to_string(),
            audience: vec![audience.to_string()],
            expires: expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        };
        Self { text: claims.sign(svid), expires }
    }

    /// The one that came with a call; both parts or none. It lasts no longer than it says itself, nor than the certificate that it is
    /// signed with: what lives as long as its caller wants must not live for ever.
    pub fn from_headers(headers: &MetadataMap, caller: &Certificate) -> Result<Option<Self>, TokenError> {
        let text = |name| headers.get(name).map(|value| value.to_str().map_err(|_| TokenError::Malformed)).transpose();
        let (Some(token), Some(expires)) = (text(TOKEN_KEY)?, text(EXPIRES_KEY)?) else { return Ok(None) };
        if token.len() > TOKEN_MAX {
            return Err(TokenError::TooLong);
        }
        let expires: Timestamp = expires.parse().map_err(|_| TokenError::Malformed)?;
        let expires = SystemTime::try_from(expires).map_err(|_| TokenError::Malformed)?;
        // The claim is in whole seconds.
        let claimed = Duration::from_secs(Claims::parse(token)?.expires.saturating_add(1));
        let claimed = UNIX_EPOCH.checked_add(claimed).unwrap_or(expires);
        Ok(Some(Self { text: token.to_owned(), expires: expires.min(claimed).min(caller.not_after()) }))
    }
}

impl Claims {
    /// Reads a token of any signer.
    pub fn parse(token: &str) -> Result<Self, TokenError> {
        Ok(parts(token)?.claims)
    }

    /// Reads a token, which the owner of this certificate must have signed. Who it names, the caller compares.
    pub fn verify(token: &str, signer: &Certificate) -> Result<Self, TokenError> {
        let parts = parts(token)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, signer.public_key())
            .verify(parts.signed, &parts.signature)
            .map_err(|_| TokenError::Signature)?;
        Ok(parts.claims)
    }

    /// The compact form, signed.
    fn sign(&self, svid: &Svid) -> String {
        let json = serde_json::to_vec(self).expect("strings and a number are JSON");
        let mut text = format!("{HEADER_ES256}.{}", URL_SAFE_NO_PAD.encode(json));
        let signature = svid.sign(text.as_bytes());
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut text);
        text
    }

    /// Whether its time is over.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() >= self.expires
    }
}

/// Puts a token beside every call of one connection, and makes a new one when a tenth of its time is over: who is asked counts with
/// nearly all of it.
#[derive(Clone)]
pub struct TokenHeaders {
    svid: Arc<Svid>,
    callee: Arc<Certificate>,
    lifetime: Duration,
    last: Arc<Mutex<Option<Last>>>,
}

/// The token that is in use, ready to be put beside a call.
struct Last {
    token: MetadataValue<Ascii>,
    expires: MetadataValue<Ascii>,
    fresh_until: SystemTime,
}

impl TokenHeaders {
    pub(crate) fn new(svid: Arc<Svid>, callee: Arc<Certificate>, lifetime: Duration) -> Self {
        Self { svid, callee, lifetime, last: Arc::default() }
    }

    fn make(&self, now: SystemTime) -> Result<Last, Status> {
        let token = Token::sign(&self.svid, self.callee.id(), self.lifetime, now);
        let expires = token.expires.min(self.callee.not_after());
        let value = |text: &str| MetadataValue::try_from(text).map_err(|_| Status::internal("a token is no header"));
        Ok(Last {
            token: value(&token.text)?,
            expires: value(&Timestamp::from(expires).to_string())?,
            fresh_until: now + expires.duration_since(now).unwrap_or_default() / 10,
        })
    }
}

impl Interceptor for TokenHeaders {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let now = SystemTime::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let last = match &mut *last {
            Some(last) if now < last.fresh_until => last,
            stale => stale.insert(self.make(now)?),
        };
        request.metadata_mut().insert(TOKEN_KEY, last.token.clone());
        request.metadata_mut().insert(EXPIRES_KEY, last.expires.clone());
        Ok(request)
    }
}

struct Parts<'a> {
    claims: Claims,
    signed: &'a [u8],
    signature: Vec<u8>,
}

fn parts(token: &str) -> Result<Parts<'_>, TokenError> {
    match token.len() {
        0 => return Err(TokenError::Missing),
        1..=TOKEN_MAX => {}
        _ => return Err(TokenError::TooLong),
    }
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
    if header.algorithm != "ES256" {
        return Err(TokenError::Algorithm);
    }
    let claims = serde_json::from_slice(&decode(payload)?).map_err(|_| TokenError::Malformed)?;
    Ok(Parts { claims, signed: signed.as_bytes(), signature: decode(signature)? })
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "alg")]
    algorithm: String,
}

/// The header of a call that carries the token.
const TOKEN_KEY: &str = "nsm-client-token";
/// The header that says when it runs out, as RFC 3339.
const EXPIRES_KEY: &str = "nsm-client-token-expires";
/// `{"alg":"ES256","typ":"JWT"}`
const HEADER_ES256: &str = "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9";
/// Two SPIFFE IDs of the greatest length, in base64.
const TOKEN_MAX: usize = 6 << 10;

/// Tokens that no honest process makes.
#[cfg(test)]
pub(crate) mod test_tokens {
    use prost_types::Timestamp;
    use tonic::metadata::MetadataMap;

    use super::{Claims, EXPIRES_KEY, Svid, TOKEN_KEY, Token};

    /// A token beside a call.
    pub(crate) fn put(headers: &mut MetadataMap, token: &Token) {
        headers.insert(TOKEN_KEY, token.text.parse().unwrap());
        headers.insert(EXPIRES_KEY, Timestamp::from(token.expires).to_string().parse().unwrap());
    }

    /// Of somebody else's name.
    pub(crate) fn signed_as(svid: &Svid, subject: &str, audience: &str) -> String {
        Claims { subject: subject.to_owned(), audience: vec![audience.to_owned()], expires: u64::MAX }.sign(svid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::test_identities::{Identities, certificate_of};

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn a_token_is_believed_by_whom_it_is_for_until_it_runs_out() {
        let identities = Identities::new("example.org");
        let [fwd, nse] = ["/fwd", "/nse"].map(|path| identities.identity(path));
        let now = SystemTime::now();
        let token = Token::sign(&fwd.svid, nse.svid.certificate().id(), HOUR / 6, now);
        let claims = Claims::verify(&token.text, fwd.svid.certificate()).unwrap();
        assert_eq!(claims.subject, "spiffe://example.org/fwd");
        assert_eq!(claims.audience, ["spiffe://example.org/nse"]);
        assert!(!claims.is_expired(now) && claims.is_expired(now + HOUR / 6));
        assert_eq!(Claims::verify(&token.text, nse.svid.certificate()), Err(TokenError::Signature));
    }

    #[test]
    fn a_token_never_outlives_the_certificate() {
        let identities = Identities::new("example.org");
        let fwd = identities.identity("/fwd");
        let token = Token::sign(&fwd.svid, fwd.svid.certificate().id(), 1000 * HOUR, SystemTime::now());
        assert_eq!(token.expires, fwd.svid.certificate().not_after());
    }

    #[test]
    fn a_recorded_token_is_read() {
        let claims = Claims::parse(RECORDED).unwrap();
        assert_eq!(claims.subject, "spiffe://example.org/nsmgr");
        assert_eq!(claims.audience, ["spiffe://example.org/fwd"]);
        assert_eq!(claims.expires, 1_795_361_138);
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let encode = |json: &str| URL_SAFE_NO_PAD.encode(json);
        let of = |header: &str, claims: &str| Claims::parse(&format!("{}.{}.AAAA", encode(header), encode(claims)));
        let good = r#"{"sub":"a","aud":["b"],"exp":1,"iat":0}"#;
        assert!(of(r#"{"alg":"ES256"}"#, good).is_ok(), "further claims are no fault");
        assert_eq!(of(r#"{"alg":"none"}"#, good), Err(TokenError::Algorithm));
        assert_eq!(of(r#"{"alg":"HS256"}"#, good), Err(TokenError::Algorithm));
        assert_eq!(of(r#"{"alg":"ES256"}"#, r#"{"sub":"a","aud":"b","exp":1}"#), Err(TokenError::Malformed));
        assert_eq!(of(r#"{"alg":"ES256"}"#, r#"{"sub":"a","aud":["b"]}"#), Err(TokenError::Malformed));
        assert_eq!(Claims::parse(""), Err(TokenError::Missing));
        assert_eq!(Claims::parse("a.b"), Err(TokenError::Malformed));
        assert_eq!(Claims::parse(&"a".repeat(TOKEN_MAX + 1)), Err(TokenError::TooLong));
        let turned = RECORDED.replace("-VlDew3", "-VlDew4");
        let mut signer = certificate_of(&Identities::new("example.org"), "/nsmgr");
        assert_eq!(Claims::verify(&turned, &signer), Err(TokenError::Signature));
        signer = certificate_of(&Identities::new("example.org"), "/nsmgr");
        assert_eq!(Claims::verify(RECORDED, &signer), Err(TokenError::Signature), "a certificate of the same name");
    }

    #[test]
    fn headers_carry_a_token_of_which_nearly_all_of_its_time_is_left() {
        let identities = Identities::new("example.org");
        let [fwd, nse] = ["/fwd", "/nse"].map(|path| identities.identity(path));
        let callee = Arc::new(nse.svid.certificate().clone());
        let mut headers = TokenHeaders::new(Arc::clone(&fwd.svid), Arc::clone(&callee), HOUR / 6);
        let mut seen = || headers.call(Request::new(())).unwrap();
        let [first, second] = [seen(), seen()]
            .map(|request| Token::from_headers(request.metadata(), fwd.svid.certificate()).unwrap().unwrap());
        assert_eq!(first, second);
        assert!(Claims::verify(&first.text, fwd.svid.certificate()).is_ok());
        let fresh_until = headers.last.lock().unwrap().as_ref().unwrap().fresh_until;
        assert!(first.expires.duration_since(fresh_until).unwrap() + Duration::from_secs(1) >= HOUR / 6 * 9 / 10);
        // With no time at all each is a new one.
        let mut headers = TokenHeaders::new(Arc::clone(&fwd.svid), callee, Duration::ZERO);
        let mut seen = || headers.call(Request::new(())).unwrap();
        let [first, second] = [seen(), seen()]
            .map(|request| Token::from_headers(request.metadata(), fwd.svid.certificate()).unwrap().unwrap());
        assert_ne!(first.expires, second.expires);
    }

    #[test]
    fn an_expiry_may_be_of_any_time_zone() {
        let caller = certificate_of(&Identities::new("example.org"), "/nsmgr");
        let mut headers = MetadataMap::new();
        assert_eq!(Token::from_headers(&headers, &caller), Ok(None));
        headers.insert(TOKEN_KEY, RECORDED.parse().unwrap());
        headers.insert(EXPIRES_KEY, "2020-11-22T17:25:38.760472508+02:00".parse().unwrap());
        let token = Token::from_headers(&headers, &caller).unwrap().unwrap();
        assert_eq!(Timestamp::from(token.expires).to_string(), "2020-11-22T15:25:38.760472508Z");
        headers.insert(EXPIRES_KEY, "tomorrow".parse().unwrap());
        assert_eq!(Token::from_headers(&headers, &caller), Err(TokenError::Malformed));
    }

    #[test]
    fn an_expiry_is_no_later_than_the_token_and_the_certificate_say() {
        let identities = Identities::new("example.org");
        let nsc = identities.identity("/nsc");
        let certificate = nsc.svid.certificate();
        let now = SystemTime::now();
        let mut headers = MetadataMap::new();
        let mut token = Token::sign(&nsc.svid, certificate.id(), HOUR / 6, now);
        let honest = token.expires;
        test_tokens::put(&mut headers, &token);
        assert_eq!(Token::from_headers(&headers, certificate).unwrap().unwrap().expires, honest);
        token.expires = now + 1000 * HOUR;
        test_tokens::put(&mut headers, &token);
        let taken = Token::from_headers(&headers, certificate).unwrap().unwrap().expires;
        assert!(taken <= honest + Duration::from_secs(1), "by the claim");
        token.text = test_tokens::signed_as(&nsc.svid, certificate.id().as_str(), "spiffe://example.org/nsmgr");
        test_tokens::put(&mut headers, &token);
        assert_eq!(Token::from_headers(&headers, certificate).unwrap().unwrap().expires, certificate.not_after());
    }

    /// Of nsmgr for the forwarder, as a Go program made it.
    const RECORDED: &str = "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJzcGlmZmU6Ly9leGFtcGxlLm9yZy9uc21nciIsImF1ZCI6WyJzcGlmZmU6Ly9leGFtcGxlLm9yZy9md2QiXSwiZXhwIjoxNzk1MzYxMTM4fQ.-VlDew3lszfvoRKuq3idPY12lPUqxDb9gi85GeqSAQWs-jcQ4djOklJbw60g_d7n7mEcYJAkYAOFRQHWiG5RHw";
}
