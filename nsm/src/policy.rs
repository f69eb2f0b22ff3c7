//! Whom a process believes: the checks that Network Service Mesh makes with its policies, and two that those forget.

use std::fmt;
use std::time::SystemTime;

use tonic::{Code, Status};

use crate::identity::{Certificate, SpiffeId, SpiffeIds};
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
    #[error("the connection is one of {0}, not of {1}")]
    Owner(Owner, Owner),
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

/// Whose a connection or a registration is: the processes that a call came through, the first one first. Those that may speak for others
/// are left out, since another manager or forwarder may come in their place; whoever is not one of them stands in it, whatever it says of
/// those before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner(Vec<String>);

impl Owner {
    /// Of the names of the processes before us, of which the last one called and is who it says.
    pub fn new(names: Vec<String>, relays: &SpiffeIds) -> Self {
        let own: Vec<String> = names.iter().filter(|name| !relays.contains(name)).cloned().collect();
        // It was for itself that a manager called.
        Self(if own.is_empty() { names.into_iter().take(1).collect() } else { own })
    }

    /// The owner of what comes with this path, if each token before us is one.
    pub(crate) fn of(path: &Path, place: Place, relays: &SpiffeIds) -> Result<Self, Denied> {
        let segments = path.path_segments.get(..=place.caller).ok_or(Denied::NoCaller)?;
        let name = |(at, segment): (usize, &PathSegment)| {
            Claims::parse(&segment.token).map(|claims| claims.subject).map_err(|error| Denied::Token(at, error))
        };
        Ok(Self::new(segments.iter().enumerate().map(name).collect::<Result<_, _>>()?, relays))
    }

    /// The one whom we know, by its certificate or by the word of those who may speak for it.
    pub fn account(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" through "))
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
        Self::new(Code::PermissionDenied, format!("{DENIED}: {denied}"))
    }
}

/// Whether a token is not believed. Over a new connection, with the certificates of now, it may be. What else is denied stays so.
pub(crate) fn is_token_denied(status: &Status) -> bool {
    status.code() == Code::PermissionDenied && status.message().contains(DENIED)
}

/// As the Go programs say it.
pub(crate) const DENIED: &str = "no sufficient privileges";

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
    fn what_comes_through_a_manager_is_its_clients_and_what_comes_through_another_is_also_that_ones() {
        let relays = SpiffeIds::default();
        relays.add("spiffe://example.org/nsmgr/*").unwrap();
        let of = |names: &[&str]| {
            let names = names.iter().map(|name| format!("spiffe://example.org/{name}")).collect();
            Owner::new(names, &relays)
        };
        let nsc = of(&["nsc"]);
        assert_eq!(of(&["nsc", "nsmgr/1"]), nsc);
        assert_eq!(of(&["nsc", "nsmgr/2"]), nsc, "another manager has come");
        assert_eq!(nsc.account(), "spiffe://example.org/nsc");
        for other in [&["x"][..], &["nsc", "x"], &["nsc", "nsmgr/1", "x"], &["nsc", "x", "nsmgr/1"], &["x", "nsmgr/1"]]
        {
            assert_ne!(of(other), nsc, "{other:?}");
            assert_eq!(of(other).account(), "spiffe://example.org/x");
        }
        assert_ne!(of(&["nsmgr/1"]), of(&["nsmgr/2"]), "each for itself");
        let denied = Status::from(Denied::Owner(nsc, of(&["nsc", "x"])));
        assert_eq!(denied.code(), Code::PermissionDenied);
        assert!(denied.message().starts_with("no sufficient privileges: the connection is one of spiffe"), "{denied}");
    }
}
