//! VFs for programs. Keys may be added later; none is renamed or removed.

use serde_json::{Value, json};
use sriov_manager_client::v1;

pub(super) fn list(response: &v1::ListResponse) -> String {
    text(&json!({
        "pfs": response.pfs.iter().map(pf).collect::<Vec<_>>(),
        "vfs": response.vfs.iter().map(vf).collect::<Vec<_>>(),
        "lost": response.lost.iter().map(lease).collect::<Vec<_>>(),
        "warnings": response.warnings,
        "policies_refused": some(&response.policies_refused),
    }))
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

pub(super) fn released(vf: &str, steps: &[String]) -> String {
    text(&json!({ "vf": some(vf), "steps": steps }))
}

pub(super) fn explained(vf: &str, reasons: &[String]) -> String {
    text(&json!({ "vf": vf, "available": reasons.is_empty(), "reasons": reasons }))
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
        "state": vf.state,
        "lease": vf.lease.as_ref().map(lease),
        "pools": vf.pools,
        "reasons": vf.reasons,
    })
}

fn lease(lease: &v1::Lease) -> Value {
    let attributes = lease.attributes.clone().unwrap_or_default();
    json!({
        "id": lease.id,
        "holder": lease.holder,
        "vf": lease.vf,
        "uid": lease.uid,
        "since": lease.since,
        "pool": some(&lease.pool),
        "driver": lease.driver,
        "stage": lease.stage,
        "fault": some(&lease.fault),
        "forbidden": some(&lease.forbidden),
        "attributes": {
            "mac": attributes.mac,
            "vlan": attributes.vlan.map(|v| json!({ "id": v.id, "qos": v.qos, "protocol": v.protocol })),
            "rate": attributes.rate.map(|rate| json!({ "min": rate.min, "max": rate.max })),
            "spoof_check": attributes.spoof_check,
            "trust": attributes.trust,
            "link_state": attributes.link_state,
            "mtu": attributes.mtu,
        },
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
