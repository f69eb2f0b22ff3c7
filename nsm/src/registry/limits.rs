//! How large a registration may be: everybody who watches is sent it.

use prost::Message;

use crate::files::Inode;
use crate::proto::registry::{NetworkService, NetworkServiceEndpoint};
use crate::transport::Address;

/// Why a registration is refused, whoever makes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// It is nobody's.
    #[error("a registration has a name of 1 to {NAME_MAX} bytes")]
    Name,
    /// It is nowhere.
    #[error(
        "the url of {0} is no unix:///path, tcp://host:port or inode://DEVICE/NUMBER: who finds it could not reach it"
    )]
    Url(String),
    /// More than anybody would read.
    #[error("the registration of {0} has {1} {2}: at most {3}")]
    TooMany(String, usize, &'static str, usize),
    /// It serves too much.
    #[error("{0} has {1} services: at most {SERVICES_MAX}, each with a name of 1 to {NAME_MAX} bytes")]
    Services(String, usize),
    /// Everybody would have to read it.
    #[error("the registration of {0} has {1} bytes: at most {SIZE_MAX}")]
    TooLarge(String, usize),
    /// Somebody else's.
    #[error("{0} is registered by {1}: only who registered it may change it")]
    Owner(String, String),
    /// One registers too much.
    #[error("{0} has registered {1} already: unregister some, or let them run out")]
    OwnerFull(String, usize),
    /// All register too much.
    #[error("there are {0} registrations already: no more are taken")]
    Full(usize),
}

/// Whether an endpoint can be registered at all.
pub fn check_endpoint(endpoint: &NetworkServiceEndpoint) -> Result<(), RegistrationError> {
    check_name(&endpoint.name)?;
    let name = || endpoint.name.clone();
    if endpoint.url.parse::<Address>().is_err() && endpoint.url.parse::<Inode>().is_err() {
        return Err(RegistrationError::Url(name()));
    }
    let services = &endpoint.network_service_names;
    if services.len() > SERVICES_MAX || services.iter().any(|service| check_name(service).is_err()) {
        return Err(RegistrationError::Services(name(), services.len()));
    }
    let of_services = endpoint.network_service_labels.values().map(|labels| labels.labels.len());
    check_count(&endpoint.name, "services with labels", endpoint.network_service_labels.len(), SERVICES_MAX)?;
    check_count(&endpoint.name, "labels", of_services.sum(), LABELS_MAX)?;
    check_size(&endpoint.name, endpoint)
}

/// Whether a service can be registered at all.
pub fn check_service(service: &NetworkService) -> Result<(), RegistrationError> {
    check_name(&service.name)?;
    let count = |what, count, max| check_count(&service.name, what, count, max);
    count("matches", service.matches.len(), MATCHES_MAX)?;
    for found in &service.matches {
        count("routes in a match", found.routes.len(), MATCHES_MAX)?;
        let of_routes = found.routes.iter().map(|route| route.destination_selector.len());
        let metadata = found.metadata.as_ref().map_or(0, |metadata| metadata.labels.len());
        count("labels in a match", found.source_selector.len() + metadata + of_routes.sum::<usize>(), LABELS_MAX)?;
    }
    check_size(&service.name, service)
}

fn check_name(name: &str) -> Result<(), RegistrationError> {
    if (1..=NAME_MAX).contains(&name.len()) { Ok(()) } else { Err(RegistrationError::Name) }
}

/// An entry takes two bytes of a message, and a hundred of memory.
fn check_count(name: &str, what: &'static str, count: usize, max: usize) -> Result<(), RegistrationError> {
    if count <= max { Ok(()) } else { Err(RegistrationError::TooMany(name.to_owned(), count, what, max)) }
}

fn check_size(name: &str, message: &impl Message) -> Result<(), RegistrationError> {
    match message.encoded_len() {
        0..=SIZE_MAX => Ok(()),
        len => Err(RegistrationError::TooLarge(name.to_owned(), len)),
    }
}

/// A DNS name, with room for `@domain`.
const NAME_MAX: usize = 512;
const SERVICES_MAX: usize = 64;
const LABELS_MAX: usize = 256;
const MATCHES_MAX: usize = 64;
/// Labels of a whole pod, for several services.
const SIZE_MAX: usize = 64 << 10;
