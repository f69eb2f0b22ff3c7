//! Whom a process believes: the checks that Network Service Mesh makes with its policies, and two that those forget.

use std::time::SystemTime;

use tonic::{Code, Status};

use crate::identity::{Certificate, SpiffeId};
use crate::path::Place;
use crate::proto::connection::{Path, PathSegment};
use crate::token::{Claims, TokenError};

/// Why a call is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Nobody is said to have called.
    #[error("the path has no segment before ours: the caller has not put itself in")]
    NoCaller,
    /// A token is not believed.
    #[error("the token of path segment {0}: {1}")]
    Token(usize, TokenError),
    /// A token is for somebody else than the next process.
    #[error("the token of path segment {0} is not for {1}, which comes next")]
    Chain(usize, String),
    /// A token names somebody else than the certificate.
    #[error("the token of path segment {0} is of {1}, and the connection is of {2}")]
    Subject(usize, String, SpiffeId),
    /// What is there belongs to somebody else.
    #[error("{0} is registered by {1}: only who registered it may change it")]
    Owner(String, String),
}

/// The checks of the side that is called, once the tokens of caller and own are in the path: what comes before us counts.
pub fn check_caller(path: &Path, place: Place, caller: &Certificate, now: SystemTime) -> Result<(), Denied> {
    if place.caller == place.own {
        return Err(Denied::NoCaller);
    }
    let left = path.path_segments.get(..=place.own).ok_or(Denied::NoCaller)?;
    check_chain(left, now)?;
    check_signer(left, place.caller, caller)
}

/// The checks of the side that has called, of the whole path that came back: `own` is our segment.
pub fn check_callee(path: &Path, own: usize, callee: &Certificate, now: SystemTime) -> Result<(), Denied> {
    check_chain(&path.path_segments, now)?;
    check_signer(&path.path_segments, own + 1, callee)
}

/// The check of a registry: whoever registered a name first has it.
pub fn check_owner(name: &str, path_ids: &[String], caller: &str) -> Result<(), Denied> {
    match path_ids.first() {
        Some(owner) if owner != caller => Err(Denied::Owner(name.to_owned(), owner.clone())),
        _ => Ok(()),
    }
}

/// Each token is one, has time left, and is for the process of the next.
fn check_chain(segments: &[PathSegment], now: SystemTime) -> Result<(), Denied> {
    let mut before: Option<Claims> = None;
    for (at, segment) in segments.iter().enumerate() {
        let claims = Claims::parse(&segment.token).map_err(|error| Denied::Token(at, error))?;
        if claims.is_expired(now) {
            return Err(Denied::Token(at, TokenError::Expired));
        }
        if let Some(before) = before
            && !before.audience.contains(&claims.subject)
        {
            return Err(Denied::Chain(at - 1, claims.subject));
        }
        before = Some(claims);
    }
    Ok(())
}

/// The neighbour signed its token with the key of this connection, and as itself.
pub(crate) fn check_signer(segments: &[PathSegment], at: usize, neighbour: &Certificate) -> Result<(), Denied> {
    let token = segments.get(at).map_or("", |segment| segment.token.as_str());
    let claims = Claims::verify(token, neighbour).map_err(|error| Denied::Token(at, error))?;
    if claims.subject != neighbour.id().as_str() {
        return Err(Denied::Subject(at, claims.subject, neighbour.id().clone()));
    }
    Ok(())
}

impl From<Denied> for Status {
    /// The text begins as that of the Go programs.
    fn from(denied: Denied) -> Self {
        Self::new(Code::PermissionDenied, format!("no sufficient privileges: {denied}"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::Identity;
    use crate::identity::test_identities::Identities;
    use crate::token::Token;

    const LIFETIME: Duration = Duration::from_mins(10);

    /// A path of nsc, nsmgr and fwd, as the forwarder sees it: the last token is its own, for nsmgr.
    struct Mesh {
        nsc: Identity,
        nsmgr: Identity,
        fwd: Identity,
        now: SystemTime,
    }

    impl Mesh {
        fn new() -> Self {
            let identities = Identities::new("example.org");
            let [nsc, nsmgr, fwd] = ["/nsc", "/nsmgr", "/fwd"].map(|path| identities.identity(path));
            Self { nsc, nsmgr, fwd, now: SystemTime::now() }
        }

        fn token(&self, of: &Identity, audience: &Identity) -> String {
            Token::sign(&of.svid, audience.svid.certificate().id(), LIFETIME, self.now).text
        }

        fn path(&self) -> Path {
            let tokens = [
                self.token(&self.nsc, &self.nsmgr),
                self.token(&self.nsmgr, &self.fwd),
                self.token(&self.fwd, &self.nsmgr),
            ];
            let segment = |token| PathSegment { token, ..PathSegment::default() };
            Path { index: 2, path_segments: tokens.map(segment).into() }
        }

        fn check(&self, path: &Path) -> Result<(), Denied> {
            check_caller(path, PLACE, self.nsmgr.svid.certificate(), self.now)
        }
    }

    const PLACE: Place = Place { own: 2, caller: 1 };

    #[test]
    fn a_path_of_good_tokens_is_allowed_on_either_side() {
        let mesh = Mesh::new();
        assert_eq!(mesh.check(&mesh.path()), Ok(()));
        assert_eq!(check_callee(&mesh.path(), 0, mesh.nsmgr.svid.certificate(), mesh.now), Ok(()));
        let segment =
            PathSegment { token: "what lies behind is not ours to judge".to_owned(), ..PathSegment::default() };
        let mut longer = mesh.path();
        longer.path_segments.push(segment);
        assert_eq!(mesh.check(&longer), Ok(()));
        assert_eq!(
            check_callee(&longer, 0, mesh.nsmgr.svid.certificate(), mesh.now),
            Err(Denied::Token(3, TokenError::Malformed)),
            "the client sees all of it"
        );
    }

    #[test]
    fn tokens_that_are_missing_or_have_run_out_are_denied() {
        let mesh = Mesh::new();
        let mut missing = mesh.path();
        missing.path_segments[1].token.clear();
        assert_eq!(mesh.check(&missing), Err(Denied::Token(1, TokenError::Missing)));
        let later = mesh.now + LIFETIME;
        let expired = check_caller(&mesh.path(), PLACE, mesh.nsmgr.svid.certificate(), later);
        assert_eq!(expired, Err(Denied::Token(0, TokenError::Expired)));
        let nobody = check_caller(&mesh.path(), Place { own: 0, caller: 0 }, mesh.nsmgr.svid.certificate(), mesh.now);
        assert_eq!(nobody, Err(Denied::NoCaller));
    }

    #[test]
    fn a_token_for_somebody_else_is_denied() {
        let mesh = Mesh::new();
        let mut path = mesh.path();
        path.path_segments[0].token = mesh.token(&mesh.nsc, &mesh.fwd);
        assert_eq!(mesh.check(&path), Err(Denied::Chain(0, "spiffe://example.org/nsmgr".to_owned())));
        let mut path = mesh.path();
        path.path_segments[1].token = mesh.token(&mesh.nsmgr, &mesh.nsc);
        assert_eq!(mesh.check(&path), Err(Denied::Chain(1, "spiffe://example.org/fwd".to_owned())));
    }

    #[test]
    fn a_token_of_another_key_or_of_another_name_is_denied() {
        let mesh = Mesh::new();
        let mut path = mesh.path();
        path.path_segments[1].token = Token::sign(
            &Identities::new("example.org").identity("/nsmgr").svid,
            mesh.fwd.svid.certificate().id(),
            LIFETIME,
            mesh.now,
        )
        .text;
        assert_eq!(mesh.check(&path), Err(Denied::Token(1, TokenError::Signature)));
        // The Go programs take this one: a token of nsc, by nsmgr's name in the path, over nsc's own connection.
        let foreign = crate::token::test_tokens::signed_as(
            &mesh.nsc.svid,
            "spiffe://example.org/nsmgr",
            "spiffe://example.org/fwd",
        );
        let mut path = mesh.path();
        path.path_segments[1].token = foreign;
        let denied = check_caller(&path, PLACE, mesh.nsc.svid.certificate(), mesh.now);
        let nsc = mesh.nsc.svid.certificate().id().clone();
        assert_eq!(denied, Err(Denied::Subject(1, "spiffe://example.org/nsmgr".to_owned(), nsc)));
    }

    #[test]
    fn a_name_belongs_to_whoever_registered_it() {
        let ids = ["spiffe://example.org/fwd".to_owned()];
        assert_eq!(check_owner("fwd-1", &[], "spiffe://example.org/nsc"), Ok(()));
        assert_eq!(check_owner("fwd-1", &ids, "spiffe://example.org/fwd"), Ok(()));
        let denied = check_owner("fwd-1", &ids, "spiffe://example.org/nsc").unwrap_err();
        let status = Status::from(denied);
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().starts_with("no sufficient privileges"), "{status}");
    }
}
