//! Socket files are looked at from time to time: whether each still leads to our socket.

use std::collections::HashMap;

use ferrule_ffi::socket_file::SocketLocation;
use slotmap::Key;

use super::done::SocketOutcome;
use super::keys::{ListenerKey, WireKey};
use super::listener::ListenSocket;
use super::poller::Token;
use super::socket_jobs::{SocketPurpose, directory};
use super::state::State;
use super::wire::Wire;

impl State {
    /// Has looked whether socket files still lead here: somebody may have removed their directory, or bound them himself.
    pub(super) fn check_socket_files(&mut self) {
        let mut lost = Vec::new();
        // Each directory is looked at by one job: there may be a thousand sockets in it.
        let mut checked = HashMap::<_, Vec<_>>::new();
        for (key, listener) in &mut self.listeners {
            match &listener.socket {
                ListenSocket::Open(socket, token) if listener.checked != Some(*token) => {
                    let Some(file) = socket.location() else { continue };
                    listener.checked = Some(*token);
                    let place = checked.entry(directory(&listener.address)).or_default();
                    place.push(((key, *token), file));
                }
                ListenSocket::Lost => lost.push(key),
                ListenSocket::Open(..) | ListenSocket::Binding | ListenSocket::Closing => {}
            }
        }
        for sockets in checked.into_values() {
            let (keys, files): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
            let Some(address) = self.listeners.get(keys[0].0).map(|listener| listener.address.clone()) else {
                continue;
            };
            self.at_socket(SocketPurpose::Check(keys.into()), &address, move || {
                SocketOutcome::Checked(files.iter().map(SocketLocation::leads_here).collect())
            });
        }
        for key in lost {
            self.listener_closed(key);
        }
    }

    /// It is known whether a socket file leads here. If not, it is listened on again, unless that has happened meanwhile.
    pub(super) fn socket_file_checked(&mut self, key: ListenerKey, token: Token, leads_here: bool) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        if listener.checked.take_if(|checked| *checked == token).is_none() {
            return;
        }
        if listener.problem.take().is_some() {
            self.note_socket_problem(key, None);
        }
        let Some(listener) = self.listeners.get_mut(key) else { return };
        if leads_here || !matches!(listener.socket, ListenSocket::Open(_, open) if open == token) {
            return;
        }
        if let ListenSocket::Open(socket, token) = std::mem::replace(&mut listener.socket, ListenSocket::Closing) {
            let address = listener.address.clone();
            tracing::warn!(socket = %address.address, "the socket's path leads elsewhere; listening again");
            self.poller.forget(token, &socket);
            // Whoever comes by the path of before does not get in.
            self.forget_unfinished(key);
            self.close_listener(WireKey::null(), key, &address, socket);
        }
    }

    /// Whether a socket file leads here cannot be found out.
    pub(super) fn socket_file_unknown(&mut self, key: ListenerKey, token: Token, problem: &str) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        if listener.checked.take_if(|checked| *checked == token).is_none() {
            return;
        }
        if listener.problem.as_deref() == Some(problem) {
            return;
        }
        tracing::warn!(problem, "whether its path still leads here is not known");
        listener.problem = Some(problem.to_owned());
        self.note_socket_problem(key, Some(problem));
    }

    /// Every end of a listening socket that has no peer says what is wrong there.
    pub(super) fn note_socket_problem(&mut self, key: ListenerKey, problem: Option<&str>) {
        for id in self.listeners.get(key).map(|listener| listener.ends.all().collect::<Vec<_>>()).unwrap_or_default() {
            let served = self.wires.get_mut(id.wire).and_then(Wire::workers_mut);
            if let Some(end) = served.map(|served| &mut served.ends[id.end]).filter(|end| end.peer().is_none()) {
                end.last_error = problem.map(str::to_owned);
                self.changed.insert(id.wire);
            }
        }
    }
}
