//! An end of a WireGuard tunnel as the end of a wire: packets of a memif, which has no interface in the kernel.
//!
//! ```text
//!   memif == wire == two queues == task that encrypts == UDP
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferrule_dataplane::port::any::LaneEnd;
use ferrule_dataplane::port::device::{Device, DeviceContext, MadeDevice};
use ferrule_dataplane::port::external::DeviceError;
use ferrule_dataplane::port::frame_queue::{QueueSource, QueueTarget, frame_queue};
use ferrule_dataplane::port::{Frame, Put, Source, Target};
use ferrule_dataplane::spec::{ExternalPort, Mode, WireSpec};
use ferrule_dataplane::status::DeviceStatus;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::secure_tunnel::{Packets, TunnelCounters, packet_max, waited_for};
use super::wireguard::WireGuardPeer;
use super::wireguard_ends::{NoKeyError, WireGuardEnd, WireGuardEnds};

/// One end of a tunnel, and a wire to it.
#[derive(Clone, Debug)]
pub(super) struct SecureWire {
    pub(super) wire: WireSpec,
    pub(super) connection: String,
    pub(super) peer: WireGuardPeer,
}

impl SecureWire {
    /// The other side is as it says from now on.
    pub(super) fn tell(&self, ends: &WireGuardEnds) -> Result<(), NoKeyError> {
        ends.tell(&self.connection, self.peer).map(drop)
    }
}

/// What a wire says of such an end.
pub(super) struct SecurePort {
    pub(super) connection: String,
    pub(super) end: Arc<WireGuardEnd>,
    pub(super) mtu: u32,
}

impl fmt::Display for SecurePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wireguard {}", self.connection)
    }
}

impl fmt::Debug for SecurePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecurePort({} mtu {})", self.connection, self.mtu)
    }
}

impl ExternalPort for SecurePort {
    fn kind(&self) -> &'static str {
        "wireguard"
    }

    fn identity(&self) -> Option<String> {
        Some(self.to_string())
    }

    fn is_same(&self, other: &dyn ExternalPort) -> bool {
        other.downcast_ref().is_some_and(|other: &Self| Arc::ptr_eq(&self.end, &other.end) && self.mtu == other.mtu)
    }

    fn mode(&self) -> Mode {
        Mode::Ip
    }

    fn make(&self, _: &DeviceContext) -> Result<MadeDevice, DeviceError> {
        let (source, target, device) = self.begin().map_err(|error| DeviceError {
            tried: "begin".to_owned(),
            device: self.to_string(),
            reason: error.to_string(),
            cure: "let the forwarder have more threads and open files".to_owned(),
        })?;
        let rings = LaneEnd::external([(Box::new(source) as _, Box::new(target) as _)]);
        Ok(MadeDevice { rings, device: Arc::new(device) })
    }
}

impl SecurePort {
    /// Where packets come out, and where they go in.
    fn begin(&self) -> io::Result<(QueueSource, QueueTarget, SecureDevice)> {
        // A packet that is longer than the tunnel carries finds no room.
        let (target, from_wire) = frame_queue(QUEUE, self.mtu as usize)?;
        let (to_wire, source) = frame_queue(QUEUE, packet_max(self.mtu))?;
        let (task, counters) = self.end.run(self.mtu, || WirePackets::open(from_wire, to_wire))?;
        let (end, mtu) = (Arc::clone(&self.end), self.mtu);
        Ok((source, target, SecureDevice { task, counters, end, mtu }))
    }
}

/// What carries the packets of the wire.
struct SecureDevice {
    task: AbortHandle,
    counters: Arc<TunnelCounters>,
    end: Arc<WireGuardEnd>,
    mtu: u32,
}

impl Device for SecureDevice {
    fn status(&self) -> Result<DeviceStatus, String> {
        if self.task.is_finished() {
            return Err("its task has ended".to_owned());
        }
        let words = self.end.peer().map_or_else(String::new, |peer| format!("to {}", peer.address));
        let [sent, received] = self.counters.read();
        let counters =
            BTreeMap::from([("rx_dropped".to_owned(), received.dropped()), ("tx_dropped".to_owned(), sent.dropped())]);
        Ok(DeviceStatus { words, mtu: Some(self.mtu), counters, ..DeviceStatus::default() })
    }

    fn answers_at_once(&self) -> bool {
        true
    }
}

impl Drop for SecureDevice {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Those of a wire.
struct WirePackets {
    source: QueueSource,
    target: QueueTarget,
    bell: AsyncFd<OwnedFd>,
}

impl WirePackets {
    /// What is to be sent, and where what comes goes.
    fn open(source: QueueSource, target: QueueTarget) -> io::Result<Self> {
        let bell = source.notify_fd().ok_or_else(|| io::Error::other("a queue without an eventfd"))?;
        let bell = waited_for(bell.try_clone_to_owned()?)?;
        Ok(Self { source, target, bell })
    }

    fn take(&mut self, buffer: &mut [u8]) -> Option<usize> {
        // Of our own making: nobody breaks a protocol here.
        let frame = self.source.peek(&mut []).ok()??;
        let length = frame.bytes.len();
        let is_taken = frame.bytes.copy_out(buffer.get_mut(..length)?);
        self.source.advance(1);
        is_taken.then_some(length)
    }

    fn now(&mut self, buffer: &mut [u8]) -> Option<usize> {
        self.take(buffer).or_else(|| {
            self.source.release();
            self.source.refresh().ok().filter(|is_there| *is_there).and_then(|_| self.take(buffer))
        })
    }
}

impl Packets for WirePackets {
    async fn next(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(length) = self.now(buffer) {
                return Ok(length);
            }
            self.source.enable_notify(true);
            // What came before is not rung for.
            if let Some(length) = self.now(buffer) {
                self.source.enable_notify(false);
                return Ok(length);
            }
            self.bell.async_io(Interest::READABLE, |bell| Ok(nix::unistd::read(bell, &mut [0; 8])?)).await?;
            self.source.enable_notify(false);
        }
    }

    fn next_now(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(self.now(buffer))
    }

    fn put(&mut self, packet: &[u8]) -> io::Result<()> {
        match self.target.put(&Frame { bytes: packet.into(), offload: None, slots: 0 }) {
            Ok(Put::Stored) => {
                self.target.publish();
                Ok(())
            }
            _ => Err(io::Error::from(io::ErrorKind::WouldBlock)),
        }
    }
}

/// Packets that wait in each direction.
const QUEUE: usize = 256;

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use ferrule_dataplane::status::DropReason;

    use super::super::vxlan::TunnelSite;
    use super::*;

    /// Of IPv4, with a number in it.
    fn packet(number: u32, length: u16) -> Vec<u8> {
        let mut bytes = vec![0; length.into()];
        bytes[0] = 0x45;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes[20..24].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    fn put(target: &mut QueueTarget, bytes: &[u8]) -> Put {
        let put = target.put(&Frame { bytes: bytes.into(), offload: None, slots: 0 }).unwrap();
        target.publish();
        put
    }

    fn next(source: &mut QueueSource) -> Vec<u8> {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            source.release();
            if source.refresh().unwrap() {
                let frame = source.peek(&mut []).unwrap().unwrap();
                let mut bytes = vec![0; frame.bytes.len()];
                assert!(frame.bytes.copy_out(&mut bytes));
                source.advance(1);
                return bytes;
            }
            assert!(Instant::now() < until, "no packet comes");
            thread::yield_now();
        }
    }

    /// Two ends that know each other.
    fn ends() -> [SecurePort; 2] {
        let site = TunnelSite { address: [127, 0, 0, 1].into(), port: 4789, link_mtu: 1500 };
        let (near, far) = (WireGuardEnds::default(), WireGuardEnds::default());
        let answer = far.answer("b", &near.preference("a", &site).unwrap(), &site).unwrap();
        [
            (near.tell("a", WireGuardPeer::asked(&answer, &site).unwrap()), "a"),
            (far.tell("b", WireGuardPeer::answered(&answer, &site).unwrap()), "b"),
        ]
        .map(|(end, id)| SecurePort { connection: id.to_owned(), end: end.unwrap(), mtu: 1400 })
    }

    #[test]
    fn packets_of_two_wires_cross_a_tunnel_and_one_that_is_too_long_finds_no_room() {
        let [(mut near_out, mut near_in, near_device), (mut far_out, mut far_in, _far_device)] =
            ends().map(|end| end.begin().unwrap());
        assert_eq!(put(&mut near_in, &packet(0, 1401)), Put::Refused(DropReason::TooLong));
        for round in 0..100 {
            let lengths = [24, 300, 1400];
            let sent: Vec<_> = (0..24).map(|at| packet(round * 24 + at, lengths[at as usize % 3])).collect();
            for bytes in &sent {
                assert_eq!([put(&mut near_in, bytes), put(&mut far_in, bytes)], [Put::Stored; 2]);
            }
            for bytes in &sent {
                assert_eq!([&next(&mut far_out), &next(&mut near_out)], [bytes; 2]);
            }
        }
        let status = near_device.status().unwrap();
        assert_eq!((status.mtu, status.counters["rx_dropped"], status.counters["tx_dropped"]), (Some(1400), 0, 0));
        assert!(status.words.starts_with("to 127.0.0.1:"), "{}", status.words);
    }

    #[test]
    fn packets_that_wait_for_keys_stay_in_order_when_both_sides_ask_for_them() {
        let [near, far] = ends();
        // It asks, and nobody reads that yet.
        let (_, mut far_in, _far_device) = far.begin().unwrap();
        let sent: Vec<_> = (0..24).map(|number| packet(number, 24)).collect();
        for bytes in &sent {
            assert_eq!(put(&mut far_in, bytes), Put::Stored);
        }
        // It asks too.
        let (mut near_out, _, _near_device) = near.begin().unwrap();
        for bytes in &sent {
            assert_eq!(&next(&mut near_out), bytes);
        }
    }
}
