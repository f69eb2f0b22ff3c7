//! CPUs: how fast they run, what disturbs them, and which are kept for polling.

use super::finding::{Cure, Finding, Verdict, by_hand, command, kernel};
use super::tree::{CpuList, Tree};

/// The CPUs that poll: those that are isolated, or those that should be.
#[derive(Clone, Debug)]
pub struct PollingCpus {
    /// Which.
    pub list: CpuList,
    /// They are isolated now, or were named by whoever asks.
    pub is_chosen: bool,
}

impl PollingCpus {
    /// Those that were asked for; else those that are isolated; else all of a NUMA node but its first core.
    pub fn of(tree: &Tree, asked: Option<CpuList>, node: u64) -> Self {
        let isolated = tree.cpus("sys/devices/system/cpu/isolated");
        match asked {
            Some(list) => Self { list, is_chosen: true },
            None if !isolated.is_empty() => Self { list: isolated, is_chosen: true },
            None => {
                let all = tree.cpus(&format!("sys/devices/system/node/node{node}/cpulist"));
                let all = if all.is_empty() { tree.cpus("sys/devices/system/cpu/online") } else { all };
                let first = all.0.first().map(|&cpu| siblings(tree, cpu)).unwrap_or_default();
                Self { list: all.without(&first), is_chosen: false }
            }
        }
    }

    fn first(&self) -> usize {
        self.list.0.first().copied().unwrap_or_default()
    }
}

/// What is to be said of them.
pub fn findings(tree: &Tree, cpus: &PollingCpus) -> Vec<Finding> {
    vec![
        machine(tree),
        clock(tree),
        governor(tree, cpus),
        turbo(tree),
        c_states(tree, cpus),
        smt(tree, cpus),
        mitigations(tree),
        isolation(tree, cpus),
        no_ticks(tree, cpus),
        no_callbacks(tree, cpus),
        interrupts(tree, cpus),
        watchdog(tree),
    ]
}

fn machine(tree: &Tree) -> Finding {
    let info = tree.text("proc/cpuinfo").unwrap_or_default();
    let field =
        |name: &str| info.lines().find(|line| line.starts_with(name))?.split_once(':').map(|(_, value)| value.trim());
    let dmi = |name: &str| tree.text(&format!("sys/class/dmi/id/{name}")).unwrap_or_default();
    let is_guest = field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    let firmware = match dmi("bios_version") {
        version if version.is_empty() => String::new(),
        version => format!(", firmware {version} of {}", dmi("bios_date")),
    };
    let name = field("model name").unwrap_or("a CPU without a name");
    let is = format!("{name}; {} {}{firmware}", dmi("sys_vendor"), dmi("product_name")).replace("  ", " ");
    let is = if is_guest { format!("a virtual machine: {is}") } else { is };
    let cure = by_hand("measure on the machine itself: a guest's CPUs, clock and PCIe are shared");
    Finding::of(
        !is_guest,
        Verdict::Warning,
        [cure],
        Finding::ok("machine", is, "a machine of its own, its firmware's profile set to performance"),
    )
}

fn clock(tree: &Tree) -> Finding {
    let source = tree.text("sys/devices/system/clocksource/clocksource0/current_clocksource");
    let is = source.clone().unwrap_or_else(|| "not to be seen".to_owned());
    let cures = [kernel("tsc=reliable"), by_hand("look in `dmesg` for why the kernel gave the TSC up")];
    let verdict = if source.is_some() { Verdict::Error } else { Verdict::Unknown };
    Finding::of(
        source.as_deref() == Some("tsc"),
        verdict,
        cures,
        Finding::ok("clock", is, "tsc: latency compares the counters of several CPUs"),
    )
}

fn governor(tree: &Tree, cpus: &PollingCpus) -> Finding {
    let of = |cpu: &usize| tree.text(&format!("sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"));
    let governors: Vec<_> = cpus.list.0.iter().filter_map(|cpu| Some((*cpu, of(cpu)?))).collect();
    let should = "performance on the CPUs that poll";
    if governors.is_empty() {
        let is = "the kernel sets no frequency: the firmware or a hypervisor does";
        return Finding::not_ok(
            "governor",
            Verdict::Unknown,
            is,
            should,
            [by_hand("firmware: power profile \"maximum performance\"")],
        );
    }
    let slow = CpuList(governors.iter().filter(|(_, name)| name != "performance").map(|(cpu, _)| *cpu).collect());
    let other = governors.iter().find(|(_, name)| name != "performance");
    let is = other.map_or("performance".to_owned(), |(_, name)| format!("{name} on CPU {slow}"));
    let cure = command(format!("cpupower -c {slow} frequency-set -g performance    (package linux-cpupower)"));
    Finding::of(slow.is_empty(), Verdict::Warning, [cure], Finding::ok("governor", is, should))
}

fn turbo(tree: &Tree) -> Finding {
    let should = "off: its rate depends on heat and on what other cores do, and figures with it";
    let (intel, other) = ("sys/devices/system/cpu/intel_pstate/no_turbo", "sys/devices/system/cpu/cpufreq/boost");
    let (is_on, cure) = match (tree.number(intel), tree.number(other)) {
        (Some(off), _) => (off == 0, format!("echo 1 >/{intel}")),
        (None, Some(on)) => (on != 0, format!("echo 0 >/{other}")),
        (None, None) => {
            let cure = by_hand("firmware: turbo (Intel) or core performance boost (AMD) off");
            return Finding::not_ok("turbo", Verdict::Unknown, "not to be seen", should, [cure]);
        }
    };
    Finding::of(
        !is_on,
        Verdict::Warning,
        [command(cure)],
        Finding::ok("turbo", if is_on { "on" } else { "off" }, should),
    )
}

fn c_states(tree: &Tree, cpus: &PollingCpus) -> Finding {
    let folder = format!("sys/devices/system/cpu/cpu{}/cpuidle", cpus.first());
    let state = |name: &String| {
        let of = |file: &str| format!("{folder}/{name}/{file}");
        let is_off = tree.number(&of("disable")) == Some(1);
        Some((tree.number(&of("latency"))?, tree.text(&of("name"))?)).filter(|_| !is_off)
    };
    let deepest = tree.names(&folder).iter().filter_map(state).max();
    let should = format!("none that takes more than {WAKE_MAX} us to leave");
    let Some((latency, name)) = deepest else {
        let is = "the kernel uses none";
        return Finding::ok("c-states", is, should);
    };
    let cures = [
        kernel("intel_idle.max_cstate=1"),
        kernel("processor.max_cstate=1"),
        command(format!("cpupower -c {} idle-set -D {WAKE_MAX}    (until the next start)", cpus.list)),
        by_hand("firmware: C-states and C1E off"),
    ];
    let is = format!("{name}, {latency} us to leave");
    Finding::of(latency <= WAKE_MAX, Verdict::Warning, cures, Finding::ok("c-states", is, should))
}

fn smt(tree: &Tree, cpus: &PollingCpus) -> Finding {
    let should = "no polling CPU whose other thread does something else";
    if tree.number("sys/devices/system/cpu/smt/active") != Some(1) {
        return Finding::ok("smt", "one thread on each core", should);
    }
    let online = tree.cpus("sys/devices/system/cpu/online");
    let others = cpus.list.0.iter().flat_map(|&cpu| siblings(tree, cpu).0).collect();
    let beside = CpuList(others).without(&cpus.list).shared_with(&online);
    if beside.is_empty() {
        return Finding::ok(
            "smt",
            "both threads of each polling core are kept for polling: give work to one of them only",
            should,
        );
    }
    let off =
        beside.0.iter().map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/online")).collect::<Vec<_>>().join(" ");
    let cures = [
        command(format!("echo 0 | tee {off}    (until the next start)")),
        by_hand("firmware: hyper-threading (Intel) or SMT (AMD) off, or the kernel argument nosmt"),
    ];
    Finding::not_ok("smt", Verdict::Warning, format!("CPU {beside} shares cores with those that poll"), should, cures)
}

fn mitigations(tree: &Tree) -> Finding {
    let should = "as on the machines that the figures are for; the report names it";
    let folder = "sys/devices/system/cpu/vulnerabilities";
    let active =
        |name: &String| tree.text(&format!("{folder}/{name}")).is_some_and(|text| text.starts_with("Mitigation"));
    let names: Vec<_> = tree.names(folder).into_iter().filter(active).collect();
    let is = match (&names[..], tree.kernel_argument("mitigations")) {
        (_, Some(value)) if value == "off" => "off by a kernel argument".to_owned(),
        ([], _) => "none in effect".to_owned(),
        (names, _) => format!("on: {}", names.join(", ")),
    };
    // A polling thread makes no system calls: nothing is to be gained by it but for kernel interfaces.
    Finding::ok("mitigations", is, should)
}

fn isolation(tree: &Tree, cpus: &PollingCpus) -> Finding {
    let isolated = tree.cpus("sys/devices/system/cpu/isolated");
    let missing = cpus.list.without(&isolated);
    let is = if isolated.is_empty() { "none".to_owned() } else { format!("CPU {isolated}") };
    let should = format!("CPU {}", cpus.list);
    let cure = kernel(format!("isolcpus=managed_irq,domain,{}", cpus.list));
    Finding::of(missing.is_empty() && cpus.is_chosen, Verdict::Error, [cure], Finding::ok("isolcpus", is, should))
}

fn no_ticks(tree: &Tree, cpus: &PollingCpus) -> Finding {
    // Without any it says "(null)".
    let quiet = tree.cpus("sys/devices/system/cpu/nohz_full");
    let is = if quiet.is_empty() { "none".to_owned() } else { format!("CPU {quiet}") };
    let cure = kernel(format!("nohz_full={}", cpus.list));
    let good = cpus.list.without(&quiet).is_empty() && cpus.is_chosen;
    Finding::of(good, Verdict::Warning, [cure], Finding::ok("nohz_full", is, format!("CPU {}", cpus.list)))
}

fn no_callbacks(tree: &Tree, cpus: &PollingCpus) -> Finding {
    // `nohz_full` implies it; the kernel shows it in its command line only.
    let quiet = tree.cpus("sys/devices/system/cpu/nohz_full");
    let named = tree.kernel_argument("rcu_nocbs").map(|text| CpuList::parse(&text)).unwrap_or_default();
    let all = CpuList(quiet.0.union(&named.0).copied().collect());
    let is = if all.is_empty() { "none".to_owned() } else { format!("CPU {all}") };
    let cure = kernel(format!("rcu_nocbs={}", cpus.list));
    let good = cpus.list.without(&all).is_empty() && cpus.is_chosen;
    Finding::of(good, Verdict::Warning, [cure], Finding::ok("rcu_nocbs", is, format!("CPU {}", cpus.list)))
}

fn interrupts(tree: &Tree, cpus: &PollingCpus) -> Finding {
    let housekeeping = tree.cpus("sys/devices/system/cpu/online").without(&cpus.list);
    let is_here =
        |irq: &&String| !tree.cpus(&format!("proc/irq/{irq}/smp_affinity_list")).shared_with(&cpus.list).is_empty();
    let irqs: Vec<_> = tree.names("proc/irq").into_iter().filter(|name| name.parse::<u32>().is_ok()).collect();
    let here: Vec<_> = irqs.iter().filter(is_here).map(String::as_str).collect();
    let shown =
        if here.len() > IRQS_SHOWN { format!("{}, ...", here[..IRQS_SHOWN].join(", ")) } else { here.join(", ") };
    let is = if here.is_empty() {
        "none".to_owned()
    } else {
        format!("{} may come to CPU {}: IRQ {shown}", here.len(), cpus.list)
    };
    let cures = [
        kernel(format!("irqaffinity={housekeeping}")),
        command(format!("for irq in /proc/irq/[0-9]*; do echo {housekeeping} >$irq/smp_affinity_list; done")),
    ];
    Finding::of(here.is_empty(), Verdict::Warning, cures, Finding::ok("interrupts", is, "none on the CPUs that poll"))
}

fn watchdog(tree: &Tree) -> Finding {
    let is_on = tree.number("proc/sys/kernel/nmi_watchdog").is_some_and(|on| on != 0);
    let cures = [kernel("nmi_watchdog=0"), command("sysctl kernel.nmi_watchdog=0    (until the next start)")];
    Finding::of(!is_on, Verdict::Warning, cures, Finding::ok("nmi_watchdog", if is_on { "on" } else { "off" }, "off"))
}

/// The CPUs of the same core.
fn siblings(tree: &Tree, cpu: usize) -> CpuList {
    let all = tree.cpus(&format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"));
    if all.is_empty() { CpuList([cpu].into()) } else { all }
}

/// What the kernel is to be started with.
pub fn kernel_arguments(findings: &[Finding]) -> Vec<String> {
    let cures =
        findings.iter().filter(|finding| finding.verdict >= Verdict::Warning).flat_map(|finding| &finding.cures);
    let mut arguments = Vec::new();
    for cure in cures {
        if let Cure::KernelArgument(argument) = cure
            && !arguments.contains(argument)
        {
            arguments.push(argument.clone());
        }
    }
    arguments
}

/// At 10 million frames in a second a ring of 1024 lasts for ten times as long.
const WAKE_MAX: u64 = 10;
const IRQS_SHOWN: usize = 8;
