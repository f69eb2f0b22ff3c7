//! What the messages of all kinds of ends share, both ways.

use std::fmt;
use std::str::FromStr;

use ferrule_dataplane::spec::{FieldError, FileMode, NetNs, Process, Role, SocketAccess};

use dpdk_forwarder_client::v1;
use v1::net_ns::Place;

/// Collects what is wrong with the fields of one message.
#[derive(Default)]
pub(super) struct Reader {
    /// The end that is being read.
    pub(super) path: String,
    pub(super) errors: Vec<FieldError>,
}

impl Reader {
    pub(super) fn wrong(&mut self, field: &str, problem: impl Into<String>) {
        let field = if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) };
        self.errors.push(FieldError { field, problem: problem.into() });
    }

    pub(super) fn unknown<T>(&mut self, field: &str, number: i32, stand_in: T) -> T {
        self.wrong(field, format!("{number} is none of its values"));
        stand_in
    }

    pub(super) fn parse<T: FromStr<Err: fmt::Display>>(&mut self, field: &str, text: &str) -> Option<T> {
        text.parse().map_err(|error| self.wrong(field, format!("{error}"))).ok()
    }

    /// As [`Self::parse`]; an empty text is none.
    pub(super) fn optional<T: FromStr<Err: fmt::Display>>(&mut self, field: &str, text: &str) -> Option<T> {
        if text.is_empty() { None } else { self.parse(field, text) }
    }

    pub(super) fn role(&mut self, field: &str, role: i32) -> Option<Role> {
        match v1::Role::try_from(role) {
            Ok(v1::Role::Server) => Some(Role::Server),
            Ok(v1::Role::Client) => Some(Role::Client),
            Ok(v1::Role::Unspecified) => {
                self.wrong(field, "missing; SERVER or CLIENT is wanted");
                None
            }
            Err(_) => self.unknown(field, role, None),
        }
    }

    pub(super) fn netns(&mut self, field: &str, netns: &v1::NetNs) -> Option<NetNs> {
        match &netns.place {
            Some(Place::Path(path)) if path.starts_with('/') && !path.contains('\0') => {
                return Some(NetNs::Path(path.into()));
            }
            Some(Place::Process(process)) if (1..=i32::MAX.cast_unsigned()).contains(&process.pid) => {
                return Some(NetNs::Process(Process { pid: process.pid, start_time: process.start_time }));
            }
            Some(Place::Path(path)) => self.wrong(field, format!("`{path}`; an absolute path is wanted")),
            Some(Place::Process(process)) => {
                self.wrong(field, format!("{}; the number of a process is wanted", process.pid));
            }
            None => self.wrong(field, "a path or a process is wanted; leave it out for the forwarder's own namespace"),
        }
        None
    }

    pub(super) fn access(&mut self, kind: &str, access: Option<&v1::SocketAccess>) -> SocketAccess {
        let Some(access) = access else { return SocketAccess::default() };
        let mode =
            access.mode.and_then(|bits| self.parse::<FileMode>(&format!("{kind}.socket_mode"), &format!("{bits:04o}")));
        SocketAccess {
            owner: self.optional(&format!("{kind}.socket_owner"), &access.owner),
            group: self.optional(&format!("{kind}.socket_group"), &access.group),
            mode,
        }
    }
}

pub(super) fn role_to_proto(role: Role) -> v1::Role {
    match role {
        Role::Server => v1::Role::Server,
        Role::Client => v1::Role::Client,
    }
}

pub(super) fn netns_to_proto(netns: &NetNs) -> v1::NetNs {
    let place = match netns {
        NetNs::Process(Process { pid, start_time }) => {
            Place::Process(v1::Process { pid: *pid, start_time: *start_time })
        }
        // An open descriptor means something in this process only.
        NetNs::Path(_) | NetNs::Open(_) => Place::Path(netns.path().to_string_lossy().into_owned()),
    };
    v1::NetNs { place: Some(place) }
}

pub(super) fn access_to_proto(access: &SocketAccess) -> Option<v1::SocketAccess> {
    let SocketAccess { owner, group, mode } = access;
    (*access != SocketAccess::default()).then(|| v1::SocketAccess {
        owner: owner.as_ref().map(ToString::to_string).unwrap_or_default(),
        group: group.as_ref().map(ToString::to_string).unwrap_or_default(),
        mode: mode.map(FileMode::bits),
    })
}
