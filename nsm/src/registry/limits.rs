//! How large a registration may be: everybody who watches is sent it.

use prost::Message;

use crate::proto::registry::{NetworkService, NetworkServiceEndpoint};

/// Why a registration is refused, whoever makes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// It is nobody's.
    #[error("a registration has a name of 1 to {NAME_MAX} bytes")]
    Name,
    /// It is nowhere.
    #[error("{0} has no url: who finds it could not reach it")]
    Url(String),
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
    if endpoint.url.is_empty() {
        return Err(RegistrationError::Url(name()));
    }
    let services = &endpoint.network_service_names;
    if services.len() > SERVICES_MAX || services.iter().any(|service| check_name(service).is_err()) {
        return Err(RegistrationError::Services(name(), services.len()));
    }
    check_size(&endpoint.name, endpoint)
}

/// Whether a service can be registered at all.
pub fn check_service(service: &NetworkService) -> Result<(), RegistrationError> {
    check_name(&service.name)?;
    check_size(&service.name, service)
}

fn check_name(name: &str) -> Result<(), RegistrationError> {
    if (1..=NAME_MAX).contains(&name.len()) { Ok(()) } else { Err(RegistrationError::Name) }
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
/// Labels of a whole pod, for several services.
const SIZE_MAX: usize = 64 << 10;
