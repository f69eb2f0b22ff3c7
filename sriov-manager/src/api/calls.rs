//! How calls are made: each has a place among those of its user from its first moment until its answer was read, a thread while it
//! works, and none while it waits: for the start, for its turn, for somebody who works on the same VF, for whoever holds it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ferrule_daemon::Phase;
use ferrule_daemon::grpc::blocking;
use prost::Message;
use sriov_manager_client::v1;
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout_at};
use tonic::Status;

use super::convert::{self, Peer};
use super::limits::{Places, Queues, UserCall};
use super::lists::{ListFilter, Lists};
use super::memory::{Memory, Room};
use super::refusals::{refusal, wrong};
use super::{check_words, may_force, response_to_acquire};
use crate::vfs::{Caller, Recovery, Request, VfError, Vfs, WhenBusy, check_how_many, pause_before_next_look};

/// What answers calls.
pub(super) struct Service {
    pub vfs: Vfs,
    pub phase: watch::Receiver<Phase>,
    pub lists: Arc<Lists>,
    places: Places,
    /// Answers that are not small.
    unread: Memory,
    /// Who waits for the holders of leases.
    releases: Queues,
    /// Who waits for other operations on the same VFs.
    busy: Queues,
}

/// A call that changes something, from its first moment until its answer was read.
pub(super) struct Change {
    pub peer: Peer,
    place: UserCall,
}

impl Service {
    pub fn new(vfs: Vfs, phase: watch::Receiver<Phase>, places: Places) -> Self {
        let lists = Arc::new(Lists::new(vfs.clone()));
        let (releases, busy) = (Queues::default(), Queues::default());
        Self { vfs, phase, lists, places, unread: Memory::new(UNREAD), releases, busy }
    }

    /// Begins a call that changes something, unless its user has too many under way.
    pub fn begin_change(&self, peer: Peer) -> Result<Change, Status> {
        Ok(Change { peer, place: self.places.changes.enter(peer.credentials.uid)? })
    }

    /// Begins a list.
    pub fn begin_list(&self, peer: Peer) -> Result<UserCall, Status> {
        self.places.lists.enter(peer.credentials.uid)
    }

    /// Begins a watch, which has its place until its client leaves.
    pub fn begin_watch(&self, peer: Peer) -> Result<UserCall, Status> {
        self.places.watches.enter(peer.credentials.uid)
    }

    /// Makes a list once there is room for it until its client has read it.
    pub async fn list_of(
        &self,
        peer: Peer,
        call: &UserCall,
        wanted: &Arc<ListFilter>,
    ) -> Result<(v1::ListResponse, Room), Status> {
        let uid = peer.credentials.uid;
        let (list, bytes) = self.make_list(call, wanted).await?;
        if let Some(room) = self.unread.try_room(uid, bytes) {
            return Ok((list, room));
        }
        // What waits has no memory.
        drop(list);
        let room = self.unread.room(uid, bytes).await?;
        Ok((self.make_list(call, wanted).await?.0, room))
    }

    /// A list, and how much memory it takes.
    async fn make_list(&self, call: &UserCall, wanted: &Arc<ListFilter>) -> Result<(v1::ListResponse, usize), Status> {
        let permits = call.permits().await?;
        let (lists, wanted) = (Arc::clone(&self.lists), Arc::clone(wanted));
        let made = blocking(move || {
            let _permits = permits;
            let list = lists.now(&wanted);
            let bytes = MEMORY_OF_A_BYTE * list.encoded_len();
            (list, bytes)
        });
        made.await
    }

    /// Room for an answer about so many leases, until its client has read it.
    pub async fn room_for_leases(&self, call: &Change, count: usize) -> Result<Room, Status> {
        self.unread.room(call.peer.credentials.uid, count * MEMORY_OF_A_LEASE).await
    }

    /// Does what changes something: on a thread while it works, and without one while it waits for its turn or for somebody who
    /// works on the same VF.
    pub async fn change<T: Send + 'static>(
        &self,
        call: &Change,
        work: impl Fn(&Vfs, Caller<'_>) -> Result<T, VfError> + Send + Sync + 'static,
    ) -> Result<T, Status> {
        self.may_change().await?;
        let deadline = Instant::now() + self.vfs.busy_timeout();
        let left = Arc::new(AtomicBool::new(false));
        let _waiting = Waiting(Arc::clone(&left));
        let work = Arc::new(work);
        let mut turn = None;
        loop {
            // Before the try, so that no news between the two is missed.
            let mut unlocked = self.vfs.watch_unlocked();
            let permits = call.place.permits().await?;
            let (vfs, work, left) = (self.vfs.clone(), Arc::clone(&work), Arc::clone(&left));
            let done = blocking(move || {
                let _permits = permits;
                let has_left = || left.load(Ordering::Relaxed);
                work(&vfs, Caller { has_left: &has_left, when_busy: WhenBusy::Refuse })
            })
            .await?;
            match done {
                Err(VfError::Busy { what }) if Instant::now() < deadline => {
                    // Of those that wait for the same VF one tries again, so that it costs as much as there are of them. At the
                    // deadline everybody does, once.
                    if turn.is_some() {
                        self.while_serving(deadline, unlocked.changed()).await?;
                    } else {
                        turn = self.while_serving(deadline, self.busy.turn(&what)).await?;
                    }
                }
                other => return other.map_err(|error| refusal(&error)),
            }
        }
    }

    /// Asks something that may have to wait for the kernel. The place is the answer's, until it was read.
    pub async fn ask<T: Send + 'static>(
        &self,
        peer: Peer,
        work: impl FnOnce(&Vfs) -> Result<T, VfError> + Send + 'static,
    ) -> Result<(T, UserCall), Status> {
        let place = self.places.questions.enter(peer.credentials.uid)?;
        let permits = place.permits().await?;
        let vfs = self.vfs.clone();
        let answer = blocking(move || {
            let _permits = permits;
            work(&vfs)
        });
        Ok((answer.await?.map_err(|error| refusal(&error))?, place))
    }

    /// Tries what fails while somebody holds a VF again and again, for so long. Of those that wait for the same lease one looks.
    pub async fn until_let_go<T: Send + 'static>(
        &self,
        call: &Change,
        lease: &str,
        wait_ms: u32,
        work: impl Fn(&Vfs, Caller<'_>) -> Result<T, VfError> + Send + Sync + 'static,
    ) -> Result<T, Status> {
        if wait_ms > WAIT_MS_MAX {
            return Err(wrong(format!("wait_ms {wait_ms}; at most {WAIT_MS_MAX} is wanted")));
        }
        let deadline = Instant::now() + Duration::from_millis(wait_ms.into());
        let work = Arc::new(work);
        let attempt = async || {
            let work = Arc::clone(&work);
            let tried = self.change(call, move |vfs, caller| match work(vfs, caller) {
                Err(error) if error.is_about_holders() => Ok(Err(error)),
                other => other.map(Ok),
            });
            tried.await
        };
        let mut began = Instant::now();
        let mut held = match attempt().await? {
            Ok(done) => return Ok(done),
            Err(held) => held,
        };
        let mut next = Instant::now() + pause_before_next_look(began.elapsed());
        let Some(_turn) = self.while_serving(deadline, self.releases.turn(lease)).await? else {
            return Err(refusal(&held));
        };
        while Instant::now() < deadline {
            self.while_serving(deadline, sleep_until(next.min(deadline).into())).await?;
            began = Instant::now();
            held = match attempt().await? {
                Ok(done) => return Ok(done),
                Err(held) => held,
            };
            next = Instant::now() + pause_before_next_look(began.elapsed());
        }
        Err(refusal(&held))
    }

    /// Lends VFs, or tells what would be done.
    pub async fn acquire_all_of(
        &self,
        call: &Change,
        messages: Vec<v1::AcquireRequest>,
        same_pf: bool,
        dry_run: bool,
    ) -> Result<Vec<v1::AcquireResponse>, Status> {
        // First: each of them may take a question to the kernel to read.
        check_how_many(messages.len()).map_err(|error| refusal(&error))?;
        messages.iter().try_for_each(|message| may_force(call.peer, message).and_then(|()| check_words(message)))?;
        let (peer, known) = (call.peer, OnceLock::new());
        let acquired = self.change(call, move |vfs, caller| {
            let read =
                || messages.iter().map(|message| read_request(message, peer, vfs)).collect::<Result<Vec<_>, _>>();
            let requests = read_once(&known, read)?;
            let acquired = if dry_run {
                vfs.plan_acquire_all(&requests, same_pf, caller)?
            } else {
                vfs.acquire_all(&requests, same_pf, caller)?
            };
            Ok(acquired.iter().map(|acquired| response_to_acquire(vfs, acquired)).collect())
        });
        acquired.await
    }

    /// Waits until VFs no longer come and go because of the start.
    async fn may_change(&self) -> Result<(), Status> {
        self.is_serving()?;
        let (mut recovery, mut phase) = (self.vfs.watch_recovery(), self.phase.clone());
        tokio::select! {
            _ = recovery.wait_for(|recovery| *recovery >= Recovery::Leases) => {}
            _ = phase.wait_for(|phase| matches!(phase, Phase::Draining | Phase::Stopped)) => {}
        }
        self.is_serving()
    }

    /// Waits for something until a deadline, unless the daemon stops. None: it did not come.
    async fn while_serving<T>(&self, deadline: Instant, wanted: impl Future<Output = T>) -> Result<Option<T>, Status> {
        let mut phase = self.phase.clone();
        let came = tokio::select! {
            came = timeout_at(deadline.into(), wanted) => came.ok(),
            _ = phase.wait_for(|phase| matches!(phase, Phase::Draining | Phase::Stopped)) => None,
        };
        self.is_serving().map(|()| came)
    }

    fn is_serving(&self) -> Result<(), Status> {
        match *self.phase.borrow() {
            Phase::Starting | Phase::Serving => Ok(()),
            Phase::Draining | Phase::Stopped => {
                Err(refusal(&VfError::Stopping { tried: "take a call that changes something".to_owned() }))
            }
        }
    }
}

/// What a message asks for. The kernel may have to be asked for it: that is done where waiting holds up nobody.
pub(super) fn read_request(message: &v1::AcquireRequest, peer: Peer, vfs: &Vfs) -> Result<Request, VfError> {
    convert::request(message.clone(), peer, vfs).map_err(VfError::Wrong)
}

/// Reads what a call asks for when it is tried first: a process or a namespace that it names may be another one later.
pub(super) fn read_once<T: Clone>(
    known: &OnceLock<T>,
    read: impl FnOnce() -> Result<T, VfError>,
) -> Result<T, VfError> {
    match known.get() {
        Some(known) => Ok(known.clone()),
        None => read().map(|read| known.get_or_init(|| read).clone()),
    }
}

/// Held by the answer that somebody waits for: it is dropped when he goes.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What there may be too much of.
const UNREAD: &str = "lists under way that nobody reads: read them, or end the programs that asked for them";
/// A message has so much memory for each byte of what is sent of it.
const MEMORY_OF_A_BYTE: usize = 4;
/// What is told of one that was acquired.
const MEMORY_OF_A_LEASE: usize = 16 << 10;
/// Ten minutes: whoever waits longer had better ask again.
const WAIT_MS_MAX: u32 = 600_000;

#[cfg(test)]
mod tests;
