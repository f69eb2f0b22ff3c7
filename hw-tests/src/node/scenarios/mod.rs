//! All scenarios.

use super::scenario::NodeScenario;

mod allocation;
mod changes;
mod dashboard;
mod interfaces;
mod product;
mod restarts;
mod standalone;

/// In the order in which they run.
pub const ALL: &[NodeScenario] = &[
    NodeScenario::cluster("a_pod_with_a_vf_sees_its_environment_and_its_device", allocation::sees_what_it_got),
    NodeScenario::cluster("the_device_nodes_come_by_cdi", allocation::gets_nodes_by_cdi),
    NodeScenario::cluster("a_pod_waits_until_a_vf_is_free", allocation::waits_until_one_is_free),
    NodeScenario::cluster("one_pool_serves_two_drivers_in_turn", allocation::serves_two_drivers_in_turn),
    NodeScenario::cluster("a_container_starts_when_the_manager_is_back", allocation::starts_when_the_manager_is_back),
    NodeScenario::cluster("describe_node_shows_the_pools", allocation::is_seen_by_describe),
    NodeScenario::cluster("a_pf_without_a_link_takes_its_free_vfs_off", changes::link_goes_and_comes_back),
    NodeScenario::cluster("vfs_that_are_removed_leave_the_node", changes::vfs_go),
    NodeScenario::cluster("a_resource_gets_another_name", changes::resource_gets_another_name),
    NodeScenario::cluster("a_container_that_restarts_keeps_its_vf", restarts::container_keeps_its_vf),
    NodeScenario::cluster("a_kubelet_that_restarts_loses_no_pod", restarts::kubelet_loses_no_pod),
    NodeScenario::cluster("the_plugin_is_killed_and_replaced_20_times", restarts::plugin_is_killed_and_replaced),
    NodeScenario::cluster("a_plugin_hands_over_to_the_next", restarts::plugin_hands_over_to_the_next),
    NodeScenario::cluster("the_product_comes_by_kustomize_is_updated_and_goes", product::comes_is_updated_and_goes),
    NodeScenario::cluster("the_product_comes_by_helm", product::comes_by_helm),
    NodeScenario::cluster("two_pods_are_joined_without_a_nic", product::joins_two_pods_without_a_nic),
    NodeScenario::cluster("two_pods_of_an_example_are_joined_by_sidecars", product::sidecars_join_two_pods),
    NodeScenario::cluster("interfaces_join_two_pods_without_multus", interfaces::join_two_pods_without_multus),
    NodeScenario::cluster("vfs_get_the_network_of_their_resource", interfaces::vfs_get_the_network_of_their_resource),
    NodeScenario::cluster("devices_are_handed_over_in_order", interfaces::devices_are_handed_over_in_order),
    NodeScenario::cluster("uninstall_leaves_nothing", product::uninstall_leaves_nothing),
    NodeScenario::cluster("the_dashboard_shows_what_happens", dashboard::shows_what_happens),
    NodeScenario::standalone("kubelet_1_37_registers_lists_and_allocates", standalone::registers_lists_and_allocates),
    NodeScenario::standalone(
        "kubelet_1_37_takes_20_plugins_after_each_other",
        standalone::plugin_is_killed_and_replaced,
    ),
    NodeScenario::standalone("kubelet_1_37_takes_a_second_plugin", standalone::plugin_hands_over_to_the_next),
    NodeScenario::standalone("kubelet_1_37_restarts_under_a_pod", standalone::kubelet_starts_again),
];
