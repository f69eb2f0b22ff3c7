//! A veth pair and the process that made it: killed, started again, out of descriptors.

use std::process::{Command, Stdio};

use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};
use ferrule_hw_tests::process::Process;
use tempfile::TempDir;

#[test]
fn a_killed_forwarder_s_pair_is_taken_over_and_its_traffic_does_not_stop() {
    let Some(hosts) = Hosts::new("a_killed_forwarder_s_pair_is_taken_over_and_its_traffic_does_not_stop") else {
        return;
    };
    let mut host = hosts.start("id", "10.0.0.1/30");
    let before = hosts.indexes();
    // For longer than a restart takes.
    let pings = hosts.sides[0].ping("-c 400 -i 0.005 -W 1 10.0.0.2").stdout(Stdio::piped()).spawn().unwrap();
    host.kill();
    assert_eq!(hosts.indexes(), before, "the kernel keeps it");
    let mut host = hosts.start("id", "10.0.0.1/30");
    assert_eq!(hosts.indexes(), before, "taken over, not made again");
    let output = String::from_utf8(pings.wait_with_output().unwrap().stdout).unwrap();
    assert!(output.contains("400 received"), "{output}");
    assert!(frames(&Hosts::status(&mut host)) >= 400, "counted since the pair was made");
    // A clean end removes it.
    host.close_input();
    assert_eq!(host.wait().0, Some(0));
    hosts.sides.iter().for_each(|side| side.wait_for_interfaces(&[]));
    // The file stays: what was found once may not be all that there is.
    assert!(hosts.folder.path().join("id").exists());
}

#[test]
fn a_killed_forwarder_s_pair_that_does_not_fit_any_more_is_replaced() {
    let Some(hosts) = Hosts::new("a_killed_forwarder_s_pair_that_does_not_fit_any_more_is_replaced") else { return };
    let mut host = hosts.start("id", "10.0.0.1/30");
    let before = hosts.indexes();
    host.kill();
    let _host = hosts.start("id", "10.0.0.1/29");
    assert_ne!(hosts.indexes(), before);
    hosts.sides[0].ping_all("10.0.0.2", 2, 56);
    assert_eq!(hosts.sides[0].interfaces(), ["nsm-1"]);
}

#[test]
fn the_pair_of_another_forwarder_is_never_touched() {
    let Some(hosts) = Hosts::new("the_pair_of_another_forwarder_is_never_touched") else { return };
    let mut first = hosts.start("first", "10.0.0.1/30");
    let before = hosts.indexes();
    for (id, reason) in [("second", "the name is taken"), ("first", "another forwarder runs with it")] {
        let (code, log) = hosts.spawn(id, "10.0.0.1/30").wait();
        assert!(code == Some(1) && log.contains(reason), "{log}");
        assert_eq!(hosts.indexes(), before);
    }
    // Dead or not: it has an id that the second one does not have.
    first.kill();
    let (code, log) = hosts.spawn("second", "10.0.0.1/30").wait();
    assert!(code == Some(1) && log.contains("the name is taken"), "{log}");
    assert_eq!(hosts.indexes(), before);
}

#[test]
fn a_moment_without_descriptors_costs_no_pair_its_life_or_its_counters() {
    let Some(hosts) = Hosts::new("a_moment_without_descriptors_costs_no_pair_its_life_or_its_counters") else { return };
    let mut host = hosts.start("id", "10.0.0.1/30");
    // Before it was ever asked: nothing is open that could ask.
    host.type_in("exhaust\n");
    assert!(Hosts::status(&mut host).starts_with("up up "), "{}", host.output());
    host.type_in("recover\n");
    hosts.sides[0].ping_all("10.0.0.2", 20, 56);
    let before = frames(&Hosts::status(&mut host));
    assert!(before >= 20);
    host.type_in("exhaust\n");
    let status = Hosts::status(&mut host);
    assert!(status.starts_with("up up ") && frames(&status) >= before, "{status}");
    // Nor is it left behind.
    host.type_in("remove\n");
    host.wait_for("removed");
    hosts.sides.iter().for_each(|side| side.wait_for_interfaces(&[]));
}

fn frames(status: &str) -> u64 {
    status.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Two namespaces, and processes that join them.
struct Hosts {
    sides: [TestNetNs; 2],
    folder: TempDir,
}

impl Hosts {
    fn new(test: &str) -> Option<Self> {
        if lacks_namespaces(test) {
            return None;
        }
        Some(Self { sides: [TestNetNs::new(), TestNetNs::new()], folder: tempfile::tempdir().unwrap() })
    }

    fn spawn(&self, id_file: &str, address: &str) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pair-host"));
        command.arg(self.folder.path().join(id_file));
        command.args(self.sides.each_ref().map(TestNetNs::path));
        Process::start(command.args([address, "10.0.0.2/30"]))
    }

    /// One that has made its pair.
    fn start(&self, id_file: &str, address: &str) -> Process {
        let host = self.spawn(id_file, address);
        host.wait_for("made");
        host
    }

    /// The numbers of the two interfaces.
    fn indexes(&self) -> [String; 2] {
        self.sides.each_ref().map(|side| side.ip("-o link show nsm-1").split(':').next().unwrap().to_owned())
    }

    /// What a process says of its pair.
    fn status(host: &mut Process) -> String {
        const WORD: &str = "status: ";
        let told = host.output().matches(WORD).count();
        host.type_in("status\n");
        host.wait_for_times(WORD, told + 1);
        host.output().rsplit(WORD).next().unwrap().trim_end().to_owned()
    }
}
