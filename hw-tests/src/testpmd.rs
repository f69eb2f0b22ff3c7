//! DPDK's test program as a peer: without hugepages, without a NIC, several at once.

use std::process::Command;

use crate::process::Process;
use crate::unique;

/// A testpmd that forwards between its ports.
pub struct Testpmd {
    process: Process,
    pauses: usize,
}

/// How to start one.
#[derive(Clone, Debug)]
pub struct TestpmdOptions {
    /// The devices, as DPDK writes them: `net_memif0,role=client,...`. Port 0 and 1 are a pair; a port alone sends back.
    pub devices: Vec<String>,
    /// `io` leaves frames alone, `macswap` swaps their addresses.
    pub forward: &'static str,
    /// Queue pairs of each port.
    pub queues: u16,
    /// Bytes of a packet buffer, of which 128 are headroom: a longer frame lies in several.
    pub mbuf: u32,
    /// Forwarding threads.
    pub cores: u16,
    /// CPUs that its threads float over; none: all of them.
    pub cpus: Vec<usize>,
    /// Whether [`Testpmd::pause`] will be wanted.
    pub pausable: bool,
}

impl Default for TestpmdOptions {
    fn default() -> Self {
        // One buffer takes the longest frame: see the known defects of peers in docs/memif.md.
        Self { devices: Vec::new(), forward: "io", queues: 1, mbuf: 9728, cores: 1, cpus: Vec::new(), pausable: false }
    }
}

impl Testpmd {
    /// Starts one and waits until it forwards. Its servers listen then, its clients have connected or will not.
    ///
    /// # Panics
    /// It does not come so far.
    pub fn start(options: &TestpmdOptions) -> Self {
        let process = Process::start(&mut options.command());
        let mut testpmd = Self { process, pauses: 0 };
        if options.pausable {
            testpmd.wait_for("testpmd> ");
            testpmd.resume();
        } else {
            // Printed last; it waits for that on its standard input.
            testpmd.wait_for("Press enter to exit");
        }
        testpmd
    }

    /// Ends the polling of its ports, and returns when it has ended.
    ///
    /// A peer that goes while DPDK 22.11 polls may kill it: its control thread unmaps the rings under the polling one.
    ///
    /// # Panics
    /// It does not answer.
    pub fn pause(&mut self) {
        self.pauses += 1;
        self.process.type_in("stop\n");
        self.process.wait_for_times("\nDone.\n", self.pauses);
    }

    /// Polls again.
    ///
    /// # Panics
    /// It does not answer.
    pub fn resume(&mut self) {
        self.process.type_in("start\n");
        self.process.wait_for_times("packets/burst=", self.pauses + 1);
    }

    /// Kills it without a chance to say goodbye.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Ends it properly; returns everything it printed, its own count of packets included.
    pub fn stop(self) -> String {
        self.process.stop()
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Waits until its memif ports have been connected so many times, counted over all ports.
    ///
    /// It is later than the peer that a client sees its connection, and what is forwarded to a port before is dropped.
    ///
    /// # Panics
    /// They never are.
    pub fn wait_for_connections(&self, times: usize) {
        self.process.wait_for_times("memif_connect(): Connected.", times);
    }

    /// Waits until it has printed `text`.
    ///
    /// # Panics
    /// It never does.
    pub fn wait_for(&self, text: &str) {
        self.process.wait_for(text);
    }
}

impl TestpmdOptions {
    fn command(&self) -> Command {
        // Its standard output is a pipe, which libc would fill a block at a time.
        let mut command = Command::new("stdbuf");
        command.args([
            "-oL",
            "dpdk-testpmd",
            "--no-huge",
            "-m",
            "256",
            "--no-pci",
            "--no-shconf",
            "--no-telemetry",
            "--log-level=pmd.net.memif:info",
        ]);
        command.args(["--file-prefix", &unique("testpmd"), "--lcores", &self.lcores()]);
        for device in &self.devices {
            command.args(["--vdev", device]);
        }
        command.args(["--", "--total-num-mbufs=8192", "--disable-link-check"]);
        command.args(self.pausable.then_some("-i"));
        command.arg(format!("--forward-mode={}", self.forward));
        command.arg(format!("--mbuf-size={}", self.mbuf));
        command.arg(format!("--nb-cores={}", self.cores));
        command.args([format!("--rxq={}", self.queues), format!("--txq={}", self.queues)]);
        command
    }

    /// The main thread, which only waits for its standard input, and the forwarding ones: all float over all CPUs,
    /// so that tests neither fail on one CPU nor fight for one of several.
    fn lcores(&self) -> String {
        let last = std::thread::available_parallelism().map_or(0, |count| count.get() - 1);
        let cpus = if self.cpus.is_empty() { (0..=last).collect() } else { self.cpus.clone() };
        let cpus: Vec<_> = cpus.iter().map(ToString::to_string).collect();
        format!("(0-{})@({})", self.cores, cpus.join(","))
    }
}
