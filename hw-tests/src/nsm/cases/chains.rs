//! Chains that the mesh composes: our functions are its endpoints, with kernel interfaces at the ends and memif between.
//!
//! - `intranet`, `nat44`, `composition`: the example chains; `example`: that of `deploy/examples`; `nptv6`: another prefix;
//!   `places`: over two nodes, and without Ethernet headers; `vhost_user`: a client by that;
//!   `lasting`: what stays and what goes; `killed`: hops that are killed; `bed`: what cases share

mod bed;
mod composition;
mod example;
mod intranet;
mod killed;
mod lasting;
mod nat44;
mod nptv6;
mod places;
mod vhost_user;

use super::{GO, NsmCase, Run};
use crate::nsm::mesh::MeshOptions;
use crate::nsm::programs::Cast;

/// All of them, with our control plane, and with the registry and the manager in Go.
pub(super) fn all() -> Vec<NsmCase> {
    let few = MeshOptions { clients: 2, ..MeshOptions::default() };
    let both: [(&str, &str, MeshOptions, Run); 11] = [
        ("chain_refreshes_keep_the_path", "chain_refreshes_keep_the_path_go", few, lasting::refreshes),
        (
            "chain_connects_and_closes_leave_nothing",
            "chain_connects_and_closes_leave_nothing_go",
            few,
            lasting::connects_and_closes,
        ),
        ("chain_secure_intranet", "chain_secure_intranet_go", few, intranet::secure_intranet),
        ("chain_each_hop_is_killed", "chain_each_hop_is_killed_go", few, killed::each_in_turn),
        ("chain_passthrough_is_killed", "chain_passthrough_is_killed_go", few, killed::passthrough),
        ("chain_nse_composition", "chain_nse_composition_go", few, composition::checks),
        ("chain_over_two_nodes", "chain_over_two_nodes_go", MeshOptions { nodes: 2, ..few }, places::two_nodes),
        ("chain_nat44", "chain_nat44_go", few, nat44::one_address),
        ("chain_nat44_forwards_to_a_client", "chain_nat44_forwards_to_a_client_go", few, nat44::forward),
        (
            "chain_nat44_over_two_nodes",
            "chain_nat44_over_two_nodes_go",
            MeshOptions { nodes: 2, ..few },
            nat44::two_nodes,
        ),
        ("chain_nptv6", "chain_nptv6_go", few, nptv6::counterparts),
    ];
    let go_around = Cast { registry: Some(GO), manager: GO, ..Cast::default() };
    let case = |name, cast, options, run| NsmCase { name, cast, options, needs: &[], run };
    let mut cases = Vec::new();
    for (name, name_go, options, run) in both {
        cases.push(case(name, Cast::default(), options, run));
        cases.push(case(name_go, go_around, options, run));
    }
    cases.push(case("chain_of_the_example_for_clusters", Cast::default(), few, example::secure_intranet));
    let several = MeshOptions { clients: lasting::CLIENTS, ..few };
    cases.push(case("chain_clients_before_the_functions", Cast::default(), several, lasting::clients_first));
    cases.push(case("chain_without_a_hop_is_refused", Cast::default(), few, intranet::hop_missing));
    cases.push(case("chain_serves_a_client_by_vhost_user", Cast::default(), few, vhost_user::client));
    cases.push(case("chain_without_ethernet_headers", Cast::default(), few, places::ip_payload));
    cases
}
