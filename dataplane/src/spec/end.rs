//! The kinds of ends, joined. This is the one file of the specification that names them all: whoever wants to know
//! something of an end asks it here, and the answer is in `port/<kind>/port_spec.rs`.

use std::fmt;

use super::{
    Attachment, EndIdentity, ExternalSpec, FieldError, KernelSpec, MemifSpec, Mode, NetNs, PeerSocket, PortSpec, Role,
    VhostUserSpec,
};

/// One end of a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndSpec {
    /// A memif 2.0 shared-memory interface.
    Memif(MemifSpec),
    /// The device of a virtual machine or of a virtio-user process.
    VhostUser(VhostUserSpec),
    /// A network interface of the kernel.
    Kernel(KernelSpec),
    /// A port of a kind that another crate has.
    External(ExternalSpec),
}

impl EndSpec {
    fn as_port(&self) -> &dyn PortSpec {
        match self {
            Self::Memif(memif) => memif,
            Self::VhostUser(vhost) => vhost,
            Self::Kernel(kernel) => kernel,
            Self::External(external) => external,
        }
    }

    /// What its frames begin with.
    pub fn mode(&self) -> Mode {
        self.as_port().mode()
    }

    /// One word for its kind: `memif`, `vhost-user`, `kernel`, or that of another crate.
    pub fn kind(&self) -> &'static str {
        self.as_port().kind()
    }

    /// What it takes for itself; none: nothing that another end could take.
    pub fn identity(&self) -> Option<EndIdentity> {
        self.as_port().identity()
    }

    /// The namespace that it names, if its kind has one.
    pub fn netns_mut(&mut self) -> Option<&mut Option<NetNs>> {
        match self {
            Self::Memif(memif) => Some(&mut memif.netns),
            Self::Kernel(kernel) => Some(&mut kernel.netns),
            Self::VhostUser(_) | Self::External(_) => None,
        }
    }

    /// Takes over from a newer one what can change while its peer or device stays.
    pub(crate) fn adopt_unseen(&mut self, newer: &Self) {
        match (self, newer) {
            (Self::Memif(old), Self::Memif(new)) => old.adopt_unseen(new),
            (Self::VhostUser(old), Self::VhostUser(new)) => old.adopt_unseen(new),
            (Self::Memif(_) | Self::VhostUser(_) | Self::Kernel(_) | Self::External(_), _) => {}
        }
    }

    /// Both ends of a wire that the kernel can carry without us.
    pub(crate) fn kernel_pair(ends: &[Self; 2]) -> Option<[&KernelSpec; 2]> {
        match ends {
            [Self::Kernel(a), Self::Kernel(b)] => Some([a, b]),
            [Self::Memif(_) | Self::VhostUser(_) | Self::Kernel(_) | Self::External(_), _] => None,
        }
    }

    /// What memif needs to know of it, if it is of that kind.
    pub(crate) fn as_memif(&self) -> Option<&MemifSpec> {
        match self {
            Self::Memif(memif) => Some(memif),
            Self::VhostUser(_) | Self::Kernel(_) | Self::External(_) => None,
        }
    }

    /// What vhost-user needs to know of it, if it is of that kind.
    pub(crate) fn as_vhost_user(&self) -> Option<&VhostUserSpec> {
        match self {
            Self::VhostUser(vhost) => Some(vhost),
            Self::Memif(_) | Self::Kernel(_) | Self::External(_) => None,
        }
    }

    pub(crate) fn attachment(&self) -> Attachment<'_> {
        self.as_port().attachment()
    }

    /// Where it meets its peers, if it has any.
    pub(crate) fn socket(&self) -> Option<PeerSocket<'_>> {
        match self.attachment() {
            Attachment::Socket(socket) => Some(socket),
            Attachment::Device(_) => None,
        }
    }

    pub(crate) fn check(&self) -> Vec<FieldError> {
        self.as_port().check()
    }

    pub(crate) fn memory_limit(&self) -> u64 {
        self.as_port().memory_limit()
    }

    pub(crate) fn takes_offloads(&self) -> bool {
        self.as_port().takes_offloads()
    }

    pub(crate) fn lending_role(&self) -> Option<Role> {
        self.as_port().lending_role()
    }
}

impl fmt::Display for EndSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_port().fmt(f)
    }
}
