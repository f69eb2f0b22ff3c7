//! Which services and endpoints a query, a client or a manager means.

use std::time::SystemTime;

use super::labels::{Labels, has_all};
use crate::proto::registry::{Match, NetworkService, NetworkServiceEndpoint};

/// Whether a service is what a query asks for. What the query does not say matches any.
pub fn is_service(query: &NetworkService, service: &NetworkService) -> bool {
    (query.name.is_empty() || query.name == service.name)
        && (query.payload.is_empty() || query.payload == service.payload)
        && (query.matches.is_empty() || query.matches == service.matches)
}

/// Whether an endpoint is what a query asks for. What the query does not say matches any.
pub fn is_endpoint(query: &NetworkServiceEndpoint, endpoint: &NetworkServiceEndpoint) -> bool {
    let seconds = |endpoint: &NetworkServiceEndpoint| endpoint.expiration_time.map(|time| time.seconds);
    let has_labels = |(service, wanted): (&String, &crate::proto::registry::NetworkServiceLabels)| {
        endpoint
            .network_service_labels
            .get(service)
            .is_some_and(|found| wanted.labels.iter().all(|(name, value)| found.labels.get(name) == Some(value)))
    };
    (query.name.is_empty() || query.name == endpoint.name)
        && (query.url.is_empty() || endpoint.url.contains(&query.url))
        && query.network_service_names.iter().all(|name| endpoint.network_service_names.contains(name))
        && (query.expiration_time.is_none() || seconds(query) == seconds(endpoint))
        && query.network_service_labels.iter().all(has_labels)
}

/// The endpoints that a client with these labels may have of a service, in their order. Those that have run out are none.
pub fn candidates<'a>(
    service: &NetworkService,
    endpoints: &'a [NetworkServiceEndpoint],
    client: &Labels,
    now: SystemTime,
) -> Vec<&'a NetworkServiceEndpoint> {
    let live: Vec<_> = endpoints.iter().filter(|endpoint| !has_run_out(endpoint, now)).collect();
    if service.matches.is_empty() {
        return live;
    }
    for found in service.matches.iter().filter(|found| has_all(client, &found.source_selector, client)) {
        let fitting: Vec<_> =
            live.iter().copied().filter(|endpoint| is_destination(service, found, endpoint, client)).collect();
        if !fitting.is_empty() {
            return fitting;
        }
        if found.fallthrough {
            continue;
        }
        // Such a match is about forwarders only.
        return if found.metadata.is_some() && found.routes.is_empty() { live } else { Vec::new() };
    }
    Vec::new()
}

/// The forwarders that a connection to a service may go through, in their order. `service_name` is the one that they are registered
/// under.
pub fn forwarders<'a>(
    service: &NetworkService,
    service_name: &str,
    forwarders: &'a [NetworkServiceEndpoint],
    client: &Labels,
    now: SystemTime,
) -> Vec<&'a NetworkServiceEndpoint> {
    let live: Vec<_> = forwarders.iter().filter(|forwarder| !has_run_out(forwarder, now)).collect();
    if service.matches.is_empty() {
        return live;
    }
    let point_to_point = Labels::from([("p2p".to_owned(), "true".to_owned())]);
    for found in service.matches.iter().filter(|found| has_all(client, &found.source_selector, client)) {
        let wanted = found.metadata.as_ref().map_or(&point_to_point, |metadata| &metadata.labels);
        let fits = |forwarder: &&NetworkServiceEndpoint| {
            let labels = forwarder.network_service_labels.get(service_name);
            labels.is_some_and(|labels| has_all(&labels.labels, wanted, client))
        };
        let fitting: Vec<_> = live.iter().copied().filter(fits).collect();
        if !fitting.is_empty() || !found.fallthrough {
            return fitting;
        }
    }
    Vec::new()
}

fn is_destination(service: &NetworkService, found: &Match, endpoint: &NetworkServiceEndpoint, client: &Labels) -> bool {
    let none = Labels::new();
    let labels = endpoint.network_service_labels.get(&service.name).map_or(&none, |labels| &labels.labels);
    found.routes.iter().any(|route| has_all(labels, &route.destination_selector, client))
}

fn has_run_out(endpoint: &NetworkServiceEndpoint, now: SystemTime) -> bool {
    let expires = endpoint.expiration_time.and_then(|time| SystemTime::try_from(time).ok());
    expires.is_some_and(|expires| expires <= now)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proto::registry::{Destination, Metadata, NetworkServiceLabels};

    fn labels<const N: usize>(labels: [(&str, &str); N]) -> Labels {
        labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    fn endpoint<const N: usize>(name: &str, service: &str, own: [(&str, &str); N]) -> NetworkServiceEndpoint {
        NetworkServiceEndpoint {
            name: name.to_owned(),
            network_service_names: vec![service.to_owned()],
            network_service_labels: [(service.to_owned(), NetworkServiceLabels { labels: labels(own) })].into(),
            url: format!("unix:///run/{name}.sock"),
            ..NetworkServiceEndpoint::default()
        }
    }

    fn route<const N: usize, const M: usize>(from: [(&str, &str); N], to: [(&str, &str); M]) -> Match {
        let destination = Destination { destination_selector: labels(to), weight: 0 };
        Match { source_selector: labels(from), routes: vec![destination], ..Match::default() }
    }

    fn service(matches: Vec<Match>) -> NetworkService {
        NetworkService { name: "vpn".to_owned(), payload: "IP".to_owned(), matches, path_ids: Vec::new() }
    }

    fn chosen(service: &NetworkService, endpoints: &[NetworkServiceEndpoint], client: &Labels) -> Vec<String> {
        let found = candidates(service, endpoints, client, SystemTime::now());
        found.into_iter().map(|endpoint| endpoint.name.clone()).collect()
    }

    #[test]
    fn a_query_matches_by_what_it_says() {
        let nse = endpoint("nse-1", "vpn", [("app", "gate")]);
        let says = |change: fn(&mut NetworkServiceEndpoint)| {
            let mut query = NetworkServiceEndpoint::default();
            change(&mut query);
            is_endpoint(&query, &nse)
        };
        assert!(says(|_| ()));
        assert!(says(|query| query.name = "nse-1".to_owned()));
        assert!(!says(|query| query.name = "nse".to_owned()));
        assert!(says(|query| query.url = "run/nse".to_owned()));
        assert!(says(|query| query.network_service_names = vec!["vpn".to_owned()]));
        assert!(!says(|query| query.network_service_names = vec!["vpn".to_owned(), "dns".to_owned()]));
        assert!(says(|query| *query = endpoint("", "vpn", [("app", "gate")]).clone_without_url()));
        assert!(!says(|query| *query = endpoint("", "vpn", [("app", "other")]).clone_without_url()));
        assert!(!says(|query| query.expiration_time = Some(prost_types::Timestamp::default())));
        let query = NetworkService { payload: "IP".to_owned(), ..NetworkService::default() };
        assert!(is_service(&query, &service(Vec::new())));
        assert!(!is_service(&NetworkService { name: "vp".to_owned(), ..query }, &service(Vec::new())));
    }

    impl NetworkServiceEndpoint {
        fn clone_without_url(mut self) -> Self {
            self.url.clear();
            self
        }
    }

    #[test]
    fn the_first_match_that_fits_the_client_counts() {
        let nses = [endpoint("fw", "vpn", [("app", "firewall")]), endpoint("gw", "vpn", [("app", "gateway")])];
        let chain = service(vec![route([("app", "firewall")], [("app", "gateway")]), route([], [("app", "firewall")])]);
        assert_eq!(chosen(&service(Vec::new()), &nses, &labels([])), ["fw", "gw"]);
        assert_eq!(chosen(&chain, &nses, &labels([])), ["fw"]);
        assert_eq!(chosen(&chain, &nses, &labels([("app", "firewall")])), ["gw"]);
        assert!(chosen(&service(vec![route([("app", "x")], [])]), &nses, &labels([])).is_empty());
    }

    #[test]
    fn a_match_without_endpoints_falls_through_if_it_says_so() {
        let nses = [endpoint("gw", "vpn", [("app", "gateway")])];
        let mut near = route([], [("node", "{{.nodeName}}")]);
        let any = route([], [("app", "gateway")]);
        let client = labels([("nodeName", "a")]);
        assert!(chosen(&service(vec![near.clone(), any.clone()]), &nses, &client).is_empty());
        near.fallthrough = true;
        assert_eq!(chosen(&service(vec![near.clone(), any]), &nses, &client), ["gw"]);
        assert_eq!(chosen(&service(vec![near]), &[endpoint("b", "vpn", [("node", "a")])], &client), ["b"]);
    }

    #[test]
    fn endpoints_that_have_run_out_are_none() {
        let now = SystemTime::now();
        let mut nse = endpoint("gw", "vpn", []);
        nse.expiration_time = Some(now.into());
        let nses = [nse];
        assert!(candidates(&service(Vec::new()), &nses, &labels([]), now).is_empty());
        assert_eq!(candidates(&service(Vec::new()), &nses, &labels([]), now - Duration::from_secs(1)).len(), 1);
    }

    #[test]
    fn forwarders_are_those_whose_labels_the_match_wants() {
        let both =
            [endpoint("vpp", "forwarder", [("p2p", "true")]), endpoint("sriov", "forwarder", [("sriov", "true")])];
        let names = |service: &NetworkService| {
            let found = forwarders(service, "forwarder", &both, &labels([]), SystemTime::now());
            found.into_iter().map(|forwarder| forwarder.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&service(Vec::new())), ["vpp", "sriov"]);
        assert_eq!(names(&service(vec![route([], [])])), ["vpp"], "point to point, unless the match says otherwise");
        let metadata = Some(Metadata { labels: labels([("sriov", "true")]) });
        let hardware = service(vec![Match { metadata, ..Match::default() }]);
        assert_eq!(names(&hardware), ["sriov"]);
        // Such a match says nothing of endpoints.
        assert_eq!(chosen(&hardware, &[endpoint("gw", "vpn", [])], &labels([])), ["gw"]);
    }
}
