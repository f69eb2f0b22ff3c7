//! What is asked of a kernel end like of every other.

use super::spec::KernelSpec;
use crate::spec::{Attachment, EndIdentity, FieldError, MTU_MAX, MTU_MIN, PortSpec};

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

    fn identity(&self) -> Option<EndIdentity> {
        Some(EndIdentity { netns: self.netns.clone(), words: format!("interface {} of the same namespace", self.name) })
    }

    fn attachment(&self) -> Attachment<'_> {
        Attachment::Device(self)
    }

    fn takes_offloads(&self) -> bool {
        true
    }
}
