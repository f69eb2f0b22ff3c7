//! What has to hold.
//!
//! - `kernel`: kernel interfaces at both ends; `ends`: all kinds of ends; `memif`: a client by memif; `chains`: functions in a row; `lasting`: what stays and what goes; `at_once`: many requests at once; `recovery`: who is killed and replaced
//! - `refusals`, `by_hand`: what is refused, and leaves nothing; `shown`: what a person is shown

mod at_once;
mod by_hand;
mod chains;
mod ends;
mod kernel;
mod lasting;
mod memif;
mod recovery;
mod refusals;
mod shown;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::mesh::{Mesh, MeshOptions};
use super::pod::MeshPod;
use super::programs::{Cast, Maker};
use crate::TIMEOUT;
use crate::need::Need;

/// Something that has to hold, in a mesh of its own.
pub struct NsmCase {
    /// A sentence.
    pub name: &'static str,
    /// Who plays which role.
    pub cast: Cast,
    /// How the mesh is.
    pub options: MeshOptions,
    /// What it takes beside what all take.
    pub needs: &'static [Need],
    /// What runs.
    pub run: Run,
}

/// What a case does.
pub(super) type Run = fn(&mut Mesh) -> Result<()>;

/// All cases: with our programs, with those in Go, and with every mixture.
pub fn all() -> Vec<NsmCase> {
    let plain = MeshOptions::default();
    let two = MeshOptions { nodes: 2, ..plain };
    let short = MeshOptions {
        certificates: Duration::from_mins(1),
        tokens: Duration::from_secs(20),
        request: Duration::from_secs(3),
        ..plain
    };
    let many = MeshOptions { clients: lasting::MANY, ..plain };
    let few = MeshOptions { clients: 2, ..plain };
    // The longest first: several run at a time.
    let both: [(&str, &str, MeshOptions, Run); 17] = [
        ("refreshes_and_rotations_lose_no_ping", "go_refreshes_and_rotations_lose_no_ping", short, lasting::refreshes),
        (
            "two_nodes_refreshes_and_rotations_lose_no_ping",
            "go_two_nodes_refreshes_and_rotations_lose_no_ping",
            MeshOptions { nodes: 2, ..short },
            lasting::refreshes,
        ),
        ("thirty_clients_at_once", "go_thirty_clients_at_once", many, lasting::thirty_clients),
        ("forwarder_is_killed_and_replaced", "go_forwarder_is_killed_and_replaced", plain, recovery::forwarder_killed),
        ("kernel_to_kernel_both_families", "go_kernel_to_kernel_both_families", plain, kernel::both_families),
        ("kernel_to_kernel_ip_payload", "go_kernel_to_kernel_ip_payload", plain, kernel::ip_payload),
        ("close_leaves_nothing", "go_close_leaves_nothing", plain, lasting::close_leaves_nothing),
        ("manager_is_killed_and_replaced", "go_manager_is_killed_and_replaced", plain, recovery::manager_killed),
        ("registry_is_killed_and_replaced", "go_registry_is_killed_and_replaced", two, recovery::registry_killed),
        ("endpoint_is_killed_and_replaced", "go_endpoint_is_killed_and_replaced", plain, recovery::endpoint_killed),
        (
            "interface_that_was_deleted_comes_back",
            "go_interface_that_was_deleted_comes_back",
            plain,
            recovery::interface_deleted,
        ),
        ("two_nodes_both_families", "go_two_nodes_both_families", two, kernel::both_families),
        ("two_nodes_ip_payload", "go_two_nodes_ip_payload", two, kernel::packets),
        ("two_nodes_close_leaves_nothing", "go_two_nodes_close_leaves_nothing", two, lasting::close_leaves_nothing),
        (
            "two_nodes_near_forwarder_is_killed",
            "go_two_nodes_near_forwarder_is_killed",
            two,
            recovery::near_forwarder_killed,
        ),
        (
            "two_nodes_far_forwarder_is_killed",
            "go_two_nodes_far_forwarder_is_killed",
            two,
            recovery::far_forwarder_killed,
        ),
        ("two_nodes_managers_are_killed", "go_two_nodes_managers_are_killed", two, recovery::managers_killed),
    ];
    let case = |name, cast, options, run| NsmCase { name, cast, options, needs: &[], run };
    let mut cases: Vec<_> =
        both.iter().map(|(name, _, options, run)| case(*name, Cast::default(), *options, *run)).collect();
    for (name, run) in [
        ("two_nodes_ip_payload_close_leaves_nothing", lasting::close_leaves_nothing as Run),
        ("two_nodes_ip_payload_near_forwarder_is_killed", recovery::near_forwarder_killed),
        ("two_nodes_ip_payload_far_forwarder_is_killed", recovery::far_forwarder_killed),
    ] {
        cases.push(case(name, Cast::default(), MeshOptions { payload: "IP", ..two }, run));
    }
    let by_ipv6 = MeshOptions { is_ipv6: true, ..two };
    cases.push(case("two_nodes_by_ipv6_both_families", Cast::default(), by_ipv6, kernel::both_families));
    cases.push(case("two_nodes_by_ipv6_ip_payload", Cast::default(), by_ipv6, kernel::packets));
    let refreshed = MeshOptions { nodes: 2, payload: "IP", ..short };
    cases
        .insert(2, case("two_nodes_ip_payload_refreshes_lose_no_ping", Cast::default(), refreshed, lasting::refreshes));
    cases.push(case("the_mesh_is_shown", Cast::default(), plain, shown::mesh_is_shown));
    cases.push(case("what_is_wrong_is_refused_and_leaves_nothing", Cast::default(), plain, refusals::by_clients));
    cases.push(case("bad_calls_are_refused_and_leave_nothing", Cast::default(), plain, by_hand::refusals));
    cases.push(case("a_client_by_memif_has_a_socket", Cast::default(), plain, memif::client_by_memif));
    cases.push(case("an_endpoint_by_memif_answers", Cast::default(), few, memif::endpoint_by_memif));
    cases.push(case("all_kinds_of_ends_are_joined", Cast::default(), plain, ends::all_pairs));
    cases.push(case("hundred_requests_at_once", Cast::default(), plain, at_once::hundred_requests));
    cases.push(case("two_nodes_hundred_requests_at_once", Cast::default(), two, at_once::hundred_requests));
    cases.push(case("two_nodes_all_kinds_of_ends_are_joined", Cast::default(), two, ends::all_pairs));
    let packets = ends::all_pairs_of_packets;
    cases.push(case("two_nodes_all_kinds_of_ends_are_joined_for_packets", Cast::default(), two, packets));
    cases.push(case("two_nodes_by_ipv6_all_kinds_of_ends_are_joined_for_packets", Cast::default(), by_ipv6, packets));
    cases.extend(both.iter().map(|(_, name, options, run)| case(*name, Cast::GO, *options, *run)));
    cases.extend(chains::all());
    for (name, [registry, manager, client, endpoint]) in MIXTURES {
        let cast = Cast { registry: Some(registry), manager, client, endpoint };
        cases.push(case(name, cast, plain, kernel::both_families));
    }
    cases
}

/// Who has made registry, manager, client and endpoint: all mixtures that are neither all ours nor all in Go.
const MIXTURES: [(&str, [Maker; 4]); 14] = [
    ("mixed_registry_go", [GO, OURS, OURS, OURS]),
    ("mixed_manager_go", [OURS, GO, OURS, OURS]),
    ("mixed_client_go", [OURS, OURS, GO, OURS]),
    ("mixed_endpoint_go", [OURS, OURS, OURS, GO]),
    ("mixed_registry_manager_go", [GO, GO, OURS, OURS]),
    ("mixed_registry_client_go", [GO, OURS, GO, OURS]),
    ("mixed_registry_endpoint_go", [GO, OURS, OURS, GO]),
    ("mixed_manager_client_go", [OURS, GO, GO, OURS]),
    ("mixed_manager_endpoint_go", [OURS, GO, OURS, GO]),
    ("mixed_client_endpoint_go", [OURS, OURS, GO, GO]),
    ("mixed_registry_ours", [OURS, GO, GO, GO]),
    ("mixed_manager_ours", [GO, OURS, GO, GO]),
    ("mixed_client_ours", [GO, GO, OURS, GO]),
    ("mixed_endpoint_ours", [GO, GO, GO, OURS]),
];
const GO: Maker = Maker::Go;
const OURS: Maker = Maker::Ours;

/// The addresses of the endpoint's ends.
fn far_addresses(pod: &MeshPod) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for interface in pod.interfaces() {
        all.extend(pod.addresses(&interface).iter().filter_map(|address| Some(address.split_once('/')?.0.to_owned())));
    }
    ensure!(!all.is_empty(), "the endpoint has no address");
    Ok(all)
}

pub(super) fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + TIMEOUT;
    while !is_so()? {
        ensure!(Instant::now() < end, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// How many pings were lost, which has to be one at most.
fn few_lost((sent, received): (u64, u64)) -> Result<u64> {
    let lost = sent.saturating_sub(received);
    ensure!(lost <= 1, "{lost} of {sent} pings were lost");
    Ok(lost)
}

/// The first addresses of an endpoint and its client.
const ONE_FAMILY: &str = "172.16.1.0/24";
const ENDPOINT_ADDRESS: &str = "172.16.1.0";
const BOTH_FAMILIES: &str = "172.16.1.0/24,2001:db8::/116";
