//! Who may connect to a socket that has a file: its owner, its group and its permission bits, as people write them.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::socket_file::Access;

/// Who may connect to a socket that we listen on. It means nothing for an abstract name, which everybody in its
/// namespace may connect to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// The user that the file belongs to; none: the one that this process runs as.
    pub owner: Option<User>,
    /// The group that the file belongs to; none: what the kernel makes it.
    pub group: Option<Group>,
    /// The permission bits of the file; none: what is usual for such a socket.
    pub mode: Option<FileMode>,
}

impl SocketAccess {
    /// The same in numbers, as the user and group databases of this machine have them now. The error says what is not there.
    pub fn resolve(&self, usual_mode: u32) -> Result<Access, String> {
        let owner = self.owner.as_ref().map(User::id).transpose()?;
        let group = self.group.as_ref().map(Group::id).transpose()?;
        Ok(Access { mode: self.mode_or(usual_mode), owner, group })
    }

    /// The permission bits of the file.
    pub fn mode_or(&self, usual: u32) -> u32 {
        self.mode.map_or(usual, FileMode::bits)
    }
}

/// What is said of it, and what is not.
impl fmt::Display for SocketAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, group, mode } = self;
        let said = [
            owner.as_ref().map(|owner| format!("owner {owner}")),
            group.as_ref().map(|group| format!("group {group}")),
            mode.map(|mode| format!("mode {mode}")),
        ];
        let said: Vec<_> = said.into_iter().flatten().collect();
        if said.is_empty() { f.write_str("the usual owner, group and mode") } else { f.write_str(&said.join(", ")) }
    }
}

/// A user by its name or its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// By number.
    Id(u32),
    /// By its name in the user database of this machine, looked up when the socket is made.
    Name(String),
}

impl User {
    fn id(&self) -> Result<u32, String> {
        match self {
            Self::Id(id) => Ok(*id),
            Self::Name(name) => match nix::unistd::User::from_name(name) {
                Ok(Some(found)) => Ok(found.uid.as_raw()),
                Ok(None) => Err(format!("there is no user `{name}` here; in a container, give its number")),
                Err(errno) => Err(format!("look up the user `{name}`: {errno}")),
            },
        }
    }
}

impl FromStr for User {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        let wanted = "the name or the number of a user is wanted, as in `qemu` or `107`";
        match number_or_name(text) {
            Some(Ok(id)) => Ok(Self::Id(id)),
            Some(Err(name)) => Ok(Self::Name(name.to_owned())),
            None => Err(AccessError::new("user", text, wanted)),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => f.write_str(name),
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

impl Group {
    fn id(&self) -> Result<u32, String> {
        match self {
            Self::Id(id) => Ok(*id),
            Self::Name(name) => match nix::unistd::Group::from_name(name) {
                Ok(Some(found)) => Ok(found.gid.as_raw()),
                Ok(None) => Err(format!("there is no group `{name}` here; in a container, give its number")),
                Err(errno) => Err(format!("look up the group `{name}`: {errno}")),
            },
        }
    }
}

impl FromStr for Group {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        let wanted = "the name or the number of a group is wanted, as in `qemu` or `107`";
        match number_or_name(text) {
            Some(Ok(id)) => Ok(Self::Id(id)),
            Some(Err(name)) => Ok(Self::Name(name.to_owned())),
            None => Err(AccessError::new("group", text, wanted)),
        }
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

/// None: it is neither.
fn number_or_name(text: &str) -> Option<Result<u32, &str>> {
    if text.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(id) = text.parse()
        && id != u32::MAX
    {
        return Some(Ok(id));
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.$".contains(&byte);
    let is_good = !text.is_empty() && text.len() <= NAME_MAX && !text.starts_with('-') && text.bytes().all(is_name);
    is_good.then_some(Err(text))
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
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let octal = (3..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        u32::from_str_radix(digits, 8)
            .ok()
            .filter(|&bits| octal && bits <= 0o777)
            .map(Self)
            .ok_or_else(|| AccessError::new("mode", text, "permission bits in octal are wanted, as in `0660`"))
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// A text that is no user, group or mode.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{kind} `{text}`: {wanted}")]
pub struct AccessError {
    kind: &'static str,
    text: String,
    wanted: &'static str,
}

impl AccessError {
    fn new(kind: &'static str, text: &str, wanted: &'static str) -> Self {
        Self { kind, text: text.to_owned(), wanted }
    }
}

/// As `useradd` and `groupadd` have it.
const NAME_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_names_or_numbers_and_a_mode_is_octal() {
        assert_eq!("107".parse(), Ok(Group::Id(107)));
        assert_eq!("libvirt-qemu".parse(), Ok(Group::Name("libvirt-qemu".into())));
        assert_eq!("107".parse(), Ok(User::Id(107)));
        assert_eq!("nobody".parse(), Ok(User::Name("nobody".into())));
        for bad in ["", "-1", "a b", "a:b", &"x".repeat(33)] {
            assert!(bad.parse::<Group>().is_err() && bad.parse::<User>().is_err(), "{bad}");
        }
        for (good, bits) in [("0660", 0o660), ("770", 0o770), ("0o600", 0o600)] {
            assert_eq!(good.parse::<FileMode>().map(FileMode::bits), Ok(bits));
        }
        for bad in ["", "66", "0880", "1777", "00660", "rw", "+660"] {
            assert!(bad.parse::<FileMode>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_looked_up_and_what_is_not_there_is_said() {
        let access = |owner: &str, group: &str| SocketAccess {
            owner: owner.parse().ok(),
            group: group.parse().ok(),
            mode: None,
        };
        assert_eq!(access("root", "0").resolve(0o660), Ok(Access { mode: 0o660, owner: Some(0), group: Some(0) }));
        assert_eq!(SocketAccess::default().resolve(0o770), Ok(Access { mode: 0o770, owner: None, group: None }));
        assert!(access("no-such-user", "0").resolve(0).unwrap_err().contains("there is no user `no-such-user`"));
        assert!(access("0", "no-such-group").resolve(0).unwrap_err().contains("there is no group `no-such-group`"));
    }
}
