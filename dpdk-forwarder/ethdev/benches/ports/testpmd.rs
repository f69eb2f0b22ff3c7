//! testpmd, turn by turn.

use std::process::Command;

use ferrule_hw_tests::process::Process;

use crate::primed::FIRST;
use crate::turn::{WORKER, turn};

/// A testpmd that forwards between two devices in its turns.
pub struct Testpmd {
    process: Process,
    burst: usize,
    turns: usize,
    asked: usize,
}

impl Testpmd {
    /// With so many frames in a burst.
    pub fn start(devices: &[&str; 2], burst: usize) -> Self {
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "dpdk-testpmd", "--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry"]);
        command.args(["--lcores", &format!("0@1,1@{WORKER}"), "--file-prefix", &format!("ports{burst}")]);
        command.args(devices.iter().map(|device| format!("--vdev={device}")));
        command.args(["--", "-i", "--total-num-mbufs=8192", "--mbuf-size=2176", "--forward-mode=io"]);
        command.args(["--disable-link-check".to_owned(), format!("--burst={burst}")]);
        let process = Process::start(&mut command);
        process.wait_for("testpmd> ");
        Self { process, burst, turns: 0, asked: 0 }
    }

    /// What a frame costs it, in ns.
    pub fn turn(&mut self) -> Result<f64, String> {
        self.turns += 1;
        // Each start empties the devices first.
        self.process.type_in(&format!("start tx_first {}\n", FIRST / self.burst));
        self.process.wait_for_times("packets/burst=", self.turns);
        let process = self.process.id();
        // It is stdbuf's, which becomes testpmd.
        let cost = turn(process, || self.frames());
        self.process.type_in("stop\n");
        self.process.wait_for_times("\nDone.\n", self.turns);
        cost.map_err(|error| format!("testpmd at bursts of {}: {error}", self.burst))
    }

    /// Frames that both devices have sent.
    fn frames(&mut self) -> u64 {
        // A stop tells such numbers too, of its turn.
        let before = self.process.output().matches(SENT).count();
        self.process.type_in("show port stats all\n");
        self.process.wait_for_times(SENT, before + 2);
        self.process.wait_for_times("TX-bytes: ", 2 * (self.asked + 1));
        self.asked += 1;
        let output = self.process.output();
        let counts = output.split(SENT).skip(before + 1);
        counts.filter_map(|count| count.split_whitespace().next()?.parse::<u64>().ok()).sum()
    }
}

/// In front of a number of frames.
const SENT: &str = "TX-packets: ";
