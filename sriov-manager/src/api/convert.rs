//! What others see as messages, and requests as what the library takes.

use sriov_manager_client::v1;

use crate::address::Driver;
use crate::attributes::{Attributes, LinkState, Rate, Vlan, VlanProtocol};
use crate::lease::{Lease, Wanted};
use crate::policy::PeerCredentials;
use crate::vfs::{Choice, PfView, Reason, Request, VfView, View};

/// The answer to a list or watch.
pub fn response(view: &View) -> v1::ListResponse {
    v1::ListResponse {
        pfs: view.pfs.iter().map(pf).collect(),
        vfs: view.vfs.iter().map(vf).collect(),
        lost: view.lost.iter().map(|lost| lease(lost, None)).collect(),
        generation: view.generation,
        policies_refused: view.policies_refused.clone().unwrap_or_default(),
        warnings: view.warnings.clone(),
    }
}

fn pf(view: &PfView) -> v1::Pf {
    let function = &view.pf.function;
    v1::Pf {
        address: view.pf.address.to_string(),
        netdev: view.pf.netdev().unwrap_or_default().to_owned(),
        driver: function.driver.clone().unwrap_or_default(),
        vendor: function.vendor,
        device: function.device,
        total_vfs: view.pf.total_vfs,
        num_vfs: view.pf.vfs.len() as u32,
        numa: function.numa,
        stuck: view.stuck.as_ref().map(|stuck| stuck.what.clone()).unwrap_or_default(),
        short: view.short.clone().unwrap_or_default(),
    }
}

pub(super) fn vf(view: &VfView) -> v1::Vf {
    let function = &view.vf.function;
    let lent = |reason: &Reason| matches!(reason, Reason::Lent { .. });
    let state = if view.lease.is_some() {
        "lent"
    } else if view.reasons.iter().any(|reason| !lent(reason)) {
        "blocked"
    } else if view.busy {
        "busy"
    } else {
        "free"
    };
    v1::Vf {
        address: view.vf.address.to_string(),
        pf: view.vf.pf.to_string(),
        pf_name: view.pf_name.clone(),
        index: view.vf.index,
        iommu_group: function.iommu_group,
        numa: function.numa,
        driver: function.driver.clone().unwrap_or_default(),
        netdevs: function.netdevs.clone(),
        vendor: function.vendor,
        device: function.device,
        state: state.to_owned(),
        lease: view.lease.as_ref().map(|lent| lease(lent, view.forbidden.as_ref())),
        pools: view.pools.clone(),
        reasons: view.reasons.iter().filter(|reason| !lent(reason)).map(ToString::to_string).collect(),
    }
}

fn lease(lease: &Lease, forbidden: Option<&String>) -> v1::Lease {
    v1::Lease {
        id: lease.id.clone(),
        holder: lease.holder.clone(),
        vf: lease.vf.to_string(),
        uid: lease.uid,
        since: lease.since,
        pool: lease.pool.clone().unwrap_or_default(),
        driver: lease.wanted.driver.word().to_owned(),
        attributes: Some(attributes(&lease.wanted.attributes)),
        stage: lease.stage.word().to_owned(),
        fault: lease.fault.clone().unwrap_or_default(),
        forbidden: forbidden.cloned().unwrap_or_default(),
    }
}

fn attributes(attributes: &Attributes) -> v1::Attributes {
    let vlan =
        |vlan: Vlan| v1::Vlan { id: vlan.id.into(), qos: vlan.qos.into(), protocol: vlan.protocol.word().to_owned() };
    v1::Attributes {
        mac: attributes.mac.map(|mac| mac.to_string()),
        vlan: attributes.vlan.map(vlan),
        rate: attributes.rate.map(|Rate { min, max }| v1::Rate { min, max }),
        spoof_check: attributes.spoof_check,
        trust: attributes.trust,
        link_state: attributes.link_state.map(|state| state.word().to_owned()),
        mtu: attributes.mtu,
    }
}

/// What is asked, or what of it cannot be read.
pub(super) fn request(message: v1::AcquireRequest, peer: PeerCredentials) -> Result<Request, String> {
    let v1::AcquireRequest { id, holder, choice, driver: word, attributes, force, .. } = message;
    let choice = match choice {
        Some(v1::acquire_request::Choice::Vf(vf)) => Choice::Vf(vf.parse().map_err(|error| format!("vf: {error}"))?),
        Some(v1::acquire_request::Choice::Pool(pool)) => Choice::Pool(pool),
        None => return Err("choice: a VF or a pool is wanted".to_owned()),
    };
    let attributes = attributes.map(wanted).transpose()?.unwrap_or_default();
    Ok(Request { id, holder, choice, wanted: Wanted { driver: driver(&word)?, attributes }, peer, force })
}

pub(super) fn driver(word: &str) -> Result<Driver, String> {
    if word.is_empty() { Ok(Driver::Kernel) } else { word.parse().map_err(|error| format!("driver: {error}")) }
}

fn wanted(message: v1::Attributes) -> Result<Attributes, String> {
    let vlan = |vlan: v1::Vlan| {
        let protocol = match vlan.protocol.to_ascii_lowercase().as_str() {
            "" | "802.1q" => VlanProtocol::Dot1Q,
            "802.1ad" => VlanProtocol::Dot1Ad,
            other => return Err(format!("vlan protocol: `{other}`; `802.1q` or `802.1ad` is wanted")),
        };
        // What is out of range for the type is out of range for the check, which says it best.
        let (id, qos) = (u16::try_from(vlan.id).unwrap_or(u16::MAX), u8::try_from(vlan.qos).unwrap_or(u8::MAX));
        Ok(Vlan { id, qos, protocol })
    };
    let link_state = |word: String| match word.as_str() {
        "auto" => Ok(LinkState::Auto),
        "enable" => Ok(LinkState::Enable),
        "disable" => Ok(LinkState::Disable),
        other => Err(format!("link state: `{other}`; `auto`, `enable` or `disable` is wanted")),
    };
    Ok(Attributes {
        mac: message.mac.map(|mac| mac.parse().map_err(|error| format!("mac: {error}"))).transpose()?,
        vlan: message.vlan.map(vlan).transpose()?,
        rate: message.rate.map(|v1::Rate { min, max }| Rate { min, max }),
        spoof_check: message.spoof_check,
        trust: message.trust,
        link_state: message.link_state.map(link_state).transpose()?,
        mtu: message.mtu,
    })
}
