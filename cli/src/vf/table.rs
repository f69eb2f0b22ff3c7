//! VFs for people: a table, and below it in full words what is not as it should be.

use std::fmt::Write as _;

use comfy_table::{Cell, Color};
use sriov_manager_client::v1;

use crate::text;
use crate::wires::table::{TableStyle, right};

pub(super) fn render(response: &v1::ListResponse, look: TableStyle) -> String {
    if response.pfs.is_empty() {
        return "no PF: nothing here can have VFs (SR-IOV may be off in the BIOS)\n".to_owned();
    }
    let words = ["PF", "VF", "ADDRESS"];
    let mut table =
        look.table(&[&words[..], &["GROUP", "NUMA", "DRIVER", "NETDEV", "STATE", "LEASE", "TENANT"]].concat(), &[]);
    let cell = |text: &str| Cell::new(if text.is_empty() { "-".into() } else { text::foreign(text) });
    let number = |number: Option<u32>| number.map_or_else(|| right("-"), right);
    for pf in &response.pfs {
        let name = if pf.netdev.is_empty() { &pf.address } else { &pf.netdev };
        let state = format!("{} of {} VFs", pf.num_vfs, pf.total_vfs);
        let mut row = vec![cell(name), Cell::new("PF"), cell(&pf.address), right("-"), number(pf.numa)];
        row.extend([cell(&pf.driver), cell(&pf.netdev), Cell::new(state), cell(""), cell("")]);
        table.add_row(row);
        for vf in response.vfs.iter().filter(|vf| vf.pf == pf.address) {
            let lease = vf.lease.clone().unwrap_or_default();
            let mut row = vec![cell(name), right(vf.index), cell(&vf.address), number(vf.iommu_group), number(vf.numa)];
            row.extend([cell(&vf.driver), cell(&vf.netdevs.join(",")), state_cell(vf)]);
            row.extend([cell(&lease.id), cell(&lease.tenant)]);
            table.add_row(row);
        }
    }
    let mut out = table.trim_fmt() + "\n";
    let remarks = remarks(response);
    if !remarks.is_empty() {
        out.push('\n');
    }
    for remark in remarks {
        let _ = writeln!(out, "{}", text::foreign(&remark));
    }
    out
}

fn state_cell(vf: &v1::Vf) -> Cell {
    let stage = vf.lease.as_ref().map(|lease| lease.stage().word());
    let faulty = vf.lease.as_ref().is_some_and(|lease| !lease.fault.is_empty());
    let word = match stage {
        Some("lent") | None => vf.state().word(),
        Some(stage) => stage,
    };
    // For its owner alone.
    let word = match (vf.state(), vf.owner.as_str()) {
        (v1::VfState::Free, owner) if !owner.is_empty() => format!("{word} ({})", text::foreign(owner)),
        _ => word.to_owned(),
    };
    let colour = match vf.state() {
        _ if faulty => Color::Red,
        v1::VfState::Free => Color::Green,
        v1::VfState::Blocked => Color::Red,
        _ => Color::Yellow,
    };
    Cell::new(word).fg(colour)
}

/// What a person should know and a table has no room for.
fn remarks(response: &v1::ListResponse) -> Vec<String> {
    let node = response.node.clone().unwrap_or_default();
    let recovering = (node.recovery() == v1::Recovery::Leases || node.recovery() == v1::Recovery::Counts)
        .then(|| "the manager has just started: what it knew before is being brought back".to_owned());
    let is_unknown = |reason: &&v1::Reason| reason.kind() == v1::ReasonKind::NoPolicies;
    let is_first = response.vfs.iter().flat_map(|vf| &vf.reasons).any(|reason| is_unknown(&reason));
    let refused = (!node.policies_refused.is_empty()).then_some(&node.policies_refused);
    let refused = refused.into_iter().flat_map(|why| {
        let told = if is_first {
            "the policies file is refused, and there is none before it: no VF is lent until it is right:"
        } else {
            "the policies file is refused, and the policies before it stay in force:"
        };
        [told.to_owned()].into_iter().chain(why.lines().map(|line| format!("  {line}")))
    });
    let short = response.pfs.iter().filter(|pf| !pf.short.is_empty());
    let short = short.map(|pf| format!("{}: not the number of VFs that the policies want: {}", pf.address, pf.short));
    let stuck = response.pfs.iter().filter(|pf| !pf.stuck.is_empty());
    let stuck = stuck.map(|pf| format!("{}: stuck: {} has not come back", pf.address, pf.stuck));
    let faults = response.vfs.iter().filter_map(|vf| Some((vf, vf.lease.as_ref()?)));
    let faults = faults.filter(|(_, lease)| !lease.fault.is_empty());
    let faults = faults.map(|(vf, lease)| format!("{}: lease {}: {}", vf.address, lease.id, lease.fault));
    let lent = response.vfs.iter().filter_map(|vf| vf.lease.as_ref()).filter(|lease| !lease.forbidden.is_empty());
    let forbidden = lent.map(|lease| {
        let v1::Lease { id, vf, forbidden, .. } = lease;
        format!("{vf}: lease {id}: the policies would not allow it now ({forbidden}); it stays until it is released")
    });
    let cordoned = response.pfs.iter().filter(|pf| !pf.cordoned.is_empty());
    let cordoned =
        cordoned.map(|pf| format!("{}: cordoned, no VF of it is lent to anybody new: {}", pf.address, pf.cordoned));
    let is_cordon = |reason: &&v1::Reason| reason.kind() == v1::ReasonKind::Cordoned;
    let of_vf = |vf: &v1::Vf| -> Vec<_> {
        // Said above, once.
        let is_said =
            |reason: &&v1::Reason| is_cordon(reason) || is_unknown(reason) && !node.policies_refused.is_empty();
        let reasons = vf.reasons.iter().filter(|reason| !is_said(reason));
        reasons.map(|why| format!("{}: {}", vf.address, why.text)).collect()
    };
    let blocked = response.vfs.iter().flat_map(of_vf);
    let owner = |owner: &v1::Owner| {
        let what = owner.pools.iter().map(|pool| format!("the pool {pool}")).chain(owner.vfs.iter().cloned());
        format!("{} has claimed {}", owner.name, what.collect::<Vec<_>>().join(", "))
    };
    let owners = node.owners.iter().map(owner);
    let lost = response
        .lost
        .iter()
        .map(|lease| format!("{}: lease {} of {}: {}", lease.vf, lease.id, lease.tenant, lease.fault));
    let warnings = node.warnings.iter().cloned();
    refused
        .chain(recovering)
        .chain(warnings)
        .chain(owners)
        .chain(cordoned)
        .chain(short)
        .chain(stuck)
        .chain(faults)
        .chain(forbidden)
        .chain(blocked)
        .chain(lost)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: TableStyle = TableStyle { width: None, colour: false };

    fn response() -> v1::ListResponse {
        let pf = v1::Pf {
            address: "0000:02:00.0".into(),
            netdev: "ens1f0".into(),
            driver: "igb".into(),
            total_vfs: 7,
            num_vfs: 2,
            numa: Some(0),
            ..Default::default()
        };
        let free = v1::Vf {
            address: "0000:02:10.0".into(),
            pf: pf.address.clone(),
            pf_name: "ens1f0".into(),
            iommu_group: Some(12),
            numa: Some(0),
            state: v1::VfState::Free.into(),
            ..Default::default()
        };
        let lease = v1::Lease {
            id: "pod/net1".into(),
            tenant: "cnf\x1b[2J".into(),
            stage: v1::Stage::Releasing.into(),
            fault: "unbind has not come back".into(),
            ..Default::default()
        };
        let lent = v1::Vf {
            address: "0000:02:10.2".into(),
            index: 1,
            driver: "vfio-pci".into(),
            state: v1::VfState::Lent.into(),
            lease: Some(lease),
            ..free.clone()
        };
        v1::ListResponse { pfs: vec![pf], vfs: vec![free, lent], ..Default::default() }
    }

    #[test]
    fn the_table_shows_each_vf_and_below_it_what_is_wrong() {
        let table = render(&response(), PLAIN);
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[2], ["ens1f0", "0", "0000:02:10.0", "12", "0", "-", "-", "free", "-", "-"]);
        assert_eq!(lines[3][..8], ["ens1f0", "1", "0000:02:10.2", "12", "0", "vfio-pci", "-", "releasing"]);
        assert!(table.contains("0000:02:10.2: lease pod/net1: unbind has not come back"), "{table}");
        assert!(!table.contains('\x1b'), "a tenant cannot give orders to the terminal");
    }

    #[test]
    fn what_the_policies_want_and_cannot_have_is_told_in_full() {
        let mut response = response();
        let policies_refused = "p.yaml:3:5: pools[0].nam: no such setting\np.yaml:9:1: another".into();
        let owner = v1::Owner { name: "plugin".into(), pools: vec!["fast".into()], ..Default::default() };
        response.node = Some(v1::Node { policies_refused, owners: vec![owner], ..Default::default() });
        response.pfs[0].cordoned = "new firmware".into();
        response.pfs[0].short = "a VF is lent".into();
        response.vfs[1].lease.as_mut().unwrap().forbidden = "there is no pool fast any more".into();
        let table = render(&response, PLAIN);
        for line in [
            "the policies file is refused, and the policies before it stay in force:\n  p.yaml:3:5: pools[0].nam",
            "\n  p.yaml:9:1: another\n",
            "0000:02:00.0: not the number of VFs that the policies want: a VF is lent",
            "plugin has claimed the pool fast",
            "0000:02:00.0: cordoned, no VF of it is lent to anybody new: new firmware",
            "lease pod/net1: the policies would not allow it now (there is no pool fast any more)",
        ] {
            assert!(table.contains(line), "{line} in\n{table}");
        }
    }

    #[test]
    fn that_there_are_no_policies_yet_is_told_once_and_a_free_vf_with_its_owner() {
        let mut response = response();
        let why = v1::Reason {
            kind: v1::ReasonKind::NoPolicies.into(),
            text: "no VF is lent: x".into(),
            ..Default::default()
        };
        response.vfs.iter_mut().for_each(|vf| vf.reasons = vec![why.clone()]);
        response.vfs[0].owner = "device-plugin".into();
        let refused = v1::Node { policies_refused: "p.yaml:3:5: wrong".into(), ..Default::default() };
        response.node = Some(refused);
        let table = render(&response, PLAIN);
        let head = "there is none before it: no VF is lent until it is right:\n  p.yaml:3:5: wrong\n";
        assert!(table.contains(head) && !table.contains("no VF is lent: x") && !table.contains("in force"), "{table}");
        assert!(table.contains(" free (device-plugin) "), "{table}");
        response.node = None;
        assert!(
            render(&response, PLAIN).contains("no VF is lent: x"),
            "without a file there is nothing else that says so"
        );
    }

    #[test]
    fn a_node_without_pfs_says_so() {
        assert!(render(&v1::ListResponse::default(), PLAIN).starts_with("no PF"));
    }
}
