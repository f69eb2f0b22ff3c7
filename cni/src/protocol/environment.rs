//! What is asked, of which attachment: a plugin's variables.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use super::{CniError, Code};

/// What a runtime asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container to a network.
    Add,
    /// Detach it.
    Del,
    /// Whether it is attached as it was.
    Check,
    /// Whether ADD would be served.
    Status,
    /// Detach all but those that are named.
    Gc,
    /// Which releases are understood.
    Version,
}

impl Command {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version];

    /// As the runtime writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    fn is_of_an_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// One interface of one container. Its names are parts of file names: they were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The container, as its runtime calls it.
    pub container: String,
    /// What its interface is called there.
    pub interface: String,
    /// The file of its network namespace; none: it is gone.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`.
    pub args: BTreeMap<String, String>,
}

impl Attachment {
    /// As another plugin is told of it.
    pub fn variables(&self) -> [(&'static str, OsString); 4] {
        let args: Vec<_> = self.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        [
            ("CNI_CONTAINERID", self.container.clone().into()),
            ("CNI_IFNAME", self.interface.clone().into()),
            ("CNI_NETNS", self.netns.clone().unwrap_or_default().into()),
            ("CNI_ARGS", args.join(";").into()),
        ]
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.interface, self.container)
    }
}

/// A plugin's variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// What is asked.
    pub command: Command,
    /// Of what; none: of a whole network.
    pub attachment: Option<Attachment>,
    /// Folders of plugins.
    pub path: Vec<PathBuf>,
}

impl Environment {
    /// Reads them, and names everything that is wrong at once.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let mut wrong = Vec::new();
        let command = variable("CNI_COMMAND").unwrap_or_default();
        let Some(command) = Command::ALL.into_iter().find(|known| known.word() == command) else {
            let all = Command::ALL.map(Command::word).join(", ");
            return Err(wrong_variables(&[format!("CNI_COMMAND `{command}`, which is none of {all}")]));
        };
        let mut attachment = None;
        if command.is_of_an_attachment() {
            let mut named = |name: &str, is_good: fn(&str) -> bool, wanted: &str| {
                let value = variable(name).unwrap_or_default();
                if !is_good(&value) {
                    wrong.push(format!("{name} `{value}`, where {wanted} is wanted"));
                }
                value
            };
            let container = named(
                "CNI_CONTAINERID",
                is_container,
                "a letter or digit and then letters, digits, `_`, `.` or `-`, 200 in all,",
            );
            let interface = named("CNI_IFNAME", is_interface, "1 to 15 bytes without `/`, `:` and space");
            let netns = variable("CNI_NETNS").map(PathBuf::from);
            if netns.is_none() && command != Command::Del {
                wrong.push("no CNI_NETNS".to_owned());
            }
            let args = read_args(&variable("CNI_ARGS").unwrap_or_default());
            let args = args.unwrap_or_else(|problem| {
                wrong.push(problem);
                BTreeMap::new()
            });
            attachment = Some(Attachment { container, interface, netns, args });
        }
        if wrong.is_empty() {
            let path = variable("CNI_PATH").unwrap_or_default();
            return Ok(Self { command, attachment, path: std::env::split_paths(&path).collect() });
        }
        Err(wrong_variables(&wrong))
    }
}

fn read_args(text: &str) -> Result<BTreeMap<String, String>, String> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| format!("CNI_ARGS `{pair}`, where KEY=VALUE is wanted"))?;
        Ok((key.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

fn wrong_variables(wrong: &[String]) -> CniError {
    let problem =
        format!("the runtime said {}: call this program through a container runtime or cnitool", wrong.join("; "));
    CniError::new(Code::Environment, problem)
}

fn is_container(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.len() <= CONTAINER_MAX && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(is_part)
}

/// Whether the kernel takes this as the name of an interface.
pub fn is_interface(name: &str) -> bool {
    let is_bad = |c: char| matches!(c, '/' | ':') || c.is_whitespace();
    (1..=INTERFACE_MAX).contains(&name.len()) && !matches!(name, "." | "..") && !name.contains(is_bad)
}

/// The kernel's limit of a file name is 255 bytes; an interface and an ending go with it.
const CONTAINER_MAX: usize = 200;
/// `IFNAMSIZ` of linux/if.h, less its end.
const INTERFACE_MAX: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, CniError> {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Environment::read(|name| variables.get(name).map(ToString::to_string))
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let error = read(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "../x"),
            ("CNI_IFNAME", "a name too long"),
            ("CNI_ARGS", "a=b;c"),
        ]);
        let error = error.unwrap_err();
        assert_eq!(error.code, Code::Environment);
        for part in ["CNI_CONTAINERID `../x`", "CNI_IFNAME `a name too long`", "no CNI_NETNS", "CNI_ARGS `c`"] {
            assert!(error.message.contains(part), "{part} in {error}");
        }
        let error = read(&[("CNI_COMMAND", "UPDATE")]).unwrap_err();
        assert!(error.message.contains("CNI_COMMAND `UPDATE`"), "{error}");
    }

    #[test]
    fn a_container_whose_namespace_is_gone_can_be_detached() {
        let variables =
            [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "net1"), ("CNI_PATH", "/a:/b")];
        let environment = read(&variables).unwrap();
        assert_eq!(environment.attachment.unwrap().netns, None);
        assert_eq!(environment.path, [PathBuf::from("/a"), PathBuf::from("/b")]);
    }

    #[test]
    fn arguments_are_pairs() {
        let variables = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "net1"),
            ("CNI_NETNS", "/run/netns/pod"),
            ("CNI_ARGS", "IgnoreUnknown=1;MAC=02:00:00:00:00:01"),
        ];
        let args = read(&variables).unwrap().attachment.unwrap().args;
        assert_eq!(args["MAC"], "02:00:00:00:00:01");
    }
}
