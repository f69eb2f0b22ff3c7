//! A network of software endpoints. What a PF would say of a VF means nothing here: the same network serves pods on nodes without a NIC.

use std::path::PathBuf;

use sriov_manager_client::mac::Mac;

use crate::network::Network;
use crate::protocol::{Attachment, CniError, Code};

/// What a network says of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointConfig {
    /// As the device plugin calls it.
    pub id: String,
    /// Where the forwarder listens.
    pub socket: PathBuf,
    /// The address of its interface; none: the kernel's choice.
    pub mac: Option<Mac>,
    /// Bytes of a packet; none: 1500.
    pub mtu: Option<u32>,
}

/// Whether a network is of such an endpoint.
pub fn is_of_endpoint(network: &Network) -> bool {
    network.keys().value("endpoint").is_some()
}

impl EndpointConfig {
    /// Reads it.
    pub fn read(network: &Network, attachment: &Attachment) -> Result<Self, CniError> {
        let endpoint = network.keys().object("endpoint")?.unwrap_or_default();
        let text = |key: &str| -> Result<String, CniError> { Ok(endpoint.text(key)?.unwrap_or_default()) };
        let id = text("id")?;
        if text("kind")? != "memif" {
            let problem = format!(
                "endpoint {id}: the forwarder makes interfaces of memif endpoints only: say \"kind\": \"memif\" in `software` of its resource"
            );
            return Err(CniError::new(Code::Unsupported, problem));
        }
        Ok(Self {
            id,
            socket: text("socket")?.into(),
            mac: network.mac(attachment)?,
            mtu: network.keys().number("mtu")?,
        })
    }
}
