//! Chains that the forwarder composes from documents of network services: real functions, real TCP, changed while it flows.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::{TIMEOUT, forwarder};
use nix::sys::signal::Signal;
use tempfile::TempDir;

#[test]
fn a_chain_is_composed_and_grows_and_no_session_is_lost() {
    let test = "a_chain_is_composed_and_grows_and_no_session_is_lost";
    let Some(program) = forwarder(test).filter(|_| !lacks_namespaces(test)) else { return };
    let bed = ChainTestbed::new(program);
    let _functions = ["firewall-1", "passthrough-1", "nat-1", "gateway-1", "firewall-2", "passthrough-2", "gateway-2"]
        .map(|name| bed.function(name));
    bed.write(&["nsc-1"], &["firewall-1", "passthrough-1", "gateway-1"], CHAIN);
    let daemon = bed.forwarder();
    daemon.wait_for("nsc-1 - firewall-1 - passthrough-1 - gateway-1");
    let near = bed.connect(1);
    near.speak();

    // A function between two others: only what was between them is made anew. The server speaks first, and no rule lets it: what passes
    // does so by the session that the firewall has.
    let to_nat = "    - { sourceSelector: { app: passthrough }, route: [{ destinationSelector: { app: nat } }] }\n";
    let longer = [to_nat, &CHAIN.replace("{ app: passthrough }, route", "{ app: nat }, route")].concat();
    bed.write(&["nsc-1"], &["firewall-1", "passthrough-1", "nat-1", "gateway-1"], &longer);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("nsc-1 - firewall-1 - passthrough-1 - nat-1 - gateway-1");
    near.speak();

    // A second client gets functions of its own, and who is there keeps those that it has although the other one comes first now.
    let all = ["firewall-1", "passthrough-1", "gateway-1", "firewall-2", "passthrough-2", "gateway-2"];
    bed.write(&["nsc-2", "nsc-1"], &all, CHAIN);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("nsc-2 - firewall-2 - passthrough-2 - gateway-2");
    near.speak();
    bed.connect(2).speak();

    // A third one has nobody, so the file is refused, and those who are there notice nothing.
    bed.write(&["nsc-2", "nsc-1", "nsc-3"], &all, CHAIN);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("services.clients[2]: nobody comes behind `nsc-3`");
    near.speak();
}

#[test]
fn the_nat_example_runs_by_its_documents_alone() {
    let test = "the_nat_example_runs_by_its_documents_alone";
    let Some(program) = forwarder(test).filter(|_| !lacks_namespaces(test)) else { return };
    let bed = ChainTestbed::new(program);
    fs::write(bed.path("functions.yaml"), include_str!("../../docs/cnf-nat-functions.yaml")).unwrap();
    fs::write(bed.path("service.yaml"), NAT_SERVICE).unwrap();
    let hops = [("client", Some(&bed.clients[0])), ("cnf-nat44", None), ("webserver", Some(&bed.servers))];
    let _functions = hops.map(|(name, netns)| {
        fs::create_dir(bed.path(name)).unwrap();
        let netns = netns.map(|netns| format!(", netns: {}", netns.path().display())).unwrap_or_default();
        let sockets = bed.path(name);
        let agent = format!("file: functions.yaml, microservice: {name}, sockets: {}{netns}", sockets.display());
        bed.run_function(name, &format!("name: {name}\nagent: {{ {agent} }}\n"))
    });
    let memif = |name: &str, interface: &str| {
        let socket = bed.path(name).join(format!("{interface}.sock"));
        format!("{{ memif: {{ socket: {}, role: server }} }}", socket.display())
    };
    let text = format!(
        "admin: {}
services:
  files: [service.yaml]
  functions:
    - {{ name: cnf-nat44, service: cnf-nat-example, labels: {{ app: nat44 }}, client: {}, network: {} }}
    - {{ name: webserver, service: cnf-nat-example, labels: {{ app: webserver }}, client: {} }}
  clients:
    - {{ name: client, service: cnf-nat-example, labels: {{ app: client }}, end: {} }}
",
        bed.path("admin.sock").display(),
        memif("cnf-nat44", "memif0"),
        memif("cnf-nat44", "memif1"),
        memif("webserver", "memif0"),
        memif("client", "tap0"),
    );
    fs::write(bed.path("wires.yaml"), text).unwrap();
    let daemon = bed.forwarder();
    daemon.wait_for("client - cnf-nat44 - webserver");
    for (netns, interface) in [(&bed.clients[0], "tap0"), (&bed.servers, "memif0")] {
        netns.wait_for_carrier(interface);
    }
    let server = Ipv4Addr::new(80, 80, 80, 80);
    let listener = bed.servers.run(|| TcpListener::bind((server, 80)).unwrap());
    let near = bed.clients[0].run(|| TcpStream::connect_timeout(&(server, 80).into(), TIMEOUT).unwrap());
    let (far, known_as) = listener.accept().unwrap();
    assert_eq!(near.local_addr().unwrap().ip(), Ipv4Addr::new(192, 168, 100, 10));
    let pool = (100..=105).map(|host| Ipv4Addr::new(80, 80, 80, host));
    assert!(pool.into_iter().any(|address| known_as.ip() == address), "{known_as}");
    Conversation { near, far }.speak();
}

/// The service of the example, as its files have it.
const NAT_SERVICE: &str = "apiVersion: networkservicemesh.io/v1alpha1
kind: NetworkService
metadata:
  name: cnf-nat-example
spec:
  payload: IP
  matches:
    - match:
      sourceSelector:
        app: client
      route:
        - destination:
          destinationSelector:
            app: nat44
    - match:
      sourceSelector:
        app: nat44
      route:
        - destination:
          destinationSelector:
            app: webserver
";

/// The namespaces, the folder of all files, and the forwarder's program.
struct ChainTestbed {
    folder: TempDir,
    program: PathBuf,
    clients: [TestNetNs; 3],
    servers: TestNetNs,
}

impl ChainTestbed {
    fn new(program: PathBuf) -> Self {
        let clients = [TestNetNs::new(), TestNetNs::new(), TestNetNs::new()];
        Self { folder: tempfile::tempdir().unwrap(), program, clients, servers: TestNetNs::new() }
    }

    fn forwarder(&self) -> Process {
        let daemon = Process::start(Command::new(&self.program).arg("--config").arg(self.path("wires.yaml")));
        daemon.wait_for("ready:");
        daemon
    }

    /// A function by its name, of which what is before the dash says what it is.
    fn function(&self, name: &str) -> Process {
        let (kind, number) = name.split_once('-').unwrap();
        let memif = |side: &str| format!("{{ memif: {{ socket: {}, role: client }} }}", self.socket(name, side));
        let servers = self.servers.path();
        let rest = match kind {
            "gateway" => format!(
                "gateway: {{ netns: {}, name: nsm{number}, addresses: [10.0.{number}.2/24] }}",
                servers.display()
            ),
            "firewall" => format!(
                "network: {}\nfirewall: {{ aclRules: {{ web: \"action=reflect,tcplowport=80,tcpupport=80\" }} }}",
                memif("network")
            ),
            _ => format!("network: {}\npassthrough: {{}}", memif("network")),
        };
        self.run_function(name, &format!("name: {name}\nclient: {}\n{rest}\n", memif("client")))
    }

    fn run_function(&self, name: &str, settings: &str) -> Process {
        let file = self.path(&format!("{name}.yaml"));
        fs::write(&file, settings).unwrap();
        let program = self.program.with_file_name("network-function");
        let function = Process::start(Command::new(program).arg("--config").arg(file));
        function.wait_for("ready:");
        function
    }

    /// The wires file and the documents, for these clients and functions.
    fn write(&self, clients: &[&str], functions: &[&str], matches: &str) {
        let mut text =
            format!("admin: {}\nservices:\n  files: [service.yaml]\n  functions:\n", self.path("admin.sock").display());
        for name in functions {
            let memif = |side| format!("{{ memif: {{ socket: {}, role: server }} }}", self.socket(name, side));
            let (app, _) = name.split_once('-').unwrap();
            let network = if app == "gateway" { String::new() } else { format!(", network: {}", memif("network")) };
            writeln!(
                text,
                "    - {{ name: {name}, service: secure, labels: {{ app: {app} }}, client: {}{network} }}",
                memif("client")
            )
            .unwrap();
        }
        text += "  clients:\n";
        for name in clients {
            let number: usize = name.split_once('-').unwrap().1.parse().unwrap();
            let netns = self.clients[number - 1].path();
            writeln!(
                text,
                "    - {{ name: {name}, service: secure, end: {{ kernel: {{ netns: {}, name: nsm0, addresses: [10.0.{number}.1/24] }} }} }}",
                netns.display()
            )
            .unwrap();
        }
        let head = "apiVersion: networkservicemesh.io/v1alpha1\nkind: NetworkService\nmetadata: { name: secure }\nspec:\n  payload: IP\n  matches:\n";
        fs::write(self.path("service.yaml"), format!("{head}{matches}")).unwrap();
        fs::write(self.path("wires.yaml"), text).unwrap();
    }

    /// TCP from a client to the end of its chain.
    fn connect(&self, number: u8) -> Conversation {
        let client = &self.clients[usize::from(number) - 1];
        client.wait_for_carrier("nsm0");
        let address = Ipv4Addr::new(10, 0, number, 2);
        let listener = self.servers.run(|| TcpListener::bind((address, 80)).unwrap());
        let near = client.run(|| TcpStream::connect_timeout(&(address, 80).into(), TIMEOUT).unwrap());
        let (far, _) = listener.accept().unwrap();
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        }
        Conversation { near, far }
    }

    fn socket(&self, function: &str, side: &str) -> String {
        self.path(&format!("{function}-{side}.sock")).display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Both ends of a connection.
struct Conversation {
    near: TcpStream,
    far: TcpStream,
}

impl Conversation {
    /// The server says something, then the client.
    fn speak(&self) {
        let Self { near, far } = self;
        for (mut from, mut to) in [(far, near), (near, far)] {
            from.write_all(b"still there?").unwrap();
            let mut heard = [0; 12];
            to.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"still there?");
        }
    }
}

/// The matches of the service.
const CHAIN: &str = "    - { match: null, sourceSelector: { app: firewall }, route: [{ destination: null, destinationSelector: { app: passthrough } }] }
    - { match: null, sourceSelector: { app: passthrough }, route: [{ destination: null, destinationSelector: { app: gateway } }] }
    - { match: null, route: [{ destination: null, destinationSelector: { app: firewall } }] }
";
