//! The way back: the interface comes home as it was, and then the lease asks for what it asked before. It is the same after a DEL, an
//! ADD that failed, and a program that was killed, whatever of it was done already.

use std::thread::sleep;
use std::time::{Duration, Instant};

use sriov_manager_client::v1;

use super::record::{InterfaceRecord, LeaseRecord, VfAttachment};
use super::tree::{at_home, driver, in_pod, is_for_programs, is_there};
use crate::call::Call;
use crate::interface::{Link, Namespace};
use crate::manager::{Manager, ManagerError};
use crate::network::Places;
use crate::protocol::CniError;
use crate::store;

/// What could not be done now, and is done by whoever meets the record next; none: all is as it was.
pub(super) type Owed = Option<String>;

/// Undoes what a record says.
pub(super) fn settle(call: &Call<'_>, record: &VfAttachment) -> Result<Owed, CniError> {
    let places = &call.network.places;
    if let Some(interface) = &record.what.interface {
        if let Some(owed) = bring_home(places, record, interface)? {
            return Ok(Some(owed));
        }
        call.step("the interface is home");
    }
    let owed = give_back(places, record).err().map(|error| error.to_string());
    call.step("the lease is as it was");
    Ok(owed)
}

/// The interface is on the host, as it was.
fn bring_home(places: &Places, record: &VfAttachment, was: &InterfaceRecord) -> Result<Owed, CniError> {
    let device = &record.what.device;
    let mut host = Namespace::host()?;
    let is_of_this_boot = record.boot == store::boot(&places.root);
    if let Some(link) = at_home(&places.root, device, &mut host)? {
        // After a reboot it is as the machine makes it.
        return if is_of_this_boot { restore(&mut host, &link, was).map(|()| None) } else { Ok(None) };
    }
    if !is_of_this_boot {
        return Ok(None);
    }
    let pod = Namespace::open(&record.netns);
    if let Ok(mut pod) = pod
        && let Some(link) = in_pod(&mut pod, device, &record.interface, was.pod_mac)?
    {
        pod.set_down(&link, was.mac, was.mtu)?;
        // Somebody may have taken its name meanwhile: what is called so then is not ours.
        let is_free = host.named(&was.name)?.is_none();
        pod.move_to(&link, &host, if is_free { &was.name } else { NAME_PATTERN })?;
        let home = if is_free { host.named(&was.name)? } else { host.of_device(device)? };
        if was.is_up
            && let Some(link) = home
        {
            host.set_up(&link)?;
        }
        return Ok(None);
    }
    // The kernel brings it home when the namespace ends, which takes a moment.
    let deadline = Instant::now() + KERNEL_WAIT;
    loop {
        let has_interface = driver(&places.root, device).is_some_and(|driver| !is_for_programs(&driver));
        if !is_there(&places.root, device) || !has_interface {
            return Ok(None);
        }
        if let Some(link) = at_home(&places.root, device, &mut host)? {
            return restore(&mut host, &link, was).map(|()| None);
        }
        if Instant::now() >= deadline {
            let problem = format!(
                "the interface of {device} is neither on the host nor in {}: somebody keeps a network namespace open that has it",
                record.netns.display()
            );
            return Ok(Some(problem));
        }
        sleep(KERNEL_POLL);
    }
}

/// What the kernel brought home has the container's name and address.
fn restore(host: &mut Namespace, link: &Link, was: &InterfaceRecord) -> Result<(), CniError> {
    let is_as_it_was = link.name == was.name && link.mac == was.mac && link.mtu == was.mtu;
    if !is_as_it_was {
        host.set_down(link, was.mac, was.mtu)?;
        if link.name != was.name && host.named(&was.name)?.is_none() {
            host.rename(link, &was.name)?;
        }
    }
    if was.is_up && !(link.is_up && is_as_it_was) { host.set_up(link) } else { Ok(()) }
}

/// The lease asks for what it asked before, or is over if it was this attachment's own.
fn give_back(places: &Places, record: &VfAttachment) -> Result<(), ManagerError> {
    let LeaseRecord { id, since, is_own, before, asked } = &record.what.lease;
    if !is_own && before == asked {
        return Ok(());
    }
    let mut manager = Manager::connect(&places.manager)?;
    if *is_own {
        return manager.release(id);
    }
    let Some(lease) = manager.vf(&record.what.device)?.and_then(|vf| vf.lease) else { return Ok(()) };
    if lease.id != *id || lease.since != *since {
        // It is another pod's by now.
        return Ok(());
    }
    match manager.acquire(&again(&lease, asked, before)) {
        Err(ManagerError::Refused { kind: v1::RefusalKind::NoSuchLease, .. }) => Ok(()),
        answer => answer.map(drop),
    }
}

/// A lease, asked for again with some other attributes: what somebody else has changed of it stays. What is not said again would be another
/// request.
pub(super) fn again(lease: &v1::Lease, from: &v1::Attributes, to: &v1::Attributes) -> v1::AcquireRequest {
    v1::AcquireRequest {
        id: lease.id.clone(),
        tenant: lease.tenant.clone(),
        vf: lease.vf.clone(),
        pools: Some(lease.pool.clone()).into_iter().filter(|pool| !pool.is_empty()).collect(),
        driver: lease.driver,
        attributes: Some(to.clone()),
        again: Some(v1::Again { from: Some(from.clone()), since: lease.since }),
        owner: lease.owner.clone(),
        until: lease.until.clone(),
        ..Default::default()
    }
}

const KERNEL_WAIT: Duration = Duration::from_secs(2);
const KERNEL_POLL: Duration = Duration::from_millis(10);
/// The kernel puts a number in.
const NAME_PATTERN: &str = "vf%d";
