//! What the control thread waits for: sockets, by tokens, and deadlines.

use super::keys::{EndId, ListenerKey, SocketJobId};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// A socket in epoll; a lower one is older. A token is never used again, so an event of a socket that was forgotten
/// finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

/// Whose a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketOwner {
    /// A listening socket.
    Listener(ListenerKey),
    /// A memif client in mid-handshake.
    Handshake(ListenerKey),
    /// A vhost-user frontend that is not the peer of an end yet.
    PendingFrontend(ListenerKey),
    /// The peer of an end, or a server that an end connects to.
    End(EndId),
}

/// Epoll, whose sockets are in it, and the deadlines.
pub struct Poller {
    epoll: Epoll,
    owners: HashMap<Token, SocketOwner>,
    last: Token,
    /// What is to be done at some time.
    pub timers: Timers,
}

impl Poller {
    /// Nothing to wait for but the eventfds by which other threads wake this one.
    pub fn new(wakers: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for waker in wakers {
            epoll.add(waker, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKE))?;
        }
        Ok(Self { epoll, owners: HashMap::new(), last: Token(WAKE), timers: Timers::default() })
    }

    /// Waits for what a socket says.
    pub fn watch(&mut self, socket: &impl AsFd, owner: SocketOwner) -> io::Result<Token> {
        self.watch_for(EpollFlags::EPOLLIN, socket, owner)
    }

    /// The same, once [`Self::listen`] says so.
    pub fn watch_later(&mut self, socket: &impl AsFd, owner: SocketOwner) -> io::Result<Token> {
        self.watch_for(EpollFlags::empty(), socket, owner)
    }

    /// Waits for clients of a listening socket, or does not for now.
    pub fn listen(&self, socket: &impl AsFd, token: Token, wanted: bool) {
        let events = if wanted { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
        // It is in epoll since `watch_later`.
        let _ = self.epoll.modify(socket, &mut EpollEvent::new(events, token.0));
    }

    /// Does not wait for a socket any more, until [`Self::resume`].
    pub fn pause(&self, socket: &impl AsFd) {
        // Fails only if it is paused already.
        let _ = self.epoll.delete(socket);
    }

    /// Waits again for a socket that was paused.
    pub fn resume(&self, socket: &impl AsFd, token: Token) {
        // It was there before, and there is room for it again.
        let _ = self.epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, token.0));
    }

    /// Forgets a socket that is about to be closed. A peer could hold a copy of it, and keep it in epoll.
    pub fn forget(&mut self, token: Token, socket: &impl AsFd) {
        self.owners.remove(&token);
        let _ = self.epoll.delete(socket);
    }

    /// Whose a socket is; none: it was forgotten.
    pub fn owner(&self, token: Token) -> Option<SocketOwner> {
        self.owners.get(&token).copied()
    }

    /// A socket has another owner from now on.
    pub fn set_owner(&mut self, token: Token, owner: SocketOwner) {
        if let Some(place) = self.owners.get_mut(&token) {
            *place = owner;
        }
    }

    /// Sleeps until a socket has something to say, another thread wakes this one, or a deadline has passed; with
    /// `sleep: false` only looks.
    pub fn wait(&self, sleep: bool) -> ReadyTokens {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let timeout = if sleep { until(self.timers.earliest()) } else { EpollTimeout::ZERO };
        let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
        let tokens = events[..count].iter().map(EpollEvent::data).filter(|&data| data != WAKE);
        tokens.map(Token).collect()
    }

    fn watch_for(&mut self, events: EpollFlags, socket: &impl AsFd, owner: SocketOwner) -> io::Result<Token> {
        let token = Token(self.last.0 + 1);
        self.epoll.add(socket, EpollEvent::new(events, token.0))?;
        self.last = token;
        self.owners.insert(token, owner);
        Ok(token)
    }
}

/// Sockets that have something to say.
pub type ReadyTokens = ArrayVec<Token, EVENTS_MAX>;

/// What is to be done at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// A handshake has taken too long.
    Handshake(Token),
    /// A frontend has waited too long.
    PendingFrontend(Token),
    /// A listening socket is tried again whose peers held too much.
    Accept(ListenerKey),
    /// A job at the address of a socket takes too long.
    SocketJob(SocketJobId),
    /// An end connects again, gives its peer up, or goes on with requests that were too many.
    End(EndId),
    /// Lanes that no worker could take are tried again.
    Lanes,
    /// Kernel interfaces are looked at.
    Interfaces,
    /// Devices are looked at that may take their time to answer.
    Devices,
    /// Socket files are looked at, and wires that stand still.
    Watch,
}

/// Deadlines, at most one of each [`Timer`].
#[derive(Default)]
pub struct Timers {
    queue: BTreeSet<(Instant, Timer)>,
    set: HashMap<Timer, Instant>,
}

impl Timers {
    /// Sets a timer, whatever it was set to before; with `None`, stops it.
    pub fn set(&mut self, timer: Timer, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.set.insert(timer, at),
            None => self.set.remove(&timer),
        };
        if let Some(before) = before {
            self.queue.remove(&(before, timer));
        }
        if let Some(at) = at {
            self.queue.insert((at, timer));
        }
    }

    /// Sets a timer, unless it is set already.
    pub fn start(&mut self, timer: Timer, at: Instant) {
        if !self.set.contains_key(&timer) {
            self.set(timer, Some(at));
        }
    }

    /// The next timer that has run out, which is not set any more.
    pub fn expired(&mut self, now: Instant) -> Option<Timer> {
        let &(at, timer) = self.queue.first()?;
        (at <= now).then(|| {
            self.set(timer, None);
            timer
        })
    }

    /// When the first one runs out.
    pub fn earliest(&self) -> Option<Instant> {
        self.queue.first().map(|&(at, _)| at)
    }
}

/// The time to sleep, rounded up so that the deadline has passed when it is over.
fn until(deadline: Option<Instant>) -> EpollTimeout {
    let Some(deadline) = deadline else { return EpollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now()).min(SLEEP_MAX);
    if left.is_zero() {
        return EpollTimeout::ZERO;
    }
    EpollTimeout::from(u16::try_from(left.as_millis()).map_or(u16::MAX, |ms| ms.saturating_add(1)))
}

const EVENTS_MAX: usize = 64;
const SLEEP_MAX: Duration = Duration::from_mins(1);
/// The event of the eventfds of other threads; tokens are higher.
const WAKE: u64 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use slotmap::Key;
    use std::io::Write;

    #[test]
    fn a_timer_runs_out_once_in_order_and_only_at_its_last_setting() {
        let now = Instant::now();
        let mut timers = Timers::default();
        let [a, b] = [1, 2].map(|number| Timer::Handshake(Token(number)));
        timers.set(a, Some(now + Duration::from_secs(1)));
        timers.set(b, Some(now));
        timers.set(a, Some(now + Duration::from_secs(2)));
        timers.start(b, now + Duration::from_secs(9));
        assert_eq!((timers.expired(now), timers.expired(now)), (Some(b), None));
        assert_eq!(timers.earliest(), Some(now + Duration::from_secs(2)));
        timers.set(a, None);
        assert_eq!(timers.expired(now + Duration::from_mins(1)), None);
        assert!(timers.set.is_empty() && timers.queue.is_empty());
    }

    #[test]
    fn an_event_of_a_socket_that_was_forgotten_finds_nobody() {
        let owner = SocketOwner::Handshake(ListenerKey::null());
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut poller = Poller::new(&[]).unwrap();
        let token = poller.watch(&near, owner).unwrap();
        (&far).write_all(b"x").unwrap();
        let events = poller.wait(true);
        assert_eq!(events[..], [token]);
        poller.forget(token, &near);
        assert_eq!(poller.owner(token), None);
        let again = poller.watch(&near, owner).unwrap();
        assert_ne!(again, token);
        assert_eq!(poller.wait(true)[..], [again]);
    }
}
