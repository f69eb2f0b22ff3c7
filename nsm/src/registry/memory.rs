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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SpiffeIds;
    use crate::proto::registry::{Destination, Match, NetworkServiceLabels};

    const START: Duration = Duration::from_hours(500_000);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + START + Duration::from_secs(seconds)
    }

    fn endpoint(name: &str, owner: &str) -> NetworkServiceEndpoint {
        NetworkServiceEndpoint {
            name: name.to_owned(),
            network_service_names: vec!["vpn".to_owned()],
            url: "unix:///run/nse.sock".to_owned(),
            path_ids: vec![owner.to_owned()],
            ..NetworkServiceEndpoint::default()
        }
    }

    fn service(payload: &str, owner: &str) -> NetworkService {
        let (name, payload, path_ids) = ("vpn".to_owned(), payload.to_owned(), vec![owner.to_owned()]);
        NetworkService { name, payload, path_ids, ..NetworkService::default() }
    }

    fn owner(name: &str) -> Owner {
        Owner::new(vec![name.to_owned()], &SpiffeIds::default())
    }

    /// By whoever its path ids name.
    fn register(
        registry: &MemoryRegistry,
        endpoint: NetworkServiceEndpoint,
        latest: SystemTime,
        now: SystemTime,
    ) -> Result<NetworkServiceEndpoint, RegistrationError> {
        let owner = owner(&endpoint.path_ids[0]);
        registry.register_endpoint(endpoint, &owner, latest, now)
    }

    fn register_service(
        registry: &MemoryRegistry,
        service: NetworkService,
    ) -> Result<NetworkService, RegistrationError> {
        let owner = owner(&service.path_ids[0]);
        registry.register_service(service, &owner)
    }

    fn seconds(endpoint: &NetworkServiceEndpoint) -> u64 {
        u64::try_from(endpoint.expiration_time.unwrap().seconds).unwrap() - START.as_secs()
    }

    #[test]
    fn an_endpoint_lives_as_long_as_it_asks_its_tokens_allow_and_the_limit_says() {
        let registry = MemoryRegistry::new(RegistryLimits::default());
        let mut asked = endpoint("nse", "a");
        assert_eq!(seconds(&register(&registry, asked.clone(), at(600), at(0)).unwrap()), 60);
        assert_eq!(seconds(&register(&registry, asked.clone(), at(15), at(0)).unwrap()), 15);
        asked.expiration_time = Some(at(20).into());
        let registered = register(&registry, asked.clone(), at(600), at(5)).unwrap();
        assert_eq!(seconds(&registered), 20);
        assert_eq!(registered.initial_registration_time, Some(at(0).into()));
        asked.expiration_time = Some(at(3600).into());
        assert_eq!(seconds(&register(&registry, asked, at(600), at(10)).unwrap()), 70);
    }

    #[tokio::test]
    async fn whoever_watches_sees_registrations_and_that_they_run_out() {
        let registry = MemoryRegistry::new(RegistryLimits::default());
        register(&registry, endpoint("nse-1", "a"), at(600), at(0)).unwrap();
        let query = NetworkServiceEndpoint { name: String::new(), ..NetworkServiceEndpoint::default() };
        let watch = registry.watch_endpoints("x", query.clone()).unwrap();
        register(&registry, endpoint("nse-2", "a"), at(30), at(0)).unwrap();
        for name in ["nse-1", "nse-2"] {
            let seen = watch.next().await.unwrap();
            assert_eq!((content(&seen).name.as_str(), seen.deleted), (name, false));
        }
        assert_eq!(registry.expire(at(29)), Some(at(30)));
        assert_eq!(registry.expire(at(30)), Some(at(60)));
        let seen = watch.next().await.unwrap();
        assert_eq!((content(&seen).name.as_str(), seen.deleted), ("nse-2", true));
        assert_eq!(registry.find_endpoints(&query).len(), 1);
        assert_eq!(registry.expire(at(60)), None);
    }

    #[tokio::test]
    async fn endpoints_run_out_by_themselves() {
        let registry = Arc::new(MemoryRegistry::new(RegistryLimits::default()));
        let running = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.run().await }
        });
        let now = SystemTime::now();
        register(&registry, endpoint("nse-1", "a"), now + Duration::from_millis(20), now).unwrap();
        let watch = registry.watch_endpoints("x", NetworkServiceEndpoint::default()).unwrap();
        assert!(!watch.next().await.unwrap().deleted);
        assert!(watch.next().await.unwrap().deleted);
        running.abort();
    }

    #[test]
    fn a_name_is_its_owners() {
        let registry = MemoryRegistry::new(RegistryLimits::default());
        register(&registry, endpoint("nse", "a"), at(600), at(0)).unwrap();
        let foreign = RegistrationError::Owner("nse".to_owned(), "a".to_owned());
        assert_eq!(register(&registry, endpoint("nse", "b"), at(600), at(0)).err(), Some(foreign.clone()));
        assert_eq!(registry.unregister_endpoint("nse", &owner("b")), Err(foreign));
        assert_eq!(registry.unregister_endpoint("nse", &owner("a")), Ok(()));
        assert_eq!(registry.unregister_endpoint("nse", &owner("b")), Ok(()), "there is none any more");
        register(&registry, endpoint("nse", "b"), at(600), at(0)).unwrap();
    }

    #[test]
    fn a_service_of_many_endpoints_is_registered_by_each_if_they_say_the_same() {
        let registry = MemoryRegistry::new(RegistryLimits::default());
        assert_eq!(register_service(&registry, service("", "a")).unwrap().payload, "IP");
        assert_eq!(register_service(&registry, service("IP", "b")).unwrap().path_ids, ["a"]);
        let foreign = RegistrationError::Owner("vpn".to_owned(), "a".to_owned());
        assert_eq!(register_service(&registry, service("ETHERNET", "b")).err(), Some(foreign.clone()));
        assert_eq!(register_service(&registry, service("ETHERNET", "a")).unwrap().payload, "ETHERNET");
        assert_eq!(registry.unregister_service("vpn", &owner("b")), Err(foreign));
        assert_eq!(registry.unregister_service("vpn", &owner("a")), Ok(()));
        assert!(registry.find_services(&NetworkService::default()).is_empty());
    }

    #[tokio::test]
    async fn what_is_registered_elsewhere_is_known_until_it_is_gone_there_and_ours_counts_more() {
        let registry = MemoryRegistry::new(RegistryLimits { endpoints_max: 2, ..RegistryLimits::default() });
        let query = NetworkServiceEndpoint::default();
        let names = || {
            let found = registry.find_endpoints(&query);
            found.iter().map(|told| (content(told).name.clone(), content(told).url.clone())).collect::<Vec<_>>()
        };
        let elsewhere = |name| NetworkServiceEndpoint { url: "tcp://192.0.2.1:5001".to_owned(), ..endpoint(name, "x") };
        let (ours, theirs) = ("unix:///run/nse.sock".to_owned(), "tcp://192.0.2.1:5001".to_owned());
        registry.mirror_endpoint(elsewhere("a"), at(0)).unwrap();
        register(&registry, endpoint("b", "me"), at(600), at(0)).unwrap();
        registry.mirror_endpoint(elsewhere("b"), at(0)).unwrap();
        assert_eq!(names(), [("a".to_owned(), theirs.clone()), ("b".to_owned(), ours.clone())]);
        assert_eq!(registry.mirror_endpoint(elsewhere("c"), at(0)), Err(RegistrationError::Full(2)));
        assert!(registry.unregister_endpoint("a", &owner("x")).is_err(), "it is not registered here");
        registry.forget_mirrored_endpoints(|_| true);
        assert_eq!(names(), [("b".to_owned(), ours.clone())]);
        registry.mirror_endpoint(elsewhere("a"), at(0)).unwrap();
        register(&registry, endpoint("b", "me"), at(600), at(0)).unwrap();
        assert_eq!(registry.expire(at(60)), None, "they run out");
        registry.mirror_service(service("IP", "x")).unwrap();
        assert!(registry.unregister_service("vpn", &owner("x")).is_err());
        assert_eq!(register_service(&registry, service("ETHERNET", "me")).unwrap().payload, "ETHERNET");
        registry.forget_mirrored_services(|_| true);
        assert_eq!(registry.find_services(&NetworkService::default()).len(), 1);
    }

    #[test]
    fn one_who_registers_a_hundred_thousand_endpoints_is_stopped_and_others_are_not() {
        let registry = MemoryRegistry::new(RegistryLimits::default());
        let mut refused = None;
        for number in 0..100_000 {
            if let Err(error) = register(&registry, endpoint(&format!("nse-{number}"), "greedy"), at(600), at(0)) {
                refused.get_or_insert((number, error));
            }
        }
        assert_eq!(refused, Some((1024, RegistrationError::OwnerFull("greedy".to_owned(), 1024))));
        register(&registry, endpoint("other", "a"), at(600), at(0)).unwrap();
        // Its own are refreshed as before, and one that goes makes room.
        register(&registry, endpoint("nse-0", "greedy"), at(600), at(1)).unwrap();
        registry.unregister_endpoint("nse-0", &owner("greedy")).unwrap();
        register(&registry, endpoint("nse-new", "greedy"), at(600), at(1)).unwrap();
    }

    #[test]
    fn many_who_register_much_are_stopped_too() {
        let limits = RegistryLimits { endpoints_max: 3, services_max: 1, ..RegistryLimits::default() };
        let registry = MemoryRegistry::new(limits);
        for number in 0..3 {
            register(&registry, endpoint(&number.to_string(), &number.to_string()), at(600), at(0)).unwrap();
        }
        assert_eq!(register(&registry, endpoint("3", "3"), at(600), at(0)).err(), Some(RegistrationError::Full(3)));
        register_service(&registry, service("IP", "a")).unwrap();
        let other = NetworkService { name: "dns".to_owned(), ..service("IP", "a") };
        assert_eq!(register_service(&registry, other).err(), Some(RegistrationError::Full(1)));
    }

    #[test]
    fn what_is_too_large_or_says_nothing_is_refused() {
        let registry = MemoryRegistry::new(RegistryLimits::default());
        let refused = |change: fn(&mut NetworkServiceEndpoint)| {
            let mut asked = endpoint("nse", "a");
            change(&mut asked);
            register(&registry, asked, at(600), at(0)).unwrap_err()
        };
        assert_eq!(refused(|asked| asked.name.clear()), RegistrationError::Name);
        assert_eq!(refused(|asked| asked.name = "x".repeat(513)), RegistrationError::Name);
        assert_eq!(refused(|asked| asked.url.clear()), RegistrationError::Url("nse".to_owned()));
        let many = refused(|asked| asked.network_service_names = vec!["vpn".to_owned(); 65]);
        assert_eq!(many, RegistrationError::Services("nse".to_owned(), 65));
        let large = refused(|asked| {
            let labels = [("long".to_owned(), "x".repeat(65 << 10))].into();
            asked.network_service_labels.insert("vpn".to_owned(), NetworkServiceLabels { labels });
        });
        assert!(matches!(large, RegistrationError::TooLarge(..)), "{large}");
        for url in ["file:///run/x", "inode://4", "http://x", "tcp://host"] {
            let asked = NetworkServiceEndpoint { url: url.to_owned(), ..endpoint("nse", "a") };
            let refused = register(&registry, asked, at(600), at(0)).unwrap_err();
            assert_eq!(refused, RegistrationError::Url("nse".to_owned()), "{url}");
        }
    }

    #[test]
    fn what_is_small_on_the_wire_and_large_in_memory_is_refused() {
        let registry = MemoryRegistry::new(RegistryLimits::default());
        let many = |count: usize| (0..count).map(|at| (at.to_string(), String::new())).collect();
        let mut asked = endpoint("nse", "a");
        asked.network_service_labels.insert("vpn".to_owned(), NetworkServiceLabels { labels: many(257) });
        let refused = register(&registry, asked, at(600), at(0)).unwrap_err();
        assert_eq!(refused, RegistrationError::TooMany("nse".to_owned(), 257, "labels", 256));
        let with = |matches| register_service(&registry, NetworkService { matches, ..service("IP", "a") });
        let refused = with(vec![Match::default(); 65]).unwrap_err();
        assert_eq!(refused, RegistrationError::TooMany("vpn".to_owned(), 65, "matches", 64));
        let routes = vec![Destination::default(); 65];
        let refused = with(vec![Match { routes, ..Match::default() }]).unwrap_err();
        assert_eq!(refused, RegistrationError::TooMany("vpn".to_owned(), 65, "routes in a match", 64));
        let refused = with(vec![Match { source_selector: many(257), ..Match::default() }]).unwrap_err();
        assert_eq!(refused, RegistrationError::TooMany("vpn".to_owned(), 257, "labels in a match", 256));
    }
}
