//! What an attachment is, written and read in each release.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{CniError, Code, Version};

/// What an attachment is: the answer of ADD, and `prevResult` of what is asked later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddResult {
    /// On the host and in the container.
    pub interfaces: Vec<Interface>,
    /// What they have.
    pub ips: Vec<IpAddress>,
    /// In the container.
    pub routes: Vec<Route>,
    /// Name servers and search domains.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub dns: Map<String, Value>,
}

/// An interface, or a socket in the place of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// What it is called.
    pub name: String,
    /// Empty: it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The file of its namespace; empty: it is on the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Since 1.1.0: a socket on the host.
    #[serde(rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket: String,
    /// Since 1.1.0: its device.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci: String,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpAddress {
    /// With the length of its network's prefix.
    #[serde(with = "text")]
    pub address: IpNet,
    /// Of its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Which of the interfaces has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    #[serde(with = "text")]
    pub dst: IpNet,
    /// The next hop; none: the gateway of the addresses, or on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Since 1.1.0: of its packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Since 1.1.0: of TCP's segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Since 1.1.0: lower ones first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Since 1.1.0: the table that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Since 1.1.0: how far it reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl AddResult {
    /// Reads what was written in any release: older ones have keys that say nothing more, or lack some.
    pub fn read(document: &Value) -> Result<Self, CniError> {
        serde_json::from_value(document.clone()).map_err(|error| CniError::new(Code::Decode, error.to_string()))
    }

    /// As `version` has it.
    pub fn document(&self, version: Version) -> Value {
        let mut document = serde_json::to_value(self).unwrap_or_default();
        document["cniVersion"] = version.word().into();
        if version < Version::V1_0_0 {
            for (written, ip) in objects(&mut document["ips"]).zip(&self.ips) {
                written.insert("version".to_owned(), if ip.address.addr().is_ipv4() { "4" } else { "6" }.into());
            }
        }
        if version < Version::V1_1_0 {
            for interface in objects(&mut document["interfaces"]) {
                interface.retain(|key, _| !matches!(key.as_str(), "mtu" | "socketPath" | "pciID"));
            }
            for route in objects(&mut document["routes"]) {
                route.retain(|key, _| matches!(key.as_str(), "dst" | "gw"));
            }
        }
        document
    }
}

/// A network as its text.
mod text {
    use ipnet::IpNet;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(network: &IpNet, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(network)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom(format!("`{text}`, where an address as 10.0.0.1/24 is wanted")))
    }
}

fn objects(list: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    list.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result() -> AddResult {
        let interface = Interface {
            name: "net1".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: Some(1500),
            sandbox: "/run/netns/pod".into(),
            pci: "0000:3b:02.1".into(),
            ..Interface::default()
        };
        let address = IpAddress {
            address: "10.0.0.5/24".parse().unwrap(),
            gateway: Some("10.0.0.1".parse().unwrap()),
            interface: Some(0),
        };
        let route = Route {
            dst: "0.0.0.0/0".parse().unwrap(),
            gw: None,
            mtu: None,
            advmss: None,
            priority: Some(7),
            table: None,
            scope: None,
        };
        AddResult { interfaces: vec![interface], ips: vec![address], routes: vec![route], dns: Map::new() }
    }

    #[test]
    fn each_release_has_its_own_keys() {
        let old = json!({
            "cniVersion": "0.3.1",
            "interfaces": [{ "name": "net1", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/pod" }],
            "ips": [{ "version": "4", "address": "10.0.0.5/24", "gateway": "10.0.0.1", "interface": 0 }],
            "routes": [{ "dst": "0.0.0.0/0" }],
        });
        assert_eq!(result().document(Version::V0_3_1), old);
        let new = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{
                "name": "net1", "mac": "02:00:00:00:00:01", "mtu": 1500, "sandbox": "/run/netns/pod", "pciID": "0000:3b:02.1",
            }],
            "ips": [{ "address": "10.0.0.5/24", "gateway": "10.0.0.1", "interface": 0 }],
            "routes": [{ "dst": "0.0.0.0/0", "priority": 7 }],
        });
        assert_eq!(result().document(Version::V1_1_0), new);
        let middle = result().document(Version::V1_0_0);
        assert_eq!((&middle["ips"][0]["version"], &middle["interfaces"][0]["pciID"]), (&Value::Null, &Value::Null));
    }

    #[test]
    fn what_was_written_in_any_release_is_read() {
        for version in Version::ALL {
            let read = AddResult::read(&result().document(version)).unwrap();
            assert_eq!(read.ips, result().ips, "{version}");
            assert_eq!(read.document(version), result().document(version));
        }
        assert_eq!(AddResult::read(&json!({ "ips": [{ "address": "x" }] })).unwrap_err().code, Code::Decode);
    }
}
