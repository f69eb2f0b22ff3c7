//! What a specification asks of an interface that exists: steps, planned and then applied.

use std::fmt;

use ferrule_ffi::netlink::{Answer, Netlink, NetlinkError, Request};
use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use nix::errno::Errno;

use super::error::{InterfaceId, KernelError};
use super::message::{address_request, link_request, route_request, up_request};
use super::namespace::Namespace;
use crate::spec::{KernelSpec, MacAddress, Route};

/// One thing to do to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Mac(MacAddress),
    Mtu(u32),
    Address(IpNet),
    Up,
    Route(Route),
}

/// An interface that is being made what its specification says.
pub(super) struct Setup<'a> {
    /// A socket of its namespace.
    pub netlink: &'a mut Netlink,
    /// That namespace.
    pub namespace: &'a Namespace,
    /// The number of the interface there.
    pub index: u32,
    /// What it should be.
    pub spec: &'a KernelSpec,
    /// Whether a former process made it from the same specification: then what is there already is right.
    pub adopted: bool,
}

impl Setup<'_> {
    /// Does all of it: a system call to ask for all steps that do not depend on another's success, one for each answer.
    pub fn apply(&mut self) -> Result<(), KernelError> {
        let Plan { mut link, addresses, routes } = Plan::of(self.spec);
        if self.spec.uses_ipv6() {
            self.check_all(link)?;
            // An MTU that is too small for it takes IPv6 away.
            self.switch_ipv6_on()?;
            self.check_all(addresses)?;
        } else {
            link.extend(addresses);
            self.check_all(link)?;
        }
        self.add_routes(routes)
    }

    /// The next hop of a route may be the target of another one, in any order: what is refused is tried again, as long
    /// as others were taken.
    fn add_routes(&mut self, mut routes: Vec<Step>) -> Result<(), KernelError> {
        while !routes.is_empty() {
            let tried = routes.len();
            let mut refusals = Vec::new();
            for (step, answer) in self.exchange(routes)? {
                if let Err(error) = self.check_answer(&step, answer) {
                    refusals.push((step, error));
                }
            }
            if refusals.len() == tried {
                return refusals.into_iter().next().map_or(Ok(()), |(_, error)| Err(error));
            }
            routes = refusals.into_iter().map(|(step, _)| step).collect();
        }
        Ok(())
    }

    fn check_all(&mut self, steps: Vec<Step>) -> Result<(), KernelError> {
        self.exchange(steps)?.into_iter().try_for_each(|(step, answer)| self.check_answer(&step, answer))
    }

    fn exchange(&mut self, steps: Vec<Step>) -> Result<Vec<(Step, Answer)>, KernelError> {
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let requests = steps.iter().map(|step| step.request(self.index)).collect();
        let answers = self.netlink.exchange(requests);
        let answers = answers.map_err(|refusal| KernelError::failed("set up", &self.spec.into(), refusal))?;
        Ok(steps.into_iter().zip(answers).collect())
    }

    fn check_answer(&self, step: &Step, answer: Answer) -> Result<(), KernelError> {
        match (answer, step) {
            (Ok(_), _) => Ok(()),
            (Err(refusal), Step::Address(_) | Step::Route(_)) if self.adopted && refusal.errno == Errno::EEXIST => {
                Ok(())
            }
            (Err(refusal), step) => Err(step.refused(&self.spec.into(), refusal)),
        }
    }

    /// A namespace may have IPv6 switched off for new interfaces, as container engines do; CNI plugins then switch it
    /// on for theirs.
    fn switch_ipv6_on(&self) -> Result<(), KernelError> {
        let done = self.namespace.enable_ipv6(self.spec.name.as_str());
        done.map_err(|error| KernelError::Ipv6Off { interface: self.spec.into(), reason: error.to_string() })
    }
}

/// The steps of a specification. Addresses come before the interface is up, so that nothing leaves without one; routes
/// after it, because the kernel takes them only then.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    link: Vec<Step>,
    addresses: Vec<Step>,
    routes: Vec<Step>,
}

impl Plan {
    fn of(spec: &KernelSpec) -> Self {
        let mtu = Step::Mtu(spec.mtu.unwrap_or(MTU_DEFAULT));
        let routes = spec.routes.iter().filter(|route| !is_implied(route, spec));
        Self {
            link: spec.mac.map(Step::Mac).into_iter().chain([mtu]).collect(),
            addresses: spec.addresses.iter().copied().map(Step::Address).chain([Step::Up]).collect(),
            routes: routes.cloned().map(Step::Route).collect(),
        }
    }
}

/// Whether an address brings this route along; asked for again, the kernel would refuse it.
fn is_implied(route: &Route, spec: &KernelSpec) -> bool {
    route.via.is_none() && spec.addresses.iter().any(|address| address.trunc() == route.to.trunc())
}

impl KernelSpec {
    fn uses_ipv6(&self) -> bool {
        self.addresses.iter().any(|address| address.addr().is_ipv6())
            || self.routes.iter().any(|route| route.to.addr().is_ipv6())
    }
}

impl Step {
    fn request(&self, index: u32) -> Request {
        let set_link = |attribute| link_request(RouteNetlinkMessage::SetLink, index, vec![attribute]);
        match self {
            Self::Mac(mac) => set_link(LinkAttribute::Address(mac.0.to_vec())),
            Self::Mtu(mtu) => set_link(LinkAttribute::Mtu(*mtu)),
            Self::Address(address) => address_request(index, *address),
            Self::Up => up_request(index),
            Self::Route(route) => route_request(index, route),
        }
    }

    fn refused(&self, interface: &InterfaceId, refusal: NetlinkError) -> KernelError {
        if matches!(refusal.errno, Errno::EPERM | Errno::ENODEV) {
            return KernelError::failed(&self.to_string(), interface, refusal);
        }
        let (interface, reason) = (interface.clone(), refusal.to_string());
        match self {
            Self::Mtu(mtu) => KernelError::Mtu { mtu: *mtu, interface, reason },
            Self::Address(address) => KernelError::Address { address: *address, interface, reason },
            Self::Route(route) => KernelError::Route { route: route.clone(), interface, reason },
            Self::Mac(_) | Self::Up => KernelError::Refused { tried: self.to_string(), interface, reason },
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => write!(f, "set MAC address {mac} of"),
            Self::Mtu(mtu) => write!(f, "set MTU {mtu} of"),
            Self::Address(address) => write!(f, "give address {address} to"),
            Self::Up => write!(f, "bring up"),
            Self::Route(route) => write!(f, "add a route to {} through", route.to),
        }
    }
}

const MTU_DEFAULT: u32 = 1500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_an_address_brings_along_is_no_step() {
        let address: IpNet = "10.0.0.1/24".parse().unwrap();
        let [implied, far] = ["10.0.0.0/24", "10.1.0.0/16"].map(|to| Route { to: to.parse().unwrap(), via: None });
        let routes = vec![implied, far.clone()];
        let spec = KernelSpec { addresses: vec![address], routes, ..KernelSpec::new("eth9".parse().unwrap()) };
        let plan = Plan::of(&spec);
        assert_eq!(plan.link, [Step::Mtu(1500)]);
        assert_eq!(plan.addresses, [Step::Address(address), Step::Up]);
        assert_eq!(plan.routes, [Step::Route(far)]);
    }
}
