//! What a port is made of: checked against what its driver can, before anything is tried.

use ferrule_dpdk_sys as sys;

use crate::error::PortError;

/// What is asked of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// Queue pairs. Received frames are spread over them by their addresses and ports (RSS), if the device can.
    pub queues: u16,
    /// Its MTU; none: what the device has.
    pub mtu: Option<u16>,
    /// Bytes of a buffer; none: as many as a frame has. Longer frames come in several buffers then.
    pub buffer: Option<u16>,
    /// Whether frames are sent whose checksum or segmentation it is to finish, as far as it can.
    pub finishes: bool,
    /// Whether frames are to say when they arrived, if the device knows.
    pub stamps: bool,
    /// Whether its receive queues are to have interrupts, if its driver has them.
    pub interrupts: bool,
}

impl Default for PortConfig {
    fn default() -> Self {
        Self { queues: 1, mtu: None, buffer: None, finishes: false, interrupts: false, stamps: false }
    }
}

/// The longest MTU: a frame has to fit into one buffer.
pub const MTU_MAX: u16 = 65_000;
/// The shortest MTU (RFC 791).
pub const MTU_MIN: u16 = 68;

/// How a port is configured.
pub(crate) struct Plan {
    pub mtu: u16,
    /// The longest frame: the MTU, an Ethernet header and two VLAN tags.
    pub frame_max: u32,
    /// Bytes of a buffer.
    pub room: u16,
    pub rss: u64,
    pub rx_offloads: u64,
    pub tx_offloads: u64,
    /// Buffers that a frame may lie in when it is sent: a NIC may take more for an attack.
    pub segments_max: u16,
    /// The same of one that it cuts into segments.
    pub cut_segments_max: u16,
    pub finishes: Finishes,
}

/// What a device finishes on frames that it sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finishes {
    /// Checksums of TCP and UDP.
    pub checksums: bool,
    /// TCP over IPv4 that is to be cut into segments.
    pub segments: bool,
    /// The same over IPv6.
    pub segments_ipv6: bool,
    /// The least and the most that it cuts: payload bytes of a segment, and bytes of one with its headers.
    pub segment_bounds: (u16, usize),
}

impl Finishes {
    /// What a device can that is to send frames of this length.
    fn of(driver: &str, (checksums, segments): (bool, bool), (mtu, frame_max): (u16, u32)) -> Self {
        // It cuts IPv4 into no more than 64 segments, refuses one that is longer with its Ethernet header than the MTU, and stops at
        // what it refuses.
        let is_tap = driver == "net_tap";
        Self {
            checksums,
            segments,
            segments_ipv6: segments && !is_tap,
            segment_bounds: if is_tap { (1024, mtu.into()) } else { (SEGMENT_MIN, frame_max as usize) },
        }
    }
}

impl Plan {
    /// For a device of this driver that says `info` of itself, and has `mtu` now.
    pub fn new(
        config: &PortConfig,
        info: &sys::rte_eth_dev_info,
        mtu: u16,
        (device, driver): (&str, &str),
    ) -> Result<Self, PortError> {
        let refused = |cause: String| Err(PortError::new(device, "the configuration", cause));
        let queues_max = info.max_rx_queues.min(info.max_tx_queues);
        if !(1..=queues_max).contains(&config.queues) {
            return refused(format!("{} queues; it has 1 to {queues_max}", config.queues));
        }
        let mtu = config.mtu.unwrap_or(mtu);
        let least = info.min_mtu.max(MTU_MIN);
        // As DPDK reckons: a driver that tells both says what is around a packet.
        let around = match info.max_rx_pktlen.checked_sub(u32::from(info.max_mtu)) {
            Some(around @ 1..) if info.max_mtu != u16::MAX => around,
            _ => ETHERNET + CRC,
        };
        let longest = u16::try_from(info.max_rx_pktlen.saturating_sub(around)).unwrap_or(u16::MAX);
        let most = info.max_mtu.min(longest).min(MTU_MAX);
        if !(least..=most).contains(&mtu) {
            return refused(format!("an MTU of {mtu}; {least} to {most} are possible"));
        }
        let frame_max = u32::from(mtu) + HEADERS;
        let whole = (frame_max + CRC).max(info.min_rx_bufsize);
        // Few sizes, so that pools can be used again.
        let whole = ROOMS.into_iter().find(|&room| room >= whole).unwrap_or(whole);
        let room = config.buffer.map_or(whole, u32::from);
        if room > ROOM_MAX {
            return refused(format!("buffers of {room} bytes; {ROOM_MAX} are the most"));
        }
        let stamps = if config.stamps { info.rx_offload_capa & sys::FERRULE_RX_OFFLOAD_TIMESTAMP } else { 0 };
        let is_scattered = room < frame_max + CRC;
        if is_scattered && info.rx_offload_capa & sys::FERRULE_RX_OFFLOAD_SCATTER == 0 {
            return refused(format!("buffers of {room} bytes for frames of {frame_max}; it needs one for each frame"));
        }
        let has = |offload| info.tx_offload_capa & offload == offload;
        let checksums = config.finishes && has(sys::FERRULE_TX_OFFLOAD_CHECKSUM);
        let segments = checksums && has(sys::FERRULE_TX_OFFLOAD_SEGMENT);
        let finishes = Finishes::of(driver, (checksums, segments), (mtu, frame_max));
        let unless_none = |most| if most == 0 { u16::MAX } else { most };
        let [wanted, cut] = [
            (finishes.checksums, sys::FERRULE_TX_OFFLOAD_CHECKSUM),
            (finishes.segments, sys::FERRULE_TX_OFFLOAD_SEGMENT),
        ]
        .map(|(is_wanted, offload)| if is_wanted { offload } else { 0 });
        Ok(Self {
            mtu,
            frame_max,
            room: room as u16,
            rss: if config.queues > 1 { info.flow_type_rss_offloads & sys::FERRULE_RSS_IP_TCP_UDP } else { 0 },
            rx_offloads: stamps | if is_scattered { sys::FERRULE_RX_OFFLOAD_SCATTER } else { 0 },
            segments_max: if has(sys::FERRULE_TX_OFFLOAD_MULTI_SEGS) {
                unless_none(info.tx_desc_lim.nb_mtu_seg_max)
            } else {
                1
            },
            cut_segments_max: unless_none(info.tx_desc_lim.nb_seg_max),
            finishes,
            tx_offloads: (info.tx_offload_capa & sys::FERRULE_TX_OFFLOAD_MULTI_SEGS) | wanted | cut,
        })
    }

    /// What DPDK is told.
    pub fn conf(&self) -> sys::rte_eth_conf {
        // SAFETY: of numbers and pointers that may be null; zeros are what DPDK's own programs begin with.
        let mut conf: sys::rte_eth_conf = unsafe { std::mem::zeroed() };
        conf.rxmode.mtu = u32::from(self.mtu);
        conf.rxmode.offloads = self.rx_offloads;
        conf.txmode.offloads = self.tx_offloads;
        if self.rss != 0 {
            conf.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
            conf.rx_adv_conf.rss_conf.rss_hf = self.rss;
        }
        conf
    }
}

/// Buffers of a queue with so many descriptors: both of its rings full, and the ring of another port that its frames go to, and
/// what threads have at hand: also those that do not serve it any more.
pub(crate) fn buffers(rx: u16, tx: u16) -> u32 {
    let at_hand = THREADS * (CACHE + CACHE / 2) + 4 * BURST as u32;
    u32::from(rx) + u32::from(tx) + u32::from(DESCRIPTORS) + at_hand
}

/// Frames of a burst.
pub const BURST: usize = sys::FERRULE_BURST as usize;
/// Mbufs that each thread has at hand: of each pool it ever used, half as many again at most, for ever. Twice a burst: a cache that a burst
/// empties and fills goes to the pool each time, whose mbufs come in turns, so that none is in the CPU's caches.
pub(crate) const CACHE: u32 = 2 * BURST as u32;
/// Descriptors of a ring, if the driver has no other wish.
pub(crate) const DESCRIPTORS: u16 = 1024;
/// Some NICs take a frame that is to be cut finer for an attack.
const SEGMENT_MIN: u16 = 256;
/// As many may have served a port, or closed it.
const THREADS: u32 = 8;
/// An Ethernet header and two VLAN tags.
const HEADERS: u32 = ETHERNET + 2 * 4;
const ETHERNET: u32 = 14;
const CRC: u32 = 4;
/// Sizes of buffers: many NICs want no smaller ones than the first.
const ROOMS: [u32; 5] = [2048, 4096, 9216, 16_384, ROOM_MAX];
/// The length of a buffer has 16 bits, with what DPDK keeps in front.
const ROOM_MAX: u32 = 65_535 - sys::RTE_PKTMBUF_HEADROOM;

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> sys::rte_eth_dev_info {
        // SAFETY: of numbers and pointers that may be null.
        let mut info: sys::rte_eth_dev_info = unsafe { std::mem::zeroed() };
        (info.max_rx_queues, info.max_tx_queues, info.min_mtu, info.max_mtu) = (4, 2, 68, 9000);
        (info.flow_type_rss_offloads, info.max_rx_pktlen) = (u64::MAX, u32::MAX);
        info
    }

    #[test]
    fn the_longest_frame_that_a_driver_tells_bounds_the_mtu() {
        let mtu_max = |max_mtu, max_rx_pktlen| {
            let info = sys::rte_eth_dev_info { max_mtu, max_rx_pktlen, ..info() };
            (68..=9000).rev().find(|&mtu| plan(PortConfig { mtu: Some(mtu), ..<_>::default() }, &info).is_ok())
        };
        // net_tap; a driver with room for VLAN tags; one that knows no limit.
        assert_eq!(
            [mtu_max(u16::MAX, 1522), mtu_max(1500, 1526), mtu_max(8000, u32::MAX)].map(Option::unwrap),
            [1504, 1500, 8000]
        );
    }

    fn plan(config: PortConfig, info: &sys::rte_eth_dev_info) -> Result<Plan, String> {
        Plan::new(&config, info, 1500, ("net_x", "net_x")).map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_device_cannot_is_refused_with_what_it_can() {
        let info = info();
        let refusals = [
            (PortConfig { queues: 3, ..<_>::default() }, "3 queues; it has 1 to 2"),
            (PortConfig { queues: 0, ..<_>::default() }, "0 queues; it has 1 to 2"),
            (PortConfig { mtu: Some(9001), ..<_>::default() }, "an MTU of 9001; 68 to 9000 are possible"),
            (PortConfig { buffer: Some(65_500), ..<_>::default() }, "buffers of 65500 bytes; 65407 are the most"),
            (
                PortConfig { buffer: Some(512), ..<_>::default() },
                "buffers of 512 bytes for frames of 1522; it needs one for each frame",
            ),
        ];
        for (config, cause) in refusals {
            assert_eq!(plan(config, &info).err(), Some(format!("the configuration of net_x: {cause}")));
        }
    }

    #[test]
    fn a_buffer_has_room_for_a_frame_unless_it_is_to_be_smaller() {
        let mut info = info();
        let room = |mtu, info: &_| plan(PortConfig { mtu, ..<_>::default() }, info).unwrap().room;
        assert_eq!([None, Some(1500), Some(9000)].map(|mtu| room(mtu, &info)), [2048, 2048, 9216]);
        info.max_mtu = u16::MAX;
        assert_eq!(u32::from(room(Some(MTU_MAX), &info)), ROOM_MAX);
        info.rx_offload_capa = sys::FERRULE_RX_OFFLOAD_SCATTER;
        let scattered = plan(PortConfig { buffer: Some(512), ..<_>::default() }, &info).unwrap();
        assert_eq!((scattered.room, scattered.rx_offloads), (512, sys::FERRULE_RX_OFFLOAD_SCATTER));
    }

    #[test]
    fn only_a_device_that_knows_when_frames_arrive_is_told_to_say_so() {
        let told = |stamps, rx_offload_capa| {
            let info = sys::rte_eth_dev_info { rx_offload_capa, ..info() };
            plan(PortConfig { stamps, ..<_>::default() }, &info).unwrap().rx_offloads
        };
        let stamp = sys::FERRULE_RX_OFFLOAD_TIMESTAMP;
        assert_eq!([told(true, stamp), told(true, 0), told(false, stamp)], [stamp, 0, 0]);
    }

    #[test]
    fn a_frame_is_sent_in_as_many_buffers_as_the_driver_takes() {
        let most = |capa, nb_mtu_seg_max| {
            let mut info = sys::rte_eth_dev_info { tx_offload_capa: capa, ..info() };
            info.tx_desc_lim.nb_mtu_seg_max = nb_mtu_seg_max;
            plan(PortConfig::default(), &info).unwrap().segments_max
        };
        let chains = sys::FERRULE_TX_OFFLOAD_MULTI_SEGS;
        assert_eq!([most(0, 8), most(chains, 8), most(chains, 0)], [1, 8, u16::MAX]);
    }

    #[test]
    fn a_device_finishes_what_it_can_if_that_is_wanted() {
        let plan = |finishes, capa| {
            let info = sys::rte_eth_dev_info { tx_offload_capa: capa, ..info() };
            let plan = plan(PortConfig { finishes, ..<_>::default() }, &info).unwrap();
            (plan.finishes.checksums, plan.finishes.segments, plan.tx_offloads)
        };
        let (checksums, segments) = (sys::FERRULE_TX_OFFLOAD_CHECKSUM, sys::FERRULE_TX_OFFLOAD_SEGMENT);
        let chains = sys::FERRULE_TX_OFFLOAD_MULTI_SEGS;
        assert_eq!(plan(true, u64::MAX), (true, true, checksums | segments));
        assert_eq!(plan(false, u64::MAX), (false, false, chains));
        assert_eq!(plan(true, checksums | chains), (true, false, checksums | chains));
        assert_eq!(plan(true, segments), (false, false, chains), "each segment has a checksum");
        assert_eq!(plan(true, checksums & (checksums - 1)), (false, false, 0), "both protocols, or none");
    }

    #[test]
    fn a_tap_is_left_only_what_it_cuts() {
        let finishes = |driver| Finishes::of(driver, (true, true), (1500, 1522));
        let of_nic = finishes("net_iavf");
        assert_eq!((of_nic.segments_ipv6, of_nic.segment_bounds), (true, (256, 1522)));
        let of_tap = finishes("net_tap");
        assert_eq!((of_tap.segments, of_tap.segments_ipv6, of_tap.segment_bounds), (true, false, (1024, 1500)));
    }

    #[test]
    fn threads_that_served_a_port_before_leave_enough_for_its_rings() {
        let at_hand = 8 * 192;
        assert!(buffers(1024, 1024) - at_hand >= 3 * 1024);
        assert!(buffers(64, 64) - at_hand >= 64 + 64 + 1024);
    }

    #[test]
    fn only_several_queues_need_rss() {
        let rss = [1, 2].map(|queues| plan(PortConfig { queues, ..<_>::default() }, &info()).unwrap().rss);
        assert_eq!(rss, [0, sys::FERRULE_RSS_IP_TCP_UDP]);
    }
}
