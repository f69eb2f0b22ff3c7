//! Where the API of a daemon listens and who may use it, as its command line and its file say it: the same in every daemon.

use std::path::{Path, PathBuf};

use clap::Args;
use ferrule_ffi::socket_access::{FileMode, Group, SocketAccess, User};

use crate::settings::Table;
use crate::settings::socket_path;

/// Where an API listens, and who may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiSocket {
    /// The socket.
    pub path: PathBuf,
    /// Who may connect: owner and group, unless this says otherwise.
    pub access: SocketAccess,
}

impl ApiSocket {
    /// The keys of a file that say it.
    pub const KEYS: [&str; 4] = ["socket", "socket_owner", "socket_group", "socket_mode"];

    /// A socket for owner and group.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), access: SocketAccess::default() }
    }

    /// What a file says; what it does not say stays. `old_name` is what `socket` was called before, and is still read.
    #[must_use]
    pub fn read(mut self, table: &Table<'_>, old_name: Option<&str>) -> Self {
        let old = old_name.and_then(|name| table.optional(name));
        let new = table.optional("socket");
        if let (Some(old), Some(_)) = (&old, &new) {
            old.wrong("`socket` says it already, and this is its old name: remove it");
        }
        if let Some(field) = new.or(old)
            && let Some(path) = field.text()
        {
            self.path = PathBuf::from(path);
            if let Err(problem) = socket_path(path) {
                field.wrong(problem);
            }
        }
        let access = &mut self.access;
        access.owner = table.optional("socket_owner").and_then(|field| field.parse()).or(access.owner.take());
        access.group = table.optional("socket_group").and_then(|field| field.parse()).or(access.group.take());
        access.mode = table.optional("socket_mode").and_then(|field| field.parse()).or(access.mode);
        self
    }

    /// What the command line says; what it does not say stays.
    #[must_use]
    pub fn with(self, flags: SocketFlags) -> Self {
        let SocketFlags { socket, socket_owner, socket_group, socket_mode } = flags;
        let SocketAccess { owner, group, mode } = self.access;
        let access =
            SocketAccess { owner: socket_owner.or(owner), group: socket_group.or(group), mode: socket_mode.or(mode) };
        Self { path: socket.unwrap_or(self.path), access }
    }

    /// Each of [`Self::KEYS`] with its value in words.
    pub fn in_words(&self) -> [(&'static str, String); 4] {
        fn word(value: Option<&impl ToString>, usual: &str) -> String {
            value.map_or_else(|| usual.to_owned(), ToString::to_string)
        }
        let SocketAccess { owner, group, mode } = &self.access;
        let [socket_key, owner_key, group_key, mode_key] = Self::KEYS;
        [
            (socket_key, self.path.display().to_string()),
            (owner_key, word(owner.as_ref(), "its user")),
            (group_key, word(group.as_ref(), "its group")),
            (mode_key, word(mode.as_ref(), "0660")),
        ]
    }
}

impl AsRef<Path> for ApiSocket {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

/// Where an API listens and who may use it, on a command line. Each overrides the file.
#[derive(Clone, Debug, Default, Args)]
pub struct SocketFlags {
    /// Socket of the API; overrides the file
    #[arg(long, alias = "admin", value_name = "PATH", value_parser = socket_path)]
    socket: Option<PathBuf>,
    /// Name or number of the user that owns the socket's file; overrides the file
    #[arg(long, value_name = "USER")]
    socket_owner: Option<User>,
    /// Name or number of the group of the socket's file; overrides the file
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<Group>,
    /// Permission bits of the socket's file, in octal; overrides the file
    #[arg(long, value_name = "MODE")]
    socket_mode: Option<FileMode>,
}

impl SocketFlags {
    /// Which of [`ApiSocket::KEYS`] are given.
    pub fn given(&self) -> Vec<&'static str> {
        let given = [
            self.socket.is_some(),
            self.socket_owner.is_some(),
            self.socket_group.is_some(),
            self.socket_mode.is_some(),
        ];
        ApiSocket::KEYS.into_iter().zip(given).filter(|(_, given)| *given).map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::settings::parse;

    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        socket: SocketFlags,
    }

    fn read(text: &str) -> Result<ApiSocket, String> {
        let keys: &[&str] = &["socket", "socket_owner", "socket_group", "socket_mode", "admin"];
        let read = parse("f", text, |root, _| {
            let unset = ApiSocket::at("/default");
            match root.table(keys) {
                Some(table) => unset.read(&table, Some("admin")),
                None => unset,
            }
        });
        read.map_err(|errors| errors.to_string())
    }

    fn flags(words: &str) -> Result<SocketFlags, String> {
        let words = ["daemon"].into_iter().chain(words.split_whitespace());
        Flags::try_parse_from(words).map(|flags| flags.socket).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_says_where_and_who_and_a_command_line_overrides_it() {
        let of_file =
            read("socket: /run/a.sock\nsocket_owner: nobody\nsocket_group: 107\nsocket_mode: '0666'\n").unwrap();
        assert_eq!(of_file.in_words().map(|(_, value)| value), ["/run/a.sock", "nobody", "107", "0666"]);
        assert_eq!(read("admin: /run/a.sock\n").unwrap().path, of_file.path, "its old name");
        let flags = flags("--admin /run/b.sock --socket-mode 600").unwrap();
        assert_eq!(flags.given(), ["socket", "socket_mode"]);
        assert_eq!(of_file.with(flags).in_words().map(|(_, value)| value), ["/run/b.sock", "nobody", "107", "0600"]);
    }

    #[test]
    fn a_path_that_no_client_can_connect_to_is_refused_at_once() {
        let long = format!("/{}", "x".repeat(107));
        for path in ["a.sock", &*long] {
            let wanted = "an absolute path of at most 107 bytes is wanted";
            assert!(read(&format!("socket: {path}\n")).unwrap_err().contains(wanted), "{path}");
            assert!(flags(&format!("--socket {path}")).unwrap_err().contains(wanted), "{path}");
        }
        let twice = read("socket: /a\nadmin: /b\n").unwrap_err();
        assert!(twice.starts_with("f:2:8: admin: `socket` says it already"), "{twice}");
        assert!(flags("--socket-mode rw").unwrap_err().contains("octal"));
    }
}
