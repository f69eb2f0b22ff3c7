//! List and explain without a manager: what the tree itself shows. Who borrowed what is not in it.

use std::path::Path;

use sriov_manager::Driver;
use sriov_manager::holders;
use sriov_manager::inventory::Inventory;
use sriov_manager::kernel::{Kernel, LiveKernel};
use sriov_manager::sysfs::Sysfs;
use sriov_manager::vfs::{Reason, View};
use sriov_manager_client::v1;

use super::VfCliError;

pub(super) fn list(root: &Path) -> Result<v1::ListResponse, VfCliError> {
    let sysfs = Sysfs::new(root);
    let inventory = read(&sysfs, root)?;
    Ok(sriov_manager::api::response(&View::without_manager(&sysfs, &inventory), None))
}

pub(super) fn explain(root: &Path, vf: &str, driver: v1::Driver) -> Result<Vec<v1::Reason>, VfCliError> {
    let sysfs = Sysfs::new(root);
    let mut inventory = read(&sysfs, root)?;
    if inventory.find_vf(vf).is_none() && sysfs.is_live() {
        // Without other names, if the kernel does not tell them.
        inventory.set_altnames(&LiveKernel.altnames().unwrap_or_default());
    }
    let driver: Driver = driver.word().parse().map_err(|error| VfCliError::Wrong(format!("{error}")))?;
    let Some(vf) = inventory.find_vf(vf) else {
        return Err(VfCliError::Wrong(format!("there is no VF {vf}; `ferrule vf list` shows those that are there")));
    };
    let blocked = sriov_manager::vfs::obstacles(&sysfs, &inventory, vf, driver);
    let held = match holders::processes(&sysfs, &holders::nodes(&sysfs, vf)) {
        Ok(held) => held.into_iter().map(Reason::Held).collect(),
        Err(error) => vec![Reason::Unknown(format!("who has it open is not known: look through /proc: {error}"))],
    };
    Ok(blocked.into_iter().chain(held).map(|reason| sriov_manager::api::reason(&reason)).collect())
}

fn read(sysfs: &Sysfs, root: &Path) -> Result<Inventory, VfCliError> {
    Inventory::read(sysfs).map_err(|source| VfCliError::Tree { root: root.to_owned(), source })
}
