//! CHECK and STATUS.

use super::VfConfig;
use super::record::{KIND, VfRecord};
use super::tree::in_pod;
use crate::call::Call;
use crate::interface::{Namespace, lost_address};
use crate::ipam::Ipam;
use crate::manager::Manager;
use crate::protocol::{Attachment, CniError, Code, Command};
use crate::store::Store;

/// Whether a container is attached as ADD said.
pub fn check(call: &Call<'_>, attachment: &Attachment) -> Result<(), CniError> {
    let config = VfConfig::read(call.network, attachment)?;
    let about = |error: CniError| error.about(&format!("device {}", config.device));
    check_vf(call, attachment, &config).map_err(about)?;
    Ipam::of(call.environment, call.network).map_or(Ok(()), |ipam| ipam.order(Command::Check))
}

fn check_vf(call: &Call<'_>, attachment: &Attachment, config: &VfConfig) -> Result<(), CniError> {
    let lost = |problem: String| CniError::new(Code::Failed, format!("{problem}: delete the pod"));
    let places = &call.network.places;
    let record = Store::open(&places.state, KIND)?.find::<VfRecord>(attachment)?;
    let record = record.ok_or_else(|| lost("nothing is known of this attachment".to_owned()))?.what;
    if record.device != config.device {
        return Err(lost(format!("the attachment has {}", record.device)));
    }
    let lease = Manager::connect(&places.manager)?.vf(&config.device)?.and_then(|vf| vf.lease);
    let lease = lease.ok_or_else(|| lost(format!("its lease {} is gone", record.lease.id)))?;
    let has = lease.attributes.clone().unwrap_or_default();
    if lease.id != record.lease.id || has != record.lease.asked {
        return Err(lost(format!("its lease is {} by now, or asks for something else", lease.id)));
    }
    let Some(interface) = record.interface else { return Ok(()) };
    let path = attachment.netns.as_deref().unwrap_or_else(|| "".as_ref());
    let pod = Namespace::open(path);
    let mut pod = pod.map_err(|error| CniError::new(Code::UnknownContainer, format!("{}: {error}", path.display())))?;
    let name = &attachment.interface;
    let link = in_pod(&mut pod, &config.device, name, interface.pod_mac)?;
    let link = link.ok_or_else(|| lost(format!("its interface {name} is not in the container")))?;
    if link.name != *name || !link.is_up {
        let state = if link.is_up { "up" } else { "down" };
        return Err(lost(format!("its interface is called {} where it was {name}, and is {state}", link.name)));
    }
    let Some(previous) = &call.network.previous else { return Ok(()) };
    let missing = lost_address(&mut pod, &link, previous)?;
    missing.map_or(Ok(()), |address| Err(lost(format!("its interface {name} has lost {address}"))))
}

/// Whether ADD would be served.
pub fn status(call: &Call<'_>) -> Result<(), CniError> {
    let manager = Manager::connect(&call.network.places.manager);
    manager.map_err(|error| CniError::new(Code::Unavailable, error.to_string()))?;
    Ipam::of(call.environment, call.network).map_or(Ok(()), |ipam| ipam.order(Command::Status))
}
