//! What is registered, by whom, and for how long; without a socket.

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

fn register_service(registry: &MemoryRegistry, service: NetworkService) -> Result<NetworkService, RegistrationError> {
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
