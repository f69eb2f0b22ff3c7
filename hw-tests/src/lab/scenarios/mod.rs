//! All scenarios, in the order they run. A new one is a function and a line here.
//!
//! - `hardware`: the lab itself: what the others build upon;
//! - `bench`: `ferrule bench` and its doctor on VFs;
//! - `cni`: VFs into pods and back by the CNI plugin;
//! - `groups`: a VF in a crowded IOMMU group;
//! - `instructions`: what a frame costs, beside testpmd;
//! - `leases`: VFs made, lent, set and given back by `sriov-manager`;
//! - `holders`: VFs that somebody does not let go;
//! - `mesh`: VFs as ends of Network Service Mesh, by their pods' tokens;
//! - `node`: what happens to a node while VFs are lent;
//! - `service`: the manager as a service of the node: stopped, started twice, on a disk that is only to be read;
//! - `crashes`: the manager killed at every point of its work;
//! - `pods`: VFs that pods get by the device plugin;
//! - `reboots`: leases after a power cut;
//! - `wires`: VFs polled by the forwarder.

mod bench;
mod cni;
mod crashes;
mod groups;
mod hardware;
mod holders;
mod instructions;
mod leases;
mod mesh;
mod node;
mod pods;
mod reboots;
mod service;
mod wires;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::scenario::Scenario;

/// All of them.
pub const ALL: &[Scenario] = &[
    Scenario::new("two_pfs_on_two_numa_nodes_wait_for_work", &[hardware::two_pfs]),
    Scenario::new("vfs_come_in_groups_of_their_own_and_go", &[hardware::vfs_come_and_go]),
    Scenario::new("a_vf_goes_to_vfio_pci_by_override_and_back", &[hardware::driver_override]),
    Scenario::new("dpdk_carries_frames_between_two_vfs", &[hardware::dpdk]),
    Scenario::new("the_disk_outlives_a_power_cut", &[hardware::write_to_disk, hardware::read_from_disk]),
    Scenario::new("seven_vfs_on_each_of_two_pfs_are_made_at_once", &[leases::fourteen_vfs]),
    Scenario::new("a_lease_goes_to_vfio_pci_and_back_to_igbvf", &[leases::vfio_and_back]),
    Scenario::new("attributes_are_set_read_back_through_the_pf_and_restored", &[leases::attributes]),
    Scenario::new("a_vf_whose_group_holds_a_nic_of_the_kernel_is_not_for_vfio", &[groups::crowded]),
    Scenario::new("ferrule_vf_does_the_same_for_a_person", &[leases::command_line]),
    Scenario::new("a_vf_is_handed_over_from_a_pod_to_vfio_pci", &[leases::handed_over_from_a_pod]),
    Scenario::new("a_vf_goes_to_the_next_lease_reset_and_clean", &[leases::handed_over]),
    Scenario::new("leases_and_news_are_quick", &[leases::times]),
    Scenario::new("a_vf_that_a_process_holds_is_not_taken_and_the_process_is_named", &[holders::process]),
    Scenario::new("a_vf_whose_netdev_is_in_a_namespace_is_not_taken", &[holders::namespace]),
    Scenario::new("a_vf_whose_netdev_is_in_a_namespace_without_a_name_is_not_taken", &[holders::nameless_namespaces])
        .within(Duration::from_mins(2)),
    Scenario::new("a_holder_that_proc_does_not_show_is_a_holder", &[holders::unseen]),
    Scenario::new("looks_at_the_same_moment_take_nobody_for_a_holder", &[holders::looks_at_once]),
    Scenario::new("a_manager_killed_while_the_kernel_hangs_has_a_successor", &[holders::killed_while_stuck]),
    Scenario::new("an_unbind_that_hangs_stops_nobody_else", &[holders::stuck]).within(Duration::from_mins(2)),
    Scenario::new("what_the_host_uses_is_named_and_neither_lent_nor_removed", &[node::used_by_host]),
    Scenario::new("a_pf_in_another_namespace_keeps_its_vfs_until_it_can_be_asked", &[node::pf_away]),
    Scenario::new("a_vlan_goes_to_the_pf_that_is_meant_whatever_it_is_called", &[node::names_swapped]),
    Scenario::new("a_pf_is_found_by_another_name_of_its_interface", &[node::other_name]),
    Scenario::new("a_stop_is_obeyed_while_the_kernel_hangs_and_during_a_start", &[service::stopped]),
    Scenario::new("a_second_manager_of_a_node_is_refused_wherever_its_state_is", &[service::second]),
    Scenario::new("a_disk_that_is_only_to_be_read_shows_everything_and_lends_nothing", &[service::read_only_disk]),
    Scenario::new("a_lease_ends_with_the_network_namespace_that_it_is_for", &[service::until_namespace]),
    Scenario::new("a_full_disk_shows_everything_lends_nothing_and_loses_nothing", &[node::full_disk]),
    Scenario::new("pods_get_the_vfs_of_one_pool_on_two_drivers_in_turn", &[pods::in_turn])
        .within(Duration::from_mins(5)),
    Scenario::new("a_kubelet_is_answered_and_told_soon", &[pods::times]).within(Duration::from_mins(5)),
    Scenario::new("killed_plugins_a_full_disk_and_a_manager_away_cost_no_pod", &[pods::mishaps])
        .within(Duration::from_mins(8)),
    Scenario::new("a_cni_plugin_moves_a_vf_into_pods_and_back", &[cni::into_pods_and_back]),
    Scenario::new("an_add_that_the_nic_refuses_leaves_nothing", &[cni::refused]),
    Scenario::new("a_cni_plugin_is_quick", &[cni::times]).within(Duration::from_mins(2)),
    Scenario::new("frames_cross_between_a_vf_and_memif_a_namespace_and_vhost_user", &[wires::frames_cross])
        .within(Duration::from_mins(6)),
    Scenario::new("frames_cross_between_two_vfs_of_one_pf", &[wires::vf_to_vf]).within(Duration::from_mins(6)),
    Scenario::new("a_polled_vf_goes_and_comes_back_and_no_other_wire_loses_a_frame", &[wires::goes_and_comes_back])
        .within(Duration::from_mins(6)),
    Scenario::new("a_killed_forwarder_has_its_vf_again", &[wires::killed]).within(Duration::from_mins(6)),
    Scenario::new("a_forwarder_with_ipc_lock_alone_in_a_root_of_its_own_polls_a_vf", &[wires::confined])
        .within(Duration::from_mins(6)),
    Scenario::new("pods_are_joined_by_the_vfs_of_their_tokens", &[mesh::kernel_by_tokens])
        .within(Duration::from_mins(10)),
    Scenario::new("dpdk_drives_the_vf_of_a_pods_token", &[mesh::vfio_by_token]).within(Duration::from_mins(6)),
    Scenario::new("ferrule_bench_measures_two_vfs_and_its_doctor_looks_at_them", &[bench::two_vfs])
        .within(Duration::from_mins(6)),
    Scenario::new("instructions_for_a_frame_are_counted_beside_testpmd", &[instructions::of_a_frame])
        .within(Duration::from_mins(6))
        .counting_instructions(),
    Scenario::new("a_manager_killed_at_any_point_of_a_lease_leaks_nothing", &[crashes::leases])
        .within(Duration::from_mins(3)),
    Scenario::new("a_manager_killed_at_any_point_of_a_change_of_a_lease_keeps_it", &[crashes::changes])
        .within(Duration::from_mins(3)),
    Scenario::new("a_manager_killed_at_any_point_of_a_count_finishes_it", &[crashes::counts])
        .within(Duration::from_mins(3)),
    Scenario::new(
        "leases_outlive_power_cuts_with_other_counts",
        &[reboots::four_vfs, reboots::only_two, reboots::four_again],
    ),
    Scenario::new(
        "a_lease_goes_with_its_card_over_two_power_cuts_that_renumber_it",
        &[reboots::on_its_card, reboots::on_its_card_elsewhere, reboots::on_its_card_again],
    )
    .with_cards_swapped_in(1),
];

/// The one of this name.
pub fn called(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// What `ip` prints.
fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(arguments).output().context("run ip")?;
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the kernel says of the VFs of a PF, as `ip` reads it.
fn vf_states(interface: &str) -> Result<Vec<Value>> {
    let links: Value = serde_json::from_str(&ip(&["-j", "link", "show", interface])?).context("understand ip")?;
    links[0]["vfinfo_list"].as_array().cloned().context("ip shows no VFs")
}
