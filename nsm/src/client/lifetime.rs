//! When a connection must be refreshed.

use std::time::{Duration, SystemTime};

use crate::proto::connection::Connection;

/// How long a connection may be left alone: a fifth of the time that the first token to run out has left, whichever process it is of.
pub(super) fn refresh_after(connection: &Connection) -> Duration {
    after(connection, SystemTime::now())
}

fn after(connection: &Connection, now: SystemTime) -> Duration {
    let segments = connection.path.iter().flat_map(|path| &path.path_segments);
    let expires = segments.filter_map(|segment| SystemTime::try_from(segment.expires?).ok()).min();
    let left = expires.map_or(UNKNOWN, |expires| expires.duration_since(now).unwrap_or_default());
    (left / 5).max(SHORTEST)
}

/// None says it.
const UNKNOWN: Duration = Duration::from_mins(1);
/// Tokens that have run out must not be asked for without end.
const SHORTEST: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::connection::{Path, PathSegment};

    #[test]
    fn the_first_token_to_run_out_counts() {
        let now = SystemTime::now();
        let of = |seconds: &[u64]| {
            let segment = |&seconds: &u64| PathSegment {
                expires: Some((now + Duration::from_secs(seconds)).into()),
                ..PathSegment::default()
            };
            let path = Path { index: 0, path_segments: seconds.iter().map(segment).collect() };
            after(&Connection { path: Some(path), ..Connection::default() }, now)
        };
        assert_eq!(of(&[600, 20, 60]), Duration::from_secs(4));
        assert_eq!(of(&[600]), Duration::from_mins(2));
        assert_eq!(of(&[0]), SHORTEST);
        assert_eq!(of(&[]), Duration::from_secs(12));
    }
}
