//! What a lease may ask of its VF: as options, and for programs.

use clap::Args;
use serde_json::{Value, json};
use sriov_manager_client::v1;

/// Attributes; what is not given stays as it is.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct AttributeArgs {
    /// The VF's MAC address, as in 02:00:00:00:00:01
    #[arg(long, value_name = "MAC")]
    mac: Option<String>,
    /// VLAN whose tag the NIC adds and removes; 0: none
    #[arg(long, value_name = "ID")]
    vlan: Option<u32>,
    /// Priority in the VLAN, 0 to 7
    #[arg(long, value_name = "N", requires = "vlan")]
    qos: Option<u32>,
    /// Tag of the VLAN: 802.1q or 802.1ad
    #[arg(long, value_name = "PROTOCOL", requires = "vlan")]
    vlan_protocol: Option<v1::VlanProtocol>,
    /// Guaranteed transmit rate, in Mbit/s
    #[arg(long, value_name = "MBITS")]
    min_rate: Option<u32>,
    /// Highest transmit rate, in Mbit/s; 0: no limit
    #[arg(long, value_name = "MBITS")]
    max_rate: Option<u32>,
    /// Drop frames that it sends from other MAC addresses
    #[arg(long, value_name = "ON", value_parser = on_off)]
    spoof_check: Option<bool>,
    /// Let it change its MAC address and be promiscuous
    #[arg(long, value_name = "ON", value_parser = on_off)]
    trust: Option<bool>,
    /// State of its link: auto (that of the PF), enable or disable
    #[arg(long, value_name = "STATE")]
    link_state: Option<v1::LinkState>,
    /// MTU of its interface (driver kernel only)
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
}

impl AttributeArgs {
    pub(super) fn message(&self) -> v1::Attributes {
        let vlan = |id| v1::Vlan {
            id,
            qos: self.qos.unwrap_or_default(),
            protocol: self.vlan_protocol.unwrap_or_default().into(),
        };
        let rate = || v1::Rate { min: self.min_rate.unwrap_or_default(), max: self.max_rate.unwrap_or_default() };
        v1::Attributes {
            mac: self.mac.clone(),
            vlan: self.vlan.map(vlan),
            rate: self.min_rate.or(self.max_rate).map(|_| rate()),
            spoof_check: self.spoof_check,
            trust: self.trust,
            link_state: self.link_state.map(Into::into),
            mtu: self.mtu,
        }
    }
}

/// As programs read them.
pub(super) fn json(attributes: &v1::Attributes) -> Value {
    let vlan = |vlan: v1::Vlan| json!({ "id": vlan.id, "qos": vlan.qos, "protocol": vlan.protocol().word() });
    json!({
        "mac": attributes.mac,
        "vlan": attributes.vlan.map(vlan),
        "rate": attributes.rate.map(|rate| json!({ "min": rate.min, "max": rate.max })),
        "spoof_check": attributes.spoof_check,
        "trust": attributes.trust,
        "link_state": attributes.link_state.map(|_| attributes.link_state().word()),
        "mtu": attributes.mtu,
    })
}

fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(format!("`{other}`; `on` or `off` is wanted")),
    }
}
