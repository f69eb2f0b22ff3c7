//! Whether packets still reach the endpoint of a connection: what processes say of it is not all.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrule_ffi::netns::NetNs;
use ipnet::IpNet;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send, socket_with,
};
use tokio::task::spawn_blocking;

use crate::proto::connection::Connection;

/// Tells whether a connection carries packets.
#[tonic::async_trait]
pub trait Liveness: Send + Sync + 'static {
    /// Tries it now, and takes no longer than a second or so.
    async fn is_alive(&self, connection: &Connection) -> bool;
}

/// Pings the endpoint's addresses out of the client's network namespace. It needs `CAP_NET_RAW`.
pub struct Ping {
    namespace: Arc<OwnedFd>,
    limit: Duration,
}

impl Ping {
    /// Out of this namespace, with so much time for an answer. The Go programs wait for 1 s.
    pub fn new(namespace: Arc<OwnedFd>, limit: Duration) -> Self {
        Self { namespace, limit }
    }
}

#[tonic::async_trait]
impl Liveness for Ping {
    /// Whether each of its addresses answers. What cannot be tried is taken to be alive.
    async fn is_alive(&self, connection: &Connection) -> bool {
        let context = connection.context.as_ref().and_then(|context| context.ip_context.as_ref());
        let texts = context.map_or(&[][..], |context| &context.dst_ip_addrs);
        let parsed = texts.iter().filter_map(|text| text.parse::<IpNet>().ok());
        let addresses: Vec<IpAddr> = parsed.map(|net| net.addr()).collect();
        if addresses.is_empty() {
            return true;
        }
        let (namespace, until) = (Arc::clone(&self.namespace), Instant::now() + self.limit);
        let asked = spawn_blocking(move || {
            // What was opened with O_PATH cannot be entered.
            let path = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
            let all = || -> io::Result<bool> {
                for address in &addresses {
                    if !ping(*address, until)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            };
            NetNs::open(&path)?.run(all)?
        });
        match asked.await.map_err(io::Error::other).flatten() {
            Ok(is_alive) => is_alive,
            // The namespace is gone, or there is no way to it: that is as dead as it gets.
            Err(error) if is_unreachable(&error) => false,
            Err(error) => {
                tracing::warn!(%error, "cannot ping: the data path is not looked at");
                true
            }
        }
    }
}

/// Asks again and again until an answer comes.
fn ping(address: IpAddr, until: Instant) -> io::Result<bool> {
    let (family, protocol) = match address {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
    // Only what this address sends is received from here on.
    connect(&socket, &SocketAddr::new(address, 0))?;
    let mut buffer = [0; 256];
    // By what of the process, and which try: whoever else pings has another.
    let id = (std::process::id() & 0xffff) as u16;
    for sequence in 0.. {
        let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else { break };
        send(&socket, &request(address, id, sequence), SendFlags::empty())?;
        let next = Instant::now() + left.min(INTERVAL);
        while let Some(wait) = next.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) {
            set_socket_timeout(&socket, Timeout::Recv, Some(wait.max(Duration::from_millis(1))))?;
            match recv(&socket, &mut buffer, RecvFlags::empty()) {
                Ok((_, len)) if is_answer(address, &buffer[..len.min(buffer.len())], id) => return Ok(true),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(false)
}

fn is_unreachable(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable, NotFound};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkDown | NetworkUnreachable | NotFound)
}

/// An echo request. The kernel puts the checksum into those of IPv6.
fn request(address: IpAddr, id: u16, sequence: u16) -> [u8; 8] {
    let kind = if address.is_ipv4() { ECHO_REQUEST } else { ECHO_REQUEST_V6 };
    let [[id_high, id_low], [high, low]] = [id.to_be_bytes(), sequence.to_be_bytes()];
    let mut packet = [kind, 0, 0, 0, id_high, id_low, high, low];
    if address.is_ipv4() {
        let words = packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        // Four words carry less than twice.
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        packet[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    }
    packet
}

/// Whether a packet is an echo reply to us. Over IPv4 its header comes first.
fn is_answer(address: IpAddr, packet: &[u8], id: u16) -> bool {
    let (kind, header) = match address {
        IpAddr::V4(_) => (ECHO_REPLY, packet.first().map_or(0, |first| usize::from(first & 0xf) * 4)),
        IpAddr::V6(_) => (ECHO_REPLY_V6, 0),
    };
    let Some([found, 0, _, _, high, low, ..]) = packet.get(header..) else { return false };
    *found == kind && u16::from_be_bytes([*high, *low]) == id
}

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// As the Go programs ask.
const INTERVAL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_and_only_its_reply_is_an_answer() {
        let [four, six]: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
        assert_eq!(request(four, 0x1234, 1), [8, 0, 0xe5, 0xca, 0x12, 0x34, 0, 1]);
        assert_eq!(request(six, 0x1234, 1), [128, 0, 0, 0, 0x12, 0x34, 0, 1]);
        let mut reply = vec![0x45; 20];
        reply.extend([0, 0, 0, 0, 0x12, 0x34, 0, 1]);
        assert!(is_answer(four, &reply, 0x1234));
        assert!(!is_answer(four, &reply, 0x1235) && !is_answer(four, &reply[..24], 0x1234));
        assert!(is_answer(six, &[129, 0, 0, 0, 0x12, 0x34, 0, 1], 0x1234));
        assert!(!is_answer(six, &request(six, 0x1234, 1), 0x1234), "the request itself");
        assert!(!is_answer(four, &[], 0) && !is_answer(six, &[], 0));
    }

    #[tokio::test]
    async fn what_has_no_addresses_is_alive() {
        let namespace = Arc::new(OwnedFd::from(std::fs::File::open("/proc/self/ns/net").unwrap()));
        assert!(Ping::new(namespace, Duration::ZERO).is_alive(&Connection::default()).await);
    }
}
