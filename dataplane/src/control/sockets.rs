//! Work at the addresses of sockets: binding, connecting, looking whether a path still leads here, removing a file.
//!
//! It may take for ever ([`super::socket_jobs`]). So threads do it, and each job has a deadline, after which control goes on
//! without it and says why.

use std::time::Instant;

use slotmap::Key;

use super::done::SocketOutcome;
use super::jobs::{ReapAccount, SocketTask};
use super::keys::{ListenerKey, SocketJobId, WireKey};
use super::listen_address::ListenAddress;
use super::poller::Timer;
use super::socket_jobs::{ANSWER_MAX, SocketPurpose, Unanswered};
use super::state::State;
use crate::socket::{Listener, SocketError};
use crate::spec::SocketAddress;

impl State {
    /// Has a job done at a socket's address.
    pub(super) fn at_socket(
        &mut self,
        purpose: SocketPurpose,
        address: &ListenAddress,
        task: impl FnOnce() -> SocketOutcome + Send + 'static,
    ) -> SocketJobId {
        let (id, begun) = self.sockets.submit(purpose, address, Box::new(task));
        self.poller.timers.set(Timer::SocketJob(id), Some(Instant::now() + ANSWER_MAX));
        self.begin_socket_jobs(begun);
        id
    }

    /// Closes a listening socket, of which a wire was the last.
    pub(super) fn close_listener(
        &mut self,
        wire: WireKey,
        key: ListenerKey,
        address: &ListenAddress,
        listener: Listener,
    ) {
        self.at_socket(SocketPurpose::Close(wire, key), address, || {
            drop(listener);
            SocketOutcome::Closed
        });
    }

    /// A job at a socket's address has come to its end.
    pub(super) fn socket_job_done(&mut self, id: SocketJobId, outcome: SocketOutcome) {
        self.poller.timers.set(Timer::SocketJob(id), None);
        let (purpose, begun) = self.sockets.finish(id);
        self.begin_socket_jobs(begun);
        match (purpose, outcome) {
            (Some(SocketPurpose::Bind(key)), SocketOutcome::Bound(_, bound)) if self.listeners.contains_key(key) => {
                self.listener_bound(key, bound);
            }
            (Some(SocketPurpose::Connect(end)), SocketOutcome::Connected(connected)) => {
                self.connected(end, id, connected);
            }
            (Some(SocketPurpose::Check(sockets)), SocketOutcome::Checked(lead_here)) => {
                for (&(key, token), leads_here) in sockets.iter().zip(lead_here) {
                    self.socket_file_checked(key, token, leads_here);
                }
            }
            (Some(SocketPurpose::Close(wire, key)), _) => {
                self.listener_closed(key);
                self.part_closed(wire);
            }
            // It was given up before.
            (None | Some(SocketPurpose::Bind(_)), SocketOutcome::Bound(address, bound)) => {
                if let Ok(listener) = bound {
                    self.close_listener(WireKey::null(), ListenerKey::null(), &address, listener);
                }
            }
            (None, SocketOutcome::Connected(socket)) => self.jobs.reap(&ReapAccount::default(), socket),
            (Some(purpose), SocketOutcome::Panicked(address)) => {
                self.socket_job_failed(id, purpose, address, |address| SocketError::Panicked { address });
            }
            (None, _) => {}
            (Some(_), _) => unreachable!("a job has the outcome of its kind"),
        }
    }

    /// The time of a job at a socket's address is over.
    pub(super) fn socket_job_is_late(&mut self, id: SocketJobId) {
        if self.sockets.expire(id) {
            self.poller.timers.set(Timer::SocketJob(id), Some(Instant::now() + ANSWER_MAX));
        }
    }

    /// Tells whoever waits for a directory that does not answer, or for a thread.
    pub(super) fn tell_unanswered(&mut self) {
        while let Some(Unanswered { id, purpose, address, delay }) = self.sockets.next_unanswered() {
            if self.sockets.address(id).is_none() {
                self.poller.timers.set(Timer::SocketJob(id), None);
            }
            self.socket_job_failed(id, purpose, address, |address| delay.error(address));
        }
    }

    fn socket_job_failed(
        &mut self,
        id: SocketJobId,
        purpose: SocketPurpose,
        address: SocketAddress,
        error: impl Fn(SocketAddress) -> SocketError,
    ) {
        match purpose {
            SocketPurpose::Bind(key) => self.listener_bound(key, Err(error(address))),
            SocketPurpose::Connect(end) => self.connected(end, id, Err(error(address))),
            SocketPurpose::Check(sockets) => {
                for &(key, token) in sockets.iter() {
                    let address = self.listeners.get(key).map(|listener| listener.address.address.clone());
                    if let Some(address) = address {
                        self.socket_file_unknown(key, token, &error(address).to_string());
                    }
                }
            }
            SocketPurpose::Close(wire, key) => {
                let error = error(address);
                tracing::warn!(%error, "the socket's file is removed when that is over");
                self.listener_closed(key);
                self.part_closed(wire);
            }
        }
    }

    fn begin_socket_jobs(&mut self, begun: Vec<(SocketJobId, SocketTask)>) {
        for (id, task) in begun {
            self.poller.timers.set(Timer::SocketJob(id), Some(Instant::now() + ANSWER_MAX));
            if let Some(address) = self.sockets.address(id) {
                self.jobs.at_socket(id, address, task);
            }
        }
    }
}
