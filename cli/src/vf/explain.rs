//! `ferrule vf explain`: why a VF cannot be borrowed, why no pod gets it, and why a pod that wants one stays Pending.
//!
//! The manager knows the first, the device plugin the others. Nobody on the node knows what a Pending pod asks for: its resource does.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use device_plugin_client::{Device, Holder, Member, Report, Resource, SOCKET_DEFAULT};
use sriov_manager_client::v1;

use super::{VfArgs, VfCliError, explained, json, reach};
use crate::text::foreign;

/// Options of `ferrule vf explain`.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// A VF, by address or by a name of its interface; or a resource that pods ask for, such as intel.com/dpdk [default: all resources]
    pub what: Option<String>,
    /// A pod, as NAMESPACE/NAME: what it has, and what is left for it
    #[arg(long, value_name = "POD", conflicts_with_all = ["what", "driver", "owner"])]
    pod: Option<String>,
    /// The driver that a VF would be borrowed for: kernel, vfio-pci or none [default: that of its pool, or kernel]
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<v1::Driver>,
    /// As this owner would borrow it
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// The device plugin's socket
    #[arg(long, env = "FERRULE_DEVICE_PLUGIN_SOCKET", value_name = "PATH", default_value = SOCKET_DEFAULT)]
    plugin: PathBuf,
}

/// Does what was asked for.
pub(super) async fn run(args: &VfArgs, which: &ExplainArgs) -> Result<String, VfCliError> {
    let in_json = args.json;
    if let Some(pod) = &which.pod {
        let report = Report::read(&which.plugin).await?;
        return Ok(if in_json { json::report(&of_pod(&report, pod)) } else { told_pod(&report, pod) });
    }
    let Some(what) = &which.what else {
        let report = Report::read(&which.plugin).await?;
        return Ok(if in_json { json::report(&report) } else { told_all(&report) });
    };
    // Whoever leaves the prefix out means the resource as well; no VF is called so.
    let is_short = !what.contains('/') && !what.contains(':');
    let report = if is_short { Report::read(&which.plugin).await.ok() } else { None };
    if let Some(report) = report
        && let Some(name) = whole_name(&report, what)
    {
        return told_one(&report, &name, in_json);
    }
    if what.contains('/') {
        return told_one(&Report::read(&which.plugin).await?, what, in_json);
    }
    let owner = which.owner.clone().unwrap_or_default();
    let request = v1::ExplainRequest { vf: what.clone(), driver: which.driver.unwrap_or_default().into(), owner };
    let reasons = reach(&args.manager).await?.explain(request).await?.into_inner().reasons;
    let told = explained(what, &reasons, in_json);
    // Documents stay one; without a plugin there are no pods to tell of.
    if in_json || !is_there(&which.plugin) {
        return Ok(told);
    }
    Ok(match Report::read(&which.plugin).await {
        Ok(report) => told + &told_problems(&report) + &told_device(&report, what),
        Err(error) => format!("{told}which pods may get it is not known: {error}\n"),
    })
}

fn told_one(report: &Report, name: &str, in_json: bool) -> Result<String, VfCliError> {
    let Some(resource) = report.resource(name) else { return Err(no_resource(report, name)) };
    Ok(if in_json { json::report(resource) } else { told_problems(report) + &told_resource(resource) })
}

/// The only resource of this name, whatever its prefix.
fn whole_name(report: &Report, name: &str) -> Option<String> {
    let is_its = |resource: &&Resource| resource.name.split_once('/').is_some_and(|(_, short)| short == name);
    let mut all = report.resources.iter().filter(is_its);
    all.next().filter(|_| all.next().is_none()).map(|resource| resource.name.clone())
}

fn is_there(socket: &Path) -> bool {
    socket.exists()
}

/// What pods may get a device, and who has it.
fn told_device(report: &Report, name: &str) -> String {
    let Some(device) = report.device(name) else {
        return format!("no pod gets it: {}\n", unknown(report, name));
    };
    let mut out = String::new();
    for (resource, member) in report.memberships(&device.id) {
        let _ = writeln!(out, "{} has it: {}", foreign(&resource.name), told_member(member));
    }
    if out.is_empty() {
        let _ = writeln!(
            out,
            "no pod gets it, since no resource of device-plugin's configuration has it ({}):",
            is(device)
        );
    }
    for left_out in &device.left_out {
        let _ = writeln!(out, "- not {}: {}", foreign(&left_out.resource), foreign(&left_out.why));
    }
    out
}

fn unknown(report: &Report, name: &str) -> String {
    if report.pfs.iter().any(|(pf, netdev)| pf == name || netdev == name) {
        return "it is a PF; its VFs are given away instead".to_owned();
    }
    "device-plugin does not know it; it gives away VFs of NICs that sriov-manager lists, NICs without VFs, accelerators and \
     sub-functions"
        .to_owned()
}

fn is(device: &Device) -> String {
    let driver = device.driver.as_deref().map_or("on no driver".to_owned(), |driver| format!("on {}", foreign(driver)));
    format!("{}, {driver}", foreign(&device.kind))
}

fn told_member(member: &Member) -> String {
    let problem = || member.problem.as_ref().map(|problem| foreign(&problem.text).into_owned());
    match (&member.holder, problem()) {
        (Some(holder), Some(problem)) => format!("{}, and it is unhealthy: {problem}", told_holder(holder)),
        (Some(holder), None) => told_holder(holder),
        (None, Some(problem)) => format!("no pod gets it now: {problem}"),
        (None, None) => "it is free, and the next pod may get it".to_owned(),
    }
}

fn told_holder(holder: &Holder) -> String {
    let pod = match &holder.pod {
        Some(pod) => foreign(pod).into_owned(),
        None => "a pod that the kubelet has not listed (an init container, or one that is just admitted)".to_owned(),
    };
    if holder.is_ready {
        format!("{pod} has it")
    } else {
        format!("{pod} was promised it, and does not start until sriov-manager lends it")
    }
}

/// One resource, for whoever asks why a pod that wants it stays Pending.
fn told_resource(resource: &Resource) -> String {
    let (free, held) = (resource.free().count(), resource.held().count());
    let withheld = resource.withheld().count();
    let mut out = format!(
        "{}: {} devices: {free} free, {held} held by pods, {withheld} not to be had\n",
        foreign(&resource.name),
        resource.members.len()
    );
    let _ = writeln!(out, "  {}", verdict(resource, free));
    for (member, _) in resource.held() {
        let _ = writeln!(out, "  {}  {}", foreign(&member.device), told_member(member));
    }
    for (problem, devices) in by_problem(resource) {
        let _ = writeln!(out, "  {}  not to be had: {}", named(&devices), foreign(problem));
    }
    let ill = resource.held().filter(|(member, _)| member.problem.is_some()).count();
    if ill > 0 {
        let _ = writeln!(
            out,
            "  the scheduler counts the {ill} that pods hold and that are unhealthy as used and as missing: {ill} free ones are not given away"
        );
    }
    out
}

/// What is wrong, in the order of the first device that has it, with all of them: a PF without a link has many VFs.
fn by_problem(resource: &Resource) -> Vec<(&str, Vec<&str>)> {
    let mut all: Vec<(&str, Vec<&str>)> = Vec::new();
    for (Member { device, .. }, problem) in resource.withheld() {
        match all.iter_mut().find(|(text, _)| *text == problem.text) {
            Some((_, devices)) => devices.push(device),
            None => all.push((&problem.text, vec![device])),
        }
    }
    all
}

fn named(devices: &[&str]) -> String {
    let (shown, more) = devices.split_at(devices.len().min(NAMED_MAX));
    let shown = shown.iter().map(|device| foreign(device)).collect::<Vec<_>>().join(", ");
    if more.is_empty() { shown } else { format!("{shown} and {} more", more.len()) }
}

fn verdict(resource: &Resource, free: usize) -> String {
    if !resource.is_registered {
        return "the kubelet does not have its list: pods that ask for it stay Pending or fail until it has; see `/readyz` and the log of \
                device-plugin"
            .to_owned();
    }
    if resource.members.is_empty() {
        return "no device of this node fits its selectors: `ferrule vf explain VF` says why one does not".to_owned();
    }
    match free {
        0 => "a pod that asks for it stays Pending here until one of these is free".to_owned(),
        free => format!(
            "a pod that asks for at most {free} fits; if it is Pending all the same, look at its node selector, taints and other resources \
             (`kubectl describe pod`)"
        ),
    }
}

fn told_all(report: &Report) -> String {
    let mut out = told_problems(report);
    if report.resources.is_empty() {
        out.push_str("device-plugin's configuration has no resource\n");
    }
    for resource in &report.resources {
        out += &told_resource(resource);
    }
    let has_none = |device: &&Device| report.memberships(&device.id).next().is_none();
    let left_out: Vec<_> = report.devices.iter().filter(has_none).map(|device| foreign(&device.id)).collect();
    if !left_out.is_empty() {
        let _ = writeln!(out, "in no resource (`ferrule vf explain VF` says why): {}", left_out.join(", "));
    }
    out
}

fn told_problems(report: &Report) -> String {
    report.problems.iter().fold(String::new(), |mut out, problem| {
        let _ = writeln!(out, "device-plugin: {}", foreign(problem));
        out
    })
}

fn told_pod(report: &Report, pod: &str) -> String {
    let own = of_pod(report, pod);
    let mut out = told_problems(report);
    for resource in &own.resources {
        for member in &resource.members {
            let _ = writeln!(out, "{}  {}: {}", foreign(&member.device), foreign(&resource.name), told_member(member));
        }
    }
    if own.resources.is_empty() {
        let _ = writeln!(
            out,
            "{} has no device of this node: it is Pending, runs elsewhere, or asks for none; what the node has:",
            foreign(pod)
        );
        for resource in &report.resources {
            out += &told_resource(resource);
        }
    }
    out
}

/// What a pod has.
fn of_pod(report: &Report, pod: &str) -> Report {
    let pod = format!("pod {}", if pod.contains('/') { pod.to_owned() } else { format!("default/{pod}") });
    let is_its = |member: &&Member| member.holder.as_ref().is_some_and(|holder| holder.pod.as_deref() == Some(&pod));
    let mut own = Report { problems: report.problems.clone(), ..Report::default() };
    for resource in &report.resources {
        let members: Vec<_> = resource.members.iter().filter(is_its).cloned().collect();
        if !members.is_empty() {
            own.resources.push(Resource { members, ..resource.clone() });
        }
    }
    own
}

fn no_resource(report: &Report, name: &str) -> VfCliError {
    let names: Vec<_> = report.resources.iter().map(|resource| resource.name.as_str()).collect();
    // No prefix of a resource is without a dot, and every namespace is.
    let is_pod = name.split_once('/').is_some_and(|(prefix, _)| !prefix.contains('.'));
    let hint = if is_pod { format!("; of a pod ask with `--pod {name}`") } else { String::new() };
    VfCliError::Refused(format!(
        "device-plugin has no resource {name}: pods that ask for it stay Pending; it has {}{hint}",
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    ))
}

/// Of those that have the same problem.
const NAMED_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use device_plugin_client::{LeftOut, Problem};

    use super::*;

    fn report() -> Report {
        let member = |device: &str, pod: Option<&str>, problem: Option<&str>| Member {
            device: device.into(),
            holder: pod.map(|pod| Holder { pod: Some(pod.into()), is_ready: true }),
            problem: problem.map(|text| Problem { word: "x".into(), text: text.into() }),
        };
        let dpdk = Resource {
            name: "intel.com/dpdk".into(),
            driver: Some("vfio-pci".into()),
            is_registered: true,
            members: vec![
                member("0000:02:10.0", Some("pod default/one"), None),
                member("0000:02:10.2", None, Some("its PF has no link")),
            ],
        };
        let why = "`drivers` wants vfio-pci, and it is on igbvf".to_owned();
        let spare = Device {
            id: "0000:02:10.4".into(),
            kind: "a VF".into(),
            driver: Some("igbvf".into()),
            netdevs: vec!["enp2s16".into()],
            left_out: vec![LeftOut { resource: "intel.com/dpdk".into(), why }],
        };
        let held = Device { id: "0000:02:10.0".into(), ..Device::default() };
        Report { resources: vec![dpdk], devices: vec![held, spare], ..Report::default() }
    }

    #[test]
    fn a_resource_says_who_has_what_and_why_the_rest_is_not_to_be_had() {
        let told = told_resource(&report().resources[0]);
        assert_eq!(
            told,
            "intel.com/dpdk: 2 devices: 0 free, 1 held by pods, 1 not to be had\n  \
             a pod that asks for it stays Pending here until one of these is free\n  \
             0000:02:10.0  pod default/one has it\n  \
             0000:02:10.2  not to be had: its PF has no link\n"
        );
        let mut unregistered = report().resources.remove(0);
        unregistered.is_registered = false;
        assert!(told_resource(&unregistered).contains("the kubelet does not have its list"));
    }

    #[test]
    fn many_devices_with_one_problem_are_one_line_and_a_pod_that_waits_is_told_as_one() {
        let mut dpdk = report().resources.remove(0);
        let ill = dpdk.members[1].clone();
        dpdk.members.extend((1..=6).map(|number| Member { device: format!("0000:02:11.{number}"), ..ill.clone() }));
        dpdk.members[0].holder = Some(Holder { pod: Some("pod default/one".into()), is_ready: false });
        let told = told_resource(&dpdk);
        assert!(
            told.ends_with(
                "  0000:02:10.0  pod default/one was promised it, and does not start until sriov-manager lends it\n  \
                 0000:02:10.2, 0000:02:11.1, 0000:02:11.2, 0000:02:11.3 and 3 more  not to be had: its PF has no link\n"
            ),
            "{told}"
        );
    }

    #[test]
    fn a_resource_is_known_without_its_prefix_and_a_pod_is_asked_for_in_another_way() {
        let mut report = report();
        assert_eq!(whole_name(&report, "dpdk").as_deref(), Some("intel.com/dpdk"));
        assert_eq!(whole_name(&report, "ens1f0v0"), None);
        report.resources.push(Resource { name: "other.io/dpdk".into(), ..Resource::default() });
        assert_eq!(whole_name(&report, "dpdk"), None, "it may be either");
        assert!(no_resource(&report, "default/two").to_string().ends_with("; of a pod ask with `--pod default/two`"));
        assert!(!no_resource(&report, "intel.com/x").to_string().contains("--pod"));
    }

    #[test]
    fn a_vf_says_which_resource_has_it_or_why_none_has() {
        let report = report();
        assert_eq!(told_device(&report, "0000:02:10.0"), "intel.com/dpdk has it: pod default/one has it\n");
        assert_eq!(
            told_device(&report, "enp2s16"),
            "no pod gets it, since no resource of device-plugin's configuration has it (a VF, on igbvf):\n\
             - not intel.com/dpdk: `drivers` wants vfio-pci, and it is on igbvf\n"
        );
        assert!(told_device(&report, "ens9").contains("does not know it"));
    }

    #[test]
    fn a_pod_says_what_it_has_or_what_is_left_for_it() {
        let report = report();
        assert_eq!(told_pod(&report, "one"), "0000:02:10.0  intel.com/dpdk: pod default/one has it\n");
        let pending = told_pod(&report, "default/two");
        assert!(pending.starts_with("default/two has no device of this node"), "{pending}");
        assert!(pending.contains("0 free, 1 held"), "{pending}");
        assert!(no_resource(&report, "a/b").to_string().contains("it has intel.com/dpdk"));
    }
}
