//! The doctor on machines that are made of files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use clap::Parser as _;
use tempfile::TempDir;

use super::finding::Verdict;
use super::{BenchError, DoctorArgs, DoctorReport, examine, run, show};

#[derive(clap::Parser)]
struct TestArgs {
    #[command(flatten)]
    args: DoctorArgs,
}

/// A machine, as far as the doctor looks at it.
struct MadeMachine(TempDir);

impl MadeMachine {
    /// Two nodes of four CPUs with two threads a core (0-3 and 8-11 on node 0), a NIC with two ports on node 0, and everything as
    /// it should be: CPUs 1-3 are isolated, and their other threads are off.
    fn good() -> Self {
        let machine = Self(TempDir::new().unwrap());
        machine.files(GOOD);
        for cpu in 0..4 {
            let sibling = cpu + 8;
            machine.file(
                &format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"),
                &format!("{cpu},{sibling}"),
            );
            machine.file(&format!("sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"), "performance");
            machine.files(&[
                (&format!("sys/devices/system/cpu/cpu{cpu}/cpuidle/state0/name"), "POLL"),
                (&format!("sys/devices/system/cpu/cpu{cpu}/cpuidle/state0/latency"), "0"),
                (&format!("sys/devices/system/cpu/cpu{cpu}/cpuidle/state1/name"), "C1"),
                (&format!("sys/devices/system/cpu/cpu{cpu}/cpuidle/state1/latency"), "2"),
                (&format!("sys/devices/system/cpu/cpu{cpu}/cpuidle/state2/name"), "C6"),
                (&format!("sys/devices/system/cpu/cpu{cpu}/cpuidle/state2/latency"), "133"),
                (&format!("sys/devices/system/cpu/cpu{cpu}/cpuidle/state2/disable"), "1"),
            ]);
        }
        for (function, group) in [(PORTS[0], 40), (PORTS[1], 41)] {
            machine.nic(function, "vfio-pci", group);
        }
        machine
    }

    fn nic(&self, address: &str, driver: &str, group: u32) {
        let folder = format!("sys/bus/pci/devices/{address}");
        self.files(&[
            (&format!("{folder}/class"), "0x020000"),
            (&format!("{folder}/vendor"), "0x8086"),
            (&format!("{folder}/device"), "0x159b"),
            (&format!("{folder}/numa_node"), "0"),
            (&format!("{folder}/current_link_speed"), "16.0 GT/s PCIe"),
            (&format!("{folder}/max_link_speed"), "16.0 GT/s PCIe"),
            (&format!("{folder}/current_link_width"), "8"),
            (&format!("{folder}/max_link_width"), "8"),
            (&format!("{folder}/sriov_totalvfs"), "64"),
            (&format!("{folder}/sriov_numvfs"), "2"),
            (&format!("sys/kernel/iommu_groups/{group}/devices/{address}/there"), "1"),
        ]);
        self.link(&format!("{folder}/driver"), &format!("../../drivers/{driver}"));
        self.link(&format!("{folder}/iommu_group"), &format!("../../../../kernel/iommu_groups/{group}"));
    }

    /// As bought, and nothing was done to it. The second port is in a narrow slot, and the kernel's driver has both.
    fn bad() -> Self {
        let machine = Self::good();
        machine.files(BAD);
        for cpu in 0..4 {
            machine.file(&format!("sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"), "powersave");
            machine.file(&format!("sys/devices/system/cpu/cpu{cpu}/cpuidle/state2/disable"), "0");
        }
        machine.remove("sys/bus/pci/drivers/vfio-pci");
        machine.remove("sys/class/iommu");
        machine.remove("sys/kernel/iommu_groups");
        machine.remove("usr/lib/x86_64-linux-gnu/librte_eal.so.23");
        for address in PORTS {
            machine.link(&format!("sys/bus/pci/devices/{address}/driver"), "../../drivers/ice");
            machine.remove(&format!("sys/bus/pci/devices/{address}/iommu_group"));
            machine.file(&format!("sys/bus/pci/devices/{address}/net/{}/there", interface(address)), "");
        }
        machine
    }

    fn files(&self, files: &[(&str, &str)]) {
        for (path, text) in files {
            self.file(path, text);
        }
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn link(&self, path: &str, to: &str) {
        let path = self.path().join(path);
        let _ = fs::remove_file(&path);
        symlink(to, path).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.path().join(path);
        // A link is removed itself.
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn args(&self, words: &[&str]) -> DoctorArgs {
        let root = ["doctor", "--root", self.path().to_str().unwrap()];
        TestArgs::try_parse_from(root.iter().chain(words)).unwrap().args
    }

    fn examine(&self) -> DoctorReport {
        examine(&self.args(&["--port", "3b:00.0", "--port", PORTS[1]]))
    }
}

/// The checks with this verdict.
fn with(report: &DoctorReport, verdict: Verdict) -> Vec<&str> {
    report.findings.iter().filter(|finding| finding.verdict == verdict).map(|finding| finding.check).collect()
}

#[test]
fn a_good_machine_has_nothing_to_change() {
    let machine = MadeMachine::good();
    let report = machine.examine();
    let wrong: Vec<_> = report.findings.iter().filter(|finding| finding.verdict >= Verdict::Warning).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(report.kernel_arguments.is_empty());
    let text = show::text(&report);
    assert!(!text.contains("To change") && text.contains("16.0 GT/s x8, 126 Gbit/s"), "{text}");
    run(&machine.args(&["--json"])).unwrap();
}

#[test]
fn of_a_machine_as_bought_everything_is_said_with_its_cure() {
    let machine = MadeMachine::bad();
    let report = machine.examine();
    assert_eq!(
        with(&report, Verdict::Error),
        [
            "clock",
            "isolcpus",
            "hugepages",
            "memlock",
            "iommu",
            "vfio",
            "libdpdk",
            "driver",
            "iommu-group",
            "link",
            "driver",
            "iommu-group",
            "pcie",
            "link"
        ]
    );
    assert_eq!(
        with(&report, Verdict::Warning),
        [
            "machine",
            "governor",
            "turbo",
            "c-states",
            "nohz_full",
            "rcu_nocbs",
            "interrupts",
            "nmi_watchdog",
            "irqbalance"
        ]
    );
    for finding in report.findings.iter().filter(|finding| finding.verdict >= Verdict::Warning) {
        assert!(!finding.cures.is_empty(), "{finding:?}");
    }
    // The first core is for everything else.
    assert_eq!(
        report.kernel_arguments.join(" "),
        "tsc=reliable intel_idle.max_cstate=1 processor.max_cstate=1 isolcpus=managed_irq,domain,1-3,9-11 nohz_full=1-3,9-11 \
         rcu_nocbs=1-3,9-11 irqaffinity=0,4-8,12-15 nmi_watchdog=0 default_hugepagesz=1G hugepagesz=1G hugepages=4 intel_iommu=on iommu=pt"
    );
    let text = show::text(&report);
    for part in [
        "WARNING",
        "powersave on CPU 1-3",
        "8.0 GT/s x4, 32 Gbit/s",
        "# ip link set ens1f1 down && dpdk-devbind.py --bind=vfio-pci 0000:3b:00.1",
        "# systemctl disable --now irqbalance",
        "GRUB_CMDLINE_LINUX",
        "2 may come to CPU 1-3,9-11: IRQ 24, 25",
    ] {
        assert!(text.contains(part), "`{part}` in\n{text}");
    }
    let error = run(&machine.args(&[])).unwrap_err();
    assert!(matches!(error, BenchError::Unfit { errors: 4.., warnings: 4.. }) && error.exit_code() == 1, "{error}");
}

#[test]
fn warnings_alone_have_an_exit_code_of_their_own() {
    let machine = MadeMachine::good();
    machine.file("proc/77/comm", "irqbalance");
    let error = run(&machine.args(&["--port", PORTS[0], "--port", PORTS[1]])).unwrap_err();
    assert_eq!((error.exit_code(), error.to_string()), (3, "0 errors and 1 warnings".to_owned()));
}

#[test]
fn each_thing_that_is_changed_is_the_one_that_is_found() {
    let changes: [(&str, &str, &str); 12] = [
        ("sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "schedutil", "governor"),
        ("sys/devices/system/cpu/intel_pstate/no_turbo", "0", "turbo"),
        ("sys/devices/system/cpu/cpu1/cpuidle/state2/disable", "0", "c-states"),
        ("sys/devices/system/cpu/online", "0-8,10-15", "smt"),
        ("sys/devices/system/cpu/nohz_full", "(null)", "nohz_full"),
        ("proc/irq/24/smp_affinity_list", "0-15", "interrupts"),
        ("proc/sys/kernel/nmi_watchdog", "1", "nmi_watchdog"),
        ("sys/devices/system/node/node0/hugepages/hugepages-1048576kB/free_hugepages", "1", "hugepages"),
        ("proc/self/limits", "Max locked memory         8388608              8388608              bytes", "memlock"),
        ("sys/bus/pci/devices/0000:3b:00.1/current_link_width", "4", "pcie"),
        ("sys/bus/pci/devices/0000:3b:00.1/numa_node", "1", "numa"),
        ("sys/bus/pci/devices/0000:3b:00.1/class", "0x020000", ""),
    ];
    for (path, text, check) in changes {
        let machine = MadeMachine::good();
        machine.file(path, text);
        // Of the other node's memory nothing is asked here.
        machine.files(&[("sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages", "2048")]);
        machine.files(&[("sys/devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages", "2048")]);
        let report = machine.examine();
        let found: BTreeSet<_> = report
            .findings
            .iter()
            .filter(|finding| finding.verdict >= Verdict::Warning)
            .map(|finding| finding.check)
            .collect();
        let wanted: BTreeSet<_> = [check].into_iter().filter(|check| !check.is_empty()).collect();
        assert_eq!(found, wanted, "{path}");
    }
}

#[test]
fn a_device_of_the_kernel_in_the_group_of_a_port_is_named() {
    let machine = MadeMachine::good();
    machine.nic("0000:3b:00.2", "ice", 40);
    let report = machine.examine();
    let group = report.findings.iter().find(|finding| finding.check == "iommu-group").unwrap();
    assert_eq!((group.verdict, &*group.is), (Verdict::Error, "group 40, with 0000:3b:00.2"));
}

#[test]
fn a_vf_is_judged_by_the_slot_of_its_pf_and_a_port_that_is_not_there_is_named() {
    let machine = MadeMachine::good();
    let vf = "0000:3b:02.0";
    machine.nic(vf, "vfio-pci", 50);
    for file in ["current_link_speed", "max_link_speed", "sriov_totalvfs"] {
        machine.remove(&format!("sys/bus/pci/devices/{vf}/{file}"));
    }
    machine.link(&format!("sys/bus/pci/devices/{vf}/physfn"), "../0000:3b:00.0");
    let report = examine(&machine.args(&["--port", vf, "--port", "0000:99:00.0"]));
    let of = |check: &str| {
        report.findings.iter().find(|finding| finding.check == check && finding.subject.as_deref() == Some(vf)).unwrap()
    };
    assert_eq!(of("vfs").is, "a VF of 0000:3b:00.0, which has 2");
    assert_eq!(of("pcie").verdict, Verdict::Ok);
    let missing = report.findings.iter().find(|finding| finding.subject.as_deref() == Some("0000:99:00.0")).unwrap();
    assert_eq!((missing.check, missing.verdict), ("ports", Verdict::Error));
    assert!(
        !examine(&machine.args(&[])).findings.iter().any(|finding| finding.subject.as_deref() == Some(vf)),
        "VFs are looked at when they are named"
    );
}

#[test]
fn libdpdk_is_found_below_lib_too_and_a_folder_of_two_names_is_looked_at_once() {
    let machine = MadeMachine::good();
    machine.link("lib", "usr/lib");
    let is = || {
        let report = machine.examine();
        report.findings.iter().find(|finding| finding.check == "libdpdk").unwrap().is.clone()
    };
    assert_eq!(is(), "librte_eal.so.23, 1 drivers of NICs");
    machine.remove("lib");
    machine.remove("usr/lib/x86_64-linux-gnu/librte_eal.so.23");
    assert_eq!(is(), "not installed");
    machine.file("lib/x86_64-linux-gnu/librte_eal.so.23", "");
    assert_eq!(is(), "librte_eal.so.23, 1 drivers of NICs");
}

#[test]
fn every_check_has_its_row_in_the_page() {
    let page = include_str!("../../../docs/bare-metal.md");
    let checks: BTreeSet<_> = MadeMachine::bad().examine().findings.iter().map(|finding| finding.check).collect();
    for check in checks {
        assert!(page.contains(&format!("| `{check}` |")), "{check} has no row in docs/bare-metal.md");
    }
}

#[test]
fn json_has_every_finding_with_its_cures_by_kind() {
    let report = MadeMachine::bad().examine();
    let json: serde_json::Value = serde_json::from_str(&show::json(&report).unwrap()).unwrap();
    let all = json["findings"].as_array().unwrap();
    assert_eq!(all.len(), report.findings.len());
    let of = |check: &str| all.iter().find(|finding| finding["check"] == check).unwrap();
    assert_eq!(of("nmi_watchdog")["cures"][0]["kernel_argument"], "nmi_watchdog=0");
    assert_eq!((&of("vfio")["verdict"], &of("hugepages")["subject"]), (&"error".into(), &"NUMA node 0".into()));
    assert_eq!(json["kernel_arguments"][0], "tsc=reliable");
}

#[test]
fn this_machine_can_be_looked_at() {
    let report = examine(&TestArgs::try_parse_from(["doctor"]).unwrap().args);
    assert!(report.findings.len() > 15, "{report:?}");
}

fn interface(address: &str) -> String {
    format!("ens1f{}", &address[address.len() - 1..])
}

const PORTS: [&str; 2] = ["0000:3b:00.0", "0000:3b:00.1"];

const GOOD: &[(&str, &str)] = &[
    ("proc/cpuinfo", "vendor_id\t: GenuineIntel\nmodel name\t: Some Xeon\nflags\t\t: fpu tsc constant_tsc nonstop_tsc"),
    (
        "proc/cmdline",
        "BOOT_IMAGE=/vmlinuz iommu=pt intel_iommu=on isolcpus=managed_irq,domain,1-3 nohz_full=1-3 rcu_nocbs=1-3",
    ),
    (
        "proc/self/limits",
        "Limit  Soft  Hard  Units\nMax locked memory         unlimited            unlimited            bytes",
    ),
    ("proc/self/status", "Name:\tx\nUid:\t1000\t1000\t1000\t1000"),
    ("proc/sys/kernel/nmi_watchdog", "0"),
    ("proc/irq/24/smp_affinity_list", "0,4-7"),
    ("proc/irq/25/smp_affinity_list", "0"),
    ("proc/1/comm", "systemd"),
    ("sys/class/dmi/id/sys_vendor", "Some Vendor"),
    ("sys/class/dmi/id/product_name", "Some Server"),
    ("sys/class/dmi/id/bios_version", "1.2.3"),
    ("sys/class/dmi/id/bios_date", "01/02/2026"),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc"),
    ("sys/devices/system/cpu/online", "0,4-8,12-15,1-3"),
    ("sys/devices/system/cpu/isolated", "1-3"),
    ("sys/devices/system/cpu/nohz_full", "1-3"),
    ("sys/devices/system/cpu/smt/active", "1"),
    ("sys/devices/system/cpu/intel_pstate/no_turbo", "1"),
    ("sys/devices/system/cpu/vulnerabilities/spectre_v2", "Mitigation: Enhanced IBRS"),
    ("sys/devices/system/node/node0/cpulist", "0-3,8-11"),
    ("sys/devices/system/node/node1/cpulist", "4-7,12-15"),
    ("sys/devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages", "4"),
    ("sys/devices/system/node/node0/hugepages/hugepages-1048576kB/free_hugepages", "4"),
    ("sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "0"),
    ("sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages", "0"),
    ("sys/class/iommu/dmar0/there", ""),
    ("sys/bus/pci/drivers/vfio-pci/there", ""),
    ("sys/bus/pci/drivers/ice/there", ""),
    ("usr/lib/x86_64-linux-gnu/librte_eal.so.23", ""),
    ("usr/lib/x86_64-linux-gnu/librte_eal.so.23.0", ""),
    ("usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_ice.so", ""),
];

/// What differs.
const BAD: &[(&str, &str)] = &[
    ("proc/cpuinfo", "vendor_id\t: GenuineIntel\nmodel name\t: Some Xeon\nflags\t\t: fpu tsc hypervisor"),
    ("proc/cmdline", "BOOT_IMAGE=/vmlinuz quiet"),
    (
        "proc/self/limits",
        "Limit  Soft  Hard  Units\nMax locked memory         8388608              8388608              bytes",
    ),
    ("proc/sys/kernel/nmi_watchdog", "1"),
    ("proc/irq/24/smp_affinity_list", "0-15"),
    ("proc/irq/25/smp_affinity_list", "0-15"),
    ("proc/812/comm", "irqbalance"),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet"),
    ("sys/devices/system/cpu/online", "0-15"),
    ("sys/devices/system/cpu/isolated", ""),
    ("sys/devices/system/cpu/nohz_full", "(null)"),
    ("sys/devices/system/cpu/intel_pstate/no_turbo", "0"),
    ("sys/devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages", "0"),
    ("sys/devices/system/node/node0/hugepages/hugepages-1048576kB/free_hugepages", "0"),
    ("sys/bus/pci/devices/0000:3b:00.1/current_link_speed", "8.0 GT/s PCIe"),
    ("sys/bus/pci/devices/0000:3b:00.1/current_link_width", "4"),
    ("sys/class/net/ens1f0/carrier", "0"),
    ("sys/class/net/ens1f0/speed", "100000"),
    ("sys/class/net/ens1f1/carrier", "0"),
    ("sys/class/net/ens1f1/speed", "100000"),
];
