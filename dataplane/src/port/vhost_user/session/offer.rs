//! What we offer to a frontend: features, queues, and what the device's configuration says.

use crate::port::vhost_user::features::{Features, ProtocolFeatures};
use crate::port::vhost_user::message::CONFIG_MAX;
use crate::spec::{EndSpec, MacAddress, VhostUserSpec};

/// What one end offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserOffer {
    /// The answer to GET_FEATURES.
    pub features: Features,
    /// The answer to GET_PROTOCOL_FEATURES.
    pub protocol: ProtocolFeatures,
    /// The answer to GET_QUEUE_NUM.
    pub queues: u16,
    mtu: Option<u16>,
    mac: Option<MacAddress>,
}

impl VhostUserOffer {
    /// What an end offers whose frames go to `far` and come from there.
    pub fn new(spec: &VhostUserSpec, far: &EndSpec) -> Self {
        let switches = &spec.features;
        let takes_unfinished = far.takes_offloads();
        let optional = [
            (switches.packed, Features::RING_PACKED),
            (switches.in_order, Features::IN_ORDER),
            (switches.mrg_rxbuf, Features::MRG_RXBUF),
            (switches.indirect, Features::INDIRECT_DESC),
            (switches.event_idx, Features::EVENT_IDX),
            (switches.offloads && takes_unfinished, OFFLOADS),
            (spec.queues > 1, Features::MQ),
            (spec.mtu.is_some(), Features::MTU),
            (spec.mac.is_some(), Features::MAC),
        ];
        let features = optional.into_iter().filter(|&(on, _)| on).fold(ALWAYS, |all, (_, feature)| all | feature);
        // QEMU warns of a backend that has a configuration, at each start of a guest, so it is offered with contents.
        let has_config = spec.mtu.is_some() || spec.mac.is_some();
        let config = if has_config { ProtocolFeatures::CONFIG } else { ProtocolFeatures::default() };
        let protocol = PROTOCOL_ALWAYS.with(config);
        Self { features, protocol, queues: spec.queues, mtu: spec.mtu, mac: spec.mac }
    }

    /// Bytes of `struct virtio_net_config` (virtio 1.2, 5.1.4); `None`: there is no such part.
    pub fn config(&self, offset: u32, size: usize) -> Option<Vec<u8>> {
        let mut bytes = [0; CONFIG_MAX];
        bytes[..6].copy_from_slice(&self.mac.map_or([0; 6], |MacAddress(mac)| mac));
        bytes[6..8].copy_from_slice(&STATUS_LINK_UP.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.queues.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        bytes[12..17].copy_from_slice(&UNKNOWN_SPEED_AND_DUPLEX);
        let start = usize::try_from(offset).ok()?;
        bytes.get(start..start.checked_add(size)?).map(<[u8]>::to_vec)
    }
}

const ALWAYS: Features = Features::VERSION_1
    .with(Features::STATUS)
    .with(Features::CTRL_VQ)
    .with(Features::CTRL_RX)
    .with(Features::GUEST_ANNOUNCE)
    .with(Features::ANY_LAYOUT)
    .with(Features::LOG_ALL)
    .with(Features::PROTOCOL_FEATURES);
/// UFO is not among them: it was taken back from virtio's drivers, and no target of ours takes it.
const OFFLOADS: Features = Features::CSUM
    .with(Features::GUEST_CSUM)
    .with(Features::GUEST_TSO4)
    .with(Features::GUEST_TSO6)
    .with(Features::GUEST_ECN)
    .with(Features::HOST_TSO4)
    .with(Features::HOST_TSO6)
    .with(Features::HOST_ECN);
const PROTOCOL_ALWAYS: ProtocolFeatures = ProtocolFeatures::MQ
    .with(ProtocolFeatures::LOG_SHMFD)
    .with(ProtocolFeatures::RARP)
    .with(ProtocolFeatures::REPLY_ACK)
    .with(ProtocolFeatures::NET_MTU)
    .with(ProtocolFeatures::INFLIGHT_SHMFD)
    .with(ProtocolFeatures::RESET_DEVICE)
    .with(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .with(ProtocolFeatures::STATUS);
/// VIRTIO_NET_S_LINK_UP.
const STATUS_LINK_UP: u16 = 1;
/// 0xffffffff and 0xff: neither is known.
const UNKNOWN_SPEED_AND_DUPLEX: [u8; 5] = [0xff; 5];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{MemifSpec, Role};

    fn spec() -> VhostUserSpec {
        VhostUserSpec::new("@v".parse().unwrap(), Role::Server)
    }

    fn memif() -> EndSpec {
        EndSpec::Memif(MemifSpec::new("@m".parse().unwrap(), Role::Server))
    }

    #[test]
    fn offloads_are_offered_only_where_the_other_end_takes_them() {
        let far = EndSpec::VhostUser(spec());
        assert!(VhostUserOffer::new(&spec(), &far).features.has(OFFLOADS));
        let features = VhostUserOffer::new(&spec(), &memif()).features;
        assert_eq!(features & OFFLOADS, Features::default());
        let mut finished = spec();
        finished.features.offloads = false;
        assert_eq!(
            VhostUserOffer::new(&spec(), &EndSpec::VhostUser(finished.clone())).features & OFFLOADS,
            Features::default()
        );
        assert_eq!(VhostUserOffer::new(&finished, &far).features & OFFLOADS, Features::default());
    }

    #[test]
    fn what_is_switched_off_is_not_offered() {
        let mut spec = spec();
        let all = VhostUserOffer::new(&spec, &memif()).features;
        assert!(all.has(Features::RING_PACKED.with(Features::IN_ORDER).with(Features::MRG_RXBUF)));
        spec.features.packed = false;
        let less = VhostUserOffer::new(&spec, &memif()).features;
        assert_eq!(all, less | Features::RING_PACKED);
        assert!(!less.has(Features::RING_PACKED) && !less.has(Features::MQ));
        spec.queues = 2;
        assert!(VhostUserOffer::new(&spec, &memif()).features.has(Features::MQ));
    }

    #[test]
    fn the_configuration_holds_what_was_set_and_ends_where_it_ends() {
        let mut spec = spec();
        assert!(!VhostUserOffer::new(&spec, &memif()).protocol.has(ProtocolFeatures::CONFIG));
        (spec.mtu, spec.mac, spec.queues) = (Some(9000), Some("02:00:00:00:00:07".parse().unwrap()), 4);
        let offer = VhostUserOffer::new(&spec, &memif());
        assert!(offer.features.has(Features::MTU.with(Features::MAC)));
        assert!(offer.protocol.has(ProtocolFeatures::CONFIG));
        let bytes = offer.config(0, 20).unwrap();
        assert_eq!(bytes[..], [2, 0, 0, 0, 0, 7, 1, 0, 4, 0, 0x28, 0x23, 255, 255, 255, 255, 255, 0, 0, 0]);
        assert_eq!(offer.config(10, 2).unwrap()[..], [0x28, 0x23]);
        assert_eq!(offer.config(256, 0).map(|bytes| bytes.len()), Some(0));
        for (offset, size) in [(256, 1), (0, 257), (u32::MAX, 1), (u32::MAX, usize::MAX)] {
            assert_eq!(offer.config(offset, size), None);
        }
    }
}
