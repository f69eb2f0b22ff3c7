//! What happens to wires, told to whoever subscribed. A subscriber that does not keep up loses events, and is told how
//! many; control never waits for one.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// To a wire.
    Wire {
        /// Its name.
        wire: String,
        /// What happened to it.
        change: WireChange,
    },
    /// This subscriber did not keep up: so many events were lost here.
    Lagged(u64),
    /// A thread of the engine has panicked; the process should end for its supervisor.
    ThreadDied {
        /// The thread's name.
        thread: String,
    },
}

/// What happened to a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireChange {
    /// It was made: its listeners listen and its interfaces exist. Or an interface that was gone is there again.
    Made,
    /// A setting that no peer sees was changed.
    Updated,
    /// Frames can cross.
    Up {
        /// The queues that are joined.
        queues: usize,
    },
    /// Frames cannot cross any more.
    Down,
    /// A peer has come.
    PeerConnected {
        /// To which end.
        end: usize,
        /// What it calls itself, or its process.
        peer: String,
    },
    /// A peer has gone.
    PeerGone {
        /// From which end.
        end: usize,
        /// Why.
        reason: String,
    },
    /// For a second no frame has crossed in a direction although some wait: their target has no room.
    Stalled {
        /// The end that frames come from.
        from: usize,
    },
    /// An end is gone and cannot come back by itself, or both ends are there and cannot be served.
    Failed {
        /// Which end; none: the wire as a whole, which is tried again.
        end: Option<usize>,
        /// Why.
        reason: String,
    },
    /// It was removed, and everything that it made.
    Removed,
}

/// The end of the stream that a subscriber has. It ends when the engine does.
pub struct Subscription(Receiver<Event>);

impl Subscription {
    /// A subscription for at most `capacity` events that were not received yet, and control's side of it.
    pub(crate) fn new(capacity: usize) -> (Self, Subscriber) {
        let (sender, receiver) = sync_channel(capacity.max(1));
        (Self(receiver), Subscriber { sender, lost: 0 })
    }

    /// Waits for the next event. None: the engine has ended.
    pub fn next_event(&self) -> Option<Event> {
        self.0.recv().ok()
    }

    /// The same, for at most `timeout`.
    ///
    /// # Errors
    /// Nothing happened in that time, or the engine has ended.
    pub fn next_event_within(&self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        self.0.recv_timeout(timeout)
    }

    /// The next event, if there is one now.
    pub fn try_next_event(&self) -> Option<Event> {
        self.0.try_recv().ok()
    }
}

/// Control's side of a subscription.
pub struct Subscriber {
    sender: SyncSender<Event>,
    lost: u64,
}

impl Subscriber {
    /// Tells it of an event, or counts it as lost. `false`: there is nobody any more.
    fn tell(&mut self, event: &Event) -> bool {
        if self.lost > 0 {
            match self.sender.try_send(Event::Lagged(self.lost)) {
                Ok(()) => self.lost = 0,
                Err(TrySendError::Full(_)) => {
                    self.lost += 1;
                    return true;
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
        match self.sender.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.lost += 1;
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

/// Everybody who wants to know, and what has happened since they were last told.
#[derive(Default)]
pub struct Events {
    subscribers: Vec<Subscriber>,
    pending: Vec<Event>,
}

impl Events {
    /// One more.
    pub fn add(&mut self, subscriber: Subscriber) {
        self.subscribers.push(subscriber);
    }

    /// Whether nobody wants to know.
    pub fn is_idle(&self) -> bool {
        self.subscribers.is_empty()
    }

    /// Notes that something happened to a wire.
    pub fn note(&mut self, wire: &str, change: WireChange) {
        if !self.is_idle() {
            self.pending.push(Event::Wire { wire: wire.to_owned(), change });
        }
    }

    /// Notes that a thread has died.
    pub fn note_death(&mut self, thread: String) {
        self.pending.push(Event::ThreadDied { thread });
    }

    /// Tells what was noted. Done after the snapshot was published, so that whoever hears of an event sees it there.
    pub fn tell(&mut self) {
        for event in self.pending.drain(..) {
            self.subscribers.retain_mut(|subscriber| subscriber.tell(&event));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_that_lags_is_told_how_many_events_it_lost() {
        let (subscription, subscriber) = Subscription::new(2);
        let mut events = Events::default();
        events.add(subscriber);
        let mut happen = |names: &[&str]| {
            for name in names {
                events.note(name, WireChange::Made);
            }
            events.tell();
        };
        let made = |wire: &str| Event::Wire { wire: wire.to_owned(), change: WireChange::Made };
        happen(&["a", "b", "c", "d"]);
        assert_eq!((subscription.next_event(), subscription.next_event()), (Some(made("a")), Some(made("b"))));
        happen(&["e"]);
        assert_eq!((subscription.next_event(), subscription.next_event()), (Some(Event::Lagged(2)), Some(made("e"))));
        assert_eq!(subscription.try_next_event(), None);
    }

    #[test]
    fn a_subscriber_that_has_gone_is_forgotten_and_the_stream_ends_with_its_source() {
        let (subscription, subscriber) = Subscription::new(2);
        let mut events = Events::default();
        events.add(subscriber);
        drop(subscription);
        events.note("a", WireChange::Made);
        events.tell();
        assert!(events.is_idle());
        let (subscription, subscriber) = Subscription::new(2);
        drop(subscriber);
        assert_eq!(subscription.next_event(), None);
    }
}
