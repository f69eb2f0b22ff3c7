//! What devices a pod has. The kubelet is asked, over podresources: it has given a pod its devices before the pod's sandbox is made.
//!
//! The kubelet's checkpoint says the same and more (devices of init containers), but it is the kubelet's own: its form changes from
//! release to release without notice, and it knows a pod by nothing but its UID.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ferrule_kubelet::connect;
use ferrule_kubelet::pod_resources::pod_resources_lister_client::PodResourcesListerClient;
use ferrule_kubelet::pod_resources::{GetPodResourcesRequest, ListPodResourcesRequest, PodResources};
use tonic::transport::Channel;
use tonic::{Code as Status, Response};

use crate::asking::{ANSWER_WAIT, Asking};
use crate::protocol::{CniError, Code};

/// A device that the kubelet has given to a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodDevice {
    /// What the pod asked for.
    pub resource: String,
    /// What its plugin calls it.
    pub id: String,
}

/// The name of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Unique in it.
    pub name: String,
}

/// The devices of a pod, each once: by containers in the order of the pod, by resources and ids in theirs. A pod that the kubelet does not
/// know (`crictl runp`) has none.
pub fn devices_of(socket: &Path, pod: &PodName) -> Result<Vec<PodDevice>, CniError> {
    let away = |problem: String| {
        let problem = format!("ask the kubelet for the devices of pod {}/{}: {problem}", pod.namespace, pod.name);
        CniError::new(Code::TryAgain, problem)
    };
    let connecting = async { connect(socket).await.map(PodResourcesListerClient::new) };
    let mut kubelet = Kubelet(Asking::connect(connecting).map_err(away)?);
    let pod = kubelet.pod(pod).map_err(away)?;
    Ok(pod.map(in_order).unwrap_or_default())
}

type Client = PodResourcesListerClient<Channel>;

struct Kubelet(Asking<Client>);

impl Kubelet {
    /// Kubelets before 1.34 refuse to tell of one pod (`Get`), and are asked for all.
    fn pod(&mut self, wanted: &PodName) -> Result<Option<PodResources>, String> {
        let request = GetPodResourcesRequest { pod_name: wanted.name.clone(), pod_namespace: wanted.namespace.clone() };
        let one = self.ask(&async |client: &mut Client| client.get(request.clone()).await)?;
        if let Ok(answer) = one {
            return Ok(answer.pod_resources);
        }
        let all = self.ask(&async |client: &mut Client| client.list(ListPodResourcesRequest {}).await)?;
        let pods = all.map_err(|status| status.message().to_owned())?.pod_resources;
        Ok(pods.into_iter().find(|pod| pod.name == wanted.name && pod.namespace == wanted.namespace))
    }

    /// The kubelet answers so many questions a second and refuses the others.
    fn ask<T>(
        &mut self,
        call: &impl AsyncFn(&mut Client) -> Result<Response<T>, tonic::Status>,
    ) -> Result<Result<T, tonic::Status>, String> {
        let deadline = Instant::now() + CROWD_WAIT;
        loop {
            let answer = self.0.ask(async |client| call(client).await);
            let answer = answer.ok_or_else(|| format!("no answer within {} s", ANSWER_WAIT.as_secs()))?;
            match answer {
                Err(status) if status.code() == Status::ResourceExhausted && Instant::now() < deadline => {
                    sleep(CROWD_POLL);
                }
                Err(status) if status.code() == Status::Unavailable => return Err(status.message().to_owned()),
                answer => return Ok(answer),
            }
        }
    }
}

fn in_order(pod: PodResources) -> Vec<PodDevice> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for container in pod.containers {
        // One entry for each NUMA node of a device, in no order.
        let devices = container.devices.into_iter().flat_map(|devices| {
            let resource = devices.resource_name;
            devices.device_ids.into_iter().map(move |id| PodDevice { resource: resource.clone(), id })
        });
        let devices: BTreeSet<_> = devices.collect();
        all.extend(devices.into_iter().filter(|device| seen.insert(device.clone())));
    }
    all
}

/// A kubelet lets 100 questions a second through, and 10 at once (`DefaultQPS`, `DefaultBurstTokens`): far more pods do not start on a node.
const CROWD_WAIT: Duration = Duration::from_secs(10);
const CROWD_POLL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use ferrule_kubelet::pod_resources::{ContainerDevices, ContainerResources};

    use super::*;

    #[test]
    fn each_device_is_there_once_in_an_order_that_does_not_change() {
        let devices = |resource: &str, ids: &[&str]| ContainerDevices {
            resource_name: resource.into(),
            device_ids: ids.iter().map(ToString::to_string).collect(),
        };
        let one = vec![devices("b/x", &["2"]), devices("a/x", &["9"]), devices("b/x", &["1"]), devices("b/x", &["2"])];
        // A sidecar's, which the main container has as well.
        let two = vec![devices("b/x", &["1"]), devices("a/x", &["3"])];
        let containers = [("one", one), ("two", two)];
        let containers = containers.map(|(name, devices)| ContainerResources { name: name.into(), devices });
        let pod = PodResources { containers: containers.into(), ..PodResources::default() };
        let ids: Vec<_> =
            in_order(pod).into_iter().map(|device| format!("{}={}", device.resource, device.id)).collect();
        assert_eq!(ids, ["a/x=9", "b/x=1", "b/x=2", "a/x=3"]);
    }
}
