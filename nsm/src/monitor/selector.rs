//! Which connections a watcher means.

use crate::proto::connection::{Connection, MonitorScopeSelector, PathSegment};

/// Whether a connection is one of those. The segments of the selector must follow each other in its path; what a segment does not
/// say matches any.
pub fn selects(selector: &MonitorScopeSelector, connection: &Connection) -> bool {
    let services = &selector.network_services;
    if !services.is_empty() && !services.contains(&connection.network_service) {
        return false;
    }
    let wanted = &selector.path_segments;
    let path = connection.path.as_ref().map_or(&[][..], |path| &path.path_segments);
    wanted.is_empty()
        || path.windows(wanted.len()).any(|run| run.iter().zip(wanted).all(|(found, wanted)| is(found, wanted)))
}

fn is(found: &PathSegment, wanted: &PathSegment) -> bool {
    (wanted.id.is_empty() || wanted.id == found.id) && (wanted.name.is_empty() || wanted.name == found.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::connection::Path;

    fn segments(names: &[(&str, &str)]) -> Vec<PathSegment> {
        let segment = |(name, id): &(&str, &str)| PathSegment {
            name: (*name).to_owned(),
            id: (*id).to_owned(),
            ..PathSegment::default()
        };
        names.iter().map(segment).collect()
    }

    fn is_selected(wanted: &[(&str, &str)], services: &[&str]) -> bool {
        let path_segments = segments(&[("nsc", "a"), ("nsmgr", "b"), ("fwd", "c")]);
        let path = Some(Path { index: 0, path_segments });
        let connection = Connection { network_service: "vpn".to_owned(), path, ..Connection::default() };
        let network_services = services.iter().map(|&service| service.to_owned()).collect();
        selects(&MonitorScopeSelector { path_segments: segments(wanted), network_services }, &connection)
    }

    #[test]
    fn segments_are_a_run_of_the_path() {
        for (wanted, expected) in [
            (&[][..], true),
            (&[("nsmgr", "b")][..], true),
            (&[("nsmgr", "x")], false),
            (&[("nsmgr", "b"), ("fwd", "c")], true),
            (&[("nsc", "a"), ("fwd", "c")], false),
            (&[("", "b"), ("fwd", "")], true),
            (&[("", ""), ("", ""), ("", ""), ("", "")], false),
        ] {
            assert_eq!(is_selected(wanted, &[]), expected, "{wanted:?}");
        }
    }

    #[test]
    fn services_restrict_further() {
        assert!(is_selected(&[("fwd", "")], &["dns", "vpn"]));
        assert!(!is_selected(&[("fwd", "")], &["dns"]));
    }
}
