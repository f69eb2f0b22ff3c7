//! All scenarios, in the order they run. A new one is a function and a line here.
//!
//! - [`hardware`]: the lab itself: what the others build upon.

mod hardware;

use super::scenario::Scenario;

/// All of them.
pub const ALL: &[Scenario] = &[
    Scenario::new("two_pfs_on_two_numa_nodes_wait_for_work", &[hardware::two_pfs]),
    Scenario::new("vfs_come_in_groups_of_their_own_and_go", &[hardware::vfs_come_and_go]),
    Scenario::new("a_vf_goes_to_vfio_pci_by_override_and_back", &[hardware::driver_override]),
    Scenario::new("dpdk_carries_frames_between_two_vfs", &[hardware::dpdk]),
    Scenario::new("the_disk_outlives_a_reboot", &[hardware::write_to_disk, hardware::read_from_disk]),
];

/// The one of this name.
pub fn called(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
