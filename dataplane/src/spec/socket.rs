//! Where a control socket is, and who may connect to it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub use ferrule_ffi::socket_access::{FileMode, Group, SocketAccess, User};
use ferrule_ffi::socket_file;

use super::{FieldError, Role, SpecError};

/// The address of a Unix socket: a path, or an abstract name written with a leading `@`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SocketAddress {
    /// A file.
    Path(PathBuf),
    /// A name in the abstract space of a network namespace, without the `@`.
    Abstract(String),
}

impl FromStr for SocketAddress {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let wrong = |problem: String| Err(SpecError::new("socket", text, problem));
        if text.contains('\0') {
            return wrong("it holds a NUL byte".to_owned());
        }
        let Some(name) = text.strip_prefix('@') else {
            return match socket_file::check_path(text.as_ref()) {
                Ok(()) => Ok(Self::Path(PathBuf::from(text))),
                Err(problem) => wrong(format!("{problem} (an abstract name begins with `@`)")),
            };
        };
        match name.len() {
            0 => wrong("an abstract name needs something behind the `@`".to_owned()),
            length @ ..=ABSTRACT_MAX => Ok(Self::Abstract(name[..length].to_owned())),
            length => wrong(format!("{length} bytes; an abstract name has at most {ABSTRACT_MAX}")),
        }
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

/// `sun_path` has 108 bytes; one is the leading NUL of an abstract name.
const ABSTRACT_MAX: usize = 107;

/// What is wrong with who may connect, where nobody can.
pub(crate) fn check_access(
    kind: &str,
    access: &SocketAccess,
    socket: &SocketAddress,
    role: Role,
) -> impl Iterator<Item = FieldError> {
    let problem = match (role, socket) {
        (Role::Server, SocketAddress::Path(_)) => None,
        (Role::Client, _) => Some("means something for a server end only: as client the socket is the peer's"),
        (Role::Server, SocketAddress::Abstract(_)) => {
            Some("means something for a path only: an abstract name has no owner, group or mode")
        }
    };
    // `mode` of a memif end is what its frames begin with.
    let owner = ("socket_owner", access.owner.is_some());
    let fields = [owner, ("socket_group", access.group.is_some()), ("socket_mode", access.mode.is_some())];
    let given = fields.into_iter().filter_map(|(field, given)| given.then_some(field));
    given.filter_map(move |field| Some(FieldError::new(&format!("{kind}.{field}"), problem?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_address_is_a_path_or_an_abstract_name() {
        assert_eq!("/run/m.sock".parse(), Ok(SocketAddress::Path("/run/m.sock".into())));
        assert_eq!("@/run/m.sock".parse(), Ok(SocketAddress::Abstract("/run/m.sock".into())));
        let of_a_pod =
            format!("/var/lib/kubelet/pods/{}/volumes/kubernetes.io~empty-dir/sockets/memif.sock", "x".repeat(36));
        assert_eq!(of_a_pod.parse(), Ok(SocketAddress::Path(of_a_pod.clone().into())), "a path has no 107 bytes limit");
        let too_long = format!("/{}", "x".repeat(108));
        for bad in
            ["", "@", "relative.sock", "/", "/run/", "/run/..", "/a\0b", &too_long, &format!("@{}", "x".repeat(108))]
        {
            assert!(bad.parse::<SocketAddress>().is_err(), "{bad}");
        }
    }
}
