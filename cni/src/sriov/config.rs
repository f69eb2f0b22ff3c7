//! A network of VFs, as sriov-cni's configuration has it, key by key.

use sriov_manager_client::mac::Mac;
use sriov_manager_client::v1::{self, Attributes, Rate, Vlan};

use crate::network::{Keys, Network};
use crate::protocol::{Attachment, CniError};

/// What a network says of one VF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfConfig {
    /// Its address on the bus.
    pub device: String,
    /// What the PF is to say of it.
    pub attributes: Attributes,
    /// The address of its interface; none: its own.
    pub mac: Option<Mac>,
}

impl VfConfig {
    /// Reads it.
    pub fn read(network: &Network, attachment: &Attachment) -> Result<Self, CniError> {
        let keys = network.keys();
        let device = device(network)?;
        let mac = network.mac(attachment)?;
        let on_off = [("on", true), ("off", false)];
        let links =
            [("auto", v1::LinkState::Auto), ("enable", v1::LinkState::Enable), ("disable", v1::LinkState::Disable)];
        let attributes = Attributes {
            mac: mac.map(|mac| mac.to_string()),
            vlan: vlan(keys)?,
            rate: rate(keys)?,
            spoof_check: keys.word("spoofchk", &on_off)?,
            trust: keys.word("trust", &on_off)?,
            link_state: keys.word("link_state", &links)?.map(Into::into),
            mtu: None,
        };
        Ok(Self { device, attributes, mac })
    }
}

/// The VF that a network's configuration names: Multus puts it in, from what the kubelet gave the pod.
pub fn device(network: &Network) -> Result<String, CniError> {
    let device = network.keys().text("deviceID")?.unwrap_or_default().to_ascii_lowercase();
    let device = if device.matches(':').count() == 1 { format!("0000:{device}") } else { device };
    if is_pci_address(&device) {
        return Ok(device);
    }
    let problem = format!(
        "deviceID: `{device}`, where the PCI address of a VF is wanted: Multus fills it in from the annotation \
         k8s.v1.cni.cncf.io/resourceName of the network, if a container of the pod asks for that resource"
    );
    Err(CniError::config(problem))
}

/// Its parts are parts of file names.
fn is_pci_address(text: &str) -> bool {
    let is_hex = |part: &str, length| part.len() == length && part.chars().all(|c| c.is_ascii_hexdigit());
    let Some((place, function)) = text.rsplit_once('.') else { return false };
    let parts: Vec<_> = place.split(':').collect();
    let [domain, bus, slot] = parts[..] else { return false };
    is_hex(domain, 4) && is_hex(bus, 2) && is_hex(slot, 2) && is_hex(function, 1)
}

fn vlan(keys: &Keys) -> Result<Option<Vlan>, CniError> {
    let id = keys.number("vlan")?;
    let qos = keys.number("vlanQoS")?;
    let protocols = [("802.1q", v1::VlanProtocol::Dot1q), ("802.1ad", v1::VlanProtocol::Dot1ad)];
    let protocol = keys.word("vlanProto", &protocols)?;
    let is_tagged = id.is_some_and(|id| id > 0);
    if let Some(id) = id.filter(|&id| id > VLAN_MAX) {
        return Err(keys.wrong("vlan", &id.to_string(), "a number from 0 to 4094"));
    }
    if let Some(qos) = qos.filter(|&qos| qos > QOS_MAX) {
        return Err(keys.wrong("vlanQoS", &qos.to_string(), "a number from 0 to 7"));
    }
    if qos.is_some_and(|qos| qos > 0) && !is_tagged {
        return Err(keys.wrong("vlan", "none", "one above 0 beside vlanQoS"));
    }
    if protocol == Some(v1::VlanProtocol::Dot1ad) && !is_tagged {
        return Err(keys.wrong("vlan", "none", "one above 0 beside vlanProto 802.1ad"));
    }
    let protocol = protocol.unwrap_or(v1::VlanProtocol::Dot1q).into();
    Ok(id.map(|id| Vlan { id, qos: qos.unwrap_or_default(), protocol }))
}

fn rate(keys: &Keys) -> Result<Option<Rate>, CniError> {
    let (min, max) = (keys.number("min_tx_rate")?, keys.number("max_tx_rate")?);
    if min.is_none() && max.is_none() {
        return Ok(None);
    }
    let rate = Rate { min: min.unwrap_or_default(), max: max.unwrap_or_default() };
    if rate.max > 0 && rate.min > rate.max {
        return Err(keys.wrong("min_tx_rate", &rate.min.to_string(), &format!("at most max_tx_rate {}", rate.max)));
    }
    Ok(Some(rate))
}

/// 4095 is reserved (IEEE 802.1Q, 9.6).
const VLAN_MAX: u32 = 4094;
const QOS_MAX: u32 = 7;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;

    fn read(keys: Value, args: &[(&str, &str)]) -> Result<VfConfig, CniError> {
        let mut document = json!({ "cniVersion": "1.0.0", "name": "net", "type": "sriov", "deviceID": "0000:3b:02.1" });
        let Value::Object(keys) = keys else { panic!("keys are wanted") };
        document.as_object_mut().unwrap().extend(keys);
        let args: BTreeMap<_, _> = args.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let attachment = Attachment { container: "c".into(), interface: "net1".into(), netns: None, args };
        VfConfig::read(&Network::read(document.to_string().as_bytes())?, &attachment)
    }

    #[test]
    fn every_key_of_sriov_cni_is_read() {
        let config = read(
            json!({
                "vlan": 100, "vlanQoS": 3, "vlanProto": "802.1AD", "mac": "02:00:00:00:00:01", "spoofchk": "off", "trust": "on",
                "link_state": "enable", "min_tx_rate": 10, "max_tx_rate": 200, "logLevel": "debug", "logFile": "/tmp/log",
            }),
            &[],
        );
        let attributes = config.unwrap().attributes;
        let wanted = Attributes {
            mac: Some("02:00:00:00:00:01".into()),
            vlan: Some(Vlan { id: 100, qos: 3, protocol: v1::VlanProtocol::Dot1ad.into() }),
            rate: Some(Rate { min: 10, max: 200 }),
            spoof_check: Some(false),
            trust: Some(true),
            link_state: Some(v1::LinkState::Enable.into()),
            mtu: None,
        };
        assert_eq!(attributes, wanted);
        // As a record has it.
        let kept = serde_json::to_value(&attributes).unwrap();
        assert_eq!(serde_json::from_value::<Attributes>(kept).unwrap(), attributes);
        assert_eq!(read(json!({}), &[]).unwrap().attributes, Attributes::default());
        assert_eq!(read(json!({ "deviceID": "3B:02.1" }), &[]).unwrap().device, "0000:3b:02.1");
    }

    #[test]
    fn the_runtime_s_address_goes_before_the_caller_s_and_that_before_the_configuration_s() {
        let mac = |keys, args: &[_]| read(keys, args).unwrap().attributes.mac.unwrap();
        let config = json!({ "mac": "02:00:00:00:00:01" });
        assert_eq!(mac(config.clone(), &[]), "02:00:00:00:00:01");
        let args = [("MAC", "02:00:00:00:00:02")];
        assert_eq!(mac(config, &args), "02:00:00:00:00:02");
        let both = json!({ "mac": "02:00:00:00:00:01", "runtimeConfig": { "mac": "02:00:00:00:00:03" } });
        assert_eq!(mac(both, &args), "02:00:00:00:00:03");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_key() {
        let cases = [
            (json!({ "vlan": 4095 }), "vlan: 4095"),
            (json!({ "vlan": "7" }), "vlan: `\"7\"`"),
            (json!({ "vlan": 1, "vlanQoS": 8 }), "vlanQoS: 8"),
            (json!({ "vlanQoS": 1 }), "vlan: none"),
            (json!({ "vlan": 0, "vlanProto": "802.1ad" }), "vlanProto 802.1ad"),
            (json!({ "vlan": 1, "vlanProto": "q" }), "802.1q or 802.1ad"),
            (json!({ "trust": "yes" }), "on or off"),
            (json!({ "link_state": "up" }), "auto or enable or disable"),
            (json!({ "min_tx_rate": 3, "max_tx_rate": 2 }), "at most max_tx_rate 2"),
            (json!({ "mac": "01:00:00:00:00:01" }), "mac: `01:00"),
            (json!({ "deviceID": "" }), "Multus fills it in"),
            (json!({ "deviceID": "../../etc:3b:02.1" }), "deviceID"),
        ];
        for (keys, part) in cases {
            let error = read(keys.clone(), &[]).unwrap_err();
            assert!(error.message.contains(part), "{keys}: {error}");
        }
    }
}
