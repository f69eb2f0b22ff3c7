//! Peers that are about to show who they are: they cost something before anybody knows them, so there are few, and none keeps others out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// The handshakes of one listening socket.
pub(super) struct Handshakes {
    all_max: usize,
    one_max: usize,
    state: Mutex<UnderWay>,
    ended: Notify,
}

/// Where a peer comes from: what is known of it before it has shown who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// A process of this user, over a Unix socket.
    User(u32),
    /// An address, or the network of one of IPv6.
    Address(IpAddr),
}

#[derive(Default)]
struct UnderWay {
    next: u64,
    /// In the order of their begin.
    under_way: BTreeMap<u64, Handshake>,
}

struct Handshake {
    source: Source,
    since: Instant,
    task: AbortHandle,
}

impl Handshakes {
    /// So many together, and so many of one source.
    pub(super) fn new(all_max: usize, one_max: usize) -> Arc<Self> {
        Arc::new(Self { all_max, one_max, state: Mutex::default(), ended: Notify::new() })
    }

    /// Runs one, as soon as there is room for it: when there is none, the oldest that had time enough is ended.
    pub(super) async fn run(self: &Arc<Self>, source: Source, handshake: impl Future<Output = ()> + Send + 'static) {
        loop {
            let ended = self.ended.notified();
            let Some(oldest) = self.make_room(source) else { break };
            tokio::select! {
                () = ended => {}
                () = sleep_until(oldest + ENOUGH) => {}
            }
        }
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        let guard = Guard { handshakes: Arc::clone(self), number };
        let task = tokio::spawn(async move {
            handshake.await;
            drop(guard);
        });
        state.under_way.insert(number, Handshake { source, since: Instant::now(), task: task.abort_handle() });
    }

    /// `None`: there is room. Otherwise since when the oldest runs that would have to go.
    fn make_room(&self, source: Source) -> Option<Instant> {
        let mut state = self.lock();
        let of_source = state.under_way.values().filter(|handshake| handshake.source == source).count();
        let is_full = state.under_way.len() >= self.all_max;
        if of_source < self.one_max && !is_full {
            return None;
        }
        let goes = if of_source >= self.one_max { source } else { state.largest_source()? };
        let (&number, oldest) = state.under_way.iter().find(|(_, handshake)| handshake.source == goes)?;
        if oldest.since.elapsed() < ENOUGH {
            return Some(oldest.since);
        }
        oldest.task.abort();
        state.under_way.remove(&number);
        None
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    fn largest_source(&self) -> Option<Source> {
        let mut counts: BTreeMap<Source, usize> = BTreeMap::new();
        self.under_way.values().for_each(|handshake| *counts.entry(handshake.source).or_default() += 1);
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(source, _)| source)
    }
}

impl Source {
    /// Of a TCP peer. Whoever has one address of IPv6 has the 64 bits behind it too.
    pub(super) fn of_address(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// Counts one until it is over.
struct Guard {
    handshakes: Arc<Handshakes>,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.handshakes.lock().under_way.remove(&self.number);
        self.handshakes.ended.notify_waiters();
    }
}

/// An honest one takes milliseconds.
const ENOUGH: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    /// One that never ends by itself, and says when it was ended.
    fn silent() -> (impl Future<Output = ()> + Send + 'static, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel::<()>();
        let handshake = async move {
            let _sender = sender;
            pending::<()>().await;
        };
        (handshake, receiver)
    }

    #[tokio::test]
    async fn the_oldest_silent_one_of_a_source_makes_room_for_its_next_and_others_stay() {
        let handshakes = Handshakes::new(8, 2);
        let (other, mut other_ended) = silent();
        handshakes.run(Source::User(1), other).await;
        let mut ends = Vec::new();
        for _ in 0..3 {
            let (handshake, ended) = silent();
            timeout(DEADLINE, handshakes.run(Source::User(0), handshake)).await.expect("room");
            ends.push(ended);
        }
        timeout(DEADLINE, &mut ends[0]).await.expect("the first goes").unwrap_err();
        assert!(ends[1].try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        assert!(other_ended.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
    }

    #[tokio::test]
    async fn whoever_has_most_makes_room_for_others() {
        let handshakes = Handshakes::new(3, 3);
        let mut ends = Vec::new();
        for source in [1, 0, 0, 2] {
            let (handshake, ended) = silent();
            timeout(DEADLINE, handshakes.run(Source::User(source), handshake)).await.expect("room");
            ends.push(ended);
        }
        timeout(DEADLINE, &mut ends[1]).await.expect("the first of the greedy one goes").unwrap_err();
        assert!(ends[0].try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
    }

    #[tokio::test]
    async fn one_that_is_over_makes_room_at_once() {
        let handshakes = Handshakes::new(1, 1);
        for _ in 0..1000 {
            timeout(DEADLINE, handshakes.run(Source::User(0), async {})).await.expect("room");
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let of = |text: &str| Source::of_address(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
