//! VFs for programs. Keys may be added later; none is renamed or removed.

use serde_json::{Value, json};
use sriov_manager_client::v1::{self, until::What};

use super::attributes;

pub(super) fn list(response: &v1::ListResponse) -> String {
    text(&list_value(response))
}

/// A list in one line.
pub(super) fn line(response: &v1::ListResponse) -> String {
    format!("{}\n", list_value(response))
}

fn list_value(response: &v1::ListResponse) -> Value {
    let node = response.node.clone().unwrap_or_default();
    let policies = node.policies.clone().unwrap_or_default();
    json!({
        "pfs": response.pfs.iter().map(pf).collect::<Vec<_>>(),
        "vfs": response.vfs.iter().map(vf).collect::<Vec<_>>(),
        "lost": response.lost.iter().map(lease).collect::<Vec<_>>(),
        "warnings": node.warnings,
        "policies_refused": some(&node.policies_refused),
        "policies": {
            "wanted_generation": policies.wanted_generation,
            "reached_generation": policies.reached_generation,
            "file": some(&policies.file),
        },
        "generation": node.generation,
        "recovery": node.recovery().word(),
        "owners": node.owners.iter().map(owner).collect::<Vec<_>>(),
    })
}

pub(super) fn created(created: &[v1::Created]) -> String {
    let one = |created: &v1::Created| {
        json!({
            "pf": created.pf,
            "from": created.from,
            "to": created.to,
            "steps": created.steps,
            "error": some(&created.error),
        })
    };
    text(&json!({ "created": created.iter().map(one).collect::<Vec<_>>() }))
}

pub(super) fn acquired(acquired: Option<&v1::Vf>, steps: &[String]) -> String {
    text(&json!({ "vf": acquired.map(vf), "steps": steps }))
}

pub(super) fn acquired_all(acquired: &[v1::AcquireResponse]) -> String {
    let one = |one: &v1::AcquireResponse| json!({ "vf": one.vf.as_ref().map(vf), "steps": one.steps });
    text(&json!({ "leases": acquired.iter().map(one).collect::<Vec<_>>() }))
}

pub(super) fn claimed(claimed: &v1::ClaimResponse) -> String {
    let others = claimed.lent_to_others.iter().map(vf).collect::<Vec<_>>();
    text(&json!({ "vfs": claimed.vfs, "lent_to_others": others }))
}

pub(super) fn blockers(blockers: &[v1::Blocker]) -> String {
    text(&json!({ "blockers": blockers.iter().map(blocker).collect::<Vec<_>>() }))
}

pub(super) fn applied(applied: &v1::ApplyPoliciesResponse) -> String {
    let change = |change: &v1::PolicyChange| {
        json!({
            "pf": change.pf,
            "from": change.from,
            "to": change.to,
            "error": some(&change.error),
            "blockers": change.blockers.iter().map(blocker).collect::<Vec<_>>(),
        })
    };
    text(&json!({
        "generation": applied.generation,
        "changes": applied.changes.iter().map(change).collect::<Vec<_>>(),
        "forbidden": applied.forbidden.iter().map(lease).collect::<Vec<_>>(),
        "warnings": applied.warnings,
    }))
}

pub(super) fn updated(updated: &v1::Lease) -> String {
    text(&json!({ "lease": lease(updated) }))
}

/// What has only a name as its answer.
pub(super) fn done(what: &str, name: &str) -> String {
    text(&json!({ what: name }))
}

pub(super) fn released(vf: &str, steps: &[String]) -> String {
    text(&json!({ "vf": some(vf), "steps": steps }))
}

/// What the device plugin said, or a part of it.
pub(super) fn report(report: &impl serde::Serialize) -> String {
    // Its parts are texts and lists, which cannot fail.
    text(&serde_json::to_value(report).unwrap_or_default())
}

pub(super) fn explained(vf: &str, reasons: &[v1::Reason]) -> String {
    let details: Vec<_> = reasons.iter().map(reason).collect();
    text(&json!({ "vf": vf, "available": reasons.is_empty(), "reasons": texts(reasons), "details": details }))
}

fn texts(reasons: &[v1::Reason]) -> Vec<&str> {
    reasons.iter().map(|reason| reason.text.as_str()).collect()
}

fn reason(reason: &v1::Reason) -> Value {
    let user = reason.user.clone().unwrap_or_default();
    json!({
        "kind": reason.kind().word(),
        "text": reason.text,
        "lease": some(&reason.lease),
        "tenant": some(&reason.tenant),
        // Its old name.
        "holder": some(&reason.tenant),
        "owner": some(&reason.owner),
        "function": some(&reason.function),
        "iommu_group": reason.iommu_group,
        "driver": some(&reason.driver),
        "pid": (user.pid != 0).then_some(user.pid),
        "command": some(&user.command),
        "file": some(&user.file),
        "netdev": some(&user.netdev),
        "namespace": some(&user.namespace),
    })
}

fn blocker(blocker: &v1::Blocker) -> Value {
    json!({ "vf": blocker.vf, "reason": blocker.reason.as_ref().map(reason) })
}

fn owner(owner: &v1::Owner) -> Value {
    json!({ "name": owner.name, "uid": owner.uid, "pools": owner.pools, "vfs": owner.vfs, "since": owner.since })
}

fn pf(pf: &v1::Pf) -> Value {
    json!({
        "address": pf.address,
        "netdev": some(&pf.netdev),
        "driver": some(&pf.driver),
        "vendor": id(pf.vendor),
        "device": id(pf.device),
        "total_vfs": pf.total_vfs,
        "num_vfs": pf.num_vfs,
        "numa": pf.numa,
        "stuck": some(&pf.stuck),
        "short": some(&pf.short),
        "cordoned": some(&pf.cordoned),
        "mtu": pf.mtu,
        "mac": some(&pf.mac),
        "permanent_mac": some(&pf.permanent_mac),
        "link_type": some(&pf.link_type),
        "alt_names": pf.alt_names,
        "acpi_index": pf.acpi_index,
        "rdma": pf.rdma.iter().map(rdma).collect::<Vec<_>>(),
        "admin_up": pf.admin_up,
        "link_up": pf.link_up,
        "link_speed": pf.link_speed,
        "eswitch_mode": some(pf.eswitch_mode().word()),
        "externally_managed": pf.externally_managed,
    })
}

fn vf(vf: &v1::Vf) -> Value {
    json!({
        "address": vf.address,
        "pf": vf.pf,
        "pf_name": vf.pf_name,
        "index": vf.index,
        "iommu_group": vf.iommu_group,
        "numa": vf.numa,
        "driver": some(&vf.driver),
        "netdevs": vf.netdevs,
        "vendor": id(vf.vendor),
        "device": id(vf.device),
        "state": vf.state().word(),
        "lease": vf.lease.as_ref().map(lease),
        "pools": vf.pools,
        "reasons": texts(&vf.reasons),
        "owner": some(&vf.owner),
        "vfio_group": some(&vf.vfio_group),
        "vfio_device": some(&vf.vfio_device),
        "noiommu": vf.noiommu,
        "mac": some(&vf.mac),
        "link_type": some(&vf.link_type),
        "alt_names": vf.alt_names,
        "acpi_index": vf.acpi_index,
        "rdma": vf.rdma.iter().map(rdma).collect::<Vec<_>>(),
        "mtu": vf.mtu,
        "guid": some(&vf.guid),
        "representor": some(&vf.representor),
        "told": vf.told.as_ref().map(attributes::json),
    })
}

fn rdma(rdma: &v1::Rdma) -> Value {
    json!({ "device": rdma.device, "nodes": rdma.nodes })
}

fn lease(lease: &v1::Lease) -> Value {
    json!({
        "id": lease.id,
        "tenant": lease.tenant,
        // Its old name.
        "holder": lease.tenant,
        "vf": lease.vf,
        "uid": lease.uid,
        "since": lease.since,
        "pool": some(&lease.pool),
        "driver": lease.driver().word(),
        "stage": lease.stage().word(),
        "fault": some(&lease.fault),
        "forbidden": some(&lease.forbidden),
        "owner": some(&lease.owner),
        "until": lease.until.as_ref().and_then(until),
        "attributes": attributes::json(lease.attributes.as_ref().unwrap_or(&v1::Attributes::default())),
    })
}

fn until(until: &v1::Until) -> Option<Value> {
    Some(match until.what.as_ref()? {
        What::Process(v1::Process { pid, start_time }) => json!({ "pid": pid, "start_time": start_time }),
        What::NetworkNamespace(path) => json!({ "network_namespace": path }),
        What::Cgroup(path) => json!({ "cgroup": path }),
    })
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn id(id: u32) -> String {
    format!("{id:04x}")
}

fn text(value: &Value) -> String {
    format!("{value:#}\n")
}
