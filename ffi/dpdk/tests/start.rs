//! DPDK that does not start: the cause is told, and the process lives. It starts once in a process, so each case has one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::sync::Arc;

/// How the process of a case is told which one it is.
const CASE: &str = "FERRULE_DPDK_CASE";

#[test]
fn what_keeps_it_from_starting_is_told() {
    if let Some(missing) = ferrule_dpdk::MISSING {
        println!("skipped: what_keeps_it_from_starting_is_told: {missing}");
        return;
    }
    if std::env::var_os(CASE).is_some() {
        return;
    }
    let program = std::env::current_exe().unwrap();
    let in_shell = |case: &str, script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(&program).args(["--exact", "the_process_of_a_case", "--nocapture"]);
        let output = command.env(CASE, case).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{case}: {text}");
        text
    };
    let text = in_shell("memory", "exec \"$@\"");
    assert!(text.contains("start DPDK: ") && text.contains("DPDK says"), "{text}");
    if std::fs::read_to_string("/proc/sys/vm/nr_hugepages").is_ok_and(|count| count.trim() == "0") {
        let text = in_shell("hugepages", "exec \"$@\"");
        assert!(text.contains("start DPDK: ") && text.contains("hugepage"), "{text}");
    } else {
        println!("skipped: hugepages that there are not: there are some");
    }
    let free = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    if std::fs::read_to_string(free).is_ok_and(|count| count.trim().parse::<u32>().is_ok_and(|count| count >= 128)) {
        let text = in_shell("bound", "exec \"$@\"");
        assert!(text.contains("out of memory") && text.contains("as many hugepages as before"), "{text}");
    } else {
        println!("skipped: memory in hugepages is bounded: 128 free hugepages");
    }
    if nix::unistd::geteuid().is_root() {
        let hide = "for file in $(ldconfig -p | sed -n 's/.*=> \\(.*librte_eal.so.*\\)/\\1/p'); do \
                    mount --bind /dev/null \"$file\" || exit 1; done; exec \"$@\"";
        let text = in_shell("library", &format!("exec unshare -m sh -c '{}' sh \"$@\"", hide.replace('\'', "'\\''")));
        assert!(text.contains("load libdpdk ") && text.contains("librte_eal.so"), "{text}");
        assert!(text.contains("install libdpdk"), "{text}");
    } else {
        println!("skipped: a library that is missing: root, to hide it");
    }
}

#[cfg(not(no_dpdk))]
#[test]
fn the_process_of_a_case() {
    use ferrule_dpdk::eal::{Eal, EalSettings};

    let Ok(case) = std::env::var(CASE) else { return };
    if case == "bound" {
        return take_all_of_64_mib();
    }
    let settings = match &*case {
        "memory" => EalSettings { memory_mib: 1 << 30, hugepages: false },
        "hugepages" => EalSettings { memory_mib: 64, hugepages: true },
        _ => EalSettings::default(),
    };
    let error = Eal::start(settings).err().unwrap();
    println!("{error}; {}", error.cure());
    // What has begun goes on: its log and its threads are in libdpdk.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(case == "library" || (maps.contains("librte_eal") && maps.contains("ferrule-dpdk-shim")), "{maps}");
    // Asked again, it says so again, and nothing worse.
    assert_eq!(Eal::start(EalSettings::default()).err(), Some(error));
}

/// Makes ports until there is no memory, of what was taken at the start.
#[cfg(not(no_dpdk))]
fn take_all_of_64_mib() {
    use ferrule_dpdk::config::PortConfig;
    use ferrule_dpdk::eal::{Eal, EalSettings};
    use ferrule_dpdk::port::Port;

    let free = || std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap();
    let eal = Eal::start(EalSettings { memory_mib: 64, hugepages: true }).unwrap();
    let before = free();
    let mut ports = Vec::new();
    let refusal = loop {
        match Port::open(eal, &format!("net_null{}", ports.len()), &PortConfig::default(), Arc::new(|_| {})) {
            Ok(port) => ports.push(port),
            Err(error) => break error,
        }
        assert!(ports.len() < 32, "32 ports of 10 MiB each lie in 64 MiB");
    };
    assert!(!ports.is_empty(), "{refusal}");
    assert_eq!(free(), before);
    println!("{refusal}; as many hugepages as before");
}
