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

use ferrule_daemon::ApiSocket;
use ferrule_daemon::page::parse_address;
use ferrule_daemon::settings::{Field, FileSettings, LoadError, SettingsFile, Table, decode, parse};
use ferrule_dataplane::spec::Mode;

use crate::agent;
use crate::firewall::file::read_text;
use crate::firewall::file::{acl, one_line, own};
use crate::firewall::rule::Policy;
use crate::packet::Link;
use crate::{nat44, nptv6};

pub use end::HopEnd;
use end::{read_end, read_kernel};
pub use function::FunctionSettings;

pub(crate) mod end;
pub(crate) mod function;

/// The settings of a hop, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// As metrics call it.
    pub name: String,
    /// Where Prometheus asks.
    pub metrics: Option<SocketAddr>,
    /// Where `ferrule trace` asks.
    pub socket: Option<ApiSocket>,
    /// The client's end and the network's; none: the mesh says for each connection.
    pub ends: Option<[HopEnd; 2]>,
    /// What is between them.
    pub function: FunctionSettings,
}

/// The settings and the file that they came from.
pub type ConfigFile = SettingsFile<Config>;

impl Config {
    /// What frames begin with.
    pub fn link(&self) -> Link {
        match &self.ends {
            Some([HopEnd::Memif(memif), _]) if memif.mode == Mode::Ip => Link::Ip,
            _ => Link::Ethernet,
        }
    }

    /// What the function is called.
    pub fn word(&self) -> &'static str {
        match self.function {
            FunctionSettings::Passthrough => "passthrough",
            FunctionSettings::Firewall { .. } => "firewall",
            FunctionSettings::Nat44(_) => "nat44",
            FunctionSettings::Nptv6(_) => "nptv6",
            FunctionSettings::Gateway => "gateway",
        }
    }

    /// The settings that differ and that a running hop cannot take: it is to be started again.
    pub fn needs_restart(&self, newer: &Self) -> Vec<&'static str> {
        let mut needs = Vec::new();
        let mut note = |name, differs| needs.extend(Some(name).filter(|_| differs));
        note("name", self.name != newer.name);
        note("metrics", self.metrics != newer.metrics);
        note("socket", self.socket != newer.socket);
        let end = |config: &Self, at: usize| config.ends.as_ref().map(|ends| ends[at].clone());
        note("client", end(self, 0) != end(newer, 0));
        let network = if newer.function == FunctionSettings::Gateway { "gateway" } else { "network" };
        note(network, end(self, 1) != end(newer, 1));
        let sessions = |config: &Self| match &config.function {
            FunctionSettings::Firewall { sessions_max, .. } => Some(*sessions_max),
            FunctionSettings::Nat44(settings) => Some(settings.sessions_max),
            FunctionSettings::Passthrough | FunctionSettings::Nptv6(_) | FunctionSettings::Gateway => None,
        };
        if std::mem::discriminant(&self.function) == std::mem::discriminant(&newer.function) {
            note("sessions", sessions(self) != sessions(newer));
        } else {
            note("the function", true);
        }
        needs
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
    let table = field.table(KEYS)?;
    let name = table.required("name", "a name as metrics and the log are to call it").and_then(|field| field.text());
    let metrics = table.optional("metrics").map_or(Some(None), |field| {
        let text = field.text()?;
        parse_address(text).map_err(|wanted| field.wrong(format!("`{text}`; {wanted}"))).ok().map(Some)
    });
    // Without a path there is none.
    let socket = table.optional("socket").map(|_| ApiSocket::at("").read(&table, None));
    let (ends, function) = if let Some(agent) = table.optional("agent") {
        for key in ["client", "network"].into_iter().chain(FUNCTIONS) {
            if let Some(other) = table.optional(key) {
                other.wrong("the documents of `agent` say it; remove one of them");
            }
        }
        agent::read(&agent, directory)?
    } else {
        let function = read_function(field, &table, directory);
        let ends = read_ends(field, &table);
        (ends?, function?)
    };
    if let Some([client, _]) = &ends
        && client.mode() == Mode::Ip
        && let Some(router) = function.router()
    {
        field.wrong_below(router, "it is a router between two Ethernet networks; give both ends `mode: ethernet`");
    }
    if let (FunctionSettings::Nat44(nat), None) = (&function, &ends)
        && let Err((place, problem)) = nat.check_of_mesh()
    {
        field.wrong_below(&format!("nat44.{place}"), problem);
    }
    Some(Config { name: name?.to_owned(), metrics: metrics?, socket, ends, function })
}

/// Both, or neither: then the mesh says. The outer none: one of them is wrong.
#[expect(clippy::option_option, reason = "what is wrong was noted, and is another thing than what is not there")]
fn read_ends(field: &Field<'_>, table: &Table<'_>) -> Option<Option<[HopEnd; 2]>> {
    let gateway = table.optional("gateway");
    if gateway.is_none() && ["client", "network"].into_iter().all(|key| table.optional(key).is_none()) {
        return Some(None);
    }
    let what = "an end: `memif: {..}`, `vhost-user: {..}` or `kernel: {..}`";
    let client = table.required("client", what).and_then(|field| read_end(&field));
    let (place, network) = match gateway {
        Some(gateway) => ("gateway", read_gateway(&gateway, table.optional("network"))),
        None => ("network", table.required("network", what).and_then(|field| read_end(&field))),
    };
    let (client, network) = (client?, network?);
    if client.mode() != network.mode() {
        field.wrong_below(place, "its frames begin otherwise than the client's; give both ends one mode");
    }
    Some(Some([client, network]))
}

/// Where a chain ends, there is no network side but the interface.
fn read_gateway(field: &Field<'_>, network: Option<Field<'_>>) -> Option<HopEnd> {
    if let Some(network) = network {
        network.wrong("`gateway` ends the chain with its interface; remove one of them");
    }
    read_kernel(field).map(HopEnd::Kernel)
}

fn read_function(field: &Field<'_>, table: &Table<'_>, directory: &Path) -> Option<FunctionSettings> {
    let given: Vec<_> = FUNCTIONS.iter().filter_map(|name| Some((*name, table.optional(name)?))).collect();
    match &given[..] {
        [("passthrough", passthrough)] => passthrough.table(&[]).map(|_| FunctionSettings::Passthrough),
        [("firewall", firewall)] => read_firewall(firewall, directory),
        // Its interface is an end.
        [("gateway", _)] => Some(FunctionSettings::Gateway),
        [("nptv6", nptv6)] => nptv6::settings::read(nptv6).map(FunctionSettings::Nptv6),
        [(_, nat44)] => nat44::settings::read(nat44).map(FunctionSettings::Nat44),
        [] => {
            field.wrong(
                "no function; add `passthrough: {}`, `firewall: {..}`, `nat44: {..}`, `nptv6: {..}` or `gateway: {..}`",
            );
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

/// Of a file that is refused.
fn stand_in() -> Config {
    Config { name: String::new(), metrics: None, socket: None, ends: None, function: FunctionSettings::Passthrough }
}

const KEYS: &[&str] = &[
    "name",
    "metrics",
    "socket",
    "socket_owner",
    "socket_group",
    "socket_mode",
    "client",
    "network",
    "passthrough",
    "firewall",
    "nat44",
    "nptv6",
    "gateway",
    "agent",
];
const FUNCTIONS: [&str; 5] = ["passthrough", "firewall", "nat44", "nptv6", "gateway"];
/// As VPP has it.
const SESSIONS_DEFAULT: usize = 500_000;
/// Some 200 bytes each.
const SESSIONS_MAX: u64 = 16_000_000;

#[cfg(test)]
mod tests {
    use ferrule_dataplane::spec::Role;

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
        let Some([HopEnd::Memif(memif), HopEnd::Vhost(vhost)]) = &config.ends else { panic!("{config:?}") };
        assert_eq!((memif.id, memif.queues, memif.role, vhost.listens), (3, 2, Role::Client, true));
        let FunctionSettings::Firewall { policy, sessions_max: 10 } = &config.function else { panic!("{config:?}") };
        assert_eq!(policy.rules[0].name, "all");
    }

    #[test]
    fn a_function_of_the_mesh_has_no_ends_of_its_own() {
        let config = read_all("name: pass\npassthrough: {}").unwrap();
        assert_eq!((config.ends.as_ref(), config.link()), (None, Link::Ethernet));
        assert_eq!(config.needs_restart(&read_all(&GOOD.replace("firewall\n", "pass\n")).unwrap()).len(), 4);
        let wrong = read_all(&GATEWAY.replace("client:", "# client:")).unwrap_err();
        assert!(wrong[0].contains("client: missing"), "a gateway ends a chain of its own: {wrong:#?}");
    }

    #[test]
    fn a_nat44_of_the_mesh_forwards_to_its_clients_only() {
        let nat = "nat44:
  inside: { address: 10.0.0.1/24 }
  outside: { address: 80.80.80.1/24 }
  pool: [80.80.80.2-80.80.80.9]
  forwards: [{ protocol: tcp, outside: \"80.80.80.1:80\", inside: \"10.0.0.2:80\" }]
";
        let ends =
            "client: { memif: { socket: \"@c\", role: client } }\nnetwork: { memif: { socket: \"@n\", role: client } }";
        read_all(&format!("name: alone\n{ends}\n{nat}")).unwrap();
        let wrong = read_all(&format!("name: mesh\n{nat}")).unwrap_err();
        assert!(wrong[0].contains("nat44.forwards[0].outside: 80.80.80.1 is not of the pool"), "{wrong:#?}");
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

    const GATEWAY: &str = "
name: gateway
client: { memif: { socket: \"@c\", role: client } }
gateway:
  netns: /run/netns/pod
  name: nsm0
  mtu: 1400
  addresses: [172.16.1.2/30, \"fd00::2/64\"]
  routes: [{ to: 10.0.0.0/8, via: 172.16.1.1 }, { to: \"fd01::/64\" }]
";

    #[test]
    fn a_gateway_ends_the_chain_with_an_interface() {
        let config = read_all(GATEWAY).unwrap();
        let Some([HopEnd::Memif(_), HopEnd::Kernel(kernel)]) = &config.ends else { panic!("{config:?}") };
        assert_eq!(
            (kernel.name.as_str(), kernel.mtu, config.function),
            ("nsm0", Some(1400), FunctionSettings::Gateway)
        );
        assert_eq!(kernel.addresses[0].to_string(), "172.16.1.2/30");
        assert_eq!((kernel.routes[0].via, kernel.routes[1].via), (Some("172.16.1.1".parse().unwrap()), None));
        for (old, new, place, problem) in [
            ("gateway:\n", "network: { kernel: { name: x } }\ngateway:\n", "network", "remove one of them"),
            ("role: client }", "role: client, mode: ip }", "gateway", "give both ends one mode"),
            ("/run/netns/pod", "pod", "gateway.netns", "an absolute path"),
            ("name: nsm0", "name: a-name-that-is-too-long", "gateway.name", "15"),
            ("mtu: 1400", "mtu: 60", "gateway.mtu", "a number from 68"),
            ("172.16.1.2/30", "172.16.1.2/33", "gateway.addresses[0]", "with its prefix"),
            ("via: 172.16.1.1", "via: \"fd00::1\"", "gateway.routes[0].via", "different families"),
            ("routes", "rutes", "gateway.rutes", "did you mean `routes`?"),
        ] {
            assert!(GATEWAY.contains(old), "{old}");
            let lines = read_all(&GATEWAY.replacen(old, new, 1)).unwrap_err();
            assert!(lines.iter().any(|line| line.contains(place) && line.contains(problem)), "{new}: {lines:#?}");
        }
        let changed = read_all(&GATEWAY.replace("172.16.1.2/30", "172.16.1.6/30")).unwrap();
        assert_eq!(read_all(GATEWAY).unwrap().needs_restart(&changed), ["gateway"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_cure() {
        for (old, new, place, problem) in [
            ("name: firewall\n", "", "name", "missing"),
            (
                "client: { memif: { socket: \"@c\", role: client, id: 3, mode: ethernet, queues: 2 } }\n",
                "",
                "client",
                "missing",
            ),
            ("role: server", "role: master", "network.vhost-user.role", "`server`"),
            ("mode: ethernet", "mode: ip", "network", "give both ends one mode"),
            ("firewall: {", "passthrough: {}\nfirewall: {", "firewall", "one function"),
            ("rules: [{ name: all, action: permit }]", "", "firewall", "`rules: []` denies everything"),
            ("sessions: 10", "sessions: 0", "firewall.sessions", "a number from 1"),
            ("sessions: 10", "acl: {}", "firewall", "keep one of"),
            ("client: { memif", "client: { memfi", "client.memfi", "did you mean `memif`?"),
            ("metrics:", "socket: here\nmetrics:", "socket", "path"),
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
