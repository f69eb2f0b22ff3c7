//! A WireGuard tunnel in this process: packets of a TUN device in the namespace of a client or an endpoint, encrypted, over a UDP socket of
//! our own namespace.
//!
//! Threads of their own carry all tunnels: what encrypts must not keep calls waiting.

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use defguard_boringtun::noise::{Tunn, TunnResult};
use defguard_boringtun::x25519::StaticSecret;
use ferrule_dataplane::port::kernel::create_tun;
use ferrule_dataplane::spec::{KernelSpec, NetNs};
use ferrule_dataplane::status::{DropReason, Traffic};
use ferrule_ffi::tun::Tun;
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::interface::InterfacePlace;
use super::wireguard::WireGuardPeer;

/// A tunnel that runs. Its interface is there as long as it does.
pub(super) struct RunningTunnel {
    place: InterfacePlace,
    mtu: u32,
    peer: watch::Sender<WireGuardPeer>,
    counters: Arc<Counters>,
    task: JoinHandle<()>,
}

/// What the kernel did not do.
#[derive(Debug, thiserror::Error)]
#[error("make the tunnel {} in {}: {problem}", place.name, NetNs::Open(place.netns.clone()))]
pub(super) struct SecureTunnelError {
    place: InterfacePlace,
    problem: String,
}

impl SecureTunnelError {
    /// Of the tunnel in this place.
    pub(super) fn new(place: &InterfacePlace, problem: String) -> Self {
        Self { place: place.clone(), problem }
    }
}

impl RunningTunnel {
    /// Makes the interface, and carries its packets. Blocks.
    pub(super) fn start(
        place: &InterfacePlace,
        mtu: u32,
        peer: WireGuardPeer,
        secret: &StaticSecret,
        socket: &UdpSocket,
    ) -> Result<Self, SecureTunnelError> {
        let failed = |problem: String| SecureTunnelError::new(place, problem);
        let threads = threads().as_ref().map_err(|error| failed(format!("start threads: {error}")))?;
        let netns = Some(NetNs::Open(place.netns.clone()));
        let spec = KernelSpec { netns, mtu: Some(mtu), ..KernelSpec::new(place.name.clone()) };
        let socket = socket.try_clone().map_err(|error| failed(format!("its socket: {error}")))?;
        let tun = create_tun(&spec).map_err(|error| failed(error.to_string()))?;
        let (peer, peers) = watch::channel(peer);
        let counters = Arc::<Counters>::default();
        let (secret, counted, interface) = (secret.clone(), Arc::clone(&counters), place.name.to_string());
        let task = threads.spawn(async move {
            if let Err(error) = carry(tun, socket, secret, peers, &counted, mtu).await {
                tracing::warn!(interface, %error, "a tunnel carries nothing any more");
            }
        });
        Ok(Self { place: place.clone(), mtu, peer, counters, task })
    }

    /// Whether it has an interface in this place, with this MTU.
    pub(super) fn is_there(&self, place: &InterfacePlace, mtu: u32) -> bool {
        self.place == *place && self.mtu == mtu && !self.task.is_finished()
    }

    /// The other side is this one from now on.
    pub(super) fn change(&self, peer: WireGuardPeer) {
        self.peer.send_if_modified(|is| std::mem::replace(is, peer) != peer);
    }

    /// What has crossed: sent, and received.
    pub(super) fn traffic(&self) -> [Traffic; 2] {
        [self.counters.sent.read(), self.counters.received.read()]
    }

    /// Ends it, and returns when its interface is gone. Blocks.
    pub(super) fn stop(self) {
        self.task.abort();
        if let Ok(threads) = threads() {
            // It has ended by our doing: there is nothing to say.
            let _ = threads.block_on(self.task);
        }
    }
}

/// The threads of all tunnels, for good.
fn threads() -> &'static io::Result<Runtime> {
    static THREADS: OnceLock<io::Result<Runtime>> = OnceLock::new();
    THREADS.get_or_init(|| {
        Builder::new_multi_thread().worker_threads(THREADS_MAX).thread_name("nsm-wireguard").enable_all().build()
    })
}

#[derive(Default)]
struct Counters {
    sent: Counter,
    received: Counter,
}

#[derive(Default)]
struct Counter {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Counter {
    fn count(&self, len: usize, carried: bool) {
        if carried {
            self.packets.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(len as u64, Ordering::Relaxed);
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read(&self) -> Traffic {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut traffic = Traffic { frames: of(&self.packets), bytes: of(&self.bytes), ..Traffic::default() };
        traffic.drops[DropReason::Refused as usize] = of(&self.dropped);
        traffic
    }
}

/// Carries packets both ways, with one other side after the other, until the interface is gone or the task is ended.
#[expect(
    deprecated,
    reason = "unsafe only for types that do not own their descriptor; ours does, and the successor is an unsafe fn"
)]
async fn carry(
    tun: Tun,
    socket: UdpSocket,
    secret: StaticSecret,
    mut peers: watch::Receiver<WireGuardPeer>,
    counters: &Counters,
    mtu: u32,
) -> io::Result<()> {
    let (tun, socket) = (AsyncFd::new(tun)?, tokio::net::UdpSocket::from_std(socket)?);
    // A packet that is longer, since somebody has changed the interface, is cut, and does not arrive.
    let packet_max = usize::try_from(mtu.max(MTU_MIN)).unwrap_or(usize::MAX / 2);
    let (mut packet, mut other) = (vec![0; packet_max + HEADERS_MAX], vec![0; packet_max + HEADERS_MAX]);
    let mut timer = interval(TICK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let peer = *peers.borrow_and_update();
        let tunn = Tunn::new(secret.clone(), peer.key, None, Some(KEEPALIVE), 1, None);
        let mut session =
            Session { tunn, peer, tun: &tun, socket: &socket, counters, is_silent: false, is_reached: false };
        session.reach(&mut other).await;
        loop {
            tokio::select! {
                ready = tun.readable() => {
                    let mut ready = ready?;
                    for _ in 0..BURST {
                        match tun.get_ref().read(&mut packet[..packet_max]) {
                            Ok(len) => session.outgoing(&packet[..len], &mut other).await,
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                                ready.clear_ready();
                                break;
                            }
                            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                            Err(error) => return gone(error),
                        }
                    }
                }
                ready = socket.readable(), if session.is_reached => {
                    ready?;
                    for _ in 0..BURST {
                        match socket.try_recv(&mut packet) {
                            Ok(len) => session.incoming(&packet[..len], &mut other).await,
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                            // The other side is not there yet, or not any more: it says so itself when it is.
                            Err(_) => {}
                        }
                    }
                }
                _ = timer.tick() => session.tick(&mut other).await,
                changed = peers.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    break;
                }
            }
        }
    }
}

/// Somebody has deleted the interface, or its namespace: that is no failure of ours.
fn gone(error: io::Error) -> io::Result<()> {
    if error.raw_os_error() == Some(Errno::EBADFD as i32) { Ok(()) } else { Err(error) }
}

/// The tunnel with one other side.
struct Session<'a> {
    tunn: Tunn,
    peer: WireGuardPeer,
    tun: &'a AsyncFd<Tun>,
    socket: &'a tokio::net::UdpSocket,
    counters: &'a Counters,
    /// Whether it has been told that nobody answers.
    is_silent: bool,
    /// Whether there is a way to it.
    is_reached: bool,
}

impl Session<'_> {
    /// Finds the way to the other side, and begins if that waits for us. For a moment there may be none: it is tried again and again.
    async fn reach(&mut self, buffer: &mut [u8]) {
        // What others send is not even read.
        if let Err(error) = self.socket.connect(self.peer.address).await {
            if !std::mem::replace(&mut self.is_silent, true) {
                tracing::warn!(peer = %self.peer.address, %error, "there is no way to the other side of a tunnel");
            }
            return;
        }
        self.is_reached = true;
        if self.peer.waits
            && let TunnResult::WriteToNetwork(message) = self.tunn.format_handshake_initiation(buffer, true)
        {
            send(self.socket, message).await;
        }
    }

    async fn outgoing(&mut self, packet: &[u8], buffer: &mut [u8]) {
        if !self.is_reached {
            return self.counters.sent.count(packet.len(), false);
        }
        let done = match self.tunn.encapsulate(packet, buffer) {
            // While the socket has no room, the kernel holds back what is behind.
            TunnResult::WriteToNetwork(message) => {
                send(self.socket, message).await;
                Ok(())
            }
            TunnResult::Err(error) => Err(error),
            // It waits for the handshake.
            _ => Ok(()),
        };
        self.counters.sent.count(packet.len(), done.is_ok());
    }

    async fn incoming(&mut self, message: &[u8], buffer: &mut [u8]) {
        // An empty message asks for what has waited.
        let mut next = message;
        loop {
            match self.tunn.decapsulate(None, next, buffer) {
                TunnResult::WriteToNetwork(message) => send(self.socket, message).await,
                TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                    if std::mem::take(&mut self.is_silent) {
                        tracing::info!(peer = %self.peer.address, "the other side of a tunnel answers again");
                    }
                    let written = self.tun.get_ref().write(packet);
                    self.counters.received.count(packet.len(), written.is_ok());
                    return;
                }
                TunnResult::Err(error) => {
                    tracing::debug!(?error, "a message of the other side of a tunnel is not taken");
                    return;
                }
                TunnResult::Done => return,
            }
            next = &[];
        }
    }

    async fn tick(&mut self, buffer: &mut [u8]) {
        if !self.is_reached {
            return self.reach(buffer).await;
        }
        match self.tunn.update_timers(buffer) {
            TunnResult::WriteToNetwork(message) => send(self.socket, message).await,
            // Once: it is tried for as long as the connection is there.
            TunnResult::Err(error) if !std::mem::replace(&mut self.is_silent, true) => {
                tracing::warn!(peer = %self.peer.address, ?error, "the other side of a tunnel does not answer");
            }
            _ => {}
        }
    }
}

/// What cannot be sent is lost, as on any network.
async fn send(socket: &tokio::net::UdpSocket, message: &[u8]) {
    if let Err(error) = socket.send(message).await {
        tracing::debug!(%error, "a message to the other side of a tunnel is lost");
    }
}

/// For all tunnels.
const THREADS_MAX: usize = 2;
/// Packets of one direction before the other one has its turn.
const BURST: usize = 64;
/// Seconds after which a quiet tunnel says that it is there, as the Go forwarder's do.
const KEEPALIVE: u16 = 10;
/// How often handshakes and keys are looked at.
const TICK: Duration = Duration::from_millis(250);
/// The other side's link may carry more than ours.
const MTU_MIN: u32 = 1500;
/// More than WireGuard adds, and than a handshake has.
const HEADERS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::fd::OwnedFd;
    use std::thread;

    use defguard_boringtun::x25519::PublicKey;
    use ferrule_dataplane::port::kernel::message::{Link, link_request, up_request};
    use ferrule_dataplane::spec::OpenNetNs;
    use ferrule_ffi::netlink::Netlink;
    use ferrule_ffi::netns;
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::LinkFlags;

    use super::super::interface::InterfaceState;
    use super::*;

    #[test]
    fn a_tunnel_to_whom_there_is_no_way_for_a_moment_begins_when_there_is_one() {
        let name = "a_tunnel_to_whom_there_is_no_way_for_a_moment_begins_when_there_is_one";
        let (Ok(node), Ok(pod)) = (netns::NetNs::private(), netns::NetNs::private()) else {
            return println!("skipped: {name}: lacks namespaces of its own");
        };
        let pod = OpenNetNs::try_from(OwnedFd::from(pod)).unwrap();
        let place = InterfacePlace { netns: pod, name: "nsm-1".parse().unwrap() };
        let test = || {
            let mut netlink = Netlink::open().unwrap();
            let lo = Link::named(&mut netlink, "lo").unwrap().index;
            let mut down = link_request(RouteNetlinkMessage::SetLink, lo, Vec::new());
            if let RouteNetlinkMessage::SetLink(link) = &mut down.message {
                link.header.change_mask = LinkFlags::Up;
            }
            netlink.request(up_request(lo)).unwrap();
            let [near, far] = ["127.0.0.1:0", "127.0.0.2:0"].map(|address| UdpSocket::bind(address).unwrap());
            near.set_nonblocking(true).unwrap();
            far.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            netlink.request(down).unwrap();
            let address: SocketAddr = far.local_addr().unwrap();
            let (secret, theirs) = (StaticSecret::random(), StaticSecret::random());
            let peer = WireGuardPeer { address, key: PublicKey::from(&theirs), waits: true };
            let tunnel = match RunningTunnel::start(&place, 1400, peer, &secret, &near) {
                Ok(tunnel) => tunnel,
                Err(error) => return println!("skipped: {name}: lacks a TUN device ({error})"),
            };
            let addresses = ["10.9.0.1/24".parse().unwrap()].into();
            place.set_up(&InterfaceState { addresses, ..InterfaceState::default() }, true).unwrap();
            let pod = NetNs::Open(place.netns.clone()).open().unwrap();
            let sender = pod.run(|| UdpSocket::bind("10.9.0.1:0")).unwrap().unwrap();
            // Until then it has not tried.
            while tunnel.traffic()[0].dropped() == 0 && tunnel.is_there(&place, 1400) {
                let _ = sender.send_to(&[1], "10.9.0.2:9");
                thread::yield_now();
            }
            netlink.request(up_request(lo)).unwrap();
            let length = far.recv(&mut [0; 2048]);
            tunnel.stop();
            // The first message of a handshake.
            assert_eq!(length.unwrap(), 148);
        };
        node.run(test).unwrap();
    }
}
