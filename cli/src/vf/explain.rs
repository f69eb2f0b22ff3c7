//! `ferrule vf explain`: why a VF cannot be borrowed, why no pod gets it, and why a pod that wants one stays Pending.
//!
//! The manager knows the first, the device plugin the others. Nobody on the node knows what a Pending pod asks for: its resource does.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use device_plugin_client::{Device, Holder, Member, Report, Resource, SOCKET_DEFAULT};
use ferrule_daemon::counted;
use sriov_manager_client::{refusal, v1};

use super::{VfArgs, VfCliError, explained, json, reach};
use crate::text::foreign;

/// Options of `ferrule vf explain`.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// A VF, by address or by a name of its interface; or a resource that pods ask for, such as intel.com/dpdk [default: all resources]
    pub what: Option<String>,
    /// A pod, as NAMESPACE/NAME: what it has, and what is left for it
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod_name, conflicts_with_all = ["what", "driver", "owner"])]
    pod: Option<String>,
    /// The driver that a VF would be borrowed for: kernel, vfio-pci or none [default: that of its pool, or kernel]
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<v1::Driver>,
    /// As this owner would borrow it
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Read this tree instead of asking the manager and the device plugin
    #[arg(long, value_name = "DIR", display_order = 901)]
    pub root: Option<PathBuf>,
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
    let report = Report::read(&which.plugin).await;
    if what.contains('/') {
        return told_one(&report?, what, in_json);
    }
    // Whoever leaves the prefix out means the resource as well; no VF is called so.
    if let Ok(report) = &report
        && let Some(name) = whole_name(report, what)
    {
        return told_one(report, &name, in_json);
    }
    let owner = which.owner.clone().unwrap_or_default();
    let request = v1::ExplainRequest { vf: what.clone(), driver: which.driver.unwrap_or_default().into(), owner };
    let mut manager = match (reach(&args.manager).await, &report) {
        (Ok(manager), _) => manager,
        // A document is that of the manager.
        (Err(_), Ok(report)) if !in_json && report.device(what).is_some() => {
            let away = "whether it can be borrowed is not known: the manager is away";
            return Ok(format!("{}{what}: {away}\n{}", told_problems(report), told_device(report, what)));
        }
        (Err(_), Ok(report)) if is_pf(report, what) => return Err(pf(what)),
        (Err(error), Ok(report)) => {
            return Err(VfCliError::Refused(format!("{}; {error}", nothing_called(report, what))));
        }
        (Err(error), Err(_)) => return Err(error),
    };
    let reasons = match manager.explain(request).await {
        Ok(explained) => explained.into_inner().reasons,
        Err(status) if refusal(&status).is_some_and(|why| why.kind() == v1::RefusalKind::NoSuchVf) => {
            let list = manager.list(v1::ListRequest::default()).await?.into_inner();
            if list.pfs.iter().any(|pf| pf.address == *what || pf.netdev == *what) {
                return Err(pf(what));
            }
            return Err(match &report {
                Ok(report) => VfCliError::Refused(nothing_called(report, what)),
                Err(_) => status.into(),
            });
        }
        Err(status) => return Err(status.into()),
    };
    if !in_json
        && let Ok(report) = &report
        && let Some(told) = told_free_for_pods(report, what, &reasons)
    {
        return Ok(told_problems(report) + &told);
    }
    let told = explained(what, &reasons, in_json);
    // Documents stay one; without a plugin there are no pods to tell of.
    if in_json || !which.plugin.exists() {
        return Ok(told);
    }
    Ok(match report {
        Ok(report) => told + &told_problems(&report) + &told_device(&report, what),
        Err(error) => format!("{told}which pods may get it is not known: {error}\n"),
    })
}

/// What is meant by nothing that anybody here knows.
fn nothing_called(report: &Report, name: &str) -> String {
    let names: Vec<_> = report.resources.iter().map(|resource| resource.name.as_str()).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let left_out = match report.left_out.as_slice() {
        [] => String::new(),
        left_out => format!("; left out of the configuration: {}", left_out.join(", ")),
    };
    format!("no VF and no resource is called {name}; resources: {names}{left_out}")
}

fn is_pf(report: &Report, name: &str) -> bool {
    report.pfs.iter().any(|(pf, netdev)| pf == name || netdev == name)
}

fn pf(name: &str) -> VfCliError {
    VfCliError::Refused(format!(
        "{name} is a PF: `ferrule vf list` shows its VFs, and `ferrule vf blockers {name}` what forbids another number of them"
    ))
}

/// The usual state of a VF that pods may get: the plugin has claimed it, and nobody has it.
fn told_free_for_pods(report: &Report, name: &str, reasons: &[v1::Reason]) -> Option<String> {
    let device = report.device(name)?;
    if reasons.is_empty() || reasons.iter().any(|reason| reason.kind() != v1::ReasonKind::Claimed) {
        return None;
    }
    let is_free = |member: &Member| member.holder.is_none() && member.problem.is_none();
    let all: Vec<_> = report.memberships(&device.id).collect();
    if all.is_empty() || !all.iter().all(|(_, member)| is_free(member)) {
        return None;
    }
    let resources: Vec<_> = all.iter().map(|(resource, _)| foreign(&resource.name)).collect();
    let mut out = format!("{name} is free for pods ({})\nby hand it cannot be borrowed:\n", resources.join(", "));
    for reason in reasons {
        let _ = writeln!(out, "- {}", foreign(&reason.text));
    }
    Some(out + &told_left_out(device))
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
    out + &told_left_out(device)
}

/// Why the other resources do not have it.
fn told_left_out(device: &Device) -> String {
    device.left_out.iter().fold(String::new(), |mut out, left_out| {
        let _ = writeln!(out, "- not {}: {}", foreign(&left_out.resource), foreign(&left_out.why));
        out
    })
}

fn unknown(report: &Report, name: &str) -> String {
    if is_pf(report, name) {
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
        "{}: {}: {free} free, {held} in use, {withheld} unavailable\n",
        foreign(&resource.name),
        counted(resource.members.len(), "device")
    );
    let _ = writeln!(out, "  {}", verdict(resource, free));
    for (member, _) in resource.held() {
        let _ = writeln!(out, "  {}  {}", foreign(&member.device), told_member(member));
    }
    for (problem, devices) in by_problem(resource) {
        let _ = writeln!(out, "  {}  unavailable: {}", named(&devices), foreign(problem));
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
    let pod = format!("pod {pod}");
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

fn pod_name(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(text.to_owned()),
        _ => Err("NAMESPACE/NAME is wanted, as in `default/one`".to_owned()),
    }
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
    fn a_resource_says_who_has_what_and_why_the_rest_is_unavailable() {
        let told = told_resource(&report().resources[0]);
        assert_eq!(
            told,
            "intel.com/dpdk: 2 devices: 0 free, 1 in use, 1 unavailable\n  \
             a pod that asks for it stays Pending here until one of these is free\n  \
             0000:02:10.0  pod default/one has it\n  \
             0000:02:10.2  unavailable: its PF has no link\n"
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
                 0000:02:10.2, 0000:02:11.1, 0000:02:11.2, 0000:02:11.3 and 3 more  unavailable: its PF has no link\n"
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
    fn a_vf_that_the_next_pod_may_get_is_told_as_free() {
        let mut report = report();
        report.resources[0].members[1].problem = None;
        report.devices.push(Device { id: "0000:02:10.2".into(), ..Device::default() });
        let claimed = v1::Reason {
            kind: v1::ReasonKind::Claimed.into(),
            text: "it is claimed by x".into(),
            ..Default::default()
        };
        let told = told_free_for_pods(&report, "0000:02:10.2", std::slice::from_ref(&claimed)).unwrap();
        assert_eq!(
            told,
            "0000:02:10.2 is free for pods (intel.com/dpdk)\nby hand it cannot be borrowed:\n- it is claimed by x\n"
        );
        assert_eq!(told_free_for_pods(&report, "0000:02:10.0", std::slice::from_ref(&claimed)), None, "a pod has it");
        let other = v1::Reason { kind: v1::ReasonKind::NoIommu.into(), ..Default::default() };
        assert_eq!(told_free_for_pods(&report, "0000:02:10.2", &[claimed, other]), None);
    }

    #[test]
    fn a_word_that_nobody_knows_is_told_with_what_there_is() {
        let mut report = report();
        report.left_out = vec!["lost (line 2)".into()];
        assert_eq!(
            nothing_called(&report, "lost"),
            "no VF and no resource is called lost; resources: intel.com/dpdk; left out of the configuration: lost (line 2)"
        );
        assert!(pod_name("one").is_err() && pod_name("a/").is_err() && pod_name("a/b").is_ok());
    }

    #[test]
    fn a_pod_says_what_it_has_or_what_is_left_for_it() {
        let report = report();
        assert_eq!(told_pod(&report, "default/one"), "0000:02:10.0  intel.com/dpdk: pod default/one has it\n");
        let pending = told_pod(&report, "default/two");
        assert!(pending.starts_with("default/two has no device of this node"), "{pending}");
        assert!(pending.contains("0 free, 1 in use"), "{pending}");
        assert!(no_resource(&report, "a/b").to_string().contains("it has intel.com/dpdk"));
    }
}
