//! What a call makes. A call may end while threads still make what it asked for: whatever comes of that belongs to nobody, and is undone.
//! What is removed has a turn as well, beyond the call that asked for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tonic::Status;

/// The connections that something is made for now, or removed of.
#[derive(Clone, Default)]
pub(super) struct Makings(Arc<Table>);

#[derive(Default)]
struct Table {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// By their ids.
    turns: BTreeMap<String, Turns>,
    /// Nothing is begun any more.
    is_closed: bool,
}

/// Of one connection.
#[derive(Default)]
struct Turns {
    is_taken: bool,
    /// Those who remove what it has, once their turn comes.
    removing: usize,
}

impl Makings {
    /// One call makes something for a connection, until what this returns is dropped.
    pub(super) fn begin(&self, id: &str) -> Result<Making, Status> {
        let mut state = self.0.lock();
        if state.is_closed {
            return Err(Status::unavailable("this forwarder ends: ask again"));
        }
        if state.turns.contains_key(id) {
            return Err(Status::aborted(
                "what an earlier call has asked for is still being made or removed: ask again",
            ));
        }
        state.turns.insert(id.to_owned(), Turns { is_taken: true, removing: 0 });
        Ok(Making { all: Arc::clone(&self.0), id: id.to_owned() })
    }

    /// What a connection has is to be removed, also when the forwarder ends: nothing is begun for it from now on until that is done.
    pub(super) fn begin_removal(&self, id: &str) -> Removal {
        self.0.lock().turns.entry(id.to_owned()).or_default().removing += 1;
        Removal { all: Arc::clone(&self.0), id: id.to_owned() }
    }

    /// Nothing is begun from now on. Waits until nothing is being made, or has not ended for so long. Blocks.
    pub(super) fn close(&self, limit: Duration) {
        let mut state = self.0.lock();
        state.is_closed = true;
        drop(self.0.ended.wait_timeout_while(state, limit, |state| !state.turns.is_empty()));
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something of a connection has ended.
    fn end(&self, id: &str, change: impl FnOnce(&mut Turns)) {
        let mut state = self.lock();
        if let Some(turns) = state.turns.get_mut(id) {
            change(turns);
            if !turns.is_taken && turns.removing == 0 {
                state.turns.remove(id);
            }
        }
        drop(state);
        self.ended.notify_all();
    }
}

/// Something is made, or removed.
pub(super) struct Making {
    all: Arc<Table>,
    id: String,
}

impl Drop for Making {
    fn drop(&mut self) {
        self.all.end(&self.id, |turns| turns.is_taken = false);
    }
}

/// Something is to be removed.
pub(super) struct Removal {
    all: Arc<Table>,
    id: String,
}

impl Removal {
    /// Waits for what is still being made for the connection. Blocks.
    pub(super) fn turn(self) -> Making {
        let is_taken = |state: &mut State| state.turns.get(&self.id).is_some_and(|turns| turns.is_taken);
        let waited = self.all.ended.wait_while(self.all.lock(), is_taken);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.turns.entry(self.id.clone()).or_default().is_taken = true;
        drop(state);
        Making { all: Arc::clone(&self.all), id: self.id.clone() }
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        self.all.end(&self.id, |turns| turns.removing -= 1);
    }
}

/// What was made. It is undone unless somebody claims it.
pub(super) struct Made<T: Send + 'static> {
    value: Option<T>,
    undo: Option<Box<dyn FnOnce(T) + Send>>,
    turn: Option<Making>,
}

impl<T: Send + 'static> Made<T> {
    /// Made in this turn, and undone so. That may block.
    pub(super) fn new(value: T, turn: Making, undo: impl FnOnce(T) + Send + 'static) -> Self {
        Self { value: Some(value), undo: Some(Box::new(undo)), turn: Some(turn) }
    }

    /// It belongs to a connection from now on. The turn goes on until whoever claims it has noted so.
    pub(super) fn claim(mut self) -> (T, Option<Making>) {
        self.undo = None;
        (self.value.take().expect("it is there until it is claimed or dropped"), self.turn.take())
    }
}

impl<T: Send + 'static> Drop for Made<T> {
    fn drop(&mut self) {
        let (Some(value), Some(undo), turn) = (self.value.take(), self.undo.take(), self.turn.take()) else { return };
        // Without anybody to wait for it, but before anything else is made for the connection.
        drop(spawn_blocking(move || {
            undo(value);
            drop(turn);
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    const DEADLINE: Duration = Duration::from_mins(1);

    fn begun(makings: &Makings, id: &str) -> Making {
        makings.begin(id).unwrap_or_else(|status| panic!("{status}"))
    }

    fn refusal(makings: &Makings, id: &str) -> Option<tonic::Code> {
        makings.begin(id).err().map(|status| status.code())
    }

    #[test]
    fn one_call_at_a_time_makes_something_for_a_connection() {
        let makings = Makings::default();
        let first = begun(&makings, "a");
        assert_eq!(refusal(&makings, "a"), Some(tonic::Code::Aborted));
        assert!(makings.begin("b").is_ok());
        drop(first);
        assert!(makings.begin("a").is_ok());
    }

    #[tokio::test]
    async fn what_nobody_claims_is_undone_before_anything_else_is_made_for_the_connection() {
        let makings = Makings::default();
        let (go_on, wait) = mpsc::channel::<()>();
        let (sender, undone) = mpsc::channel();
        let made = Made::new("a link", begun(&makings, "a"), move |what| {
            wait.recv().unwrap();
            sender.send(what).unwrap();
        });
        drop(made);
        assert_eq!(refusal(&makings, "a"), Some(tonic::Code::Aborted), "it is still being undone");
        go_on.send(()).unwrap();
        assert_eq!(undone.recv_timeout(DEADLINE), Ok("a link"));
        let until = Instant::now() + DEADLINE;
        while makings.begin("a").is_err() {
            assert!(Instant::now() < until, "the turn does not end");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_claimed_stays() {
        let makings = Makings::default();
        let (sender, undone) = mpsc::channel();
        let made = Made::new("a link", begun(&makings, "a"), move |what| sender.send(what).unwrap());
        let (made, turn) = made.claim();
        assert_eq!((made, refusal(&makings, "a")), ("a link", Some(tonic::Code::Aborted)));
        drop(turn);
        // Nobody is left who could undo it.
        assert!(undone.recv_timeout(DEADLINE).is_err());
        assert!(makings.begin("a").is_ok());
    }

    /// Has something to say that does not come before `go_on` is called.
    fn comes_after(said: &mpsc::Receiver<()>, go_on: impl FnOnce()) {
        assert_eq!(said.recv_timeout(QUIET), Err(mpsc::RecvTimeoutError::Timeout), "it did not wait");
        go_on();
        said.recv_timeout(DEADLINE / 2).expect("it goes on when nothing holds it up any more");
    }

    #[test]
    fn what_is_removed_waits_for_what_is_made_and_nothing_is_made_before_it_is_gone() {
        let makings = Makings::default();
        let making = begun(&makings, "a");
        let removal = makings.begin_removal("a");
        let (sender, turn) = mpsc::channel();
        let (go_on, wait) = mpsc::channel::<()>();
        let removing = std::thread::spawn(move || {
            let _turn = removal.turn();
            sender.send(()).unwrap();
            wait.recv().unwrap();
        });
        comes_after(&turn, || drop(making));
        // The call that asked for it may have ended long ago.
        assert_eq!(refusal(&makings, "a"), Some(tonic::Code::Aborted));
        assert_eq!(refusal(&makings, "b"), None);
        go_on.send(()).unwrap();
        removing.join().unwrap();
        assert_eq!(refusal(&makings, "a"), None);
        // Nobody came to remove it.
        let removal = makings.begin_removal("a");
        assert_eq!(refusal(&makings, "a"), Some(tonic::Code::Aborted));
        drop(removal);
        assert_eq!(refusal(&makings, "a"), None);
    }

    #[test]
    fn whoever_ends_waits_for_what_is_being_made_or_removed_and_lets_nothing_begin() {
        let makings = Makings::default();
        let making = begun(&makings, "a");
        makings.close(Duration::ZERO);
        assert_eq!(refusal(&makings, "b"), Some(tonic::Code::Unavailable));
        let closing = || {
            let (sender, closed) = mpsc::channel();
            let makings = makings.clone();
            std::thread::spawn(move || {
                makings.close(DEADLINE);
                sender.send(()).unwrap();
            });
            closed
        };
        comes_after(&closing(), || drop(making));
        let removal = makings.begin_removal("c");
        comes_after(&closing(), || drop(removal.turn()));
    }

    /// Whoever does not wait has long gone on by then.
    const QUIET: Duration = Duration::from_millis(100);
}
