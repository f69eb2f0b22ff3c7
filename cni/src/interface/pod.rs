//! The namespace of a container that is attached.

use ipnet::IpNet;

use super::{Link, Namespace};
use crate::protocol::{AddResult, Attachment, CniError, Code};

/// The container's namespace, which has no interface of the attachment's name yet.
pub fn open_pod(attachment: &Attachment) -> Result<Namespace, CniError> {
    let path = attachment.netns.as_deref().unwrap_or_else(|| "".as_ref());
    let mut pod = Namespace::open(path).map_err(|error| {
        let problem = format!("open the container's network namespace {}: {error}", path.display());
        CniError::new(Code::UnknownContainer, problem)
    })?;
    let is_hosts = pod.is_same(&Namespace::host()?).map_err(|error| CniError::failed("compare namespaces", error))?;
    if is_hosts {
        let problem = format!("{} is the host's own namespace: a pod with hostNetwork has no networks", path.display());
        return Err(CniError::new(Code::HostNamespace, problem));
    }
    if pod.named(&attachment.interface)?.is_some() {
        let problem = format!("the container has an interface {} already: name another one", attachment.interface);
        return Err(CniError::new(Code::Failed, problem));
    }
    Ok(pod)
}

/// An address that an interface had by the answer of ADD, and has no more.
pub fn lost_address(pod: &mut Namespace, link: &Link, previous: &AddResult) -> Result<Option<IpNet>, CniError> {
    let wanted = previous.ips.iter().filter(|ip| {
        let of = ip.interface.and_then(|index| previous.interfaces.get(index));
        of.is_some_and(|of| of.name == link.name)
    });
    let has = pod.addresses(link)?;
    Ok(wanted.map(|ip| ip.address).find(|address| !has.contains(address)))
}
