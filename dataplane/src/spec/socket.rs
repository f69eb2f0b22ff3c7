//! Where a control socket is, and who may connect to it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

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

/// Who may connect to a socket that we listen on. It means nothing for an abstract name, which everybody in its
/// namespace may connect to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// The group that the file belongs to; none: what the kernel makes it.
    pub group: Option<Group>,
    /// The permission bits of the file; none: [`SocketAccess::MODE_DEFAULT`].
    pub mode: Option<FileMode>,
}

impl SocketAccess {
    /// Owner and group may connect, as with VPP.
    pub const MODE_DEFAULT: u32 = 0o770;

    /// The permission bits of the file.
    pub fn mode(&self) -> u32 {
        self.mode.map_or(Self::MODE_DEFAULT, FileMode::bits)
    }
}

impl fmt::Display for SocketAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.group {
            Some(group) => write!(f, "group {group} and mode {:o}", self.mode()),
            None => write!(f, "no group and mode {:o}", self.mode()),
        }
    }
}

/// A group by its name or its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Group {
    /// By number.
    Id(u32),
    /// By its name in the group database of this machine, looked up when the socket is made.
    Name(String),
}

impl FromStr for Group {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(id) = text.parse()
            && id != u32::MAX
        {
            return Ok(Self::Id(id));
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.$".contains(&byte);
        if text.is_empty() || text.len() > GROUP_MAX || text.starts_with('-') || !text.bytes().all(is_name) {
            return Err(SpecError::new(
                "group",
                text,
                "the name or the number of a group is wanted, as in `qemu` or `107`",
            ));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Permission bits in octal, as `chmod` takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(u32);

impl FileMode {
    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for FileMode {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let octal = (3..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        u32::from_str_radix(digits, 8)
            .ok()
            .filter(|&bits| octal && bits <= 0o777)
            .map(Self)
            .ok_or_else(|| SpecError::new("mode", text, "permission bits in octal are wanted, as in `0660`"))
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// `sun_path` has 108 bytes; one is the leading NUL of an abstract name.
const ABSTRACT_MAX: usize = 107;
/// As `useradd` has it.
const GROUP_MAX: usize = 32;

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
            Some("means something for a path only: an abstract name has neither group nor mode")
        }
    };
    // `mode` of a memif end is what its frames begin with.
    let fields = [("group", access.group.is_some()), ("socket_mode", access.mode.is_some())];
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

    #[test]
    fn a_group_is_a_name_or_a_number_and_a_mode_is_octal() {
        assert_eq!("107".parse(), Ok(Group::Id(107)));
        assert_eq!("libvirt-qemu".parse(), Ok(Group::Name("libvirt-qemu".into())));
        for bad in ["", "-1", "a b", "a:b", &"x".repeat(33)] {
            assert!(bad.parse::<Group>().is_err(), "{bad}");
        }
        for (good, bits) in [("0660", 0o660), ("770", 0o770), ("0o600", 0o600)] {
            assert_eq!(good.parse::<FileMode>().map(FileMode::bits), Ok(bits));
        }
        for bad in ["", "66", "0880", "1777", "00660", "rw", "+660"] {
            assert!(bad.parse::<FileMode>().is_err(), "{bad}");
        }
        assert_eq!(SocketAccess::default().mode(), 0o770);
    }
}
