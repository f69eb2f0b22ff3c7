//! Two routers for the same packets: the NAT44 of `ferrule-functions`, and the kernel by rules of nftables. They have the same addresses, MAC
//! addresses, neighbours and times.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use ferrule_ffi::span::Span;
use ferrule_ffi::tap::{HEADER_LEN, Tap};
use ferrule_functions::nat44::Nat44;
use ferrule_functions::nat44::settings::{NatInterface, NatSettings, PortForward};
use ferrule_functions::{Disposition, Function as _, Side};
use ferrule_hw_tests::eventually;
use ferrule_hw_tests::need::{Need, lacks};
use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};

use super::packets::{TCP, UDP, checksum, destination, header_len, source, udp};

/// A packet that left a router, with its Ethernet header, and where.
pub type Left = (Side, Vec<u8>);

/// Both.
pub struct Pair {
    ours: Nat44,
    now_ms: u64,
    kernel: KernelRouter,
    macs: [[u8; 6]; 2],
}

impl Pair {
    /// Both, as they are without any packet. None: it was said that `test` lacks something.
    pub fn new(test: &str) -> Option<Self> {
        Self::with_mtu(test, [1500, 1500])
    }

    /// The same with these MTUs inside and outside.
    pub fn with_mtu(test: &str, mtu: [u16; 2]) -> Option<Self> {
        if lacks_namespaces(test) || lacks(test, &[NFT]) {
            return None;
        }
        let settings = settings(mtu);
        let macs = [settings.inside.mac.0, settings.outside.mac.0];
        let kernel = KernelRouter::new(&settings);
        let mut pair = Self { ours: Nat44::new(settings), now_ms: 0, kernel, macs };
        for (side, addresses, router) in [(Side::Client, CLIENTS, INSIDE), (Side::Network, SERVERS, POOL)] {
            for address in addresses {
                // Who asks is known from then on.
                let mac = mac_of(address);
                let asked =
                    [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &address.to_be_bytes(), &[0; 6], &router.to_be_bytes()];
                let request = [&[0xff; 6][..], &mac, &[8, 6], &asked.concat()].concat();
                assert_eq!(pair.ours(side, request).len(), 1, "ARP is answered");
            }
        }
        Some(pair)
    }

    /// Has both take a packet. What has left them is the same, byte for byte.
    pub fn same(&mut self, what: &str, side: Side, packet: &[u8]) -> Vec<Left> {
        let [ours, kernels] = self.both(side, packet);
        assert_eq!(shown(&ours), shown(&kernels), "{what}: ours, and the kernel's, of {side:?} {packet:02x?}");
        ours
    }

    /// The same of a packet that goes on: that packet as it has left.
    pub fn forwarded(&mut self, what: &str, side: Side, packet: &[u8]) -> Vec<u8> {
        let mut left = self.same(what, side, packet);
        let [(to, frame)] = &mut left[..] else { panic!("{what}: {} frames have left", left.len()) };
        assert_eq!(*to, side.other(), "{what}");
        frame.split_off(ETHERNET)
    }

    /// The same of a packet that goes no further, of which nobody is told.
    pub fn dropped(&mut self, what: &str, side: Side, packet: &[u8]) {
        let left = self.same(what, side, packet);
        assert!(left.is_empty(), "{what}: {left:02x?}");
    }

    /// The same of a packet of which its sender is told: that message, without the identification that each router chooses.
    pub fn told(&mut self, what: &str, side: Side, packet: &[u8]) -> Vec<u8> {
        let [ours, kernels] = self.both(side, packet).map(|mut left| {
            let [(to, frame)] = &mut left[..] else { panic!("{what}: {} frames have left", left.len()) };
            assert_eq!(*to, side, "{what}");
            let packet = &mut frame[ETHERNET..];
            assert_eq!(checksum(&packet[..header_len(packet)], 0), 0, "{what}");
            packet[4..6].fill(0);
            packet[10..12].fill(0);
            left
        });
        assert_eq!(shown(&ours), shown(&kernels), "{what}: ours, and the kernel's, of {side:?} {packet:02x?}");
        ours[0].1[ETHERNET..].to_vec()
    }

    /// What leaves ours, and what leaves the kernel.
    pub fn both(&mut self, side: Side, packet: &[u8]) -> [Vec<Left>; 2] {
        self.each(side, [packet, packet])
    }

    /// The same of a packet for ours, and one for the kernel.
    pub fn each(&mut self, side: Side, packets: [&[u8]; 2]) -> [Vec<Left>; 2] {
        let [ours, kernels] =
            packets.map(|packet| [&self.macs[side.index()][..], &mac_of(source(packet)), &[8, 0], packet].concat());
        [self.ours(side, ours), self.kernel.take(side, &kernels)]
    }

    fn ours(&mut self, side: Side, mut frame: Vec<u8>) -> Vec<Left> {
        let mut out = Vec::new();
        self.now_ms += 1;
        let disposition = self.ours.frame(side, &mut frame, self.now_ms, &mut out);
        let forwarded = (disposition == Disposition::Forward).then_some((side.other(), frame));
        forwarded.into_iter().chain(out.into_iter().map(|extra| (extra.to, extra.frame))).collect()
    }
}

/// The kernel as a router between two TAPs, in a namespace of its own.
struct KernelRouter {
    taps: [Tap; 2],
    macs: [[u8; 6]; 2],
    // The TAPs go first.
    _netns: TestNetNs,
}

impl KernelRouter {
    fn new(settings: &NatSettings) -> Self {
        let netns = TestNetNs::new();
        let interfaces = [("inside", &settings.inside, CLIENTS), ("outside", &settings.outside, SERVERS)];
        let taps = interfaces.map(|(name, interface, neighbours)| {
            let tap = netns.run(|| Tap::create(name)).expect("the name is free");
            let mtu = interface.mtu.unwrap();
            netns.ip(&format!("link set {name} address {} mtu {mtu} up", interface.mac));
            netns.ip(&format!("addr add {} dev {name}", interface.address));
            for address in neighbours.into_iter().chain([MARKED[usize::from(name == "outside")]]) {
                let mac = mac_of(address).map(|byte| format!("{byte:02x}")).join(":");
                netns.ip(&format!("neigh add {} lladdr {mac} dev {name}", Ipv4Addr::from(address)));
            }
            tap
        });
        netns.ip(&format!("route add default via {}", Ipv4Addr::from(ROUTER)));
        netns.run(|| {
            for (name, value) in SYSCTLS {
                fs::write(format!("/proc/sys/net/{name}"), value).unwrap_or_else(|error| panic!("set {name}: {error}"));
            }
        });
        let mut nft = Command::new("ip");
        nft.args(["netns", "exec", netns.name(), "nft", "-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut nft = nft.spawn().unwrap();
        nft.stdin.take().expect("it is a pipe").write_all(RULES.as_bytes()).unwrap();
        let output = nft.wait_with_output().unwrap();
        assert!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
        let macs = [settings.inside.mac.0, settings.outside.mac.0];
        let router = Self { taps, macs, _netns: netns };
        router.mark(Side::Client);
        router
    }

    /// What leaves when a frame comes in. The kernel forwards packets in the order in which they come: with marks behind them on both sides,
    /// it is known that nothing else follows.
    fn take(&self, side: Side, frame: &[u8]) -> Vec<Left> {
        self.put(side, frame);
        let mut left = self.mark(Side::Client);
        left.extend(self.mark(Side::Network));
        left
    }

    /// Sends a mark from `side`; what has left before it, without what is not IPv4.
    fn mark(&self, side: Side) -> Vec<Left> {
        let [client, server] = MARKED;
        let (from, to) = if side == Side::Client { (client, server) } else { (server, POOL) };
        let packet = udp((from, MARK_PORT), (to, MARK_PORT), b"mark").bytes();
        self.put(side, &[&self.macs[side.index()][..], &mac_of(from), &[8, 0], &packet].concat());
        let (to, seen_at) = (side.other(), if side == Side::Client { server } else { client });
        let mut left = Vec::new();
        eventually("the mark has come through the kernel", || {
            while let Some(frame) = self.next(to) {
                if frame[12..14] != [8, 0] {
                    continue;
                }
                if destination(&frame[ETHERNET..]) == seen_at {
                    return true;
                }
                left.push((to, frame));
            }
            false
        });
        left
    }

    fn put(&self, side: Side, frame: &[u8]) {
        self.taps[side.index()].write(&[0; HEADER_LEN], &[Span::from(frame)]).unwrap();
    }

    fn next(&self, side: Side) -> Option<Vec<u8>> {
        let mut buffer = vec![0; HEADER_LEN + 65_536];
        match self.taps[side.index()].read(&mut buffer) {
            Ok(length) => Some(buffer[HEADER_LEN..length].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("read a frame of the kernel: {error}"),
        }
    }
}

fn settings(mtu: [u16; 2]) -> NatSettings {
    let [inside, outside] = [("192.168.100.1/24", mtu[0]), ("80.80.80.100/24", mtu[1])]
        .map(|(address, mtu)| NatInterface { mtu: Some(mtu), ..NatInterface::at(address.parse().unwrap()) });
    let forward =
        |protocol, outside, inside| PortForward { protocol, outside: (POOL, outside), inside: (SERVER_INSIDE, inside) };
    NatSettings {
        gateway: Some(SERVERS[0].into()),
        pool: vec![POOL..=POOL],
        forwards: vec![forward(TCP, 80, 8080), forward(UDP, 53, 5353)],
        ..NatSettings::new(inside, outside)
    }
}

/// Frames as a person reads them, in lines that show where two differ.
fn shown(left: &[Left]) -> Vec<String> {
    left.iter().map(|(to, frame)| format!("to {to:?}: {frame:02x?}")).collect()
}

fn mac_of(address: u32) -> [u8; 6] {
    let [a, b, c, d] = address.to_be_bytes();
    [6, 1, a, b, c, d]
}

pub const INSIDE: u32 = 0xc0a8_6401;
pub const POOL: u32 = 0x5050_5064;
pub const CLIENT: u32 = 0xc0a8_640a;
pub const OTHER_CLIENT: u32 = 0xc0a8_640b;
/// What the forwards lead to.
pub const SERVER_INSIDE: u32 = 0xc0a8_640c;
pub const SERVER: u32 = 0x5050_5050;
/// The gateway.
pub const ROUTER: u32 = 0x5050_5001;
/// Somewhere behind the gateway.
pub const FAR: u32 = 0x0808_0808;
const CLIENTS: [u32; 3] = [CLIENT, OTHER_CLIENT, SERVER_INSIDE];
const SERVERS: [u32; 3] = [ROUTER, SERVER, SERVER + 1];
/// Who speak through the kernel alone, inside and outside.
const MARKED: [u32; 2] = [0xc0a8_64fa, 0x5050_50fa];
const MARK_PORT: u16 = 5009;
pub const ETHERNET: usize = 14;

/// What a router of ours is. Checksums of TCP and UDP are the receiver's to judge, and so are the windows of TCP; a connection begins with a
/// SYN; errors are not limited, times are those of ours.
const SYSCTLS: [(&str, &str); 13] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/inside/send_redirects", "0"),
    ("ipv4/conf/outside/send_redirects", "0"),
    ("ipv4/icmp_ratelimit", "0"),
    ("netfilter/nf_conntrack_checksum", "0"),
    ("netfilter/nf_conntrack_tcp_be_liberal", "1"),
    ("netfilter/nf_conntrack_tcp_loose", "0"),
    ("netfilter/nf_conntrack_tcp_timeout_close", "240"),
    ("netfilter/nf_conntrack_tcp_timeout_last_ack", "240"),
    ("netfilter/nf_conntrack_tcp_timeout_time_wait", "240"),
    ("netfilter/nf_conntrack_udp_timeout", "300"),
    ("netfilter/nf_conntrack_icmp_timeout", "60"),
];

/// The same NAT. What is for nobody's session goes no further, and the router itself serves nobody outside.
const RULES: &str = "
table ip nat {
    chain before {
        type nat hook prerouting priority -100
        ip daddr 80.80.80.100 tcp dport 80 dnat to 192.168.100.12:8080
        ip daddr 80.80.80.100 udp dport 53 dnat to 192.168.100.12:5353
    }
    chain after {
        type nat hook postrouting priority 100
        oifname outside meta l4proto { tcp, udp } snat to 80.80.80.100:1024-65535
        oifname outside snat to 80.80.80.100
        iifname inside oifname inside ct status dnat meta l4proto { tcp, udp } snat to 80.80.80.100:1024-65535
    }
}
table ip filter {
    chain through {
        type filter hook forward priority 0
        ct state invalid drop
        iifname outside ct state new ct status & dnat == 0 drop
        tcp flags & syn != 0 tcp option maxseg size set rt mtu
    }
    chain own {
        type filter hook input priority 0
        drop
    }
}
";
const NFT: Need = Need::Program { name: "nft", package: "nftables" };
