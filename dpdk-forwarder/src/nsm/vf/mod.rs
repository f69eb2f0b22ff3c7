//! Ends that are VFs, which their pods have shown a token for: the pod holds the VF by a lease of `device-plugin`, and `sriov-manager` makes it
//! what the connection wants for as long as that is there.
//!
//! ```text
//!   token --file of device-plugin--> lease --sriov-manager--> VF, on the kernel's driver: its interface goes into the pod and comes back
//!                                                             VF, on vfio-pci: the pod has its nodes already
//! ```
//! - `lender`: the manager, and what is done with its VFs; `record`: what they were before, for whoever comes after us
//! - `netdev`: interfaces that go into namespaces and come back
//! - `config`: the file that says which tokens there are

mod config;
mod lender;
mod netdev;
mod record;

use std::collections::BTreeMap;

use ferrule_dataplane::spec::MacAddress;
use tonic::Status;

pub(in crate::nsm) use config::SriovConfig;
pub(in crate::nsm) use lender::{PCI_ADDRESS, VfLender, VfLenderSettings};

use super::interface::InterfacePlace;

/// An end that is a VF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::nsm) struct VfEnd {
    /// What the pod has shown.
    pub(in crate::nsm) token: String,
    pub(in crate::nsm) form: VfForm,
    pub(in crate::nsm) mac: MacAddress,
    /// The VLAN that its NIC puts it into; 0: none.
    pub(in crate::nsm) vlan: u32,
}

/// What the VF is to its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::nsm) enum VfForm {
    /// An interface.
    Kernel { place: InterfacePlace, mtu: Option<u32> },
    /// A device of VFIO.
    Vfio,
}

/// A VF of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::nsm) struct VfLink {
    connection: String,
    /// By which its pod has it.
    lease: String,
    end: VfEnd,
}

impl VfLink {
    /// For a connection of this id, in the place of what that had before. Blocks.
    pub(in crate::nsm) fn plan(
        connection: &str,
        end: &VfEnd,
        before: Option<&Self>,
        lender: &VfLender,
    ) -> Result<Self, Status> {
        // A token that was good once is good for as long as the connection.
        let lease = match before.filter(|before| before.end.token == end.token) {
            Some(before) => before.lease.clone(),
            None => lender.lease_of(&end.token)?,
        };
        Ok(Self { connection: connection.to_owned(), lease, end: end.clone() })
    }

    /// Makes it, unless it is there. Whether it is new. Blocks.
    pub(in crate::nsm) fn make(&self, lender: &VfLender) -> Result<bool, Status> {
        lender.make(self)
    }

    /// The VF is its pod's as it was before. Blocks.
    pub(in crate::nsm) fn remove(&self, lender: &VfLender) -> Result<(), Status> {
        lender.remove(self)
    }

    /// What its pod is told of it.
    pub(in crate::nsm) fn parameters(&self, lender: &VfLender) -> BTreeMap<String, String> {
        lender.parameters(&self.lease, &self.connection)
    }

    /// By which its interface is known, also to a forwarder that comes after us.
    fn alias(&self) -> String {
        format!("{ALIAS}id={} vf={}", self.connection, self.lease)
    }
}

const ALIAS: &str = "ferrule nsm-vf ";
