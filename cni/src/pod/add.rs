//! ADD: what the pod has is looked up, what becomes of it is recorded, and then the pod is attached to one network after the other.

use device_plugin_client::networks::Networks;

use super::del::{detach_all, forget};
use super::devices::{PodName, devices_of};
use super::networks::{ANNOTATION, parts};
use super::record::{KIND, Part, PodAttachment, PodRecord};
use crate::call::Call;
use crate::protocol::{AddResult, Attachment, CniError, Command};
use crate::store::{self, Store};
use crate::{endpoint, sriov};

/// Attaches a pod to a network for each of its devices.
pub fn add(call: &Call<'_>, attachment: &Attachment) -> Result<AddResult, CniError> {
    let mut so_far = call.network.previous.clone().unwrap_or_default();
    let store = Store::open(&call.network.places.state, KIND)?;
    if let Some(earlier) = store.find::<PodRecord>(attachment)? {
        forget(call, &store, &earlier)?;
    }
    let parts = planned(call, attachment)?;
    if parts.is_empty() {
        return Ok(so_far);
    }
    let boot = store::boot(&call.network.places.root);
    let record = PodAttachment::new(call.network, attachment, boot, PodRecord { parts });
    store.write(&record)?;
    call.step("what the pod is to be attached to is recorded");
    for (done, part) in record.what.parts.iter().enumerate() {
        match attach(call, &record, part, so_far) {
            Ok(result) => so_far = result,
            Err(failure) => {
                // The one that failed has undone itself.
                let left = detach_all(call, &record, done).and_then(|()| store.remove(&record)).err();
                return Err(failure.and_then_left(left));
            }
        }
    }
    Ok(so_far)
}

/// A pod without devices costs one look; where no resource has a network, not even that.
fn planned(call: &Call<'_>, attachment: &Attachment) -> Result<Vec<Part>, CniError> {
    let places = &call.network.places;
    let annotations = call.network.runtime()?.object(ANNOTATIONS)?.unwrap_or_default();
    let annotation = annotations.text(ANNOTATION)?;
    let read = |error| CniError::failed(&format!("read {}", places.networks.display()), error);
    let networks = Networks::read(&places.networks).map_err(read)?;
    let Some(pod) = pod_name(attachment).filter(|_| annotation.is_some() || !networks.resources.is_empty()) else {
        return Ok(Vec::new());
    };
    let devices = devices_of(&places.kubelet, &pod)?;
    parts(&devices, &networks, annotation.as_deref(), call.network, &attachment.interface)
}

fn attach(call: &Call<'_>, record: &PodAttachment, part: &Part, so_far: AddResult) -> Result<AddResult, CniError> {
    part.run(call, record, Command::Add, Some(so_far), |call, attachment| {
        let add = if endpoint::is_of_endpoint(call.network) { endpoint::add } else { sriov::add };
        add(call, attachment)
    })
}

/// As runtimes of Kubernetes tell it.
fn pod_name(attachment: &Attachment) -> Option<PodName> {
    let arg = |key: &str| attachment.args.get(key).filter(|value| !value.is_empty()).cloned();
    Some(PodName { namespace: arg("K8S_POD_NAMESPACE")?, name: arg("K8S_POD_NAME")? })
}

/// The capability by which runtimes hand over a pod's annotations.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
