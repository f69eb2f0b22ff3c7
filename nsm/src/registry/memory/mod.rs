//! Who offers what, in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::sleep;

use super::limits::{RegistrationError, check_endpoint, check_service};
use super::select::{is_endpoint, is_service};
use crate::feed::{Feed, FeedError, FeedLimits, Watch};
use crate::policy::Owner;
use crate::proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointResponse, NetworkServiceResponse,
};

#[cfg(test)]
mod tests;

/// The services and endpoints of a mesh. Endpoints run out, unless they are registered anew.
pub struct MemoryRegistry {
    state: Mutex<Contents>,
    services: Feed<Arc<NetworkServiceResponse>>,
    endpoints: Feed<Arc<NetworkServiceEndpointResponse>>,
    limits: RegistryLimits,
    /// An endpoint runs out before those that were there.
    sooner: Notify,
}

/// What clients of a registry may take.
#[derive(Clone, Copy, Debug)]
pub struct RegistryLimits {
    /// How long a registration lives that does not say it, or says more.
    pub lifetime: Duration,
    /// How many endpoints there may be.
    pub endpoints_max: usize,
    /// How many services there may be.
    pub services_max: usize,
    /// How many of either one process may register.
    pub owned_max: usize,
    /// How many may watch either.
    pub watchers_max: usize,
    /// How many of them one process may be.
    pub watchers_of_one_max: usize,
    /// How many changes a watcher may leave unread.
    pub unread_max: usize,
}

impl Default for RegistryLimits {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_mins(1),
            endpoints_max: 16 << 10,
            services_max: 4 << 10,
            owned_max: 1 << 10,
            watchers_max: 4 << 10,
            watchers_of_one_max: 1 << 10,
            unread_max: 16 << 10,
        }
    }
}

#[derive(Default)]
struct Contents {
    services: BTreeMap<String, RegisteredService>,
    endpoints: BTreeMap<String, RegisteredEndpoint>,
    /// How many of either each process has.
    owned: BTreeMap<String, usize>,
}

struct RegisteredEndpoint {
    endpoint: Arc<NetworkServiceEndpointResponse>,
    /// None: it is registered elsewhere, and mirrored here.
    owner: Option<Owner>,
    expires: SystemTime,
}

struct RegisteredService {
    service: Arc<NetworkServiceResponse>,
    owner: Option<Owner>,
}

impl MemoryRegistry {
    /// An empty one.
    pub fn new(limits: RegistryLimits) -> Self {
        let feed_limits = FeedLimits {
            watchers: limits.watchers_max,
            watchers_of_one: limits.watchers_of_one_max,
            unread: limits.unread_max,
        };
        Self {
            state: Mutex::default(),
            services: Feed::new(feed_limits),
            endpoints: Feed::new(feed_limits),
            limits,
            sooner: Notify::new(),
        }
    }

    /// Registers an endpoint or does so anew, no longer than until `latest`, and says how it is registered.
    pub fn register_endpoint(
        &self,
        mut endpoint: NetworkServiceEndpoint,
        owner: &Owner,
        latest: SystemTime,
        now: SystemTime,
    ) -> Result<NetworkServiceEndpoint, RegistrationError> {
        check_endpoint(&endpoint)?;
        let asked = endpoint.expiration_time.and_then(|time| SystemTime::try_from(time).ok());
        let expires = asked.unwrap_or(latest).min(latest).min(now + self.limits.lifetime);
        let mut state = self.lock();
        match state.endpoints.get(&endpoint.name) {
            Some(known) if known.owner.is_some() => {
                check_owner(&endpoint.name, known.owner.as_ref(), owner)?;
                endpoint.initial_registration_time = content(&known.endpoint).initial_registration_time;
            }
            _ => {
                let count = state.endpoints.len();
                state.make_room(owner, count, self.limits.endpoints_max, self.limits.owned_max)?;
                endpoint.initial_registration_time.get_or_insert_with(|| now.into());
            }
        }
        endpoint.expiration_time = Some(expires.into());
        self.put_endpoint(state, endpoint.clone(), Some(owner.clone()), expires);
        Ok(endpoint)
    }

    /// Knows an endpoint that is registered elsewhere. One of ours of the same name is the one that counts.
    pub(super) fn mirror_endpoint(
        &self,
        endpoint: NetworkServiceEndpoint,
        now: SystemTime,
    ) -> Result<(), RegistrationError> {
        check_endpoint(&endpoint)?;
        let asked = endpoint.expiration_time.and_then(|time| SystemTime::try_from(time).ok());
        let expires = asked.unwrap_or(now + self.limits.lifetime).min(now + MIRRORED_MAX);
        let state = self.lock();
        match state.endpoints.get(&endpoint.name) {
            Some(known) if known.owner.is_some() => return Ok(()),
            None if state.endpoints.len() >= self.limits.endpoints_max => {
                return Err(RegistrationError::Full(state.endpoints.len()));
            }
            _ => {}
        }
        self.put_endpoint(state, endpoint, None, expires);
        Ok(())
    }

    /// Forgets those that are registered elsewhere and have such names.
    pub(super) fn forget_mirrored_endpoints(&self, is_gone: impl Fn(&str) -> bool) {
        let mut state = self.lock();
        let mirrored = state.endpoints.iter().filter(|(name, known)| known.owner.is_none() && is_gone(name));
        let gone: Vec<String> = mirrored.map(|(name, _)| name.clone()).collect();
        for name in &gone {
            self.remove_endpoint(&mut state, name);
        }
    }

    fn put_endpoint(
        &self,
        mut state: MutexGuard<'_, Contents>,
        endpoint: NetworkServiceEndpoint,
        owner: Option<Owner>,
        expires: SystemTime,
    ) {
        let is_sooner = state.endpoints.values().all(|other| expires < other.expires);
        let (name, endpoint) = (endpoint.name.clone(), Arc::new(told(endpoint, false)));
        self.endpoints.publish(&name, &endpoint);
        state.endpoints.insert(name, RegisteredEndpoint { endpoint, owner, expires });
        drop(state);
        if is_sooner {
            self.sooner.notify_one();
        }
    }

    /// Registers a service. Endpoints of several owners register theirs each: what says the same is no change.
    pub fn register_service(
        &self,
        mut service: NetworkService,
        owner: &Owner,
    ) -> Result<NetworkService, RegistrationError> {
        check_service(&service)?;
        if service.payload.is_empty() {
            PAYLOAD_DEFAULT.clone_into(&mut service.payload);
        }
        let mut state = self.lock();
        match state.services.get(&service.name) {
            Some(known) if known.owner.is_some() => {
                let same = service_of(&known.service);
                if same.payload == service.payload && same.matches == service.matches {
                    return Ok(same.clone());
                }
                check_owner(&service.name, known.owner.as_ref(), owner)?;
            }
            _ => {
                let count = state.services.len();
                state.make_room(owner, count, self.limits.services_max, self.limits.owned_max)?;
            }
        }
        self.put_service(&mut state, service.clone(), Some(owner.clone()));
        Ok(service)
    }

    /// Knows a service that is registered elsewhere. One of ours of the same name is the one that counts.
    pub(super) fn mirror_service(&self, service: NetworkService) -> Result<(), RegistrationError> {
        check_service(&service)?;
        let mut state = self.lock();
        match state.services.get(&service.name) {
            Some(known) if known.owner.is_some() => return Ok(()),
            None if state.services.len() >= self.limits.services_max => {
                return Err(RegistrationError::Full(state.services.len()));
            }
            _ => {}
        }
        self.put_service(&mut state, service, None);
        Ok(())
    }

    /// Forgets those that are registered elsewhere and have such names.
    pub(super) fn forget_mirrored_services(&self, is_gone: impl Fn(&str) -> bool) {
        let mut state = self.lock();
        let mirrored = state.services.iter().filter(|(name, known)| known.owner.is_none() && is_gone(name));
        let gone: Vec<String> = mirrored.map(|(name, _)| name.clone()).collect();
        for name in &gone {
            self.remove_service(&mut state, name);
        }
    }

    fn put_service(&self, state: &mut Contents, service: NetworkService, owner: Option<Owner>) {
        let name = service.name.clone();
        let service = Arc::new(NetworkServiceResponse { network_service: Some(service), deleted: false });
        self.services.publish(&name, &service);
        state.services.insert(name, RegisteredService { service, owner });
    }

    /// Forgets an endpoint. One that is not there is no fault.
    pub fn unregister_endpoint(&self, name: &str, caller: &Owner) -> Result<(), RegistrationError> {
        let mut state = self.lock();
        let Some(known) = state.endpoints.get(name) else { return Ok(()) };
        check_owner(name, known.owner.as_ref(), caller)?;
        self.remove_endpoint(&mut state, name);
        Ok(())
    }

    /// Forgets a service. One that is not there is no fault.
    pub fn unregister_service(&self, name: &str, caller: &Owner) -> Result<(), RegistrationError> {
        let mut state = self.lock();
        let Some(known) = state.services.get(name) else { return Ok(()) };
        check_owner(name, known.owner.as_ref(), caller)?;
        self.remove_service(&mut state, name);
        Ok(())
    }

    /// The endpoints that a query means, by their names.
    pub fn find_endpoints(&self, query: &NetworkServiceEndpoint) -> Vec<Arc<NetworkServiceEndpointResponse>> {
        let state = self.lock();
        let all = state.endpoints.values().map(|known| &known.endpoint);
        all.filter(|known| is_endpoint(query, content(known))).cloned().collect()
    }

    /// The services that a query means, by their names.
    pub fn find_services(&self, query: &NetworkService) -> Vec<Arc<NetworkServiceResponse>> {
        let state = self.lock();
        let all = state.services.values().map(|known| &known.service);
        all.filter(|known| is_service(query, service_of(known))).cloned().collect()
    }

    /// The same, and each change from then on, for the caller `who`.
    pub(super) fn watch_endpoints(
        &self,
        who: &str,
        query: NetworkServiceEndpoint,
    ) -> Result<Watch<Arc<NetworkServiceEndpointResponse>>, FeedError> {
        let state = self.lock();
        let first = state.endpoints.iter().map(|(name, known)| (name.clone(), Arc::clone(&known.endpoint)));
        self.endpoints.watch(who, first, move |told| is_endpoint(&query, content(told)))
    }

    /// The same, and each change from then on, for the caller `who`.
    pub(super) fn watch_services(
        &self,
        who: &str,
        query: NetworkService,
    ) -> Result<Watch<Arc<NetworkServiceResponse>>, FeedError> {
        let state = self.lock();
        let first = state.services.iter().map(|(name, known)| (name.clone(), Arc::clone(&known.service)));
        self.services.watch(who, first, move |told| is_service(&query, service_of(told)))
    }

    /// Forgets the endpoints that have run out, and says when the next one does.
    pub fn expire(&self, now: SystemTime) -> Option<SystemTime> {
        let mut state = self.lock();
        let over: Vec<String> =
            state.endpoints.iter().filter(|(_, known)| known.expires <= now).map(|(name, _)| name.clone()).collect();
        for name in over {
            self.remove_endpoint(&mut state, &name);
        }
        state.endpoints.values().map(|known| known.expires).min()
    }

    /// Forgets endpoints as they run out, for ever.
    pub async fn run(&self) {
        loop {
            let now = SystemTime::now();
            let next = self.expire(now).map_or(IDLE, |next| next.duration_since(now).unwrap_or_default());
            tokio::select! {
                () = sleep(next) => {}
                () = self.sooner.notified() => {}
            }
        }
    }

    fn remove_endpoint(&self, state: &mut Contents, name: &str) {
        let Some(known) = state.endpoints.remove(name) else { return };
        let endpoint = content(&known.endpoint).clone();
        state.disown(known.owner.as_ref());
        self.endpoints.publish(name, &Arc::new(told(endpoint, true)));
    }

    fn remove_service(&self, state: &mut Contents, name: &str) {
        let Some(RegisteredService { service, owner }) = state.services.remove(name) else { return };
        state.disown(owner.as_ref());
        let gone = NetworkServiceResponse { deleted: true, ..NetworkServiceResponse::clone(&service) };
        self.services.publish(name, &Arc::new(gone));
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    /// Counts one more of an owner, of whose kind there are `count`.
    fn make_room(
        &mut self,
        owner: &Owner,
        count: usize,
        max: usize,
        owned_max: usize,
    ) -> Result<(), RegistrationError> {
        if count >= max {
            return Err(RegistrationError::Full(count));
        }
        let owner = owner.account();
        let owned = self.owned.get(owner).copied().unwrap_or(0);
        if owned >= owned_max {
            return Err(RegistrationError::OwnerFull(owner.to_owned(), owned));
        }
        self.owned.insert(owner.to_owned(), owned + 1);
        Ok(())
    }

    fn disown(&mut self, owner: Option<&Owner>) {
        let Some(owner) = owner.map(Owner::account) else { return };
        match self.owned.get_mut(owner) {
            Some(owned) if *owned > 1 => *owned -= 1,
            _ => drop(self.owned.remove(owner)),
        }
    }
}

fn told(endpoint: NetworkServiceEndpoint, deleted: bool) -> NetworkServiceEndpointResponse {
    NetworkServiceEndpointResponse { network_service_endpoint: Some(endpoint), deleted }
}

fn content(told: &NetworkServiceEndpointResponse) -> &NetworkServiceEndpoint {
    told.network_service_endpoint.as_ref().expect("each that is kept has one")
}

fn service_of(told: &NetworkServiceResponse) -> &NetworkService {
    told.network_service.as_ref().expect("each that is kept has one")
}

fn check_owner(name: &str, owner: Option<&Owner>, caller: &Owner) -> Result<(), RegistrationError> {
    if owner == Some(caller) {
        return Ok(());
    }
    let owner = owner.map_or_else(|| "somebody of another node".to_owned(), ToString::to_string);
    Err(RegistrationError::Owner(name.to_owned(), owner))
}

/// Without a payload a service is of packets.
const PAYLOAD_DEFAULT: &str = "IP";
/// A registry whose clock is another is not believed for ever.
const MIRRORED_MAX: Duration = Duration::from_hours(24);
/// When nothing can run out.
const IDLE: Duration = Duration::from_hours(1);
