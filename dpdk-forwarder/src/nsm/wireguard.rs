//! WireGuard between two forwarders: what their mechanisms say to each other.

use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use defguard_boringtun::x25519::PublicKey;
use ferrule_nsm::proto::connection::Mechanism;
use tonic::Status;

use super::vxlan::{DST_IP, DST_PORT, SRC_IP, SRC_PORT, TunnelSite, parameter};

/// The other side of one tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WireGuardPeer {
    pub(super) address: SocketAddr,
    pub(super) key: PublicKey,
    /// Whether it waits for us to begin: one side is enough.
    pub(super) waits: bool,
}

impl WireGuardPeer {
    /// As whoever has asked sees it, from the answer.
    pub(super) fn asked(mechanism: &Mechanism, site: &TunnelSite) -> Result<Self, Status> {
        Self::read(mechanism, site, [DST_IP, DST_PORT, DST_KEY], true)
    }

    /// As whoever was asked sees it.
    pub(super) fn answered(mechanism: &Mechanism, site: &TunnelSite) -> Result<Self, Status> {
        Self::read(mechanism, site, [SRC_IP, SRC_PORT, SRC_KEY], false)
    }

    fn read(
        mechanism: &Mechanism,
        site: &TunnelSite,
        [ip, port, key]: [&'static str; 3],
        waits: bool,
    ) -> Result<Self, Status> {
        let address: IpAddr = parameter(mechanism, ip)?;
        let port = if mechanism.parameters.contains_key(port) { parameter(mechanism, port)? } else { PORT };
        if address.is_ipv4() != site.address.is_ipv4() {
            return Err(Status::invalid_argument(format!("{ip}: {address} is not reached from {}", site.address)));
        }
        let text = mechanism.parameters.get(key).map_or("", String::as_str);
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let key = bytes.map(PublicKey::from).ok_or_else(|| {
            Status::invalid_argument(format!("the mechanism {WIREGUARD}: {key} is not 32 bytes in base64"))
        })?;
        Ok(Self { address: SocketAddr::new(address, port), key, waits })
    }
}

/// What is ours to say: as whoever asks, or as who is asked.
pub(super) fn own_parameters(address: SocketAddr, key: &PublicKey, is_asked: bool) -> [(String, String); 3] {
    let keys = if is_asked { [DST_IP, DST_PORT, DST_KEY] } else { [SRC_IP, SRC_PORT, SRC_KEY] };
    let [ip, port, public_key] = keys.map(str::to_owned);
    [(ip, address.ip().to_string()), (port, address.port().to_string()), (public_key, STANDARD.encode(key.as_bytes()))]
}

/// What a tunnel of this site carries.
pub(super) fn mtu(site: &TunnelSite) -> u32 {
    site.link_mtu.saturating_sub(if site.address.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 })
}

/// The mechanism's name.
pub(super) const WIREGUARD: &str = "WIREGUARD";
const SRC_KEY: &str = "src_public_key";
const DST_KEY: &str = "dst_public_key";
/// Of whoever does not say.
const PORT: u16 = 51820;
/// Headers of IP, UDP and WireGuard, and the tag.
const OVERHEAD_V4: u32 = 60;
const OVERHEAD_V6: u32 = 80;
