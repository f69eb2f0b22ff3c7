//! Ports whose sessions have ended: for a while only the same client gets them again (RFC 6888, requirement 8), so that what is on its way
//! still to the one is not taken for another one's.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;

use crate::flow::FlowKey;

/// Ports of the pool, each with the destination that it was used for, as sessions have them.
#[derive(Debug, Default)]
pub struct ReleasedPorts {
    released: HashMap<FlowKey, ReleasedPort, RandomState>,
    /// In the order in which they end. One that was used again meanwhile is here still.
    order: VecDeque<(FlowKey, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct ReleasedPort {
    client: u32,
    until_ms: u64,
}

impl ReleasedPorts {
    /// The session of `client` that was known outside by `key` has ended.
    pub fn add(&mut self, key: FlowKey, client: u32, now_ms: u64) {
        self.forget(now_ms);
        let until_ms = now_ms + KEPT_MS;
        self.released.insert(key, ReleasedPort { client, until_ms });
        self.order.push_back((key, until_ms));
        if self.order.len() > PORTS_MAX {
            self.forget_first();
        }
    }

    /// Until when it is kept from `client`; none: it may have it.
    pub fn kept_until(&self, key: &FlowKey, client: u32, now_ms: u64) -> Option<u64> {
        let release = self.released.get(key)?;
        (release.client != client && now_ms < release.until_ms).then_some(release.until_ms)
    }

    /// A session has it.
    pub fn remove(&mut self, key: &FlowKey) {
        self.released.remove(key);
    }

    fn forget(&mut self, now_ms: u64) {
        while self.order.front().is_some_and(|(_, until_ms)| *until_ms <= now_ms) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((key, until_ms)) = self.order.pop_front()
            && self.released.get(&key).is_some_and(|release| release.until_ms == until_ms)
        {
            self.released.remove(&key);
        }
    }
}

const KEPT_MS: u64 = 120_000;
/// Of some 100 bytes each. When there are more, the first of them are free early.
const PORTS_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames;
    use crate::function::Side;
    use crate::packet::{Link, Packet, parse};

    fn key(port: u16) -> FlowKey {
        match parse(Link::Ethernet, &frames::udp((1, port), (2, 53), b"")) {
            Ok(Packet::Ip(headers)) => FlowKey::of(Side::Client, &headers),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_port_is_kept_for_its_client_and_for_its_time() {
        let mut ports = ReleasedPorts::default();
        ports.add(key(1), 7, 1000);
        assert_eq!(ports.kept_until(&key(1), 8, 120_999), Some(121_000));
        assert_eq!((ports.kept_until(&key(1), 7, 1000), ports.kept_until(&key(2), 8, 1000)), (None, None));
        assert_eq!(ports.kept_until(&key(1), 8, 121_000), None);
        // Used and released again: the later time counts.
        ports.remove(&key(1));
        assert_eq!(ports.kept_until(&key(1), 8, 1000), None);
        ports.add(key(1), 8, 2000);
        ports.add(key(2), 8, 121_500);
        assert_eq!(ports.kept_until(&key(1), 7, 121_500), Some(122_000));
    }

    #[test]
    fn memory_is_bounded() {
        let mut ports = ReleasedPorts::default();
        for round in 0..3 {
            for port in 0..=u16::MAX {
                ports.add(key(port), 7, round);
            }
        }
        assert_eq!((ports.order.len(), ports.released.len()), (PORTS_MAX, 65_536));
    }
}
