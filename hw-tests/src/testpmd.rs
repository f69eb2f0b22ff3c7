//! DPDK's test program as a peer: without hugepages, without a NIC, several at once.

use std::process::Command;

use crate::process::Process;
use crate::unique;

/// A testpmd that forwards between its ports.
pub struct Testpmd {
    process: Process,
}

/// How to start one.
#[derive(Clone, Debug)]
pub struct Options {
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
}

impl Default for Options {
    fn default() -> Self {
        // One buffer takes the longest frame: see the known defects of peers in docs/memif.md.
        Self { devices: Vec::new(), forward: "io", queues: 1, mbuf: 9728, cores: 1 }
    }
}

impl Testpmd {
    /// Starts one and waits until it forwards. Its servers listen then, its clients have connected or will not.
    ///
    /// # Panics
    /// It does not come so far.
    pub fn start(options: &Options) -> Self {
        // It prints "Press enter" last, and waits for that on its standard input.
        let process = Process::start(&mut options.command());
        process.wait_for("Press enter to exit");
        Self { process }
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

    /// Waits until it has printed `text`.
    ///
    /// # Panics
    /// It never does.
    pub fn wait_for(&self, text: &str) {
        self.process.wait_for(text);
    }
}

impl Options {
    fn command(&self) -> Command {
        // Its standard output is a pipe, which libc would fill a block at a time.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "dpdk-testpmd", "--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry"]);
        command.args(["--file-prefix", &unique("testpmd"), "--lcores", &self.lcores()]);
        for device in &self.devices {
            command.args(["--vdev", device]);
        }
        command.args(["--", "--total-num-mbufs=8192", "--disable-link-check"]);
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
        format!("(0-{})@(0-{last})", self.cores)
    }
}
