//! The way of a registration: the tokens of the processes that it goes through, in a header of the call and of its answer.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tonic::Status;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::identity::SpiffeIds;
use crate::path::{Place, SEGMENTS_MAX};
use crate::policy::{Denied, Owner, check_caller};
use crate::proto::connection::{Path, PathSegment};
use crate::token::{Claims, Token, TokenError};
use crate::transport::Peer;

/// The path of a registration, as JSON carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryPath {
    /// Where the call is.
    #[serde(rename = "Index", alias = "index", default)]
    pub index: u32,
    /// None yet, in a first call.
    #[serde(rename = "PathSegments", alias = "path_segments", alias = "pathSegments", default)]
    pub segments: Option<Vec<RegistrySegment>>,
}

/// One process of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrySegment {
    /// For the next one.
    #[serde(default)]
    pub token: String,
}

/// A registration that may be made.
#[derive(Debug)]
pub struct Entered {
    /// Its path with our token, at our place.
    pub path: RegistryPath,
    /// Whose it is, and through whom it came, up to us.
    pub path_ids: Vec<String>,
    /// Who may change it.
    pub owner: Owner,
    /// The caller's token and ours: it lives no longer than these.
    pub expires: SystemTime,
}

impl RegistryPath {
    /// What goes beside a first call.
    pub fn write(&self, headers: &mut MetadataMap) -> Result<(), Status> {
        let json = serde_json::to_string(self).expect("numbers and strings are JSON");
        let value = MetadataValue::try_from(json).map_err(|_| Status::internal("a path is no header"))?;
        headers.insert(KEY, value);
        Ok(())
    }

    /// What came beside a call or an answer.
    pub fn read(headers: &MetadataMap) -> Option<Self> {
        let text = headers.get(KEY)?.to_str().ok().filter(|text| text.len() <= HEADER_MAX)?;
        serde_json::from_str(text).ok()
    }
}

impl Entered {
    /// Puts the tokens of caller and own into the path of a call, and checks what is there then.
    pub fn check(
        headers: &MetadataMap,
        peer: &Peer,
        relays: &SpiffeIds,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, Status> {
        let missing = || Denied::Token(0, TokenError::Missing);
        let mut path = RegistryPath::read(headers).ok_or_else(missing)?;
        let theirs = Token::from_headers(headers, peer.certificate())
            .map_err(|error| Denied::Token(path.index as usize, error))?;
        let theirs = theirs.ok_or_else(missing)?;
        let ours = Token::sign(peer.svid(), peer.certificate().id(), lifetime, now);
        let place = path.enter(theirs.text, ours.text.clone())?;
        let segments = path.segments.iter().flatten();
        let path_segments: Vec<_> =
            segments.map(|segment| PathSegment { token: segment.token.clone(), ..PathSegment::default() }).collect();
        let tokens = Path { index: path.index, path_segments };
        check_caller(&tokens, place, peer.certificate(), now)?;
        let owner = Owner::of(&tokens, place, relays)?;
        let subject = |segment: &RegistrySegment| Claims::parse(&segment.token).map(|claims| claims.subject);
        let own = path.segments.iter().flatten().take(place.own + 1);
        let path_ids = own.map(subject).collect::<Result<_, _>>().map_err(|error| Denied::Token(place.own, error))?;
        Ok(Self { path, path_ids, owner, expires: theirs.expires.min(ours.expires) })
    }

    /// Puts the path beside the answer, where the caller is again.
    pub fn leave(mut self, headers: &mut MetadataMap) -> Result<(), Status> {
        self.path.index = self.path.index.saturating_sub(1);
        self.path.write(headers)
    }
}

impl RegistryPath {
    /// After the next process has answered with its own: what lies behind is there. Then our place has the token that we have shown to that
    /// process: a token names the next one, and the callers in Go want that of each in the answer.
    pub(super) fn follow(&mut self, answered: Option<Self>) {
        let place = self.index as usize;
        let answered = answered.and_then(|path| path.segments).unwrap_or_default();
        let segments = self.segments.get_or_insert_default();
        segments.truncate(place + 1);
        if answered.len() > place + 1 {
            segments.truncate(place);
            segments.extend(answered.into_iter().skip(place).take(SEGMENTS_MAX - place));
        }
    }

    fn enter(&mut self, theirs: String, ours: String) -> Result<Place, Status> {
        let segments = self.segments.get_or_insert_default();
        let caller = self.index as usize;
        if segments.is_empty() {
            segments.push(RegistrySegment::default());
        }
        if caller >= segments.len() || segments.len() > SEGMENTS_MAX || caller + 1 >= SEGMENTS_MAX {
            let count = segments.len();
            let problem =
                format!("the path has {count} segments, of at most {SEGMENTS_MAX}, and its index is {caller}");
            return Err(Status::invalid_argument(problem));
        }
        segments[caller].token = theirs;
        self.index += 1;
        if caller + 1 == segments.len() {
            segments.push(RegistrySegment::default());
        }
        segments[caller + 1].token = ours;
        Ok(Place { own: caller + 1, caller })
    }
}

const KEY: &str = "path";
/// More than the headers of a call may have.
const HEADER_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_call_says_so_as_the_go_programs_do() {
        let mut headers = MetadataMap::new();
        RegistryPath::default().write(&mut headers).unwrap();
        assert_eq!(headers.get(KEY).unwrap(), r#"{"Index":0,"PathSegments":null}"#);
        assert_eq!(RegistryPath::read(&headers), Some(RegistryPath::default()));
        headers
            .insert(KEY, r#"{"index":1,"path_segments":[{"token":"a","x":1},{"token":"b"}],"y":{}}"#.parse().unwrap());
        let path = RegistryPath::read(&headers).unwrap();
        assert_eq!((path.index, path.segments.unwrap()[1].token.as_str()), (1, "b"));
        headers.insert(KEY, "{".parse().unwrap());
        assert_eq!(RegistryPath::read(&headers), None);
    }

    #[test]
    fn what_lies_behind_is_what_was_answered() {
        let path = |index, tokens: &[&str]| RegistryPath {
            index,
            segments: Some(tokens.iter().map(|token| RegistrySegment { token: (*token).to_owned() }).collect()),
        };
        let mut ours = path(1, &["nse", "nsmgr", "stale"]);
        ours.follow(Some(path(1, &["nse", "nsmgr for the registry", "registry"])));
        assert_eq!(ours, path(1, &["nse", "nsmgr for the registry", "registry"]));
        ours = path(1, &["nse", "nsmgr"]);
        ours.follow(Some(path(1, &["nse", "nsmgr for the registry"])));
        ours.follow(None);
        assert_eq!(ours, path(1, &["nse", "nsmgr"]));
        ours.follow(Some(path(1, &vec!["x"; 2 * SEGMENTS_MAX])));
        assert_eq!(ours.segments.unwrap().len(), SEGMENTS_MAX);
    }

    #[test]
    fn tokens_go_where_the_index_is_and_behind() {
        let tokens = |path: &RegistryPath| {
            path.segments.iter().flatten().map(|segment| segment.token.clone()).collect::<Vec<_>>()
        };
        let mut path = RegistryPath::default();
        assert_eq!(path.enter("fwd".to_owned(), "nsmgr".to_owned()).unwrap(), Place { own: 1, caller: 0 });
        assert_eq!(path.enter("nsmgr2".to_owned(), "registry".to_owned()).unwrap(), Place { own: 2, caller: 1 });
        assert_eq!(tokens(&path), ["fwd", "nsmgr2", "registry"]);
        path.index = 0;
        path.enter("fwd3".to_owned(), "nsmgr3".to_owned()).unwrap();
        assert_eq!(
            (path.index, tokens(&path)),
            (1, vec!["fwd3".to_owned(), "nsmgr3".to_owned(), "registry".to_owned()])
        );
        for (index, count) in [(3, 3), (u32::MAX, 3), (0, SEGMENTS_MAX + 1), (SEGMENTS_MAX as u32 - 1, SEGMENTS_MAX)] {
            let mut path = RegistryPath { index, segments: Some(vec![RegistrySegment::default(); count]) };
            let refused = path.enter(String::new(), String::new()).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{index} of {count}");
        }
    }
}
