//! The steps of the demo with pods: what is done, in order.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use ferrule_kubelet::v1beta1::ContainerAllocateResponse;
use serde::Deserialize;
use tokio::runtime::Handle;

use super::container::Container;
use super::guests::Guests;
use super::node::{DemoNode, ENDPOINTS, GUEST, PORT, RESOURCES};
use super::report::PodReport;
use crate::admin::proto::Wire;
use crate::demo::daemon::{Daemon, beside_us};
use crate::demo::steps::running_interfaces;
use crate::demo::testbed::Testbed;
use crate::demo::{DemoError, Progress, Stop, needs, ping, plan, rate};
use crate::wires::{State, dropped};

/// Which programs to start; none: those beside us.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) forwarder: Option<PathBuf>,
    pub(super) device_plugin: Option<PathBuf>,
}

/// Does all of it. Everything that it made is gone when it returns.
pub(super) fn run(programs: Programs, handle: &Handle, stop: &Stop, progress: Progress) -> PodReport {
    let mut report = PodReport::default();
    let result = perform(programs, handle, stop, progress, &mut report);
    report.end(result)
}

fn perform(
    programs: Programs,
    handle: &Handle,
    stop: &Stop,
    progress: Progress,
    report: &mut PodReport,
) -> Result<(), DemoError> {
    needs::check()?;
    let (node_cpu, pod_cpu) = rate::cpus()?;
    let forwarder = programs.forwarder.map_or_else(|| beside_us("forwarder", "dpdk-forwarder", "--forwarder"), Ok)?;
    let plugin = || beside_us("device-plugin", "device-plugin", "--device-plugin");
    let plugin = programs.device_plugin.map_or_else(plugin, Ok)?;
    // What is declared later is dropped earlier: the daemons go before the namespaces.
    let testbed = Testbed::make(2, progress)?;
    progress.say(format_args!("made namespaces {0}-a and {0}-b: two pods to be", testbed.name()));
    progress.say("starting dpdk-forwarder, a stand-in for the kubelet, and device-plugin");
    let mut node = DemoNode::start([forwarder.clone(), plugin], node_cpu, &testbed, handle, stop)?;
    let mut show = PodDemo { testbed: &testbed, forwarder, cpu: pod_cpu, stop, progress, report };

    show.advertised(&mut node)?;
    let pods = show.run_pods(&mut node)?;
    show.wire(&mut node)?;
    show.ping(&mut node)?;
    show.guests(&mut node)?;
    show.end_pods(&mut node, pods)?;
    progress.say("stopping device-plugin and dpdk-forwarder");
    node.stop()
}

/// What all steps need.
struct PodDemo<'a> {
    testbed: &'a Testbed,
    forwarder: PathBuf,
    cpu: usize,
    stop: &'a Stop,
    progress: Progress,
    report: &'a mut PodReport,
}

impl PodDemo<'_> {
    fn advertised(&mut self, node: &mut DemoNode<'_>) -> Result<(), DemoError> {
        let problem = format!("the kubelet was not told of {ENDPOINTS} healthy devices");
        self.until(node, "advertised", &problem, |node| Ok(node.healthy().len() == ENDPOINTS))?;
        let ids = node.healthy().join(", ");
        let resources = RESOURCES.join(" and ");
        self.report.good("registered", format!("device-plugin registered {resources} with the kubelet's stand-in"));
        self.report.good("advertised", format!("{ENDPOINTS} devices: {ids}"));
        Ok(())
    }

    /// Each gets an endpoint, and an interface in its namespace from the sidecar.
    fn run_pods(&mut self, node: &mut DemoNode<'_>) -> Result<[Daemon; 2], DemoError> {
        let mut run = |side: usize| {
            let (Pod { step, name }, process) = (PODS[side], SIDECARS[side]);
            self.stop.check()?;
            self.progress.say(format_args!("pod {name} asks the kubelet for one {PORT}"));
            let given = node.run_pod(name, PORT).map_err(|problem: String| node.failed(step, &problem))?;
            let socket = socket_of(&given).map_err(|problem: String| node.failed(step, &problem))?;
            let file = format!(
                "workers: [{}]\nsocket: {}\nwires:\n  - name: net1\n    ends:\n      - kernel: {{ name: {INTERFACE}, \
                 addresses: [{}/24] }}\n      - memif: {{ socket: {socket}, role: client }}\n",
                self.cpu,
                self.testbed.directory().join("pod.sock").display(),
                address(side)
            );
            let launch = plan::forwarder(self.testbed, process, self.forwarder.clone(), &file)?;
            let container = Container {
                netns: self.testbed.namespace(side),
                mounts: &given.mounts,
                files: vec![self.testbed.directory().join(format!("{process}.yaml"))],
            };
            let sidecar =
                Daemon::start(launch, self.testbed, self.stop, |mut command| container.run(move || command.spawn()))?;
            self.report.good(step, told(&given));
            Ok::<_, DemoError>(sidecar)
        };
        Ok([run(0)?, run(1)?])
    }

    fn wire(&mut self, node: &mut DemoNode<'_>) -> Result<(), DemoError> {
        let testbed = self.testbed;
        self.until(node, "wire", "the two endpoints are not joined, or an interface is not up", |node| {
            let wires = node.wires()?;
            let are_up = wires.iter().any(|wire| State::of(wire) == State::Up && holders(wire) == BOTH);
            // The kernel loses what is sent before it has taken notice of the carrier.
            let runs = |side: usize| testbed.namespace(side).run(running_interfaces).unwrap_or_default();
            Ok(are_up && (0..2).all(|side| runs(side).iter().any(|name| name == INTERFACE)))
        })?;
        let wires = node.wires()?;
        let seen = wires.iter().map(|wire| format!("{}: up, of the pods {}", wire.name, holders(wire).join(" and ")));
        self.report.good("wire", seen.collect::<Vec<_>>().join("\n"));
        Ok(())
    }

    fn ping(&mut self, node: &mut DemoNode<'_>) -> Result<(), DemoError> {
        self.stop.check()?;
        self.progress.say(format_args!("pod one pings pod two, {} times", ping::COUNT));
        let pinged = ping::ping(self.testbed.namespace(0), address(1));
        // A signal that a terminal sends ends `ping` too.
        self.stop.check()?;
        let pinged = pinged.map_err(|error| node.failed("ping", &error.to_string()))?;
        if pinged.received < pinged.sent || pinged.sent == 0 {
            return Err(node.failed("ping", &format!("{} sent, {} answered", pinged.sent, pinged.received)));
        }
        let time = pinged.rtt_ms.map_or_else(String::new, |time| format!(", {time:.2} ms"));
        self.report.good("ping", format!("one to two: {} sent, {:.0} % lost{time}", pinged.sent, pinged.loss()));
        let wires = node.wires()?;
        let frames: Vec<u64> = wires.iter().flat_map(|wire| &wire.directions).map(|way| way.frames).collect();
        let [there, back] = frames[..] else { return Err(node.failed("frames", "it is not one wire")) };
        let drops: u64 = wires.iter().flat_map(|wire| &wire.directions).map(dropped).sum();
        let wanted = u64::from(ping::COUNT);
        if there < wanted || back < wanted || drops > 0 {
            return Err(node.failed("frames", &format!("{there} there, {back} back, {drops} dropped by the forwarder")));
        }
        self.report.good("frames", format!("the forwarder counted {there} there, {back} back, {drops} dropped"));
        Ok(())
    }

    /// Two more pods, which have no kernel interface. They are deleted with the next one.
    fn guests(&mut self, node: &mut DemoNode<'_>) -> Result<(), DemoError> {
        let mut run = |Pod { step, name }: Pod| {
            self.stop.check()?;
            self.progress.say(format_args!("pod {name} asks the kubelet for one {GUEST}"));
            let given = node.run_pod(name, GUEST).map_err(|problem: String| node.failed(step, &problem))?;
            let socket = socket_of(&given).map_err(|problem: String| node.failed(step, &problem))?;
            self.report.good(step, told(&given));
            Ok::<_, DemoError>((given, socket))
        };
        let given = [run(GUESTS[0])?, run(GUESTS[1])?];
        let exchanged = Guests::open(self.testbed, &given).and_then(|mut guests| guests.exchange());
        let seen = exchanged.map_err(|problem| node.failed("vhost-user", &problem))?;
        self.report.good("vhost-user", format!("three and four: {seen}"));
        // A pod that was never listed may be one that starts.
        self.until(node, "pod three", "their wire does not name both pods", |node| {
            let names = GUESTS.map(|guest| format!("default/{}", guest.name));
            Ok(node.wires()?.iter().any(|wire| holders(wire) == names))
        })?;
        for guest in GUESTS {
            node.kubelet.end_pod(guest.name);
        }
        Ok(())
    }

    /// One after the other: the first one leaves the second its socket, and with the second the wire goes.
    fn end_pods(&mut self, node: &mut DemoNode<'_>, [one, two]: [Daemon; 2]) -> Result<(), DemoError> {
        self.progress.say("deleting pod one; the kubelet tells nobody, so its list of pods is looked at");
        one.stop()?;
        node.kubelet.end_pod(PODS[0].name);
        let began = Instant::now();
        self.until(node, "pod one deleted", "its endpoint is not free", |node| {
            Ok(node.wires()?.iter().all(|wire| holders(wire) == BOTH[1..]))
        })?;
        let time = began.elapsed().as_secs_f64();
        self.report
            .good("pod one deleted", format!("its endpoint is free {time:.1} s later, and pod two has its own still"));

        self.progress.say("deleting pod two");
        two.stop()?;
        node.kubelet.end_pod(PODS[1].name);
        let software = self.testbed.directory().join("software");
        self.until(node, "pod two deleted", "something of it is left", |node| {
            let directories = std::fs::read_dir(&software).into_iter().flatten().count();
            Ok(node.wires()?.is_empty() && directories == 0)
        })?;
        let free = node.healthy().len();
        if free != ENDPOINTS {
            return Err(node.failed("pod two deleted", &format!("{free} of {ENDPOINTS} devices are healthy")));
        }
        self.report.good("pod two deleted", format!("the wire and its sockets are gone, all {free} devices are free"));
        Ok(())
    }

    fn until(
        &self,
        node: &mut DemoNode<'_>,
        step: &'static str,
        problem: &str,
        mut holds: impl FnMut(&mut DemoNode<'_>) -> Result<bool, DemoError>,
    ) -> Result<(), DemoError> {
        let deadline = Instant::now() + TIMEOUT;
        while !holds(node)? {
            self.stop.check()?;
            if Instant::now() > deadline {
                return Err(node.failed(step, &format!("not within {TIMEOUT:?}: {problem}")));
            }
            thread::sleep(TICK);
        }
        Ok(())
    }
}

/// A pod of the demo.
#[derive(Clone, Copy)]
struct Pod {
    step: &'static str,
    name: &'static str,
}

const PODS: [Pod; 2] = [Pod { step: "pod one", name: "one" }, Pod { step: "pod two", name: "two" }];
/// Their processes.
const SIDECARS: [&str; 2] = ["pod-one", "pod-two"];
const GUESTS: [Pod; 2] = [Pod { step: "pod three", name: "three" }, Pod { step: "pod four", name: "four" }];

/// What `..._INFO` says of a device.
#[derive(Deserialize)]
struct Info {
    #[serde(alias = "vhost-user")]
    memif: SocketInfo,
}

#[derive(Deserialize)]
struct SocketInfo {
    path: String,
}

/// The socket, as a program in the container finds it.
fn socket_of(given: &ContainerAllocateResponse) -> Result<String, String> {
    let info = given.envs.iter().find(|(name, _)| name.starts_with(VARIABLES) && name.ends_with("_INFO"));
    let (variable, text) = info.ok_or_else(|| format!("its environment has no {VARIABLES}.._INFO"))?;
    let info: BTreeMap<String, Info> = serde_json::from_str(text).map_err(|error| format!("{variable}: {error}"))?;
    info.into_values().next().map(|info| info.memif.path).ok_or_else(|| format!("{variable} tells of no device"))
}

fn told(given: &ContainerAllocateResponse) -> String {
    let envs: BTreeMap<_, _> = given.envs.iter().collect();
    let envs = envs.into_iter().map(|(name, value)| format!("{name}={value}"));
    let mounts = given.mounts.iter().map(|mount| {
        let access = if mount.read_only { "read-only" } else { "read-write" };
        format!("mount {} ({access})", mount.container_path)
    });
    envs.chain(mounts).collect::<Vec<_>>().join("\n")
}

/// Pods that have an end of a wire, as its labels tell.
fn holders(wire: &Wire) -> Vec<String> {
    let Some(spec) = &wire.spec else { return Vec::new() };
    ["pod-0", "pod-1"].iter().filter_map(|key| spec.labels.get(*key).cloned()).collect()
}

fn address(side: usize) -> IpAddr {
    Ipv4Addr::new(10, 99, 9, if side == 0 { 1 } else { 2 }).into()
}

/// As the kubelet lists them.
const BOTH: [&str; 2] = ["default/one", "default/two"];
/// What the names of variables begin with.
const VARIABLES: &str = "PCIDEVICE_EXAMPLE_COM_";
/// As CNI plugins call a second interface.
const INTERFACE: &str = "net1";
/// A machine with other work must not exhaust it.
const TIMEOUT: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_as_a_program_in_the_pod_finds_it() {
        let mut given = ContainerAllocateResponse::default();
        assert!(socket_of(&given).unwrap_err().contains("has no PCIDEVICE_EXAMPLE_COM_.._INFO"));
        let variable = "PCIDEVICE_EXAMPLE_COM_PORT_INFO";
        let info =
            r#"{"soft-port-0":{"generic":{"deviceID":"soft-port-0"},"memif":{"path":"/a.sock","role":"client"}}}"#;
        given.envs.insert(variable.to_owned(), info.into());
        assert_eq!(socket_of(&given).unwrap(), "/a.sock");
        given.envs.insert(variable.to_owned(), info.replace("memif", "vhost-user"));
        assert_eq!(socket_of(&given).unwrap(), "/a.sock");
        given.envs.insert(variable.to_owned(), "{}".into());
        assert!(socket_of(&given).unwrap_err().contains("no device"));
    }
}
