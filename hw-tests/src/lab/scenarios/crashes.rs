//! The manager killed at every point of its work, one after the other: the points count themselves (`crash-manager`).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sriov_manager_client::v1::Attributes;
use tonic::Status;

use crate::lab::manager::{Manager, ManagerOptions, Start};
use crate::lab::pci::Function;
use crate::lab::scenario::Lab;

use super::vf_states;

/// A lease made and given back.
pub fn leases(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[0];
    pf.set_vfs(1)?;
    let vf = &pf.vfs()[0];
    vf.wait_for_interface();
    let interface = pf.interface().context("a PF has an interface")?;
    let before = vf_states(&interface)?;
    let life = |manager: &Manager| {
        manager.acquire("pod", vf, "vfio-pci", Some(mac(1)))?;
        manager.release("pod", Duration::ZERO)
    };
    let points = at_every_point(lab, life, |manager| {
        if is_held_whole(manager, vf, &interface)? {
            manager.release("pod", Duration::ZERO)?;
        }
        is_as_before(vf, &interface, &before)?;
        manager.acquire("next", vf, "vfio-pci", Some(mac(3)))?;
        manager.release("next", Duration::ZERO)?;
        is_as_before(vf, &interface, &before)
    })?;
    // Two operations, each with a record before, steps, and a record after.
    assert!(points > 2 * 5, "only {points} points");
    lab.figure("points of a lease at which the manager was killed", points as f64, "");
    Ok(())
}

/// A lease that gets another driver and another address.
pub fn changes(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[0];
    pf.set_vfs(1)?;
    let vf = &pf.vfs()[0];
    vf.wait_for_interface();
    let interface = pf.interface().context("a PF has an interface")?;
    let before = vf_states(&interface)?;
    let make = |manager: &Manager| manager.acquire("pod", vf, "vfio-pci", Some(mac(1)));
    let first = Manager::start(lab, &ManagerOptions::default())?;
    make(&first)?;
    first.kill();
    let change = |manager: &Manager| manager.acquire("pod", vf, "kernel", Some(mac(2))).map(drop);
    let points = at_every_point(lab, change, |manager| {
        ensure!(is_held_whole(manager, vf, &interface)?, "the lease is gone");
        // For the next one it is what it was at first.
        make(manager)?;
        Ok(())
    })?;
    assert!(points > 5, "only {points} points");
    lab.figure("points of a change of a lease at which the manager was killed", points as f64, "");
    let last = Manager::start(lab, &ManagerOptions::default())?;
    assert!(is_held_whole(&last, vf, &interface)?);
    last.release("pod", Duration::ZERO)?;
    is_as_before(vf, &interface, &before)
}

/// Whether there is a lease. Nothing is wrong with it then, and the VF is what it says; without one the VF is free.
fn is_held_whole(manager: &Manager, vf: &Function, interface: &str) -> Result<bool> {
    let state = manager.vf(vf)?;
    let Some(lease) = state.lease else {
        assert_eq!(state.state().word(), "free");
        return Ok(false);
    };
    ensure!((lease.stage().word(), lease.fault.as_str()) == ("lent", ""), "{lease:?}");
    let driver = if lease.driver().word() == "kernel" { "igbvf" } else { "vfio-pci" };
    assert_eq!(vf.driver().as_deref(), Some(driver));
    let address = lease.attributes.and_then(|attributes| attributes.mac);
    assert_eq!(vf_states(interface)?[0]["address"], Value::from(address));
    Ok(true)
}

/// VFs made, and VFs removed.
pub fn counts(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[1..];
    let points = at_every_point(
        lab,
        |manager| {
            // What the last one left decides the way: from none to one, or from one to none.
            let wanted = 1 - pf[0].vfs().len();
            let created = manager.create(pf, wanted)?;
            let error = created.into_iter().map(|created| created.error).find(|error| !error.is_empty());
            error.map_or(Ok(()), |error| Err(Status::internal(error)))
        },
        |manager| {
            assert_eq!(pf[0].read("sriov_drivers_autoprobe")?, "1", "it is as it was before");
            let list = manager.list()?;
            assert_eq!(list.vfs.len(), pf[0].vfs().len());
            assert!(list.vfs.iter().all(|vf| vf.state().word() == "free"), "{list:?}");
            Ok(())
        },
    )?;
    assert!(points > 5, "only {points} points");
    lab.figure("points of a count at which the manager was killed", points as f64, "");
    Ok(())
}

/// Starts managers that die at point 1, 2 and so on while they do `work`, until one survives it. After each death
/// another one starts, and `check` looks at what it found. Returns the number of deaths.
fn at_every_point(
    lab: &Lab,
    work: impl Fn(&Manager) -> Result<(), Status>,
    check: impl Fn(&Manager) -> Result<()>,
) -> Result<u64> {
    for point in 1..POINTS_MAX {
        let log =
            match Manager::start_crashing(lab, &ManagerOptions { die_at: Some(point), ..ManagerOptions::default() })? {
                Start::Ended(log) => log,
                Start::Ready(manager) if work(&manager).is_ok() => return Ok(point - 1),
                Start::Ready(manager) => manager.wait(),
            };
        ensure!(log.contains(&format!("dying at point {point}: ")), "it ended by itself before point {point}:\n{log}");
        let next = Manager::start(lab, &ManagerOptions::default())?;
        check(&next).with_context(|| format!("killed at point {point}; the next one says:\n{}", next.log()))?;
        next.kill();
    }
    anyhow::bail!("the points do not end")
}

fn is_as_before(vf: &Function, interface: &str, before: &[Value]) -> Result<()> {
    assert_eq!(vf.driver().as_deref(), Some("igbvf"));
    assert_eq!(vf.read("driver_override")?, "(null)");
    assert_eq!(vf_states(interface)?, before);
    Ok(())
}

fn mac(last: u8) -> Attributes {
    Attributes { mac: Some(format!("02:00:00:00:02:{last:02x}")), ..Attributes::default() }
}

/// More than any work has.
const POINTS_MAX: u64 = 200;
