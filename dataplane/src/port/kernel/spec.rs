//! What an interface of the kernel should be.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::spec::{Attachment, EndIdentity, FieldError, InterfaceName, MTU_MAX, MTU_MIN, MacAddress, NetNs, PortSpec};

/// An interface of the kernel, made inside a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSpec {
    /// Where it lives; none: the forwarder's own namespace.
    pub netns: Option<NetNs>,
    /// Its name there.
    pub name: InterfaceName,
    /// Its MAC address; none: the kernel picks one.
    pub mac: Option<MacAddress>,
    /// Its MTU; none: 1500.
    pub mtu: Option<u32>,
    /// Addresses to give it.
    pub addresses: Vec<IpNet>,
    /// Routes through it.
    pub routes: Vec<Route>,
}

impl KernelSpec {
    /// An interface of that name in the forwarder's own namespace, with nothing else asked for.
    pub fn new(name: InterfaceName) -> Self {
        Self { netns: None, name, mac: None, mtu: None, addresses: Vec::new(), routes: Vec::new() }
    }
}

impl PortSpec for KernelSpec {
    fn kind(&self) -> &'static str {
        "kernel"
    }

    fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if let Some(mtu) = self.mtu
            && !(MTU_MIN..=MTU_MAX).contains(&mtu)
        {
            errors.push(FieldError::new("kernel.mtu", format!("{mtu} bytes; {MTU_MIN} to {MTU_MAX} are possible")));
        }
        for (index, route) in self.routes.iter().enumerate() {
            if let Some(via) = route.via
                && via.is_ipv4() != route.to.addr().is_ipv4()
            {
                let problem = format!("destination {} and next hop {via} are of different families", route.to);
                errors.push(FieldError::new(&format!("kernel.routes[{index}].via"), problem));
            }
        }
        errors
    }

    fn identity(&self) -> EndIdentity {
        EndIdentity { netns: self.netns.clone(), words: format!("interface {} of the same namespace", self.name) }
    }

    fn attachment(&self) -> Attachment<'_> {
        Attachment::Device(self)
    }

    fn takes_offloads(&self) -> bool {
        true
    }
}

impl fmt::Display for KernelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.netns {
            Some(netns) => write!(f, "kernel {} in {netns}", self.name),
            None => write!(f, "kernel {}", self.name),
        }
    }
}

/// A route through a kernel interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub to: IpNet,
    /// Next hop; none: the destination is on the link.
    pub via: Option<IpAddr>,
}
