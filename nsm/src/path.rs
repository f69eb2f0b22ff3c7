//! The way of a connection: one segment for each process that it goes through.

use std::time::SystemTime;

use prost_types::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};

use crate::proto::connection::{Connection, Path, PathSegment};
use crate::token::Token;

/// Where a process is in the path of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its own segment.
    pub own: usize,
    /// The segment of whoever called; the own one, if nobody did.
    pub caller: usize,
}

/// Why a path is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The caller names another connection than its segment does.
    #[error("path segment {index} has the id {segment:?}, and the connection {connection:?}: they must be equal")]
    Id {
        /// Where the caller says it is.
        index: usize,
        /// What its segment says.
        segment: String,
        /// What the connection says.
        connection: String,
    },
    /// The caller is nowhere.
    #[error("the path has {segments} segments, and its index is {index}")]
    Index {
        /// Where the caller says it is.
        index: usize,
        /// How many there are.
        segments: usize,
    },
    /// Longer than any that there is.
    #[error("the path has more than {SEGMENTS_MAX} segments")]
    TooLong,
}

impl Place {
    /// Finds or makes the segment of the process `own`, and gives the connection the id that this process knows it by. Again
    /// and again it is the same one.
    pub fn enter(connection: &mut Connection, own: &str) -> Result<Self, PathError> {
        let path = connection.path.get_or_insert_default();
        let (index, segments) = (path.index as usize, path.path_segments.len());
        if segments > SEGMENTS_MAX {
            return Err(PathError::TooLong);
        }
        if segments == 0 {
            let id = if connection.id.is_empty() { new_id() } else { connection.id.clone() };
            path.index = 0;
            connection.id.clone_from(&id);
            path.path_segments.push(segment(own, id));
            return Ok(Self { own: 0, caller: 0 });
        }
        let current = path.path_segments.get(index).ok_or(PathError::Index { index, segments })?;
        if current.name == own && !current.id.is_empty() {
            connection.id.clone_from(&current.id);
            return Ok(Self { own: index, caller: index });
        }
        if current.id != connection.id {
            let (segment, connection) = (shown(&current.id), shown(&connection.id));
            return Err(PathError::Id { index, segment, connection });
        }
        let next = index + 1;
        match path.path_segments.get_mut(next) {
            Some(found) if found.name == own && !found.id.is_empty() => {}
            Some(found) => {
                own.clone_into(&mut found.name);
                found.id = new_id();
            }
            None if next >= SEGMENTS_MAX => return Err(PathError::TooLong),
            None => path.path_segments.push(segment(own, new_id())),
        }
        connection.id.clone_from(&path.path_segments[next].id);
        path.index = u32::try_from(next).unwrap_or(u32::MAX);
        Ok(Self { own: next, caller: index })
    }

    /// Another id for us: the one in the path is of a connection of somebody else.
    pub fn begin_anew(self, connection: &mut Connection) {
        let id = new_id();
        if let Some(own) = connection.path.as_mut().and_then(|path| path.path_segments.get_mut(self.own)) {
            own.id.clone_from(&id);
        }
        connection.id = id;
    }

    /// Puts the tokens where they belong: the caller's into its segment, ours for the caller into our own.
    pub fn put_tokens(self, connection: &mut Connection, caller: Option<&Token>, own: &Token) {
        let segments = connection.path.as_mut().map_or(&mut [][..], |path| &mut path.path_segments);
        let mut put = |at: usize, text: &str, expires| {
            if let Some(segment) = segments.get_mut(at) {
                text.clone_into(&mut segment.token);
                segment.expires = expires;
            }
        };
        put(self.own, &own.text, Some(own.expires.into()));
        if self.caller != self.own {
            put(self.caller, caller.map_or("", |token| &token.text), caller.map(|token| token.expires.into()));
        }
    }

    /// When the caller's token runs out: until then it wants the connection. `None`: it has not said.
    pub fn caller_expires(self, connection: &Connection) -> Option<SystemTime> {
        let expires: Timestamp = connection.path.as_ref()?.path_segments.get(self.caller)?.expires?;
        SystemTime::try_from(expires).ok()
    }

    /// Gives an answer the id and the index that the caller knows. What lies behind stays as it is.
    pub fn leave(self, connection: &mut Connection) -> Result<(), PathError> {
        let path = connection.path.get_or_insert_default();
        let segments = path.path_segments.len();
        if segments > SEGMENTS_MAX {
            return Err(PathError::TooLong);
        }
        let caller = path.path_segments.get(self.caller).ok_or(PathError::Index { index: self.caller, segments })?;
        connection.id.clone_from(&caller.id);
        path.index = u32::try_from(self.caller).unwrap_or(u32::MAX);
        Ok(())
    }

    /// Cuts what lies behind: whoever calls nobody does so.
    pub fn trim(self, path: &mut Path) {
        path.path_segments.truncate(self.own + 1);
    }
}

/// A new id, as a UUID of version 4.
pub fn new_id() -> String {
    let mut random = [0; 16];
    SystemRandom::new().fill(&mut random).expect("the kernel has random numbers");
    uuid::Builder::from_random_bytes(random).into_uuid().to_string()
}

fn segment(name: &str, id: String) -> PathSegment {
    PathSegment { name: name.to_owned(), id, ..PathSegment::default() }
}

fn shown(id: &str) -> String {
    id.chars().take(64).collect()
}

/// Two nodes have 6, and each chained function adds up to 4.
pub const SEGMENTS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(id: &str, index: u32, segments: &[(&str, &str)]) -> Connection {
        let path_segments = segments.iter().map(|(name, id)| segment(name, (*id).to_owned())).collect();
        Connection { id: id.to_owned(), path: Some(Path { index, path_segments }), ..Connection::default() }
    }

    fn ids(connection: &Connection) -> Vec<(&str, &str)> {
        let segments = &connection.path.as_ref().unwrap().path_segments;
        segments.iter().map(|segment| (segment.name.as_str(), segment.id.as_str())).collect()
    }

    #[test]
    fn the_first_process_begins_the_path_with_its_own_id() {
        let mut first = Connection { id: "nsc-0".to_owned(), ..Connection::default() };
        assert_eq!(Place::enter(&mut first, "nsc"), Ok(Place { own: 0, caller: 0 }));
        assert_eq!((first.id.as_str(), ids(&first)), ("nsc-0", vec![("nsc", "nsc-0")]));
        let mut nameless = Connection::default();
        Place::enter(&mut nameless, "nsc").unwrap();
        assert_eq!(nameless.id.len(), 36);
        assert_eq!(ids(&nameless)[0].1, nameless.id);
    }

    #[test]
    fn a_process_adds_one_segment_and_keeps_its_id_in_a_refresh() {
        let mut request = connection("a", 1, &[("nsc", "n"), ("nsmgr", "a")]);
        let place = Place::enter(&mut request, "fwd").unwrap();
        assert_eq!(place, Place { own: 2, caller: 1 });
        let id = request.id.clone();
        assert_eq!(ids(&request), [("nsc", "n"), ("nsmgr", "a"), ("fwd", &id)]);
        // Its client half has the same name.
        assert_eq!(Place::enter(&mut request, "fwd"), Ok(Place { own: 2, caller: 2 }));
        place.leave(&mut request).unwrap();
        assert_eq!((request.id.as_str(), request.path.as_ref().unwrap().index), ("a", 1));
        assert_eq!(Place::enter(&mut request, "fwd"), Ok(place));
        assert_eq!(request.id, id);
    }

    #[test]
    fn another_process_in_the_same_place_gets_an_id_of_its_own() {
        let mut request = connection("a", 0, &[("nsc", "a"), ("fwd-1", "b"), ("nse", "c")]);
        Place::enter(&mut request, "fwd-2").unwrap();
        assert_ne!(request.id, "b");
        let id = request.id.clone();
        assert_eq!(ids(&request), [("nsc", "a"), ("fwd-2", &id), ("nse", "c")]);
    }

    #[test]
    fn an_id_of_ours_that_is_empty_is_none() {
        let mut request = connection("a", 0, &[("nsc", "a"), ("fwd", "")]);
        assert_eq!(Place::enter(&mut request, "fwd"), Ok(Place { own: 1, caller: 0 }));
        assert_eq!(request.id.len(), 36);
        assert_eq!(ids(&request)[1], ("fwd", request.id.as_str()));
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        let segments = [("nsc", "a"), ("nsmgr", "b")];
        let error = PathError::Id { index: 1, segment: "b".to_owned(), connection: "x".to_owned() };
        assert_eq!(Place::enter(&mut connection("x", 1, &segments), "fwd"), Err(error));
        for index in [2, u32::MAX] {
            let error = PathError::Index { index: index as usize, segments: 2 };
            assert_eq!(Place::enter(&mut connection("b", index, &segments), "fwd"), Err(error));
        }
        let full = vec![("nsc", "a"); SEGMENTS_MAX];
        let last = SEGMENTS_MAX as u32 - 1;
        assert_eq!(Place::enter(&mut connection("a", last, &full), "fwd"), Err(PathError::TooLong));
        let more = vec![("nsc", "a"); SEGMENTS_MAX + 1];
        assert_eq!(Place::enter(&mut connection("a", 0, &more), "fwd"), Err(PathError::TooLong));
        let place = Place { own: 2, caller: 1 };
        assert_eq!(
            place.leave(&mut connection("a", 0, &[("nsc", "a")])),
            Err(PathError::Index { index: 1, segments: 1 })
        );
    }

    #[test]
    fn tokens_go_into_the_segments_of_caller_and_own() {
        let now = SystemTime::now();
        let token = |text: &str| Token { text: text.to_owned(), expires: now };
        let mut request = connection("a", 0, &[("nsc", "a")]);
        let place = Place::enter(&mut request, "nsmgr").unwrap();
        place.put_tokens(&mut request, Some(&token("theirs")), &token("ours"));
        let tokens: Vec<_> = request.path.as_ref().unwrap().path_segments.iter().map(|s| s.token.clone()).collect();
        assert_eq!(tokens, ["theirs", "ours"]);
        assert_eq!(place.caller_expires(&request), Some(now));
        // Without one, what the message said of itself does not count.
        place.put_tokens(&mut request, None, &token("ours"));
        assert_eq!(request.path.as_ref().unwrap().path_segments[0].token, "");
        assert_eq!(place.caller_expires(&request), None);
    }
}
