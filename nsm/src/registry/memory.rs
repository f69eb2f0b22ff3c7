//! Who offers what, in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::sleep;

use super::limits::{RegistrationError, check_endpoint, check_service};
use super::select::{is_endpoint, is_service};
use crate::feed::{Feed, FeedError, FeedLimits, Watch};
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
            unread_max: 16 << 10,
        }
    }
}

#[derive(Default)]
struct Contents {
    services: BTreeMap<String, Arc<NetworkServiceResponse>>,
    endpoints: BTreeMap<String, Registered>,
    /// How many of either each process has.
    owned: BTreeMap<String, usize>,
}

struct Registered {
    endpoint: Arc<NetworkServiceEndpointResponse>,
    expires: SystemTime,
}

impl MemoryRegistry {
    /// An empty one.
    pub fn new(limits: RegistryLimits) -> Self {
        let feed_limits = FeedLimits { watchers_max: limits.watchers_max, unread_max: limits.unread_max };
        Self {
            state: Mutex::default(),
            services: Feed::new(feed_limits),
            endpoints: Feed::new(feed_limits),
            limits,
            sooner: Notify::new(),
        }
    }

    /// Registers an endpoint or does so anew, no longer than until `latest`, and says how it is registered. Its owner is the first of
    /// its path ids.
    pub fn register_endpoint(
        &self,
        mut endpoint: NetworkServiceEndpoint,
        latest: SystemTime,
        now: SystemTime,
    ) -> Result<NetworkServiceEndpoint, RegistrationError> {
        check_endpoint(&endpoint)?;
        let asked = endpoint.expiration_time.and_then(|time| SystemTime::try_from(time).ok());
        let expires = asked.unwrap_or(latest).min(latest).min(now + self.limits.lifetime);
        let mut state = self.lock();
        let known = state.endpoints.get(&endpoint.name).map(|known| content(&known.endpoint));
        if let Some(known) = known {
            check_owner(&endpoint.name, owner(&known.path_ids), owner(&endpoint.path_ids))?;
            endpoint.initial_registration_time = known.initial_registration_time;
        } else {
            let count = state.endpoints.len();
            state.make_room(owner(&endpoint.path_ids), count, self.limits.endpoints_max, self.limits.owned_max)?;
            endpoint.initial_registration_time.get_or_insert_with(|| now.into());
        }
        endpoint.expiration_time = Some(expires.into());
        let is_sooner = state.endpoints.values().all(|other| expires < other.expires);
        let told = Arc::new(told(endpoint.clone(), false));
        self.endpoints.publish(&endpoint.name, &told);
        state.endpoints.insert(endpoint.name.clone(), Registered { endpoint: told, expires });
        drop(state);
        if is_sooner {
            self.sooner.notify_one();
        }
        Ok(endpoint)
    }

    /// Registers a service. Endpoints of several owners register theirs each: what says the same is no change.
    pub fn register_service(&self, mut service: NetworkService) -> Result<NetworkService, RegistrationError> {
        check_service(&service)?;
        if service.payload.is_empty() {
            PAYLOAD_DEFAULT.clone_into(&mut service.payload);
        }
        let mut state = self.lock();
        let known = state.services.get(&service.name).and_then(|known| known.network_service.clone());
        match known {
            Some(known) if known.payload == service.payload && known.matches == service.matches => return Ok(known),
            Some(known) => check_owner(&service.name, owner(&known.path_ids), owner(&service.path_ids))?,
            None => {
                let count = state.services.len();
                state.make_room(owner(&service.path_ids), count, self.limits.services_max, self.limits.owned_max)?;
            }
        }
        let told = Arc::new(NetworkServiceResponse { network_service: Some(service.clone()), deleted: false });
        self.services.publish(&service.name, &told);
        state.services.insert(service.name.clone(), told);
        Ok(service)
    }

    /// Forgets an endpoint. One that is not there is no fault.
    pub fn unregister_endpoint(&self, name: &str, caller: &str) -> Result<(), RegistrationError> {
        let mut state = self.lock();
        let Some(known) = state.endpoints.get(name) else { return Ok(()) };
        check_owner(name, owner(&content(&known.endpoint).path_ids), caller)?;
        self.remove_endpoint(&mut state, name);
        Ok(())
    }

    /// Forgets a service. One that is not there is no fault.
    pub fn unregister_service(&self, name: &str, caller: &str) -> Result<(), RegistrationError> {
        let mut state = self.lock();
        let Some(service) = state.services.get(name).and_then(|known| known.network_service.clone()) else {
            return Ok(());
        };
        check_owner(name, owner(&service.path_ids), caller)?;
        state.services.remove(name);
        state.disown(owner(&service.path_ids));
        let gone = NetworkServiceResponse { network_service: Some(service), deleted: true };
        self.services.publish(name, &Arc::new(gone));
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
        let fits = |known: &&Arc<NetworkServiceResponse>| {
            known.network_service.as_ref().is_some_and(|known| is_service(query, known))
        };
        self.lock().services.values().filter(fits).cloned().collect()
    }

    /// The same, and each change from then on.
    pub(super) fn watch_endpoints(
        &self,
        query: NetworkServiceEndpoint,
    ) -> Result<Watch<Arc<NetworkServiceEndpointResponse>>, FeedError> {
        let state = self.lock();
        let first = state.endpoints.iter().map(|(name, known)| (name.clone(), Arc::clone(&known.endpoint)));
        self.endpoints.watch(first, move |told| is_endpoint(&query, content(told)))
    }

    /// The same, and each change from then on.
    pub(super) fn watch_services(
        &self,
        query: NetworkService,
    ) -> Result<Watch<Arc<NetworkServiceResponse>>, FeedError> {
        let state = self.lock();
        let first = state.services.iter().map(|(name, known)| (name.clone(), Arc::clone(known)));
        self.services
            .watch(first, move |told| told.network_service.as_ref().is_some_and(|told| is_service(&query, told)))
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
        state.disown(owner(&endpoint.path_ids));
        self.endpoints.publish(name, &Arc::new(told(endpoint, true)));
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    /// Counts one more of an owner, of whose kind there are `count`.
    fn make_room(&mut self, owner: &str, count: usize, max: usize, owned_max: usize) -> Result<(), RegistrationError> {
        if count >= max {
            return Err(RegistrationError::Full(count));
        }
        let owned = self.owned.get(owner).copied().unwrap_or(0);
        if owned >= owned_max {
            return Err(RegistrationError::OwnerFull(owner.to_owned(), owned));
        }
        self.owned.insert(owner.to_owned(), owned + 1);
        Ok(())
    }

    fn disown(&mut self, owner: &str) {
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

/// Whoever registered first.
fn owner(path_ids: &[String]) -> &str {
    path_ids.first().map_or("", String::as_str)
}

fn check_owner(name: &str, owner: &str, caller: &str) -> Result<(), RegistrationError> {
    if owner == caller { Ok(()) } else { Err(RegistrationError::Owner(name.to_owned(), owner.to_owned())) }
}

/// Without a payload a service is of packets.
const PAYLOAD_DEFAULT: &str = "IP";
/// When nothing can run out.
const IDLE: Duration = Duration::from_hours(1);

#[cfg(test)]
mod tests {
    use super::*;

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

    fn seconds(endpoint: &NetworkServiceEndpoint) -> u64 {
        u64::try_from(endpoint.expiration_time.unwrap().seconds).unwrap() - START.as_secs()
    }

    #[test]
    fn an_endpoint_lives_as_long_as_it_asks_its_tokens_allow_and_the_limit_says() {
        let registry = MemoryRegistry::new(RegistryLimits::default());
        let mut asked = endpoint("nse", "a");
        assert_eq!(seconds(&registry.register_endpoint(asked.clone(), at(600), at(0)).unwrap()), 60);
        assert_eq!(seconds(&registry.register_endpoint(asked.clone(), at(15), at(0)).unwrap()), 15);
        asked.expiration_time = Some(at(20).into());
        let registered = registry.register_endpoint(asked.clone(), at(600), at(5)).unwrap();
        assert_eq!(seconds(&registered), 20);
        assert_eq!(registered.initial_registration_time, Some(at(0).into()));
        asked.expiration_time = Some(at(3600).into());
        assert_eq!(seconds(&registry.register_endpoint(asked, at(600), at(10)).unwrap()), 70);
    }

    #[tokio::test]
    async fn whoever_watches_sees_registrations_and_that_they_run_out() {
        let registry = MemoryRegistry::new(RegistryLimits::default());
        registry.register_endpoint(endpoint("nse-1", "a"), at(600), at(0)).unwrap();
        let query = NetworkServiceEndpoint { name: String::new(), ..NetworkServiceEndpoint::default() };
        let watch = registry.watch_endpoints(query.clone()).unwrap();
        registry.register_endpoint(endpoint("nse-2", "a"), at(30), at(0)).unwrap();
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
        registry.register_endpoint(endpoint("nse-1", "a"), now + Duration::from_millis(20), now).unwrap();
        let watch = registry.watch_endpoints(NetworkServiceEndpoint::default()).unwrap();
        assert!(!watch.next().await.unwrap().deleted);
        assert!(watch.next().await.unwrap().deleted);
        running.abort();
    }

    #[test]
    fn a_name_is_its_owners() {
        let registry = MemoryRegistry::new(RegistryLimits::default());
        registry.register_endpoint(endpoint("nse", "a"), at(600), at(0)).unwrap();
        let foreign = RegistrationError::Owner("nse".to_owned(), "a".to_owned());
        assert_eq!(registry.register_endpoint(endpoint("nse", "b"), at(600), at(0)).err(), Some(foreign.clone()));
        assert_eq!(registry.unregister_endpoint("nse", "b"), Err(foreign));
        assert_eq!(registry.unregister_endpoint("nse", "a"), Ok(()));
        assert_eq!(registry.unregister_endpoint("nse", "b"), Ok(()), "there is none any more");
        registry.register_endpoint(endpoint("nse", "b"), at(600), at(0)).unwrap();
    }

    #[test]
    fn a_service_of_many_endpoints_is_registered_by_each_if_they_say_the_same() {
        let registry = MemoryRegistry::new(RegistryLimits::default());
        assert_eq!(registry.register_service(service("", "a")).unwrap().payload, "IP");
        assert_eq!(registry.register_service(service("IP", "b")).unwrap().path_ids, ["a"]);
        let foreign = RegistrationError::Owner("vpn".to_owned(), "a".to_owned());
        assert_eq!(registry.register_service(service("ETHERNET", "b")).err(), Some(foreign.clone()));
        assert_eq!(registry.register_service(service("ETHERNET", "a")).unwrap().payload, "ETHERNET");
        assert_eq!(registry.unregister_service("vpn", "b"), Err(foreign));
        assert_eq!(registry.unregister_service("vpn", "a"), Ok(()));
        assert!(registry.find_services(&NetworkService::default()).is_empty());
    }

    #[test]
    fn one_who_registers_a_hundred_thousand_endpoints_is_stopped_and_others_are_not() {
        let registry = MemoryRegistry::new(RegistryLimits::default());
        let mut refused = None;
        for number in 0..100_000 {
            if let Err(error) = registry.register_endpoint(endpoint(&format!("nse-{number}"), "greedy"), at(600), at(0))
            {
                refused.get_or_insert((number, error));
            }
        }
        assert_eq!(refused, Some((1024, RegistrationError::OwnerFull("greedy".to_owned(), 1024))));
        registry.register_endpoint(endpoint("other", "a"), at(600), at(0)).unwrap();
        // Its own are refreshed as before, and one that goes makes room.
        registry.register_endpoint(endpoint("nse-0", "greedy"), at(600), at(1)).unwrap();
        registry.unregister_endpoint("nse-0", "greedy").unwrap();
        registry.register_endpoint(endpoint("nse-new", "greedy"), at(600), at(1)).unwrap();
    }

    #[test]
    fn many_who_register_much_are_stopped_too() {
        let limits = RegistryLimits { endpoints_max: 3, services_max: 1, ..RegistryLimits::default() };
        let registry = MemoryRegistry::new(limits);
        for number in 0..3 {
            registry.register_endpoint(endpoint(&number.to_string(), &number.to_string()), at(600), at(0)).unwrap();
        }
        assert_eq!(
            registry.register_endpoint(endpoint("3", "3"), at(600), at(0)).err(),
            Some(RegistrationError::Full(3))
        );
        registry.register_service(service("IP", "a")).unwrap();
        let other = NetworkService { name: "dns".to_owned(), ..service("IP", "a") };
        assert_eq!(registry.register_service(other).err(), Some(RegistrationError::Full(1)));
    }

    #[test]
    fn what_is_too_large_or_says_nothing_is_refused() {
        let registry = MemoryRegistry::new(RegistryLimits::default());
        let refused = |change: fn(&mut NetworkServiceEndpoint)| {
            let mut asked = endpoint("nse", "a");
            change(&mut asked);
            registry.register_endpoint(asked, at(600), at(0)).unwrap_err()
        };
        assert_eq!(refused(|asked| asked.name.clear()), RegistrationError::Name);
        assert_eq!(refused(|asked| asked.name = "x".repeat(513)), RegistrationError::Name);
        assert_eq!(refused(|asked| asked.url.clear()), RegistrationError::Url("nse".to_owned()));
        let many = refused(|asked| asked.network_service_names = vec!["vpn".to_owned(); 65]);
        assert_eq!(many, RegistrationError::Services("nse".to_owned(), 65));
        let large = refused(|asked| {
            let labels = [("long".to_owned(), "x".repeat(65 << 10))].into();
            asked
                .network_service_labels
                .insert("vpn".to_owned(), crate::proto::registry::NetworkServiceLabels { labels });
        });
        assert!(matches!(large, RegistrationError::TooLarge(..)), "{large}");
    }
}
