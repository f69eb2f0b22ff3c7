//! How the forwarder takes part in Network Service Mesh: the section `nsm:` of the wires file.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ferrule_daemon::settings::Field;

/// The forwarder as a process of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NsmSettings {
    /// Its name, which no other forwarder of the node has.
    pub name: String,
    /// The service that it is registered as.
    pub service: String,
    /// Its labels, by which services choose forwarders.
    pub labels: BTreeMap<String, String>,
    /// The manager of the node, `unix:///path`.
    pub connect_to: String,
    /// Where it listens, `unix:///path`.
    pub listen_on: String,
    /// Where its identity comes from, `unix:///path`; none: from `SPIFFE_ENDPOINT_SOCKET`.
    pub spiffe_socket: Option<String>,
    /// How long its tokens live at most.
    pub token_lifetime: Duration,
    /// How long it may take to connect to somebody.
    pub dial_timeout: Duration,
    /// The address by which other nodes reach its tunnels; none: that of the link that the default route leads to.
    pub tunnel_ip: Option<IpAddr>,
    /// The UDP port of its VXLAN tunnels.
    pub vxlan_port: u16,
    /// The file that says by which devices connections leave into VLANs; none: none does.
    pub device_selector: Option<PathBuf>,
    /// The collector of OpenTelemetry that traces go to, `http://address:4317`; none: what the environment says.
    pub traces_to: Option<String>,
    /// Mechanisms that are preferred to others, the first one most.
    pub mechanism_priority: Vec<String>,
    /// The SR-IOV configuration of cmd-forwarder-sriov; none: all tokens of `device-plugin` are good.
    pub sriov_config: Option<PathBuf>,
    /// Where `device-plugin` puts tokens.
    pub sriov_tokens: PathBuf,
    /// Where is kept what VFs were before connections changed them.
    pub sriov_state: PathBuf,
}

impl Default for NsmSettings {
    fn default() -> Self {
        Self {
            name: "forwarder".to_owned(),
            service: "forwarder".to_owned(),
            labels: [("p2p".to_owned(), "true".to_owned())].into(),
            connect_to: "unix:///var/lib/networkservicemesh/nsm.io.sock".to_owned(),
            listen_on: "unix:///run/ferrule/nsm.sock".to_owned(),
            spiffe_socket: None,
            token_lifetime: Duration::from_mins(10),
            dial_timeout: Duration::from_millis(750),
            tunnel_ip: None,
            vxlan_port: VXLAN_PORT,
            device_selector: None,
            traces_to: None,
            mechanism_priority: Vec::new(),
            sriov_config: None,
            sriov_tokens: PathBuf::from("/var/lib/ferrule/device-plugin/nsm-tokens"),
            sriov_state: PathBuf::from("/var/lib/ferrule/forwarder/nsm-vfs"),
        }
    }
}

impl NsmSettings {
    /// Reads the section.
    pub(crate) fn read(field: &Field<'_>) -> Self {
        let mut settings = Self::default();
        let Some(table) = field.table(&[
            "name",
            "service",
            "labels",
            "connect_to",
            "listen_on",
            "spiffe_socket",
            "token_lifetime",
            "dial_timeout",
            "tunnel_ip",
            "vxlan_port",
            "device_selector",
            "traces_to",
            "mechanism_priority",
            "sriov_config",
            "sriov_tokens",
            "sriov_state",
        ]) else {
            return settings;
        };
        if !cfg!(feature = "nsm") {
            field.wrong("this build knows no Network Service Mesh; build the forwarder with its feature `nsm`");
        }
        let text = |key: &str, value: &mut String| {
            if let Some(text) = table.optional(key).and_then(|field| field.text()) {
                text.clone_into(value);
            }
        };
        text("name", &mut settings.name);
        text("service", &mut settings.service);
        let address = |key: &str| {
            let field = table.optional(key)?;
            let address = unix_url(field.text()?).map_err(|problem| field.wrong(problem)).ok()?;
            Some(address)
        };
        settings.connect_to = address("connect_to").unwrap_or(settings.connect_to);
        settings.listen_on = address("listen_on").unwrap_or(settings.listen_on);
        settings.spiffe_socket = address("spiffe_socket");
        let duration = |key: &str, value: &mut Duration| {
            let Some(field) = table.optional(key) else { return };
            match field.text().map(humantime::parse_duration) {
                Some(Ok(duration)) if !duration.is_zero() => *value = duration,
                Some(_) => field.wrong("a time is wanted, as in `10m` or `750ms`"),
                None => {}
            }
        };
        duration("token_lifetime", &mut settings.token_lifetime);
        duration("dial_timeout", &mut settings.dial_timeout);
        settings.tunnel_ip = table.optional("tunnel_ip").and_then(|field| field.parse_as("an IP address"));
        let port = table.optional("vxlan_port").and_then(|field| field.number(1..=u16::MAX.into()));
        settings.vxlan_port = port.unwrap_or(settings.vxlan_port);
        if let Some(labels) = table.optional("labels") {
            let entries = labels.entries().into_iter().flatten();
            settings.labels =
                entries.filter_map(|(key, value)| Some((key.to_owned(), value.text()?.to_owned()))).collect();
        }
        let path = |key: &str| {
            let field = table.optional(key)?;
            let path = PathBuf::from(field.text()?);
            if !path.is_absolute() {
                field.wrong("an absolute path is wanted");
            }
            Some(path)
        };
        settings.traces_to = table.optional("traces_to").and_then(|field| field.text().map(ToOwned::to_owned));
        settings.device_selector = path("device_selector");
        settings.sriov_config = path("sriov_config");
        settings.sriov_tokens = path("sriov_tokens").unwrap_or(settings.sriov_tokens);
        settings.sriov_state = path("sriov_state").unwrap_or(settings.sriov_state);
        let words = table.optional("mechanism_priority").and_then(|field| field.items()).unwrap_or_default();
        settings.mechanism_priority = words.iter().filter_map(|word| Some(word.text()?.to_uppercase())).collect();
        settings
    }
}

/// The address of a socket with a path: files are passed over no other.
pub(super) fn unix_url(text: &str) -> Result<String, String> {
    match text.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(text.to_owned()),
        _ => Err(format!("`{text}`; the address of a socket is wanted, as in `unix:///run/nsm.sock`")),
    }
}

/// As other programs have it.
pub(super) const VXLAN_PORT: u16 = 4789;

#[cfg(all(test, feature = "nsm"))]
mod tests {
    use ferrule_daemon::settings::{ConfigErrors, parse};

    use super::*;

    fn read(text: &str) -> Result<NsmSettings, ConfigErrors> {
        parse("wires", text, |section, _| NsmSettings::read(section))
    }

    #[test]
    fn a_section_is_read_and_what_is_wrong_in_it_is_told_at_its_line() {
        let text = "name: fwd-1\nconnect_to: unix:///m.sock\nlabels: {p2p: 'true', sort: fast}\ntoken_lifetime: 20s\ntunnel_ip: 10.0.0.1\nmechanism_priority: [kernel]\nsriov_state: /s\n";
        let nsm = read(text).unwrap();
        assert_eq!((nsm.name.as_str(), nsm.connect_to.as_str(), nsm.labels.len()), ("fwd-1", "unix:///m.sock", 2));
        assert_eq!((nsm.token_lifetime, nsm.tunnel_ip), (Duration::from_secs(20), Some([10, 0, 0, 1].into())));
        assert_eq!(nsm.mechanism_priority, ["KERNEL"]);
        assert_eq!((nsm.vxlan_port, nsm.sriov_config, nsm.sriov_state), (4789, None, PathBuf::from("/s")));
        let wrong =
            "connect_to: tcp://a:1\ntoken_lifetime: 0s\ndial_timeout: soon\nvxlan_port: 0\nsriov_tokens: here\n";
        let lines: Vec<_> = read(wrong).unwrap_err().errors.iter().map(|error| error.at.line).collect();
        assert_eq!(lines, [1, 2, 3, 4, 5]);
    }
}
