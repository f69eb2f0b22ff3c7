//! How large a connection may be: it is kept, and sent to everybody on its way and who watches it.

use prost::Message;
use tonic::Status;

use crate::path::SEGMENTS_MAX;
use crate::proto::connection::{Connection, Mechanism};
use crate::proto::connectioncontext::{ConnectionContext, DnsContext};
use crate::proto::networkservice::NetworkServiceRequest;

/// What is too large in a request or a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// All of it.
    #[error("the connection has {0} bytes: at most {CONNECTION_MAX}")]
    Connection(usize),
    /// Too many processes.
    #[error("the path has {0} segments: at most {SEGMENTS_MAX}")]
    Segments(usize),
    /// A name.
    #[error("the {0} has {1} bytes: at most {NAME_MAX}")]
    Name(&'static str, usize),
    /// Labels.
    #[error("the connection has {0} labels: at most {LABELS_MAX}")]
    Labels(usize),
    /// Preferences.
    #[error("there are {0} mechanism preferences: at most {PREFERENCES_MAX}")]
    Preferences(usize),
    /// What takes two bytes of a message, and a hundred of memory.
    #[error("the connection has {1} {0}: at most {2}")]
    TooMany(&'static str, usize, usize),
    /// One mechanism.
    #[error("the mechanism {0:?} has {1} parameters: at most {PARAMETERS_MAX}")]
    Parameters(String, usize),
}

/// Whether a request is one that can be kept.
pub fn check_request(request: &NetworkServiceRequest) -> Result<(), SizeError> {
    let preferences = &request.mechanism_preferences;
    if preferences.len() > PREFERENCES_MAX {
        return Err(SizeError::Preferences(preferences.len()));
    }
    preferences.iter().try_for_each(check_mechanism)?;
    request.connection.as_ref().map_or(Ok(()), check_connection)
}

/// Whether a connection is one that can be kept.
pub fn check_connection(connection: &Connection) -> Result<(), SizeError> {
    let segments = connection.path.as_ref().map_or(&[][..], |path| &path.path_segments);
    if segments.len() > SEGMENTS_MAX {
        return Err(SizeError::Segments(segments.len()));
    }
    for segment in segments {
        check_name("name of a path segment", &segment.name)?;
        check_name("id of a path segment", &segment.id)?;
        check_count("metrics in a path segment", segment.metrics.len(), METRICS_MAX)?;
    }
    for (what, name) in [
        ("id", &connection.id),
        ("network service's name", &connection.network_service),
        ("endpoint's name", &connection.network_service_endpoint_name),
        ("payload", &connection.payload),
    ] {
        check_name(what, name)?;
    }
    connection.context.as_ref().map_or(Ok(()), check_context)?;
    if connection.labels.len() > LABELS_MAX {
        return Err(SizeError::Labels(connection.labels.len()));
    }
    connection.mechanism.as_ref().map_or(Ok(()), check_mechanism)?;
    match connection.encoded_len() {
        0..=CONNECTION_MAX => Ok(()),
        len => Err(SizeError::Connection(len)),
    }
}

fn check_context(context: &ConnectionContext) -> Result<(), SizeError> {
    let servers = |configs: &DnsContext| {
        let counts = configs.configs.iter().map(|config| 1 + config.dns_server_ips.len() + config.search_domains.len());
        counts.sum()
    };
    check_count("DNS servers and domains", context.dns_context.as_ref().map_or(0, servers), LIST_MAX)?;
    check_count("entries in its extra context", context.extra_context.len(), LIST_MAX)?;
    let Some(ip) = &context.ip_context else { return Ok(()) };
    let routes = ip.policies.iter().map(|policy| policy.routes.len()).sum::<usize>();
    for (what, count) in [
        ("addresses", ip.src_ip_addrs.len() + ip.dst_ip_addrs.len()),
        ("routes", ip.src_routes.len() + ip.dst_routes.len() + routes),
        ("excluded prefixes", ip.excluded_prefixes.len()),
        ("neighbors", ip.ip_neighbors.len()),
        ("extra prefixes", ip.extra_prefixes.len() + ip.extra_prefix_request.len()),
        ("policies", ip.policies.len()),
    ] {
        check_count(what, count, LIST_MAX)?;
    }
    Ok(())
}

fn check_name(what: &'static str, name: &str) -> Result<(), SizeError> {
    if name.len() <= NAME_MAX { Ok(()) } else { Err(SizeError::Name(what, name.len())) }
}

fn check_count(what: &'static str, count: usize, max: usize) -> Result<(), SizeError> {
    if count <= max { Ok(()) } else { Err(SizeError::TooMany(what, count, max)) }
}

fn check_mechanism(mechanism: &Mechanism) -> Result<(), SizeError> {
    check_name("mechanism's type", &mechanism.r#type)?;
    check_name("mechanism's class", &mechanism.cls)?;
    match mechanism.parameters.len() {
        0..=PARAMETERS_MAX => Ok(()),
        count => Err(SizeError::Parameters(mechanism.r#type.clone(), count)),
    }
}

impl From<SizeError> for Status {
    fn from(error: SizeError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// What is read at all, to be refused with a reason.
pub(crate) const MESSAGE_MAX: usize = 256 << 10;
/// A path of 64 segments, each with a token and metrics.
const CONNECTION_MAX: usize = 128 << 10;
const NAME_MAX: usize = 512;
const LABELS_MAX: usize = 256;
const PREFERENCES_MAX: usize = 32;
const PARAMETERS_MAX: usize = 64;
const METRICS_MAX: usize = 64;
/// Routes of a whole network, prefixes of a cluster.
const LIST_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::connection::{Path, PathSegment};
    use crate::proto::connectioncontext::{IpContext, PolicyRoute, Route};

    #[test]
    fn what_is_too_large_is_named() {
        let refused = |change: fn(&mut NetworkServiceRequest, &mut Connection)| {
            let (mut request, mut connection) = (NetworkServiceRequest::default(), Connection::default());
            change(&mut request, &mut connection);
            request.connection = Some(connection);
            check_request(&request).err()
        };
        let labels = |count: usize, size: usize| (0..count).map(|at| (at.to_string(), "x".repeat(size))).collect();
        assert_eq!(refused(|_, _| ()), None);
        assert_eq!(refused(|_, connection| connection.id = "x".repeat(513)), Some(SizeError::Name("id", 513)));
        assert_eq!(
            refused(|request, _| request.mechanism_preferences = vec![Mechanism::default(); 33]),
            Some(SizeError::Preferences(33))
        );
        let many = PathSegment::default();
        let path = Some(Path { index: 0, path_segments: vec![many; SEGMENTS_MAX + 1] });
        assert_eq!(check_connection(&Connection { path, ..Connection::default() }), Err(SizeError::Segments(65)));
        let connection = Connection { labels: labels(257, 1), ..Connection::default() };
        assert_eq!(check_connection(&connection), Err(SizeError::Labels(257)));
        let connection = Connection { labels: labels(200, 1000), ..Connection::default() };
        assert!(matches!(check_connection(&connection), Err(SizeError::Connection(200_000..))));
        let ip = |ip_context| {
            let context = ConnectionContext { ip_context: Some(ip_context), ..ConnectionContext::default() };
            check_connection(&Connection { context: Some(context), ..Connection::default() }).unwrap_err()
        };
        let policies = vec![PolicyRoute::default(); 20_000];
        assert_eq!(ip(IpContext { policies, ..IpContext::default() }), SizeError::TooMany("policies", 20_000, 512));
        let policies = vec![PolicyRoute { routes: vec![Route::default(); 513], ..PolicyRoute::default() }];
        assert_eq!(ip(IpContext { policies, ..IpContext::default() }), SizeError::TooMany("routes", 513, 512));
        let segment = PathSegment { id: "x".repeat(513), ..PathSegment::default() };
        let path = Some(Path { index: 0, path_segments: vec![segment] });
        let connection = Connection { path, ..Connection::default() };
        assert_eq!(check_connection(&connection), Err(SizeError::Name("id of a path segment", 513)));
        let mechanism = Mechanism { parameters: labels(65, 1), ..Mechanism::default() };
        let connection = Connection { mechanism: Some(mechanism), ..Connection::default() };
        assert_eq!(check_connection(&connection), Err(SizeError::Parameters(String::new(), 65)));
    }
}
