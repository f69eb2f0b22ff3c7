//! The environment of cmd-forwarder-vpp and cmd-forwarder-sriov: each of their variables is read, ignored with a reason, or refused.

use std::collections::BTreeMap;
use std::time::Duration;

use super::settings::{NsmSettings, VXLAN_PORT, unix_url};

/// What the environment asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// The settings with what it says; none: neither file nor environment speaks of the mesh.
    pub settings: Option<NsmSettings>,
    /// A line for each variable that is set and means nothing here.
    pub ignored: Vec<String>,
}

impl Environment {
    /// Puts what the variables say over what the file says.
    ///
    /// # Errors
    /// A line for each variable that cannot be obeyed.
    pub fn read(
        file: Option<NsmSettings>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Vec<String>> {
        let variables: BTreeMap<_, _> =
            variables.into_iter().filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty()).collect();
        let is_asked_for = SWITCHES.iter().any(|name| variables.contains_key(*name));
        let Some(mut settings) = file.or_else(|| is_asked_for.then(NsmSettings::default)) else {
            return Ok(Self::default());
        };
        let (mut ignored, mut wrong) = (Vec::new(), Vec::new());
        for (name, value) in &variables {
            match fate(name) {
                Fate::Read(put) => {
                    if let Err(problem) = put(&mut settings, value) {
                        wrong.push(format!("{name}: {problem}"));
                    }
                }
                Fate::Ignored(reason) => ignored.push(format!("{name} means nothing here: {reason}")),
                Fate::Refused(reason) => wrong.push(format!("{name}={value}: {reason}")),
            }
        }
        if wrong.is_empty() { Ok(Self { settings: Some(settings), ignored }) } else { Err(wrong) }
    }
}

/// What becomes of a variable.
enum Fate {
    Read(fn(&mut NsmSettings, &str) -> Result<(), String>),
    Ignored(&'static str),
    Refused(&'static str),
}

fn fate(name: &str) -> Fate {
    match name {
        "NSM_NAME" => Fate::Read(|settings, value| {
            value.clone_into(&mut settings.name);
            Ok(())
        }),
        "NSM_NSNAME" => Fate::Read(|settings, value| {
            value.clone_into(&mut settings.service);
            Ok(())
        }),
        "NSM_LABELS" => Fate::Read(|settings, value| pairs(value).map(|labels| settings.labels = labels)),
        "NSM_CONNECT_TO" => Fate::Read(|settings, value| unix_url(value).map(|url| settings.connect_to = url)),
        "NSM_LISTEN_ON" => Fate::Read(|settings, value| unix_url(value).map(|url| settings.listen_on = url)),
        "NSM_MAX_TOKEN_LIFETIME" => {
            Fate::Read(|settings, value| duration(value).map(|time| settings.token_lifetime = time))
        }
        "NSM_DIAL_TIMEOUT" => Fate::Read(|settings, value| duration(value).map(|time| settings.dial_timeout = time)),
        "NSM_TUNNEL_IP" => Fate::Read(|settings, value| {
            let address = value.parse().map_err(|_| format!("`{value}`; an IP address is wanted"))?;
            settings.tunnel_ip = Some(address);
            Ok(())
        }),
        "NSM_VXLAN_PORT" => Fate::Read(|settings, value| {
            let port: u16 = value.parse().map_err(|_| format!("`{value}`; a port is wanted"))?;
            settings.vxlan_port = if port == 0 { VXLAN_PORT } else { port };
            Ok(())
        }),
        "NSM_MECHANISM_PRIORITY" => Fate::Read(|settings, value| {
            settings.mechanism_priority = value.split(',').map(|word| word.trim().to_uppercase()).collect();
            Ok(())
        }),
        "NSM_LOG_LEVEL" => Fate::Ignored("`--log` and RUST_LOG say what is logged"),
        "NSM_REGISTRY_CLIENT_POLICIES" => Fate::Ignored("the checks are built in, and cannot be switched off"),
        // With `TELEMETRY=true` traces go there: it is read where they begin.
        "NSM_OPEN_TELEMETRY_ENDPOINT" => Fate::Read(|_, _| Ok(())),
        "NSM_METRICS_EXPORT_INTERVAL" => {
            Fate::Ignored("metrics are in the path of each connection, and on the page of `--metrics`")
        }
        "NSM_PPROF_ENABLED" | "NSM_PPROF_LISTEN_ON" => Fate::Ignored("this is no Go program"),
        "NSM_VPP_API_SOCKET" | "NSM_VPP_INIT" | "NSM_VPP_INIT_PARAMS" | "NSM_VPP_MIN_OPERATION_TIMEOUT" => {
            Fate::Ignored("there is no VPP")
        }
        "NSM_PROMETHEUS_LISTEN_ON" | "NSM_PROMETHEUS_SERVER_HEADER_TIMEOUT" | "NSM_PROMETHEUS_MAX_BIND_THRESHOLD" => {
            Fate::Ignored("`--metrics` says where Prometheus may ask")
        }
        "NSM_PROMETHEUS_CERT_FILE"
        | "NSM_PROMETHEUS_KEY_FILE"
        | "NSM_PROMETHEUS_CA_FILE"
        | "NSM_PROMETHEUS_MONITOR_CERTIFICATE" => {
            Fate::Refused("the metrics page has no TLS; leave it out, and put the page behind something that has")
        }
        "NSM_DEVICE_PLUGIN_PATH" | "NSM_POD_RESOURCES_PATH" | "NSM_RESOURCE_POLL_TIMEOUT" | "NSM_CGROUP_PATH" => {
            Fate::Ignored("pods get VFs by `device-plugin`")
        }
        "NSM_PCI_DEVICES_PATH" | "NSM_PCI_DRIVERS_PATH" | "NSM_VFIO_PATH" => Fate::Ignored("`sriov-manager` binds VFs"),
        "NSM_SRIOV_CONFIG_FILE" => Fate::Read(|settings, value| {
            settings.sriov_config = Some(value.into());
            Ok(())
        }),
        "NSM_DEVICE_SELECTOR_FILE" => Fate::Read(|settings, value| {
            settings.device_selector = Some(value.into());
            Ok(())
        }),
        _ => Fate::Ignored("no forwarder has it"),
    }
}

/// `a:b,c:d`.
fn pairs(text: &str) -> Result<BTreeMap<String, String>, String> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once(':').ok_or_else(|| format!("`{pair}`; `key:value` is wanted"))?;
        Ok((key.trim().to_owned(), value.trim().to_owned()))
    };
    text.split(',').map(pair).collect()
}

/// As Go writes it: `1h2m3.5s`, `750ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}`; a time is wanted, as in `10m` or `750ms`");
    let (mut seconds, mut rest) = (0.0, text);
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = rest[digits..].find(|letter: char| letter.is_ascii_digit()).unwrap_or(rest.len() - digits);
        let scale = match &rest[digits..digits + unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        seconds += number * scale;
        rest = &rest[digits + unit..];
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero()).ok_or_else(wrong)
}

const PREFIX: &str = "NSM_";
/// Any of them asks for the mesh.
const SWITCHES: [&str; 3] = ["NSM_NAME", "NSM_CONNECT_TO", "NSM_LISTEN_ON"];

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: Option<NsmSettings>, variables: &[(&str, &str)]) -> Result<Environment, Vec<String>> {
        Environment::read(file, variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn without_a_word_of_the_mesh_there_is_none() {
        assert_eq!(
            read(None, &[("PATH", "/bin"), ("NSM_LOG_LEVEL", "TRACE"), ("NSM_NAME", "")]),
            Ok(Environment::default())
        );
    }

    #[test]
    fn what_is_set_goes_before_the_file() {
        let file = NsmSettings { name: "file".to_owned(), service: "mine".to_owned(), ..NsmSettings::default() };
        let asked = [
            ("NSM_NAME", "fwd-1"),
            ("NSM_LABELS", "p2p:true, sort:fast"),
            ("NSM_MAX_TOKEN_LIFETIME", "1m30s"),
            ("NSM_DIAL_TIMEOUT", "1.5s"),
            ("NSM_VXLAN_PORT", "0"),
            ("NSM_MECHANISM_PRIORITY", "kernel,memif"),
            ("NSM_VPP_INIT", "AF_XDP"),
            ("NSM_SRIOV_CONFIG_FILE", "/pci.config"),
            ("NSM_DEVICE_SELECTOR_FILE", "/selector.yaml"),
        ];
        let read = read(Some(file), &asked).unwrap();
        let settings = read.settings.unwrap();
        assert_eq!((settings.name.as_str(), settings.service.as_str()), ("fwd-1", "mine"));
        assert_eq!((settings.labels.len(), settings.sriov_config), (2, Some("/pci.config".into())));
        assert_eq!(settings.device_selector, Some("/selector.yaml".into()));
        assert_eq!(
            (settings.token_lifetime, settings.dial_timeout),
            (Duration::from_secs(90), Duration::from_millis(1500))
        );
        assert_eq!(
            (settings.vxlan_port, settings.mechanism_priority),
            (4789, vec!["KERNEL".to_owned(), "MEMIF".to_owned()])
        );
        assert_eq!(read.ignored, ["NSM_VPP_INIT means nothing here: there is no VPP"]);
    }

    /// Its manifest of v1.18: the image is replaced, and nothing else.
    #[test]
    fn what_the_manifest_of_cmd_forwarder_vpp_says_is_enough() {
        let asked = [
            ("SPIFFE_ENDPOINT_SOCKET", "unix:///run/spire/sockets/agent.sock"),
            ("NSM_LOG_LEVEL", "INFO"),
            ("NSM_CONNECT_TO", "unix:///var/lib/networkservicemesh/nsm.io.sock"),
            ("NSM_LISTEN_ON", "unix:///listen.on.sock"),
            ("NSM_NAME", "forwarder-vpp-x7k2p"),
            ("NSM_PPROF_ENABLED", "false"),
            ("NSM_PPROF_LISTEN_ON", "localhost:6060"),
        ];
        let read = read(None, &asked).unwrap();
        let settings = read.settings.unwrap();
        assert_eq!(
            (settings.name.as_str(), settings.listen_on.as_str()),
            ("forwarder-vpp-x7k2p", "unix:///listen.on.sock")
        );
        assert_eq!((read.ignored.len(), settings.tunnel_ip), (3, None));
    }

    #[test]
    fn what_cannot_be_obeyed_is_refused_all_at_once() {
        let asked = [
            ("NSM_CONNECT_TO", "tcp://nsmgr:5001"),
            ("NSM_PROMETHEUS_CERT_FILE", "/cert.pem"),
            ("NSM_DIAL_TIMEOUT", "5"),
            ("NSM_LABELS", "p2p"),
            ("NSM_TUNNEL_IP", "here"),
        ];
        let wrong = read(None, &asked).unwrap_err();
        assert_eq!(wrong.len(), 5);
        for (name, _) in asked {
            assert!(wrong.iter().any(|line| line.starts_with(name)), "{name}: {wrong:?}");
        }
    }
}
