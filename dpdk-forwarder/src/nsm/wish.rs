//! What a client has asked for, judged.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferrule_nsm::files::Inode;
use ferrule_nsm::proto::connection::Mechanism;
use ferrule_nsm::service::{Call, MechanismFiles};
use ferrule_nsm::transport::Peer;
use tonic::Status;

use super::end::{EndKind, NAME, TOKEN, is_tunnel_of, unsupported};
use super::joint::Means;
use super::reservation::Reservation;
use super::vxlan::{MTU, TunnelSite, VNI, Vnis};
use super::wireguard::WIREGUARD;

/// How a client wants its end.
pub(super) struct ClientWish {
    /// None: by a tunnel.
    pub(super) kind: Option<EndKind>,
    pub(super) mechanism: Mechanism,
    pub(super) file: Option<Arc<OwnedFd>>,
    /// What no other connection of it has.
    pub(super) only: Option<ClientEnd>,
    /// What its tunnel, or the one to its endpoint, has of us.
    pub(super) reservation: Reservation,
}

/// What a client has by one connection only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClientEnd {
    /// An interface of a name in a namespace.
    Interface {
        netns: Inode,
        name: String,
        /// The first segment of the path: its name, and its id there.
        client: (String, String),
    },
    /// The VF of a token: whoever has that is of the pod.
    Vf { token: String },
}

impl ClientWish {
    /// The first of what the client wants that we can have, or what the connection has already.
    pub(super) async fn read(call: &Call, site: Option<&TunnelSite>, means: &Means) -> Result<Self, Status> {
        let reservation = means.reserve(&call.connection.id);
        let is_tunnel = |mechanism: &Mechanism| is_tunnel_of(mechanism, &call.connection.payload) && site.is_some();
        let can_have = |mechanism: &&Mechanism| is_tunnel(mechanism) || EndKind::of_client(mechanism).is_some();
        let mechanism = call.connection.mechanism.as_ref();
        let mechanism =
            mechanism.or_else(|| call.preferences.iter().find(can_have)).cloned().ok_or_else(unsupported)?;
        if let Some(site) = site.filter(|_| is_tunnel(&mechanism)) {
            let id = &call.connection.id;
            let mechanism = match mechanism.r#type.as_str() {
                WIREGUARD => means.wireguards.answer(id, &mechanism, site)?,
                _ => site.answer(id, &mechanism, &means.vnis)?,
            };
            return Ok(Self { kind: None, mechanism, file: None, only: None, reservation });
        }
        let kind = EndKind::of_client(&mechanism).ok_or_else(unsupported)?;
        let files = MechanismFiles::receive(call.peer.as_ref().and_then(Peer::files), [&mechanism]).await?;
        let file = files.of(&mechanism).cloned();
        let only = if kind.is_vf() {
            mechanism.parameters.get(TOKEN).map(|token| ClientEnd::Vf { token: token.clone() })
        } else {
            file.as_ref().filter(|_| kind == EndKind::Kernel).and_then(|file| interface(call, &mechanism, file))
        };
        Ok(Self { kind: Some(kind), mechanism, file, only, reservation })
    }

    /// The tunnel gets another number: its own is that of a tunnel that we did not know of.
    pub(super) fn renumber(&mut self, id: &str, site: &TunnelSite, vnis: &Vnis) -> Result<(), Status> {
        self.mechanism.parameters.remove(VNI);
        self.mechanism = site.answer(id, &self.mechanism, vnis)?;
        Ok(())
    }

    /// What the client's end carries, if it is a tunnel; 0: nobody has said.
    pub(super) fn carried(&self) -> u32 {
        let mtu = self.mechanism.parameters.get(MTU).filter(|_| self.kind.is_none());
        mtu.and_then(|mtu| mtu.parse().ok()).unwrap_or(0)
    }
}

fn interface(call: &Call, mechanism: &Mechanism, file: &Arc<OwnedFd>) -> Option<ClientEnd> {
    let client = call.connection.path.as_ref()?.path_segments.first()?;
    let name = mechanism.parameters.get(NAME).filter(|name| !name.is_empty())?.clone();
    let client = (client.name.clone(), client.id.clone());
    Some(ClientEnd::Interface { netns: Inode::of(file).ok()?, name, client })
}
