//! VFs as ends of wires: borrowed by the forwarder, polled through `vfio-pci`, and pinged by kernel interfaces of other VFs.
//!
//! ```text
//!   namespace k                         forwarder
//!   VF 6, igbvf --- switch of the PF --- VF of the pool, vfio-pci --- wire --- memif, namespace, guest, VF
//! ```
//! A VF receives what is for its own address, so each VF of a wire has that of whoever is at the other end.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::lab::forwarder::{Forwarder, wait_until};
use crate::lab::manager::{Manager, ManagerOptions};
use crate::lab::pci::{Function, VFS_MAX};
use crate::lab::scenario::{Lab, Lacks};
use crate::process::Process;
use crate::vm::pieces::program;

use super::ip;

pub fn frames_cross(lab: &Lab) -> Result<()> {
    let manager = start_manager(lab)?;
    let pf = Network::on(lab, 0, "k")?;
    ip(&["netns", "add", "pod"])?;
    let memif = lab.state().join("memif.sock");
    let guest = lab.state().join("guest.sock");
    let vf = |number| format!("vf: {{ pool: pf0, mac: '{}' }}", mac(number));
    let began = Instant::now();
    let forwarder = Forwarder::start(
        lab,
        &[
            to_memif(0, "memif", &memif.to_string_lossy()),
            format!(
                "{{ name: pod, ends: [{{ {} }}, {{ kernel: {{ netns: /run/netns/pod, name: nsm-1, mac: '{}', addresses: [10.0.0.3/24] }} }}] }}",
                vf(3),
                mac(3)
            ),
            format!(
                "{{ name: guest, ends: [{{ {} }}, {{ vhost-user: {{ socket: {}, role: server }} }}] }}",
                vf(4),
                guest.display()
            ),
        ],
    )?;
    let responder = responder(&memif.to_string_lossy());
    forwarder.until_up("memif")?;
    lab.time("forwarder: from its start to frames from a VF to memif", began.elapsed());
    let wire = forwarder.wire("memif")?;
    let said = &wire.ends[0].detail;
    let vf =
        manager.list()?.vfs.into_iter().find(|vf| vf.lease.as_ref().is_some_and(|lease| lease.id == "wire/memif/A"));
    let vf = vf.context("the VF of a wire is lent under the wire's name")?;
    for part in [
        &vf.address,
        &format!("of {}", pf.interface),
        "net_e1000_igb_vf",
        "lease wire/memif/A",
        "link up",
        &format!("MAC {}", mac(2)),
        "NUMA node 0",
    ] {
        ensure!(said.contains(part), "`{part}` is not told: {said}");
    }
    assert_eq!(vf.driver, "vfio-pci");
    let times = ping("k", "10.0.0.2", 20)?;
    lab.figure("VF to memif: pings answered", times, "");
    forwarder.until_up("pod")?;
    lab.figure("VF to namespace: pings answered", ping("k", "10.0.0.3", 20)?, "");
    let testpmd = virtio_user(&guest.to_string_lossy(), &mac(4))?;
    forwarder.until_up("guest")?;
    lab.figure("VF to vhost-user: pings answered", ping("k", "10.0.0.4", 20)?, "");
    drop((testpmd, responder));
    ip(&["netns", "del", "pod"])?;
    pf.end()
}

/// Two VLANs of one PF, joined by a wire between two of its VFs.
pub fn vf_to_vf(lab: &Lab) -> Result<()> {
    let _manager = start_manager(lab)?;
    let near = Network::on(lab, 0, "k")?;
    let far = Network::of(lab, 0, 5, "far", "10.0.0.5/24")?;
    for (network, vlan) in [(&near, "10"), (&far, "20")] {
        ip(&["link", "set", &near.interface, "vf", &network.index.to_string(), "mac", &network.mac, "vlan", vlan])?;
        network.restart()?;
    }
    let forwarder = Forwarder::start(
        lab,
        &[format!(
            "{{ name: w, ends: [{{ vf: {{ pool: pf0, vlan: 10, mac: '{}' }} }}, {{ vf: {{ pool: pf0, vlan: 20, mac: '{}' }} }}] }}",
            far.mac, near.mac
        )],
    )?;
    forwarder.until_up("w")?;
    lab.figure("VF to VF of one PF: pings answered", ping("k", "10.0.0.5", 50)?, "");
    let wire = forwarder.wire("w")?;
    let frames: Vec<_> = wire.directions.iter().map(|traffic| traffic.frames).collect();
    ensure!(frames.iter().all(|&frames| frames >= 50), "they crossed the wire: {frames:?}");
    far.end()?;
    near.end()
}

/// A VF goes while it is polled, and a PF is reset. The wire of another PF goes on.
pub fn goes_and_comes_back(lab: &Lab) -> Result<()> {
    let manager = start_manager(lab)?;
    Network::on(lab, 0, "k")?;
    let other = Network::on(lab, 1, "other")?;
    let sockets = ["w", "other"].map(|name| lab.state().join(format!("{name}.sock")).to_string_lossy().into_owned());
    let forwarder = Forwarder::start(lab, &[to_memif(0, "w", &sockets[0]), to_memif(1, "other", &sockets[1])])?;
    let responders = sockets.each_ref().map(|socket| responder(socket));
    for name in ["w", "other"] {
        forwarder.until_up(name)?;
    }
    ping("k", "10.0.0.2", 5)?;
    ping("other", "10.0.0.2", 5)?;

    let mut watched = Watched::start("other", "10.0.0.2");
    // Its kernel's own driver lets go at once, and ours when it is asked.
    let pf = lab.pfs[0].clone();
    let began = Instant::now();
    let removal = thread::spawn(move || pf.set_vfs(0).map(|()| began.elapsed()));
    forwarder.until_end("w", 0, "lost")?;
    lab.time("VF removed: its port is lost", began.elapsed());
    let removed = removal.join().expect("it does not panic")?;
    lab.time("VF removed: the kernel has it back", removed);
    println!("lost: {}", forwarder.wire("w")?.ends[0].detail);
    wait_until("the lease says so", || {
        manager.list().is_ok_and(|list| list.lost.iter().any(|lease| lease.id == "wire/w/A"))
    })?;
    watched.check()?;
    ip(&["netns", "del", "k"])?;

    watched = Watched::start("other", "10.0.0.2");
    let began = Instant::now();
    lab.pfs[0].set_vfs(VFS_MAX)?;
    lab.time("VFs made again", began.elapsed());
    forwarder.until_up("w")?;
    lab.time("VFs made again: the wire is up", began.elapsed());
    let near = Network::on(lab, 0, "k")?;
    ping("k", "10.0.0.2", 5)?;
    watched.check()?;

    let crossed = || -> Result<[u64; 2]> {
        let wire = forwarder.wire("other")?;
        let drops: u64 = wire.directions.iter().flat_map(|traffic| &traffic.drops).map(|drop| drop.frames).sum();
        ensure!(drops == 0, "another wire has dropped frames: {:?}", wire.directions);
        Ok([wire.directions[0].frames, wire.directions[1].frames])
    };
    let before = crossed()?;
    watched = Watched::start("other", "10.0.0.2");
    let began = Instant::now();
    let interface = near.interface.clone();
    let reset = thread::spawn(move || -> Result<_> {
        ip(&["link", "set", &interface, "down"])?;
        let down = began.elapsed();
        ip(&["link", "set", &interface, "up"])?;
        Ok([down, began.elapsed()])
    });
    forwarder.until_end("w", 0, "lost")?;
    lab.time("PF down and up: its port is lost", began.elapsed());
    let [down, up] = reset.join().expect("it does not panic")?;
    lab.time("PF down and up: the kernel has it down", down);
    lab.time("PF down and up: the kernel has it up", up);
    forwarder.until_up("w")?;
    lab.time("PF down and up: the wire is up", began.elapsed());
    near.restart()?;
    ping("k", "10.0.0.2", 5)?;
    // The kernel resets the PF with the machine standing still, and the switch of a card loses frames then. What came by the VF crossed, and
    // was answered.
    lab.figure("PF down and up: pings of another wire answered", watched.answered() as f64, "");
    wait_until("all that came to the other wire crossed and was answered", || {
        crossed().is_ok_and(|now| now[0] > before[0] && now[0] - before[0] == now[1] - before[1])
    })?;
    drop(responders);
    near.end()?;
    other.end()
}

/// The forwarder runs as a container that is not privileged would have it, with the capability that the component `vf-ends` names and its
/// mounts. What a container lacks beside that, the right to open a device that comes later, is not a matter of this kernel's.
pub fn confined(lab: &Lab) -> Result<()> {
    let _manager = start_manager(lab)?;
    let near = Network::on(lab, 0, "k")?;
    let socket = lab.state().join("w.sock").to_string_lossy().into_owned();
    let forwarder = Forwarder::start_by(confinement(lab), lab, &[to_memif(0, "w", &socket)])?;
    let responder = responder(&socket);
    forwarder.until_up("w")?;
    let process = format!("/proc/{}", forwarder.id());
    let status = fs::read_to_string(format!("{process}/status")).context("read what the forwarder may do")?;
    ensure!(status.lines().any(|line| line == IPC_LOCK_ALONE), "{status}");
    // Nothing of this machine's root but what was mounted.
    ensure!(!Path::new(&format!("{process}/root/bin/busybox")).exists(), "the forwarder has a root of its own");
    lab.figure("with IPC_LOCK alone: pings over a VF answered", ping("k", "10.0.0.2", 20)?, "");
    drop((responder, forwarder));
    near.end()
}

/// A root that may only be read, of the program, the libraries and drivers that it loads, and the manifest's mounts.
fn confinement(lab: &Lab) -> Command {
    let script = format!(
        "root=/run/confined; state={state}
         mkdir -p $root/bin $root/lib $root/lib64 $root/usr/lib $root/proc $root/sys $root/dev $root/run/dpdk $root$state
         touch $root/bin/dpdk-forwarder $root/bin/setpriv
         mount --bind $root $root
         for path in bin/dpdk-forwarder bin/setpriv lib lib64 usr/lib sys; do
             mount --bind /$path $root/$path; mount -o remount,bind,ro $root/$path
         done
         mount --bind /proc $root/proc; mount --bind $state $root$state
         mount -t tmpfs tmpfs $root/run/dpdk; mount -t tmpfs tmpfs $root/dev
         mkdir $root/dev/vfio; touch $root/dev/null
         mount --bind /dev/vfio $root/dev/vfio; mount --bind /dev/null $root/dev/null
         mount -o remount,bind,ro $root
         exec chroot $root /bin/setpriv --bounding-set=-all,+ipc_lock --inh-caps=-all --no-new-privs /bin/dpdk-forwarder \"$@\"",
        state = lab.state().display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", &script, "sh"]);
    command
}

/// Of `/proc/PID/status`.
const IPC_LOCK_ALONE: &str = "CapEff:\t0000000000004000";

/// The forwarder is killed: the lease is known, and the next one goes on with it. When the wire goes, so does the lease.
pub fn killed(lab: &Lab) -> Result<()> {
    let manager = start_manager(lab)?;
    let near = Network::on(lab, 0, "k")?;
    let socket = lab.state().join("w.sock").to_string_lossy().into_owned();
    let wires = [to_memif(0, "w", &socket)];
    let forwarder = Forwarder::start(lab, &wires)?;
    let responder = responder(&socket);
    forwarder.until_up("w")?;
    ping("k", "10.0.0.2", 5)?;
    let lent = || -> Result<Option<String>> {
        let vfs = manager.list()?.vfs;
        Ok(vfs
            .into_iter()
            .find(|vf| vf.lease.as_ref().is_some_and(|lease| lease.id == "wire/w/A"))
            .map(|vf| vf.address))
    };
    let vf = lent()?.context("a VF is lent")?;
    forwarder.kill();
    assert_eq!(lent()?.as_ref(), Some(&vf), "the lease is known");
    let began = Instant::now();
    let forwarder = Forwarder::start(lab, &wires)?;
    forwarder.until_up("w")?;
    lab.time("forwarder killed: from its next start to frames", began.elapsed());
    ping("k", "10.0.0.2", 5)?;
    assert_eq!(lent()?.as_ref(), Some(&vf), "it has the same VF");
    let began = Instant::now();
    forwarder.change(&[])?;
    wait_until("the VF is given back", || lent().is_ok_and(|lent| lent.is_none()))?;
    lab.time("wire removed: the VF is given back", began.elapsed());
    // Killed with a wire that is not wanted when the next one starts.
    forwarder.change(&wires)?;
    wait_until("the wire is there again", || forwarder.wire("w").is_ok_and(|wire| wire.queues > 0))?;
    forwarder.kill();
    let forwarder = Forwarder::start(lab, &[])?;
    wait_until("the VF is given back", || lent().is_ok_and(|lent| lent.is_none()))?;
    drop((responder, forwarder));
    near.end()
}

/// A manager with a pool on each PF.
fn start_manager(lab: &Lab) -> Result<Manager> {
    let pool = |number: usize| {
        format!(
            "  - {{ name: pf{number}, num_vfs: {VFS_MAX}, pfs: [{{ address: '{}', vfs: 0-4 }}] }}\n",
            lab.pfs[number].address
        )
    };
    let policies = format!("pools:\n{}{}", pool(0), pool(1));
    Manager::start(lab, &ManagerOptions { policies: Some(policies), quiet: true, ..ManagerOptions::default() })
}

/// A VF that the kernel drives, in a namespace: who pings.
struct Network {
    /// Of the PF.
    interface: String,
    index: usize,
    mac: String,
    netns: String,
    address: String,
}

impl Network {
    fn on(lab: &Lab, pf: usize, netns: &str) -> Result<Self> {
        Self::of(lab, pf, VFS_MAX - 1, netns, "10.0.0.1/24")
    }

    fn of(lab: &Lab, pf: usize, index: usize, netns: &str, address: &str) -> Result<Self> {
        let function: &Function = &lab.pfs[pf];
        let interface = function.interface().context("a PF has an interface")?;
        ip(&["link", "set", &interface, "up"])?;
        let mac = format!("52:54:00:00:0{}:0{index}", pf + 1);
        ip(&["link", "set", &interface, "vf", &index.to_string(), "mac", &mac])?;
        let vf = &function.vfs()[index];
        vf.bind("igbvf")?;
        ip(&["netns", "add", netns])?;
        ip(&["link", "set", &vf.wait_for_interface(), "netns", netns, "name", "net1"])?;
        let network = Self { interface, index, mac, netns: netns.to_owned(), address: address.to_owned() };
        network.restart()?;
        Ok(network)
    }

    /// Has its driver ask the PF for everything anew.
    fn restart(&self) -> Result<()> {
        let ip = |arguments: &[&str]| ip(&[&["-n", &self.netns], arguments].concat());
        ip(&["link", "set", "net1", "down"])?;
        ip(&["link", "set", "net1", "address", &self.mac])?;
        ip(&["link", "set", "net1", "up"])?;
        ip(&["addr", "replace", &self.address, "dev", "net1"])?;
        Ok(())
    }

    fn end(self) -> Result<()> {
        ip(&["netns", "del", &self.netns]).map(drop)
    }
}

/// Pings that go on beside something else.
struct Watched {
    process: Process,
}

impl Watched {
    fn start(netns: &str, to: &str) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns, "ping", "-i", "0.1", to]);
        Self { process: Process::start(&mut command) }
    }

    /// Ends them: each was answered.
    fn check(self) -> Result<()> {
        let answered = self.numbers();
        // Those behind the last of them may still be under way.
        let is_whole = answered.iter().copied().eq(0..answered.len());
        ensure!(answered.len() > 10 && is_whole, "another wire lost frames: {answered:?}");
        Ok(())
    }

    /// Ends them; returns how many were answered.
    fn answered(self) -> usize {
        self.numbers().len()
    }

    fn numbers(self) -> Vec<usize> {
        self.process.signal(nix::sys::signal::Signal::SIGINT);
        let (_, text) = self.process.wait();
        let number = |line: &str| line.split_once("seq=")?.1.split(' ').next()?.parse().ok();
        text.lines().filter_map(number).collect()
    }
}

/// Pings until so many are answered, which is returned; the first may be lost while links come up.
pub(super) fn ping(netns: &str, to: &str, count: usize) -> Result<f64> {
    let run = |count: usize| {
        let output = Command::new("ip")
            .args(["netns", "exec", netns, "ping", "-c", &count.to_string(), "-i", "0.05", "-W", "1", to])
            .output()
            .context("run ping")?;
        counts(&String::from_utf8_lossy(&output.stdout))
    };
    wait_until(&format!("{to} answers {netns}"), || run(1).is_ok_and(|(_, received)| received == 1))?;
    let (sent, received) = run(count)?;
    ensure!(sent == received, "of {sent} pings from {netns} to {to} {received} were answered");
    Ok(received as f64)
}

/// `20 packets transmitted, 20 packets received, 0% packet loss`.
fn counts(text: &str) -> Result<(usize, usize)> {
    let line = text.lines().find(|line| line.contains("transmitted")).with_context(|| format!("ping says: {text}"))?;
    let mut numbers = line.split([' ', ',']).filter_map(|word| word.parse().ok());
    let both = numbers.next().zip(numbers.next());
    both.with_context(|| format!("ping says: {line}"))
}

fn to_memif(pf: usize, name: &str, socket: &str) -> String {
    let mac = mac(2);
    format!(
        "{{ name: {name}, ends: [{{ vf: {{ pool: pf{pf}, mac: '{mac}' }} }}, {{ memif: {{ socket: {socket}, role: server }} }}] }}"
    )
}

fn responder(socket: &str) -> Process {
    Process::start(Command::new("responder").args(["--socket", socket, "--mac", &mac(2), "--address", "10.0.0.2"]))
}

/// DPDK's own virtio device at the other end of a vhost-user socket. It answers pings to whatever address.
fn virtio_user(socket: &str, mac: &str) -> Result<Process> {
    let testpmd = program("dpdk-testpmd").map_err(|_| Lacks("dpdk-testpmd (apt-get install dpdk-dev)".to_owned()))?;
    let mut command = Command::new("stdbuf");
    // Without hugepages one file is all of its memory: of more than eight it can tell nobody.
    command.arg("-oL").arg(testpmd).args(["--no-huge", "-m", "64", "--no-shconf", "--no-telemetry", "--no-pci"]);
    command.args(["--lcores", "0@1,1@0"]);
    command.arg(format!("--vdev=net_virtio_user0,path={socket},mac={mac}"));
    command.args(["--", "-i", "--total-num-mbufs=4096", "--forward-mode=icmpecho", "--auto-start"]);
    let process = Process::start(&mut command);
    process.wait_for("testpmd> ");
    Ok(process)
}

fn mac(number: u8) -> String {
    format!("02:00:00:00:00:0{number}")
}
