//! From who offers and who asks to the wires between them.
//!
//! Each function serves one client. Who comes next is decided as in Network Service Mesh, by the same code: a client asks with its labels, a
//! function that is no end of the chain asks with its own. Of several the first in the file is taken that nobody has.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

use ferrule_dataplane::spec::{EndSpec, WireSpec};
use ferrule_nsm::proto::registry::{NetworkService, NetworkServiceEndpoint, NetworkServiceLabels};
use ferrule_nsm::registry::labels::{Labels, has_all};
use ferrule_nsm::registry::select::candidates;

use super::Assignments;

/// A function that offers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChainFunction {
    pub(super) name: String,
    pub(super) service: String,
    pub(super) labels: Labels,
    /// Our end where its client is.
    pub(super) client: EndSpec,
    /// Our end where the chain goes on; none: it ends here.
    pub(super) network: Option<EndSpec>,
}

/// A client that asks for a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChainClient {
    pub(super) name: String,
    pub(super) service: String,
    pub(super) labels: Labels,
    pub(super) end: EndSpec,
}

/// The chains of all clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Composed {
    /// Each with the number of its client.
    pub(super) wires: Vec<(usize, WireSpec)>,
    pub(super) next: Assignments,
}

/// A client whose chain does not come to an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unserved {
    pub(super) client: usize,
    pub(super) problem: String,
}

/// Composes the chains. Whoever had somebody next before has them still, if the documents allow it.
pub(super) fn compose(
    services: &[NetworkService],
    functions: &[ChainFunction],
    clients: &[ChainClient],
    before: &Assignments,
) -> Result<Composed, Vec<Unserved>> {
    let mut kept = BTreeMap::new();
    for (index, client) in clients.iter().enumerate() {
        kept.extend(chain_of(&client.name, before).map(|name| (name, index)));
    }
    let mut composing =
        Composing { services, functions, clients, before, kept, taken: BTreeMap::new(), composed: Composed::default() };
    // Those who had a chain come first: nobody gets what they have.
    let (had, new): (Vec<_>, Vec<_>) = (0..clients.len()).partition(|index| before.contains_key(&clients[*index].name));
    let unserved: Vec<_> = had.into_iter().chain(new).filter_map(|index| composing.chain(index).err()).collect();
    if unserved.is_empty() { Ok(composing.composed) } else { Err(unserved) }
}

/// Who comes behind `near`, in order.
pub(super) fn chain_of<'a>(near: &'a str, next: &'a Assignments) -> impl Iterator<Item = &'a str> {
    // Everybody is next to one only, so it comes to an end; what a file says it might not.
    std::iter::successors(next.get(near), |near| next.get(*near)).take(next.len()).map(String::as_str)
}

struct Composing<'a> {
    services: &'a [NetworkService],
    functions: &'a [ChainFunction],
    clients: &'a [ChainClient],
    before: &'a Assignments,
    /// What clients had that are there still, and which of them.
    kept: BTreeMap<&'a str, usize>,
    /// The client of each function that has one.
    taken: BTreeMap<&'a str, usize>,
    composed: Composed,
}

impl<'a> Composing<'a> {
    fn chain(&mut self, index: usize) -> Result<(), Unserved> {
        let unserved = |problem| Unserved { client: index, problem };
        let client = &self.clients[index];
        let service = self.services.iter().find(|service| service.name == client.service);
        let service = service.ok_or_else(|| unserved(self.no_service(&client.service)))?;
        let (mut near, mut near_end, mut labels) = (client.name.as_str(), &client.end, &client.labels);
        loop {
            let function = self.next(service, near, labels, index).map_err(unserved)?;
            self.taken.insert(&function.name, index);
            self.composed.next.insert(near.to_owned(), function.name.clone());
            let name = format!("{near}:{}", function.name);
            let wire = WireSpec {
                labels: BTreeMap::from([
                    ("client".to_owned(), client.name.clone()),
                    ("network-service".to_owned(), service.name.clone()),
                ]),
                ..WireSpec::new(name, [near_end.clone(), function.client.clone()])
            };
            self.composed.wires.push((index, wire));
            let Some(network) = &function.network else { return Ok(()) };
            (near, near_end, labels) = (&function.name, network, &function.labels);
        }
    }

    /// Who comes behind `near`, which has these labels.
    fn next(
        &self,
        service: &NetworkService,
        near: &str,
        labels: &Labels,
        client: usize,
    ) -> Result<&'a ChainFunction, String> {
        let fitting = self.fitting(service, labels, |function| !self.taken.contains_key(function.name.as_str()));
        let had = self.before.get(near);
        // What it had; then what was elsewhere on this chain; then what nobody had. Of equals the first in the file.
        let rank = |function: &&ChainFunction| match self.kept.get(function.name.as_str()) {
            _ if Some(&function.name) == had => 0,
            Some(whose) if *whose == client => 1,
            None => 2,
            Some(_) => 3,
        };
        fitting.into_iter().min_by_key(rank).ok_or_else(|| self.nobody(service, near, labels, client))
    }

    /// The functions that the service's matches lead to, of those that `may` be.
    fn fitting(
        &self,
        service: &NetworkService,
        labels: &Labels,
        may: impl Fn(&ChainFunction) -> bool,
    ) -> Vec<&'a ChainFunction> {
        let offered: Vec<_> =
            self.functions.iter().filter(|function| function.service == service.name && may(function)).collect();
        let endpoints: Vec<_> = offered.iter().map(|function| endpoint(function)).collect();
        // None of them expires: any time will do.
        let found = candidates(service, &endpoints, labels, SystemTime::UNIX_EPOCH);
        offered.into_iter().filter(|function| found.iter().any(|found| found.name == function.name)).collect()
    }

    fn no_service(&self, name: &str) -> String {
        let known: Vec<_> = self.services.iter().map(|service| format!("`{}`", service.name)).collect();
        format!("no document has the network service `{name}`; they have {}", list(&known, "none"))
    }

    /// Why nobody comes behind `near`, and the cure.
    fn nobody(&self, service: &NetworkService, near: &str, labels: &Labels, client: usize) -> String {
        let (service_name, shown) = (&service.name, words(labels));
        let mut problem = format!("nobody comes behind `{near}` ({shown}): ");
        let fitting = self.fitting(service, labels, |_| true);
        if !fitting.is_empty() {
            let whose = |function: &&ChainFunction| match self.taken.get(function.name.as_str()) {
                Some(other) if *other == client => format!("`{}` is on this chain already", function.name),
                Some(other) => format!("`{}` serves `{}`", function.name, self.clients[*other].name),
                None => format!("`{}` is free", function.name),
            };
            let taken = list(&fitting.iter().map(whose).collect::<Vec<_>>(), "none");
            let _ = write!(problem, "{taken}; add a function with the same labels, or a match for ({shown})");
            return problem;
        }
        let fits = |found: &&ferrule_nsm::proto::registry::Match| has_all(labels, &found.source_selector, labels);
        let _ = match service.matches.iter().position(|found| fits(&found)) {
            None if service.matches.is_empty() => write!(problem, "`{service_name}` has no functions; add one"),
            None => write!(
                problem,
                "no match of `{service_name}` is for it; add one, or leave `network` out if the chain ends here"
            ),
            Some(index) => {
                let wanted = |route: &ferrule_nsm::proto::registry::Destination| {
                    format!("({})", words(&route.destination_selector))
                };
                let wanted = list(&service.matches[index].routes.iter().map(wanted).collect::<Vec<_>>(), "nothing");
                write!(
                    problem,
                    "no function of `{service_name}` has the labels that its matches[{index}] wants, {wanted}; add one"
                )
            }
        };
        problem
    }
}

fn endpoint(function: &ChainFunction) -> NetworkServiceEndpoint {
    let labels = NetworkServiceLabels { labels: function.labels.clone() };
    NetworkServiceEndpoint {
        name: function.name.clone(),
        network_service_names: vec![function.service.clone()],
        network_service_labels: BTreeMap::from([(function.service.clone(), labels)]),
        ..NetworkServiceEndpoint::default()
    }
}

fn words(labels: &Labels) -> String {
    list(&labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>(), "no labels")
}

fn list(words: &[String], none: &str) -> String {
    if words.is_empty() { none.to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests;
