//! A WireGuard tunnel in this process: packets of an interface or of a wire's end, encrypted, over a UDP socket of our own namespace.
//!
//! Threads of their own carry all tunnels: what encrypts must not keep calls waiting.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use defguard_boringtun::noise::{Tunn, TunnResult};
use defguard_boringtun::x25519::StaticSecret;
use ferrule_dataplane::status::{DropReason, Traffic};
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{MissedTickBehavior, interval};

use super::interface::InterfacePlace;
use super::wireguard::WireGuardPeer;

/// Where the packets of a tunnel come from and go to.
pub(super) trait Packets: Send + 'static {
    /// The next packet, into a buffer that has room for it. When the wait for it is given up, none is lost.
    fn next(&mut self, buffer: &mut [u8]) -> impl Future<Output = io::Result<usize>> + Send;

    /// The same, if it is there already.
    fn next_now(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// Takes one that has come, if it has room.
    fn put(&mut self, packet: &[u8]) -> io::Result<()>;
}

/// A tunnel that runs.
pub(super) struct RunningTunnel {
    /// Where its interface is, if it has one.
    place: Option<InterfacePlace>,
    mtu: u32,
    counters: Arc<TunnelCounters>,
    task: JoinHandle<()>,
}

impl RunningTunnel {
    /// Carries packets of up to `mtu` bytes, with one other side after the other. `open` is called where the packets can be waited for.
    pub(super) fn start<P: Packets>(
        place: Option<InterfacePlace>,
        mtu: u32,
        open: impl FnOnce() -> io::Result<P>,
        peers: watch::Receiver<Option<WireGuardPeer>>,
        secret: &StaticSecret,
        socket: &UdpSocket,
    ) -> io::Result<Self> {
        let threads =
            threads().as_ref().map_err(|error| io::Error::new(error.kind(), format!("start threads: {error}")))?;
        let _inside = threads.enter();
        let (packets, socket) = (open()?, tokio::net::UdpSocket::from_std(socket.try_clone()?)?);
        let counters = Arc::<TunnelCounters>::default();
        let (secret, counted) = (secret.clone(), Arc::clone(&counters));
        let task = threads.spawn(async move {
            match carry(packets, socket, secret, peers, &counted, mtu).await {
                // Somebody has deleted the interface, or its namespace: that is no failure of ours.
                Err(error) if error.raw_os_error() != Some(Errno::EBADFD as i32) => {
                    tracing::warn!(%error, "a tunnel carries nothing any more");
                }
                _ => {}
            }
        });
        Ok(Self { place, mtu, counters, task })
    }

    /// Whether it has an interface in this place, with this MTU.
    pub(super) fn is_at(&self, place: &InterfacePlace, mtu: u32) -> bool {
        self.place.as_ref() == Some(place) && self.mtu == mtu && !self.task.is_finished()
    }

    /// What has crossed.
    pub(super) fn counters(&self) -> &Arc<TunnelCounters> {
        &self.counters
    }

    /// Ends it from elsewhere.
    pub(super) fn abort_handle(&self) -> AbortHandle {
        self.task.abort_handle()
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

/// What has crossed a tunnel.
#[derive(Default)]
pub(super) struct TunnelCounters {
    sent: PacketCounter,
    received: PacketCounter,
}

impl TunnelCounters {
    /// Sent, and received.
    pub(super) fn read(&self) -> [Traffic; 2] {
        [self.sent.read(), self.received.read()]
    }
}

#[derive(Default)]
struct PacketCounter {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl PacketCounter {
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

/// Carries packets both ways, with one other side after the other, until there are none any more or the task is ended.
async fn carry(
    mut packets: impl Packets,
    socket: tokio::net::UdpSocket,
    secret: StaticSecret,
    mut peers: watch::Receiver<Option<WireGuardPeer>>,
    counters: &TunnelCounters,
    mtu: u32,
) -> io::Result<()> {
    // A packet that is longer, since somebody has changed the interface, is cut, and does not arrive.
    let packet_max = packet_max(mtu);
    let (mut packet, mut other) = (vec![0; packet_max + HEADERS_MAX], vec![0; packet_max + HEADERS_MAX]);
    let mut timer = interval(TICK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let known = peers.wait_for(Option::is_some).await.ok().and_then(|known| *known);
        let Some(peer) = known else { return Ok(()) };
        let tunn = Tunn::new(secret.clone(), peer.key, None, Some(KEEPALIVE), 1, None);
        let mut session = Session { tunn, peer, socket: &socket, counters, is_silent: false, is_reached: false };
        session.reach(&mut other).await;
        loop {
            tokio::select! {
                next = packets.next(&mut packet[..packet_max]) => {
                    let (mut next, mut count) = (Some(next?), 0);
                    while let Some(len) = next {
                        session.outgoing(&packet[..len], &mut other).await;
                        count += 1;
                        next = if count < BURST { packets.next_now(&mut packet[..packet_max])? } else { None };
                    }
                }
                ready = socket.readable(), if session.is_reached => {
                    ready?;
                    for _ in 0..BURST {
                        match socket.try_recv(&mut packet) {
                            Ok(len) => session.incoming(&mut packets, &packet[..len], &mut other).await,
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

/// A descriptor whose packets are waited for where tunnels run.
#[expect(
    deprecated,
    reason = "unsafe only for types that do not own their descriptor; these do, and the successor is an unsafe fn"
)]
pub(super) fn waited_for<T: AsRawFd>(descriptor: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}

/// The longest packet that is carried: the other side's link may carry more than ours.
pub(super) fn packet_max(mtu: u32) -> usize {
    usize::try_from(mtu.max(MTU_MIN)).unwrap_or(usize::MAX / 2)
}

/// The tunnel with one other side.
struct Session<'a> {
    tunn: Tunn,
    peer: WireGuardPeer,
    socket: &'a tokio::net::UdpSocket,
    counters: &'a TunnelCounters,
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
            // While the socket has no room, what is behind is held back.
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

    async fn incoming(&mut self, packets: &mut impl Packets, message: &[u8], buffer: &mut [u8]) {
        match self.tunn.decapsulate(None, message, buffer) {
            TunnResult::WriteToNetwork(message) => send(self.socket, message).await,
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                if std::mem::take(&mut self.is_silent) {
                    tracing::info!(peer = %self.peer.address, "the other side of a tunnel answers again");
                }
                let taken = packets.put(packet);
                self.counters.received.count(packet.len(), taken.is_ok());
            }
            TunnResult::Err(error) => {
                return tracing::debug!(?error, "a message of the other side of a tunnel is not taken");
            }
            TunnResult::Done => {}
        }
        // What has waited for keys is sent as soon as they serve: when the other side has answered, or has used them. Without such keys the
        // library would put the first that waits behind the last one.
        if self.tunn.time_since_last_handshake().is_some() {
            while let TunnResult::WriteToNetwork(message) = self.tunn.decapsulate(None, &[], buffer) {
                send(self.socket, message).await;
            }
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
const MTU_MIN: u32 = 1500;
/// More than WireGuard adds, and than a handshake has.
const HEADERS_MAX: usize = 256;
