//! Network namespaces that a test makes, and what it does inside them.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ferrule_dataplane::spec::{KernelSpec, NetNs};
use ferrule_ffi::netns;

use crate::need::{Need, lacks};
use crate::{TIMEOUT, eventually, unique};

/// A namespace that `ip netns` knows by name, deleted with this value.
///
/// What a test opens inside keeps the namespace alive as an open file does: drop it before [`Self::delete`].
pub struct TestNetNs {
    name: String,
}

impl TestNetNs {
    /// A new namespace whose name nobody else has.
    pub fn new() -> Self {
        Self::called(unique("ns"))
    }

    /// A new namespace of this name, to take the place of another.
    ///
    /// # Panics
    /// There is one.
    pub fn called(name: String) -> Self {
        run(Command::new("ip").args(["netns", "add", &name]));
        let netns = Self { name };
        netns.ip("link set lo up");
        netns
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// An interface in here with addresses and nothing else.
    pub fn interface(&self, name: &str, addresses: &[&str]) -> KernelSpec {
        KernelSpec {
            netns: Some(NetNs::Path(self.path())),
            name: name.parse().expect("a test names interfaces as the kernel takes them"),
            mac: None,
            mtu: None,
            addresses: addresses.iter().map(|text| text.parse().expect("a test writes good addresses")).collect(),
            routes: Vec::new(),
        }
    }

    /// What `ip` prints inside.
    ///
    /// # Panics
    /// It fails.
    pub fn ip(&self, arguments: &str) -> String {
        let output = run(Command::new("ip").args(["-n", &self.name]).args(arguments.split(' ')));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The names of the interfaces inside, without the loopback.
    pub fn interfaces(&self) -> Vec<String> {
        let links = self.ip("-o link show");
        let name = |line: &str| {
            line.split([' ', ':', '@']).find(|word| word.parse::<u32>().is_err() && !word.is_empty()).map(str::to_owned)
        };
        links.lines().filter_map(name).filter(|name| name != "lo").collect()
    }

    /// Waits until these interfaces are inside, without the loopback, and no others.
    ///
    /// A TAP goes when its last descriptor does, and a program that another thread of the test is just starting
    /// has copies of all descriptors for a moment.
    pub fn wait_for_interfaces(&self, names: &[&str]) {
        eventually(&format!("the interfaces are {names:?}"), || self.interfaces() == names);
    }

    /// The flags of an interface, as `ip` writes them: `BROADCAST,MULTICAST,UP,LOWER_UP`.
    pub fn flags(&self, interface: &str) -> Vec<String> {
        let link = self.ip(&format!("link show {interface}"));
        let flags = link.split(['<', '>']).nth(1).unwrap_or_default();
        flags.split(',').map(str::to_owned).collect()
    }

    /// Waits until frames can leave through an interface.
    pub fn wait_for_carrier(&self, interface: &str) {
        eventually("the carrier is there", || self.flags(interface).iter().any(|flag| flag == "LOWER_UP"));
    }

    /// A `ping` from inside, to be run.
    pub fn ping(&self, arguments: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "ping", "-n"]).args(arguments.split(' '));
        command
    }

    /// Pings with so many bytes, in one piece each, until `count` were answered.
    ///
    /// # Panics
    /// One of the first `count` is not answered, is answered twice or out of turn.
    pub fn ping_all(&self, to: &str, count: usize, size: u32) {
        // With a deadline `ping` goes on until it has its answers. Without one it gives up two round trips after the
        // last request, which on a busy machine is before the reply is back.
        let deadline = TIMEOUT.as_secs();
        let output = run(&mut self.ping(&format!("-c {count} -w {deadline} -i 0.005 -M do -s {size} {to}")));
        let text = String::from_utf8_lossy(&output.stdout);
        let number = |line: &str| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok();
        let answered: Vec<usize> = text.lines().filter_map(number).collect();
        // Those sent while the last of them was under way may be answered too.
        let whole = answered.len() >= count && answered.iter().copied().eq(1..=answered.len());
        assert!(whole, "ping {to} with {size} bytes: {text}");
    }

    /// Runs `work` inside; the sockets it opens stay there.
    ///
    /// # Panics
    /// The namespace is gone.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let here = netns::NetNs::open(&self.path()).and_then(|netns| netns.run(work));
        here.unwrap_or_else(|error| panic!("enter {}: {error}", self.name))
    }

    /// A TCP connection from a socket inside to one inside `far`, which has this address.
    ///
    /// # Panics
    /// There is no way.
    pub fn connect(&self, far: &Self, address: IpAddr) -> [TcpStream; 2] {
        let listener = far.run(|| TcpListener::bind((address, 0)).expect("the address is there and a port is free"));
        let to = listener.local_addr().expect("a bound socket has an address");
        let near = self.run(|| TcpStream::connect_timeout(&to, TIMEOUT).expect("the far end listens"));
        let (far, _) = listener.accept().expect("the near end is connected");
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(TIMEOUT)).expect("the timeout is not zero");
            stream.set_write_timeout(Some(TIMEOUT)).expect("the timeout is not zero");
        }
        [near, far]
    }

    /// A UDP socket inside, at this address and any port.
    ///
    /// # Panics
    /// The address is not there.
    pub fn udp(&self, address: IpAddr) -> (UdpSocket, SocketAddr) {
        let socket = self.run(|| UdpSocket::bind((address, 0)).expect("the address is there and a port is free"));
        socket.set_read_timeout(Some(TIMEOUT)).expect("the timeout is not zero");
        let address = socket.local_addr().expect("a bound socket has an address");
        (socket, address)
    }

    /// Deletes it now, with everything in it; returns its name.
    pub fn delete(self) -> String {
        self.name.clone()
    }
}

impl Default for TestNetNs {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TestNetNs {
    fn drop(&mut self) {
        // Not `run`: a panic while a failed test unwinds would hide why it failed.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Whether `test` lacks what namespaces and TAP interfaces need. If so it has been said, and the test returns.
pub fn lacks_namespaces(test: &str) -> bool {
    lacks(test, &[Need::Root, IP, PING, TUN])
}

/// Runs a program to its end.
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    let text = || [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&text()));
    output
}

const IP: Need = Need::Program { name: "ip", package: "iproute2" };
const PING: Need = Need::Program { name: "ping", package: "iputils-ping" };
const TUN: Need = Need::Device { path: "/dev/net/tun", cure: "modprobe tun" };
