//! The settings of a hop: two ends, and the function between them.
//!
//! ```yaml
//! name: firewall
//! metrics: 127.0.0.1:9101
//! client: { memif: { socket: /run/ferrule/c.sock, role: client } }
//! network: { vhost-user: { socket: /run/ferrule/n.sock, role: client } }
//! firewall:
//!   rules:
//!     - { name: web, action: reflect, protocol: tcp, ports: 80 }
//! ```

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use ferrule_daemon::page::parse_address;
use ferrule_daemon::settings::{Field, FileSettings, LoadError, SettingsFile, Table, decode, parse};
use ferrule_dataplane::spec::{MemifSpec, Mode, QUEUES_MAX, Role, SocketAddress};
use ferrule_endpoints::end::EndSpec;
use ferrule_endpoints::vhost_user::FrontendSpec;

use crate::firewall::file::read_text;
use crate::firewall::file::{acl, one_line, own};
use crate::firewall::rule::Policy;
use crate::nat44::settings::{self, NatSettings};
use crate::packet::Link;

/// The settings of a hop, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// As metrics call it.
    pub name: String,
    /// Where Prometheus asks.
    pub metrics: Option<SocketAddr>,
    /// The client's end and the network's.
    pub ends: [HopEnd; 2],
    /// What is between them.
    pub function: FunctionSettings,
}

/// An end, in a form that can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HopEnd {
    /// A memif interface.
    Memif(MemifSpec),
    /// A vhost-user frontend.
    Vhost(FrontendSpec),
}

/// Which function, and what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FunctionSettings {
    /// Everything passes.
    Passthrough,
    /// Rules decide.
    Firewall {
        /// Which.
        policy: Policy,
        /// Sessions at a time.
        sessions_max: usize,
    },
    /// Clients get addresses of a pool.
    Nat44(NatSettings),
}

/// The settings and the file that they came from.
pub type ConfigFile = SettingsFile<Config>;

impl Config {
    /// What frames begin with.
    pub fn link(&self) -> Link {
        match &self.ends[0] {
            HopEnd::Memif(memif) if memif.mode == Mode::Ip => Link::Ip,
            _ => Link::Ethernet,
        }
    }

    /// The settings that differ and that a running hop cannot take: it is to be started again.
    pub fn needs_restart(&self, newer: &Self) -> Vec<&'static str> {
        let mut needs = Vec::new();
        let mut note = |name, differs| needs.extend(Some(name).filter(|_| differs));
        note("name", self.name != newer.name);
        note("metrics", self.metrics != newer.metrics);
        note("client", self.ends[0] != newer.ends[0]);
        note("network", self.ends[1] != newer.ends[1]);
        let sessions = |config: &Self| match &config.function {
            FunctionSettings::Firewall { sessions_max, .. } => Some(*sessions_max),
            FunctionSettings::Nat44(settings) => Some(settings.sessions_max),
            FunctionSettings::Passthrough => None,
        };
        if std::mem::discriminant(&self.function) == std::mem::discriminant(&newer.function) {
            note("sessions", sessions(self) != sessions(newer));
        } else {
            note("the function", true);
        }
        needs
    }
}

impl HopEnd {
    /// As it is opened.
    pub fn spec(&self) -> EndSpec {
        match self {
            Self::Memif(memif) => EndSpec::Memif(memif.clone()),
            Self::Vhost(vhost) => EndSpec::Vhost(vhost.clone()),
        }
    }

    fn mode(&self) -> Mode {
        match self {
            Self::Memif(memif) => memif.mode,
            Self::Vhost(_) => Mode::Ethernet,
        }
    }
}

impl FileSettings for Config {
    const FILE: &'static str = "settings of the function";

    fn from_bytes(path: &Path, contents: &[u8]) -> Result<Self, LoadError> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let config = parse(&path.display().to_string(), decode(path, contents)?, |field, _| read(field, directory))?;
        // What could not be read was noted.
        Ok(config.unwrap_or_else(stand_in))
    }
}

fn read(field: &Field<'_>, directory: &Path) -> Option<Config> {
    let table = field.table(&["name", "metrics", "client", "network", "passthrough", "firewall", "nat44"])?;
    let name = table.required("name", "a name as metrics and the log are to call it").and_then(|field| field.text());
    let metrics = table.optional("metrics").map_or(Some(None), |field| {
        let text = field.text()?;
        parse_address(text).map_err(|wanted| field.wrong(format!("`{text}`; {wanted}"))).ok().map(Some)
    });
    let what = "an end: `memif: {..}` or `vhost-user: {..}`";
    let ends = ["client", "network"].map(|key| table.required(key, what).and_then(|field| read_end(&field)));
    let function = read_function(field, &table, directory);
    let [Some(client), Some(network)] = ends else { return None };
    if client.mode() != network.mode() {
        field.wrong_below("network", "its frames begin otherwise than the client's; give both ends one mode");
    }
    if let (Some(FunctionSettings::Nat44(_)), Mode::Ip) = (&function, client.mode()) {
        field.wrong_below("nat44", "it is a router between two Ethernet networks; give both ends `mode: ethernet`");
    }
    Some(Config { name: name?.to_owned(), metrics: metrics?, ends: [client, network], function: function? })
}

fn read_function(field: &Field<'_>, table: &Table<'_>, directory: &Path) -> Option<FunctionSettings> {
    let given: Vec<_> = FUNCTIONS.iter().filter_map(|name| Some((*name, table.optional(name)?))).collect();
    match &given[..] {
        [("passthrough", passthrough)] => passthrough.table(&[]).map(|_| FunctionSettings::Passthrough),
        [("firewall", firewall)] => read_firewall(firewall, directory),
        [(_, nat44)] => settings::read(nat44).map(FunctionSettings::Nat44),
        [] => {
            field.wrong("no function; add `passthrough: {}`, `firewall: {..}` or `nat44: {..}`");
            None
        }
        [(first, _), (_, second), ..] => {
            second.wrong(format!("a hop has one function; remove this or `{first}`"));
            None
        }
    }
}

fn read_firewall(field: &Field<'_>, directory: &Path) -> Option<FunctionSettings> {
    let table = field.table(&["sessions", "rules", "acl", "aclRules", "file"])?;
    let sessions_max =
        table.optional("sessions").map_or(Some(SESSIONS_DEFAULT), |field| field.number(1..=SESSIONS_MAX));
    let forms = ["rules", "acl", "aclRules", "file"].map(|key| table.optional(key));
    let policy = match &forms {
        [Some(rules), None, None, None] => Some(own::read(rules)),
        [None, Some(map), None, None] => Some(acl::read(map)),
        [None, None, Some(lines), None] => Some(one_line::read(lines)),
        [None, None, None, Some(file)] => read_file(file, directory),
        [None, None, None, None] => {
            field.wrong("no rules; add `rules`, `acl` (the map of cmd-nse-firewall-vpp), `aclRules` or `file`; `rules: []` denies everything");
            None
        }
        _ => {
            field.wrong("rules in more than one form; keep one of `rules`, `acl`, `aclRules` and `file`");
            None
        }
    };
    Some(FunctionSettings::Firewall { policy: policy?, sessions_max: sessions_max? })
}

/// Rules in a file of their own, beside this one.
fn read_file(field: &Field<'_>, directory: &Path) -> Option<Policy> {
    let path = directory.join(field.text()?);
    let name = path.display().to_string();
    let problem = match fs::read_to_string(&path) {
        Ok(text) => match read_text(&name, &text) {
            Ok(policy) => return Some(policy),
            Err(errors) => errors.lines().collect::<Vec<_>>().join("; "),
        },
        Err(error) => format!("read {name}: {error}"),
    };
    field.wrong(problem);
    None
}

fn read_end(field: &Field<'_>) -> Option<HopEnd> {
    let table = field.table(&["memif", "vhost-user"])?;
    match table.only() {
        Some(("memif", memif)) => read_memif(&memif).map(HopEnd::Memif),
        Some(("vhost-user", vhost)) => read_vhost_user(&vhost).map(HopEnd::Vhost),
        Some(_) => None,
        None => {
            field.wrong("an end is one of `memif: {..}` and `vhost-user: {..}`");
            None
        }
    }
}

fn read_memif(field: &Field<'_>) -> Option<MemifSpec> {
    let table = field.table(&["socket", "role", "id", "secret", "mode", "queues", "ring", "buffer"])?;
    let (socket, role) = read_socket(&table)?;
    let mut memif = MemifSpec::new(socket, role);
    let number = |key, max: u64| table.optional(key).map(|field: Field<'_>| field.number::<u32>(0..=max));
    if let Some(id) = number("id", u64::from(u32::MAX)) {
        memif.id = id?;
    }
    if let Some(secret) = table.optional("secret") {
        memif.secret = Some(secret.parse()?);
    }
    if let Some(mode) = table.optional("mode") {
        memif.mode = mode.choice(&[("ethernet", Mode::Ethernet), ("ip", Mode::Ip)])?;
    }
    if let Some(queues) = table.optional("queues") {
        memif.queues = queues.number(1..=u64::from(QUEUES_MAX))?;
    }
    if let Some(ring) = number("ring", u64::from(u32::MAX)) {
        memif.ring = ring?;
    }
    if let Some(buffer) = number("buffer", u64::from(u32::MAX)) {
        memif.buffer = buffer?;
    }
    Some(memif)
}

fn read_vhost_user(field: &Field<'_>) -> Option<FrontendSpec> {
    let table = field.table(&["socket", "role", "queues"])?;
    let (socket, role) = read_socket(&table)?;
    let mut frontend = FrontendSpec { listens: role == Role::Server, ..FrontendSpec::new(socket) };
    if let Some(queues) = table.optional("queues") {
        frontend.queues = queues.number(1..=u64::from(QUEUES_MAX))?;
    }
    Some(frontend)
}

fn read_socket(table: &Table<'_>) -> Option<(SocketAddress, Role)> {
    let socket =
        table.required("socket", "a path or an abstract name as in `\"@name\"`").and_then(|field| field.parse());
    let role = table
        .required("role", "`server` (we listen) or `client` (we connect)")
        .and_then(|field| field.choice(&[("server", Role::Server), ("client", Role::Client)]));
    Some((socket?, role?))
}

/// Of a file that is refused.
fn stand_in() -> Config {
    let nowhere = || HopEnd::Memif(MemifSpec::new(SocketAddress::Abstract("none".to_owned()), Role::Client));
    Config { name: String::new(), metrics: None, ends: [nowhere(), nowhere()], function: FunctionSettings::Passthrough }
}

const FUNCTIONS: [&str; 3] = ["passthrough", "firewall", "nat44"];
/// As VPP has it.
const SESSIONS_DEFAULT: usize = 500_000;
/// Some 200 bytes each.
const SESSIONS_MAX: u64 = 16_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> Result<Config, Vec<String>> {
        Config::from_bytes(Path::new("hop.yaml"), text.as_bytes()).map_err(|error| error.lines())
    }

    const GOOD: &str = "
name: firewall
metrics: 127.0.0.1:0
client: { memif: { socket: \"@c\", role: client, id: 3, mode: ethernet, queues: 2 } }
network: { vhost-user: { socket: /run/n.sock, role: server } }
firewall: { sessions: 10, rules: [{ name: all, action: permit }] }
";

    #[test]
    fn a_hop_has_two_ends_and_a_function() {
        let config = read_all(GOOD).unwrap();
        let [HopEnd::Memif(memif), HopEnd::Vhost(vhost)] = &config.ends else { panic!("{config:?}") };
        assert_eq!((memif.id, memif.queues, memif.role, vhost.listens), (3, 2, Role::Client, true));
        let FunctionSettings::Firewall { policy, sessions_max: 10 } = &config.function else { panic!("{config:?}") };
        assert_eq!(policy.rules[0].name, "all");
    }

    #[test]
    fn rules_may_be_in_a_file_of_their_own_in_any_form() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hop.yaml");
        let text = GOOD.replace("rules: [{ name: all, action: permit }]", "file: rules.yaml");
        let load = || Config::from_bytes(&path, text.as_bytes()).map_err(|error| error.lines());
        let wrong = load().unwrap_err();
        assert!(wrong[0].contains("firewall.file: read ") && wrong[0].contains("rules.yaml"), "{wrong:?}");
        for rules in ["rules: []", "aclRules: { a: action=deny }", "a: { ispermit: 1 }"] {
            fs::write(directory.path().join("rules.yaml"), rules).unwrap();
            assert!(load().is_ok(), "{rules}");
        }
        fs::write(directory.path().join("rules.yaml"), "a: { ispermit: 7 }").unwrap();
        assert!(load().unwrap_err()[0].contains("rules.yaml:1:16: a.ispermit"), "{:?}", load());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_cure() {
        for (old, new, place, problem) in [
            ("name: firewall\n", "", "name", "missing"),
            ("role: server", "role: master", "network.vhost-user.role", "`server`"),
            ("mode: ethernet", "mode: ip", "network", "give both ends one mode"),
            ("firewall: {", "passthrough: {}\nfirewall: {", "firewall", "one function"),
            ("rules: [{ name: all, action: permit }]", "", "firewall", "`rules: []` denies everything"),
            ("sessions: 10", "sessions: 0", "firewall.sessions", "a number from 1"),
            ("sessions: 10", "acl: {}", "firewall", "keep one of"),
            ("client: { memif", "client: { memfi", "client.memfi", "did you mean `memif`?"),
            ("127.0.0.1:0", "nowhere", "metrics", "an address and a port"),
        ] {
            assert!(GOOD.contains(old));
            let lines = read_all(&GOOD.replace(old, new)).unwrap_err();
            assert!(lines.iter().any(|line| line.contains(place) && line.contains(problem)), "{new}: {lines:#?}");
        }
    }

    #[test]
    fn what_a_running_hop_cannot_take_is_named() {
        let config = read_all(GOOD).unwrap();
        let with = |old: &str, new: &str| config.needs_restart(&read_all(&GOOD.replace(old, new)).unwrap());
        assert!(with("action: permit", "action: deny").is_empty());
        assert_eq!(with("id: 3", "id: 4"), ["client"]);
        assert_eq!(with("sessions: 10", "sessions: 11"), ["sessions"]);
        assert_eq!(
            with("firewall: { sessions: 10, rules: [{ name: all, action: permit }] }", "passthrough: {}"),
            ["the function"]
        );
    }
}
