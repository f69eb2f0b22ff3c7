//! Rules of iptables that an endpoint wants in its namespace (`IPTables4NatTemplate` of the mechanism KERNEL): read from its template, and held
//! there as long as an interface wants them.
//!
//! The words are the endpoint's, and the program runs with our rights: what is not a rule of the table `nat` is refused, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use ferrule_dataplane::spec::InterfaceName;
use ferrule_ffi::netns;
use ferrule_nsm::proto::connection::Mechanism;
use ferrule_nsm::proto::connectioncontext::ConnectionContext;
use ipnet::IpNet;

/// One call of `iptables -t nat`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NatRule {
    /// `-N CHAIN`
    Chain(String),
    /// `-A CHAIN ...`, or `-I CHAIN ...` in front of the others.
    Rule { chain: String, in_front: bool, words: Vec<String> },
}

/// What the mechanism of an endpoint says of addresses that are none of the interface.
pub(super) struct AddressTranslation {
    pub(super) rules: Vec<NatRule>,
    pub(super) route_localnet: bool,
}

impl AddressTranslation {
    /// Of a mechanism KERNEL, for the interface of this name.
    pub(super) fn of(
        mechanism: &Mechanism,
        interface: &InterfaceName,
        context: &ConnectionContext,
    ) -> Result<Self, NatError> {
        let ip = context.ip_context.clone().unwrap_or_default();
        let addresses = |texts: &[String]| -> Vec<IpAddr> {
            let parse = |text: &String| text.parse::<IpNet>().ok().map(|net| net.addr());
            texts.iter().filter_map(parse).collect()
        };
        let (client, endpoint) = (addresses(&ip.src_ip_addrs), addresses(&ip.dst_ip_addrs));
        let rules = match mechanism.parameters.get(TEMPLATE) {
            None => Vec::new(),
            Some(template) => {
                NatRule::evaluate(template, &NatContext { interface: interface.as_str(), client, endpoint })?
            }
        };
        let route_localnet = mechanism.parameters.get(ROUTE_LOCALNET).is_some_and(|value| value == "true");
        Ok(Self { rules, route_localnet })
    }
}

/// What a template is filled with.
pub(super) struct NatContext<'a> {
    pub(super) interface: &'a str,
    pub(super) client: Vec<IpAddr>,
    pub(super) endpoint: Vec<IpAddr>,
}

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NatError {
    /// It is not what templates of the mesh are.
    #[error(
        "IPTables4NatTemplate: {{{{{0}}}}} is not known: .NsmInterfaceName, `index .NsmSrcIPs N` and `index .NsmDstIPs N` are"
    )]
    Expression(String),
    /// There are not so many addresses.
    #[error("IPTables4NatTemplate: {{{{{0}}}}} is not there: the connection has {1} of them")]
    Address(String, usize),
    /// It is no rule, or one that could do more than translate addresses.
    #[error(
        "IPTables4NatTemplate: {0:?} in {1:?} is refused: -N, -A and -I with matches and targets of the table nat are taken"
    )]
    Word(String, String),
    /// It is very much.
    #[error("IPTables4NatTemplate: more than {RULES_MAX} rules")]
    TooMany,
}

impl NatRule {
    /// The rules of a template, in their order.
    pub(super) fn evaluate(template: &str, context: &NatContext<'_>) -> Result<Vec<Self>, NatError> {
        let text = fill(template, context)?;
        let rules: Vec<_> = text.split(';').filter(|rule| !rule.trim().is_empty()).take(RULES_MAX + 1).collect();
        if rules.len() > RULES_MAX {
            return Err(NatError::TooMany);
        }
        rules.into_iter().map(Self::parse).collect()
    }

    fn parse(text: &str) -> Result<Self, NatError> {
        let shown = || text.trim().chars().take(SHOWN_MAX).collect::<String>();
        let refused = |word: &str| NatError::Word(word.chars().take(SHOWN_MAX).collect(), shown());
        let mut words = text.split_whitespace();
        let command = words.next().unwrap_or_default();
        let chain = words.next().filter(|chain| is_name(chain)).ok_or_else(|| refused(command))?.to_owned();
        let mut words: Vec<_> = words.map(ToOwned::to_owned).collect();
        let in_front = matches!(command, "-I" | "--insert");
        if in_front && words.first().is_some_and(|word| word == "1") {
            words.remove(0);
        }
        match command {
            "-N" | "--new-chain" if words.is_empty() => return Ok(Self::Chain(chain)),
            "-A" | "--append" | "-I" | "--insert" => {}
            _ => return Err(refused(command)),
        }
        let mut before = "";
        for word in &words {
            let is_known = match before {
                // What these name is a library that the program loads.
                option if LOADED.contains(&option) => is_name(word),
                // The program would ask for the addresses of a name, in a network that is not ours.
                option if ADDRESSED.contains(&option) => word.split(',').all(is_network),
                _ => OPTIONS.contains(&word.as_str()) || word == "!" || is_plain(word),
            };
            if !is_known {
                return Err(refused(word));
            }
            before = word;
        }
        Ok(Self::Rule { chain, in_front, words })
    }

    fn arguments(&self, todo: Todo) -> Vec<&str> {
        match (self, todo) {
            (Self::Chain(chain), Todo::Add) => vec!["-N", chain],
            (Self::Chain(chain), Todo::Look) => vec!["-S", chain],
            (Self::Chain(chain), Todo::Remove) => vec!["-X", chain],
            (Self::Rule { chain, in_front, words }, todo) => {
                let command = match todo {
                    Todo::Add if *in_front => "-I",
                    Todo::Add => "-A",
                    Todo::Look => "-C",
                    Todo::Remove => "-D",
                };
                [command, chain].into_iter().chain(words.iter().map(String::as_str)).collect()
            }
        }
    }

    fn run(&self, todo: Todo) -> Result<(), String> {
        let arguments = self.arguments(todo);
        let done = Command::new(PROGRAM).args(["-w", "5", "-t", "nat"]).args(&arguments).output();
        let done = done.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!(
                "{PROGRAM} is not there: the endpoint wants rules for addresses (IPTables4NatTemplate), and this forwarder's image has no such program; install it"
            ),
            _ => format!("run {PROGRAM}: {error}"),
        })?;
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr);
        Err(format!("{PROGRAM} -t nat {}: {}", arguments.join(" "), said.trim()))
    }
}

/// Makes the rules of an interface in the namespace of the thread others. Those that are there already, of another connection or of a
/// forwarder that was killed, are held as well: a rule goes with the last interface that wants it. Blocks.
pub(super) fn change(interface: &str, is: &[NatRule], should: &[NatRule]) -> Result<(), String> {
    let gone: Vec<_> = is.iter().filter(|rule| !should.contains(rule)).cloned().collect();
    release(interface, &gone)?;
    let table = table().map_err(|error| error.to_string())?;
    let mut holders = table.lock().unwrap_or_else(PoisonError::into_inner);
    let mut added = Vec::new();
    for rule in should {
        let is_there = holders.contains_key(rule) || rule.run(Todo::Look).is_ok();
        if !is_there && let Err(problem) = rule.run(Todo::Add) {
            drop(holders);
            // The first failure says more.
            let _ = release(interface, &added);
            return Err(problem);
        }
        if holders.entry(rule.clone()).or_default().insert(interface.to_owned()) {
            added.push(rule.clone());
        }
    }
    Ok(())
}

/// Takes rules back that an interface has wanted, if nobody else wants them: the last one first. Blocks.
pub(super) fn release(interface: &str, rules: &[NatRule]) -> Result<(), String> {
    if rules.is_empty() {
        return Ok(());
    }
    let table = table().map_err(|error| error.to_string())?;
    let mut holders = table.lock().unwrap_or_else(PoisonError::into_inner);
    let mut failed = None;
    for rule in rules.iter().rev() {
        let Some(interfaces) = holders.get_mut(rule) else { continue };
        interfaces.remove(interface);
        if interfaces.is_empty() {
            holders.remove(rule);
            // Somebody in the pod may have removed it.
            if let Err(problem) = rule.run(Todo::Remove)
                && rule.run(Todo::Look).is_ok()
            {
                failed.get_or_insert(problem);
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// What is done with a rule.
#[derive(Clone, Copy)]
enum Todo {
    Add,
    Look,
    Remove,
}

/// The interfaces that want each rule of a namespace.
type RuleHolders = BTreeMap<NatRule, BTreeSet<String>>;

/// By the inodes of their namespaces: one namespace keeps no other one waiting.
static NAMESPACES: Mutex<BTreeMap<u64, Arc<Mutex<RuleHolders>>>> = Mutex::new(BTreeMap::new());

fn table() -> io::Result<Arc<Mutex<RuleHolders>>> {
    let own = netns::namespace_at("/proc/thread-self/ns/net".as_ref())?;
    let inode = own.ok_or_else(|| io::Error::other("the thread's namespace is none"))?.inode;
    let mut all = NAMESPACES.lock().unwrap_or_else(PoisonError::into_inner);
    // One that somebody works on has something, or is about to.
    all.retain(|_, table| Arc::strong_count(table) > 1 || table.try_lock().map_or(true, |holders| !holders.is_empty()));
    Ok(Arc::clone(all.entry(inode).or_default()))
}

/// A template of Go, as far as those of the mesh go.
fn fill(template: &str, context: &NatContext<'_>) -> Result<String, NatError> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once("{{") {
        let Some((expression, behind)) = behind.split_once("}}") else {
            return Err(NatError::Expression(behind.chars().take(SHOWN_MAX).collect()));
        };
        text.push_str(before);
        text.push_str(&value(expression, context)?);
        rest = behind;
    }
    text.push_str(rest);
    Ok(text)
}

fn value(expression: &str, context: &NatContext<'_>) -> Result<String, NatError> {
    let shown = || expression.trim().chars().take(SHOWN_MAX).collect::<String>();
    let words: Vec<_> = expression.split_whitespace().collect();
    let (list, number) = match words[..] {
        [".NsmInterfaceName"] => return Ok(context.interface.to_owned()),
        ["index", ".NsmSrcIPs", number] => (&context.client, number),
        ["index", ".NsmDstIPs", number] => (&context.endpoint, number),
        _ => return Err(NatError::Expression(shown())),
    };
    let number: usize = number.parse().map_err(|_| NatError::Expression(shown()))?;
    let address = list.get(number).ok_or_else(|| NatError::Address(shown(), list.len()))?;
    Ok(address.to_string())
}

/// The name of a chain, a match or a target.
fn is_name(word: &str) -> bool {
    let is_letter = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'_' || letter == b'-';
    word.len() <= NAME_MAX
        && word.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && word.bytes().all(is_letter)
}

/// What an option says: no option, and nothing that means something to anybody but iptables.
fn is_plain(word: &str) -> bool {
    let is_letter = |letter: u8| letter.is_ascii_alphanumeric() || b"_-.:,/+%".contains(&letter);
    !word.starts_with('-') && word.bytes().all(is_letter)
}

/// An address of IPv4, of which alone the program knows, with or without a mask.
fn is_network(word: &str) -> bool {
    let (address, mask) = word.split_once('/').map_or((word, None), |(address, mask)| (address, Some(mask)));
    let is_address = |text: &str| text.parse::<Ipv4Addr>().is_ok();
    is_address(address) && mask.is_none_or(|mask| is_address(mask) || mask.parse().is_ok_and(|bits: u8| bits <= 32))
}

impl fmt::Display for NatRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.arguments(Todo::Add).join(" "))
    }
}

/// Parameters of KERNEL that an endpoint answers with.
pub(super) const TEMPLATE: &str = "IPTables4NatTemplate";
pub(super) const ROUTE_LOCALNET: &str = "routeLocalNet";
const PROGRAM: &str = "iptables";
/// Those that are written out: the program would take parts of its other ones too.
const OPTIONS: [&str; 45] = [
    "-p",
    "--protocol",
    "-s",
    "--source",
    "--src",
    "-d",
    "--destination",
    "--dst",
    "-i",
    "--in-interface",
    "-o",
    "--out-interface",
    "-j",
    "--jump",
    "-g",
    "--goto",
    "-m",
    "--match",
    "--dport",
    "--destination-port",
    "--sport",
    "--source-port",
    "--dports",
    "--sports",
    "--ports",
    "--to-destination",
    "--to-source",
    "--to-ports",
    "--to-port",
    "--random",
    "--random-fully",
    "--persistent",
    "--mark",
    "--ctstate",
    "--state",
    "--uid-owner",
    "--gid-owner",
    "--src-range",
    "--dst-range",
    "--icmp-type",
    "--tcp-flags",
    "--syn",
    "--dst-type",
    "--src-type",
    "--comment",
];
const LOADED: [&str; 6] = ["-j", "--jump", "-g", "--goto", "-m", "--match"];
const ADDRESSED: [&str; 6] = ["-s", "--source", "--src", "-d", "--destination", "--dst"];
const RULES_MAX: usize = 64;
const NAME_MAX: usize = 28;
const SHOWN_MAX: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> NatContext<'static> {
        NatContext {
            interface: "nsm-1",
            client: vec!["10.0.0.1".parse().unwrap()],
            endpoint: vec!["10.0.0.2".parse().unwrap()],
        }
    }

    fn evaluated(template: &str) -> Result<Vec<String>, NatError> {
        let rules = NatRule::evaluate(template, &context())?;
        Ok(rules.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_template_is_filled_with_the_connection() {
        let template = "-N NSM_PREROUTE;-A NSM_PREROUTE -j ISTIO_REDIRECT;-I PREROUTING 1 -p tcp -i {{ .NsmInterfaceName }} -j NSM_PREROUTE;\
                        -A OUTPUT -j DNAT --to-destination {{index .NsmSrcIPs 0}};-A POSTROUTING ! -d {{index .NsmDstIPs 0}}/32 -j MASQUERADE;";
        assert_eq!(
            evaluated(template).unwrap(),
            [
                "-N NSM_PREROUTE",
                "-A NSM_PREROUTE -j ISTIO_REDIRECT",
                "-I PREROUTING -p tcp -i nsm-1 -j NSM_PREROUTE",
                "-A OUTPUT -j DNAT --to-destination 10.0.0.1",
                "-A POSTROUTING ! -d 10.0.0.2/32 -j MASQUERADE",
            ]
        );
        let networks = "-A OUTPUT -s 10.0.0.0/8,192.0.2.1 ! -d 172.16.0.0/255.240.0.0 -j ACCEPT";
        assert_eq!(evaluated(networks).unwrap(), [networks]);
        assert_eq!(evaluated(" ; "), Ok(Vec::new()));
    }

    #[test]
    fn what_could_do_more_than_translate_addresses_is_refused_by_name() {
        for (template, word) in [
            ("-A OUTPUT --modprobe=/bin/sh -j DNAT", "--modprobe=/bin/sh"),
            ("-A OUTPUT --modp /bin/sh", "--modp"),
            ("-A OUTPUT -t filter -j DROP", "-t"),
            ("-A OUTPUT -m ../../tmp/x", "../../tmp/x"),
            ("-A OUTPUT -j /tmp/x", "/tmp/x"),
            ("-A OUTPUT -M/bin/sh", "-M/bin/sh"),
            ("-A OUTPUT -s $(x)", "$(x)"),
            ("-A OUTPUT -d name.example -j ACCEPT", "name.example"),
            ("-A OUTPUT --src 10.0.0.1,name -j ACCEPT", "10.0.0.1,name"),
            ("-A OUTPUT -s ! 10.0.0.1 -j ACCEPT", "!"),
            ("-A OUTPUT -s ::1 -j ACCEPT", "::1"),
            ("-A OUTPUT -d 10.0.0.0/33 -j ACCEPT", "10.0.0.0/33"),
            ("-F OUTPUT", "-F"),
            ("-P OUTPUT DROP", "-P"),
            ("-A -t", "-A"),
            ("-A", "-A"),
            ("-N A B", "-N"),
        ] {
            let NatError::Word(refused, _) = evaluated(template).unwrap_err() else { panic!("{template}") };
            assert_eq!(refused, word, "{template}");
        }
        assert_eq!(evaluated(&"-N A;".repeat(RULES_MAX + 1)), Err(NatError::TooMany));
    }

    #[test]
    fn what_a_template_asks_for_beyond_the_connection_is_refused_by_name() {
        assert_eq!(
            evaluated("-A X -s {{ index .NsmSrcIPs 1 }}"),
            Err(NatError::Address("index .NsmSrcIPs 1".to_owned(), 1))
        );
        for template in ["{{ range .NsmSrcIPs }}", "{{ .Name }}", "{{- .NsmInterfaceName -}}", "{{ .NsmInterfaceName"] {
            assert!(matches!(evaluated(template), Err(NatError::Expression(_))), "{template}");
        }
    }

    #[test]
    fn a_namespace_without_rules_is_forgotten() {
        let (Ok(first), Ok(second)) = (netns::NetNs::private(), netns::NetNs::private()) else {
            return println!("skipped: a_namespace_without_rules_is_forgotten: lacks namespaces of its own");
        };
        let change_nothing = || {
            change("a", &[], &[]).unwrap();
            netns::namespace_at("/proc/thread-self/ns/net".as_ref()).unwrap().unwrap().inode
        };
        let inode = first.run(change_nothing).unwrap();
        second.run(change_nothing).unwrap();
        assert!(!NAMESPACES.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&inode));
    }

    #[test]
    fn a_rule_goes_with_the_last_interface_that_wants_it() {
        let has_program = Command::new(PROGRAM).arg("--version").output().is_ok();
        let Ok(netns) = netns::NetNs::private() else { return println!("skipped: a namespace of its own") };
        if !has_program {
            return println!(
                "skipped: a_rule_goes_with_the_last_interface_that_wants_it: lacks iptables (apt-get install iptables)"
            );
        }
        let test = || {
            let rules = |template| NatRule::evaluate(template, &context()).unwrap();
            let both = rules(
                "-N FERRULE;-A FERRULE -p tcp --dport 80 -j REDIRECT --to-ports 8080;-A PREROUTING -i {{.NsmInterfaceName}} -j FERRULE",
            );
            let are_there = || both.iter().map(|rule| rule.run(Todo::Look).is_ok()).collect::<Vec<_>>();
            change("a", &[], &both).unwrap();
            change("b", &[], &both).unwrap();
            change("a", &both, &both).unwrap();
            assert_eq!(are_there(), [true; 3]);
            release("a", &both).unwrap();
            assert_eq!(are_there(), [true; 3]);
            change("b", &both, &both[..1]).unwrap();
            assert_eq!(are_there(), [true, false, false]);
            release("b", &both[..1]).unwrap();
            assert_eq!(are_there(), [false; 3]);
            // What fails half-way leaves nothing.
            let failing = rules("-N FERRULE;-A FERRULE -j NO_SUCH_TARGET");
            assert!(change("a", &[], &failing).unwrap_err().contains("NO_SUCH_TARGET"));
            assert_eq!(are_there(), [false; 3]);
        };
        netns.run(test).unwrap();
    }
}
