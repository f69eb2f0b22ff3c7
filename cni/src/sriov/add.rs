//! ADD: what the PF says of the VF, then its interface into the container. Each step is in the record before it is done.

use sriov_manager_client::v1;

use super::VfConfig;
use super::record::{InterfaceRecord, KIND, LeaseRecord, VfAttachment, VfRecord, lease_id};
use super::settle::{again, settle};
use super::tree::{at_home, driver, in_pod, is_for_programs};
use crate::call::Call;
use crate::device_info::DeviceInfo;
use crate::interface::{Addressing, Link, Namespace, open_pod, set_up};
use crate::ipam::Ipam;
use crate::manager::Manager;
use crate::protocol::{AddResult, Attachment, CniError, Code, Command, Interface};
use crate::store::{self, Store};

/// Attaches a container to a VF.
pub fn add(call: &Call<'_>, attachment: &Attachment) -> Result<AddResult, CniError> {
    let config = VfConfig::read(call.network, attachment)?;
    add_vf(call, attachment, &config).map_err(|error| error.about(&format!("device {}", config.device)))
}

fn add_vf(call: &Call<'_>, attachment: &Attachment, config: &VfConfig) -> Result<AddResult, CniError> {
    let store = Store::open(&call.network.places.state, KIND)?;
    let _lock = store.lock(&config.device)?;
    settle_earlier(call, &store, attachment, &config.device)?;
    let mut pod = open_pod(attachment)?;
    let ipam = Ipam::of(call.environment, call.network);
    let addresses = ipam.map(Ipam::add).transpose()?.unwrap_or_default();
    call.step("there are addresses");
    let mut adding = Adding { call, store: &store, attachment, config, record: None };
    let added = adding.attach(&mut pod, addresses);
    let failure = match added {
        Ok(result) => return Ok(result),
        Err(failure) => failure,
    };
    let mut left = adding.record.map(|record| forget(call, &store, &record)).transpose().err();
    left = left.or(ipam.map(|ipam| ipam.order(Command::Del)).transpose().err());
    Err(failure.and_then_left(left))
}

/// An attachment that is being made.
struct Adding<'a> {
    call: &'a Call<'a>,
    store: &'a Store,
    attachment: &'a Attachment,
    config: &'a VfConfig,
    /// Once there is something to undo.
    record: Option<VfAttachment>,
}

impl Adding<'_> {
    fn attach(&mut self, pod: &mut Namespace, ipam: AddResult) -> Result<AddResult, CniError> {
        let (places, device) = (&self.call.network.places, &self.config.device);
        let mut manager = Manager::connect(&places.manager)?;
        let vf = manager.vf(device)?.ok_or_else(|| {
            CniError::config("sriov-manager knows no such VF: look at `ferrule vf list` for those that there are")
        })?;
        let (request, lease) = self.lease(&vf)?;
        let what = VfRecord { device: device.clone(), lease, interface: None };
        let boot = store::boot(&places.root);
        let record = VfAttachment::new(self.call.network, self.attachment, boot, what);
        self.write(record.clone())?;
        self.call.step("what the lease is to be is recorded");
        if record.what.lease.is_own || record.what.lease.asked != record.what.lease.before {
            let lent = manager.acquire(&request)?.lease.and_then(|lease| lease.attributes).unwrap_or_default();
            if lent != record.what.lease.asked {
                let problem = "somebody else changes its lease at the same moment";
                return Err(CniError::new(Code::TryAgain, problem));
            }
        }
        self.call.step("the lease is as asked");
        let on = driver(&places.root, device).ok_or_else(|| {
            CniError::failed("look for its interface", "no driver has it; `ferrule vf explain` of it says why")
        })?;
        let interface = if is_for_programs(&on) {
            Interface { name: self.attachment.interface.clone(), pci: device.clone(), ..Interface::default() }
        } else {
            let link = self.move_in(pod, record, &on)?;
            let link = set_up(pod, &link, Addressing { mac: self.config.mac, ipam: &ipam })?;
            self.call.step("the interface is up");
            self.describe(&link)
        };
        if let Some(file) = self.call.network.device_info()? {
            DeviceInfo::Pci { device: device.clone(), pf: vf.pf }.write(&file)?;
        }
        Ok(self.call.network.with_previous(interface, ipam))
    }

    /// The lease that the VF is to have, and what has to be known of it. The VF is the pod's that it was lent for; one that nobody owns
    /// is lent to the attachment itself.
    fn lease(&self, vf: &v1::Vf) -> Result<(v1::AcquireRequest, LeaseRecord), CniError> {
        let wanted = &self.config.attributes;
        if let Some(lease) = &vf.lease {
            let before = lease.attributes.clone().unwrap_or_default();
            let asked = wanted.clone().or(&before);
            let request = again(lease, &before, &asked);
            return Ok((
                request,
                LeaseRecord { id: lease.id.clone(), since: lease.since, is_own: false, before, asked },
            ));
        }
        if !vf.owner.is_empty() {
            let problem = format!(
                "{} owns it and has lent it to nobody: a container of the pod must ask for its resource, and `ferrule vf explain {}` says why it has not got it",
                vf.owner, vf.address
            );
            return Err(CniError::new(Code::TryAgain, problem));
        }
        let id = lease_id(&self.attachment.container, &self.attachment.interface);
        let is_for_programs = is_for_programs(&vf.driver);
        let driver = if is_for_programs { v1::Driver::VfioPci } else { v1::Driver::Kernel };
        let request = v1::AcquireRequest {
            id: id.clone(),
            tenant: format!("{}, network {}", self.attachment, self.call.network.name),
            vf: vf.address.clone(),
            driver: driver.into(),
            attributes: Some(wanted.clone()),
            ..Default::default()
        };
        let before = v1::Attributes::default();
        Ok((request, LeaseRecord { id, since: 0, is_own: true, before, asked: wanted.clone() }))
    }

    /// The VF's interface, in the container and under its name there.
    fn move_in(&mut self, pod: &mut Namespace, record: VfAttachment, driver: &str) -> Result<Link, CniError> {
        let (root, device) = (&self.call.network.places.root, &self.config.device);
        let mut host = Namespace::host()?;
        let link = at_home(root, device, &mut host)?.ok_or_else(|| {
            let problem = format!("its driver {driver} has made none on the host, or somebody has moved it away");
            CniError::new(Code::TryAgain, format!("look for its interface: {problem}"))
        })?;
        let was = InterfaceRecord {
            name: link.name.clone(),
            mac: link.mac,
            mtu: link.mtu,
            is_up: link.is_up,
            pod_mac: self.config.mac.or(link.mac),
        };
        let what = VfRecord { interface: Some(was), ..record.what };
        self.write(VfAttachment { what, ..record })?;
        self.call.step("how the interface was is recorded");
        host.move_to(&link, pod, &self.attachment.interface)?;
        self.call.step("the interface is in the container");
        let moved = in_pod(pod, device, &self.attachment.interface, link.mac)?;
        moved
            .ok_or_else(|| CniError::failed(&format!("look at {}", self.attachment.interface), "somebody took it away"))
    }

    fn describe(&self, link: &Link) -> Interface {
        let sandbox = self.attachment.netns.as_deref().unwrap_or_else(|| "".as_ref());
        Interface {
            name: link.name.clone(),
            mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            mtu: Some(link.mtu),
            sandbox: sandbox.to_string_lossy().into_owned(),
            socket: String::new(),
            pci: self.config.device.clone(),
        }
    }

    fn write(&mut self, record: VfAttachment) -> Result<(), CniError> {
        self.store.write(&record)?;
        self.record = Some(record);
        Ok(())
    }
}

/// What was done with the VF before and not undone: a DEL that could not reach the manager, a program that was killed, a sandbox that
/// went without a DEL.
fn settle_earlier(call: &Call<'_>, store: &Store, attachment: &Attachment, device: &str) -> Result<(), CniError> {
    for record in store.all::<VfRecord>()?.into_iter().filter(|record| record.what.device == device) {
        let has_it = |record: &VfAttachment| -> Result<bool, CniError> {
            let Ok(mut pod) = Namespace::open(&record.netns) else { return Ok(false) };
            let mac = record.what.interface.as_ref().and_then(|interface| interface.pod_mac);
            Ok(record.what.interface.is_some() && in_pod(&mut pod, device, &record.interface, mac)?.is_some())
        };
        if !record.is_of(attachment) && has_it(&record)? {
            let problem = format!(
                "container {} still has it as {}: it comes free when that sandbox is removed",
                record.container, record.interface
            );
            return Err(CniError::new(Code::TryAgain, problem));
        }
        forget(call, store, &record)?;
    }
    // One of an attachment with another VF: an ADD that was never taken back.
    match store.find::<VfRecord>(attachment)? {
        Some(record) => forget(call, store, &record),
        None => Ok(()),
    }
}

/// Undoes what a record says, and removes it.
fn forget(call: &Call<'_>, store: &Store, record: &VfAttachment) -> Result<(), CniError> {
    match settle(call, record)? {
        None => store.remove(record),
        Some(owed) => {
            let problem = format!("undo what was done for {}: {owed}", record.container);
            Err(CniError::new(Code::TryAgain, problem))
        }
    }
}
