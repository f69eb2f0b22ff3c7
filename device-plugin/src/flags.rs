//! The command line: ours, and that of the Go plugin and of its container's entry point.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use device_plugin_client::networks::NETWORKS_DEFAULT;
use dpdk_forwarder_client::ADMIN_DEFAULT;
use ferrule_daemon::logging::LogFlags;
use ferrule_daemon::page::parse_address;
use ferrule_kubelet::{PLUGINS_DIRECTORY, POD_RESOURCES_SOCKET};
use sriov_manager_client::SOCKET_DEFAULT;
use sriov_manager_client::tokens::TOKENS_DEFAULT;

use crate::allocate::{CdiMode, DeviceFiles};
use crate::config::{ConfigFile, Presets, parse_prefix};
use crate::daemon::DaemonOptions;
use crate::pod_resources::{POD, Witness};

/// Advertises VFs to the kubelet, binds each when a pod gets it, and takes it back.
#[derive(Debug, Parser)]
#[command(version, args_override_self = true)]
pub struct Flags {
    /// The configuration, as of the Go sriov-network-device-plugin
    #[arg(long, alias = "config", value_name = "FILE", default_value = "/etc/pcidp/config.json")]
    pub config_file: PathBuf,
    /// Prefix of resources that set no `resourcePrefix`
    #[arg(long, value_name = "DOMAIN", default_value = "intel.com", value_parser = parse_prefix)]
    pub resource_prefix: String,
    /// Name devices by CDI in an annotation, as the Go plugin does; the same as `--cdi annotation`
    #[arg(long, conflicts_with = "cdi")]
    use_cdi: bool,
    /// How containers get device nodes; by CDI only if the runtime knows it
    #[arg(long, value_name = "HOW", value_enum, default_value = "off")]
    cdi: CdiMode,
    /// Socket of sriov-manager
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    manager: PathBuf,
    /// Socket for `ferrule vf explain`
    #[arg(long, value_name = "PATH", default_value = device_plugin_client::SOCKET_DEFAULT)]
    socket: PathBuf,
    /// So many software endpoints instead of VFs for each `netDevice` resource without `software`: an even number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    software: Option<u32>,
    /// Admin socket of dpdk-forwarder, which serves software endpoints
    #[arg(long, value_name = "PATH", default_value = ADMIN_DEFAULT)]
    forwarder: PathBuf,
    /// Directory of software endpoints' sockets; the same for dpdk-forwarder
    #[arg(long, value_name = "DIR", default_value = "/run/ferrule/software")]
    software_dir: PathBuf,
    /// File in which the CNI plugin reads `networks` of the configuration
    #[arg(long, value_name = "PATH", default_value = NETWORKS_DEFAULT)]
    networks: PathBuf,
    /// The kubelet's directory of device plugins, which `--root-dir` of the kubelet does not move
    #[arg(long, value_name = "DIR", default_value = PLUGINS_DIRECTORY)]
    plugins: PathBuf,
    /// The kubelet's podresources socket, which `--root-dir` of the kubelet moves
    #[arg(long, value_name = "PATH", default_value = POD_RESOURCES_SOCKET)]
    pod_resources: PathBuf,
    /// Namespace of the plugin's own pod, used to tell a complete list of pods from an empty one
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME", requires = "pod_name")]
    pod_namespace: Option<String>,
    /// Name of the plugin's own pod
    #[arg(long, env = "POD_NAME", value_name = "NAME", requires = "pod_namespace")]
    pod_name: Option<String>,
    /// Ignore missing pods for this long after the kubelet started
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    kubelet_settle: Duration,
    /// Directory of the checkpoint and of the lock, the same for all plugins of a node
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ferrule/device-plugin")]
    state: PathBuf,
    /// Directory of CDI specs
    #[arg(long, value_name = "DIR", default_value = "/var/run/cdi")]
    cdi_dir: PathBuf,
    /// Directory of device-info files
    #[arg(long, value_name = "DIR", default_value = "/var/run/k8s.cni.cncf.io/devinfo/dp")]
    device_info_dir: PathBuf,
    /// Directory of tokens of Network Service Mesh, the same for dpdk-forwarder
    #[arg(long, value_name = "DIR", default_value = TOKENS_DEFAULT)]
    nsm_tokens: PathBuf,
    /// The directory that holds `sys`, `proc` and `dev`
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Address of the metrics page and of the probes
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    metrics: Option<SocketAddr>,
    /// How to log
    #[command(flatten)]
    pub log: LogFlags,
    /// Check the configuration and exit: 0 if it is good, 65 if a resource is left out, 64 if it cannot be used
    #[arg(long)]
    pub check: bool,
}

impl Flags {
    /// Those of this process. What of the Go plugin's means nothing here is left out.
    pub fn read() -> Self {
        Self::parse_from(translate(std::env::args_os()))
    }

    /// What resources have that say nothing themselves.
    pub fn presets(&self) -> Presets {
        Presets { prefix: self.resource_prefix.clone(), software: self.software }
    }

    /// How to run, with the configuration that was read.
    pub fn options(&self, file: ConfigFile) -> DaemonOptions {
        DaemonOptions {
            file,
            presets: self.presets(),
            root: self.root.clone(),
            manager: self.manager.clone(),
            socket: self.socket.clone(),
            forwarder: self.forwarder.clone(),
            software: self.software_dir.clone(),
            networks: self.networks.clone(),
            plugins: self.plugins.clone(),
            pod_resources: self.pod_resources.clone(),
            witness: Witness {
                own_pod: self
                    .pod_namespace
                    .as_ref()
                    .zip(self.pod_name.as_ref())
                    .map(|(namespace, name)| format!("{POD}{namespace}/{name}")),
                settle: self.kubelet_settle,
            },
            state: self.state.clone(),
            files: DeviceFiles { cdi: self.cdi_dir.clone(), device_info: self.device_info_dir.clone() },
            nsm_tokens: self.nsm_tokens.clone(),
            cdi: if self.use_cdi { CdiMode::Annotation } else { self.cdi },
            metrics: self.metrics,
        }
    }
}

/// Go's library takes `-flag` for `--flag` and `--flag=true` for a switch. What its log library takes has no meaning here, but for
/// how much is logged.
pub fn translate(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.peekable();
    let mut out: Vec<OsString> = args.next().into_iter().collect();
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str().filter(|text| text.starts_with('-') && text.len() > 2 || *text == "-v") else {
            out.push(arg);
            continue;
        };
        let flag = text.trim_start_matches('-');
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
        match name {
            "logtostderr" | "alsologtostderr" => {}
            "use-cdi" if value.as_deref() == Some("false") => {}
            "use-cdi" => out.push("--use-cdi".into()),
            "log_dir" | "log-dir" | "stderrthreshold" | "vmodule" | "log_backtrace_at" | "log_link" | "logbuflevel" => {
                if value.is_none() {
                    args.next();
                }
            }
            "v" | "log-level" => {
                let value = value.map(OsString::from).or_else(|| args.next()).unwrap_or_default();
                out.extend(["--log-level".into(), level(value)]);
            }
            _ => out.push(format!("--{flag}").into()),
        }
    }
    out
}

/// The Go plugin counts upwards from 0, with 10 as its usual one.
fn level(value: OsString) -> OsString {
    match value.to_str().and_then(|text| text.parse::<u32>().ok()) {
        Some(number) if number > USUAL_GO_LEVEL => "debug".into(),
        Some(_) => "info".into(),
        None => value,
    }
}

const USUAL_GO_LEVEL: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(words: &str) -> Flags {
        let words = ["device-plugin"].into_iter().chain(words.split_whitespace()).map(OsString::from);
        Flags::try_parse_from(translate(words)).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_command_lines_of_the_go_plugin_are_taken_as_they_are() {
        let entry_point = flags(
            "--log-dir sriovdp --log-level 10 --resource-prefix openshift.io --config-file /etc/pcidp/node1 --use-cdi",
        );
        assert_eq!(entry_point.resource_prefix, "openshift.io");
        assert_eq!(entry_point.config_file, PathBuf::from("/etc/pcidp/node1"));
        assert!(entry_point.use_cdi);
        let plugin = flags("-logtostderr=true -v 20 -stderrthreshold=INFO -config-file=/c -use-cdi=false -log_dir /x");
        assert_eq!(plugin.config_file, PathBuf::from("/c"));
        assert!(!plugin.use_cdi);
        assert_eq!(flags("").config_file, PathBuf::from("/etc/pcidp/config.json"));
        let ours = flags("--cdi field --log-level debug --metrics 127.0.0.1:9092 --manager /run/vf.sock");
        assert_eq!((ours.cdi, ours.manager), (CdiMode::Field, PathBuf::from("/run/vf.sock")));
        // A manifest has it, and an overlay adds it once more.
        let twice = flags("-v=10 --log-level=10 --metrics 0.0.0.0:9092 --metrics=[::]:9092 --use-cdi --use-cdi");
        assert_eq!(twice.metrics, Some("[::]:9092".parse().unwrap()), "the last one counts");
    }

    #[test]
    fn every_flag_of_ours_goes_where_it_belongs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, r#"{"resourceList": []}"#).unwrap();
        let ours = flags(
            "--resource-prefix a.io --software 6 --manager /m --socket /s --forwarder /f --software-dir /sd --networks /n --plugins /p \
             --pod-resources /pr --pod-namespace ns --pod-name me --kubelet-settle 3s --state /st --cdi-dir /c \
             --device-info-dir /d --root /r --metrics 127.0.0.1:1 --use-cdi",
        );
        let options = ours.options(ConfigFile::load(&path, ours.presets()).unwrap());
        assert_eq!((options.presets.prefix.as_str(), options.presets.software), ("a.io", Some(6)));
        let paths = [
            &options.manager,
            &options.socket,
            &options.forwarder,
            &options.software,
            &options.networks,
            &options.plugins,
            &options.pod_resources,
            &options.state,
            &options.files.cdi,
            &options.files.device_info,
            &options.root,
        ];
        let wanted = ["/m", "/s", "/f", "/sd", "/n", "/p", "/pr", "/st", "/c", "/d", "/r"];
        assert_eq!(paths.map(|path| path.to_str().unwrap()), wanted);
        let Witness { own_pod, settle } = &options.witness;
        assert_eq!((own_pod.as_deref(), *settle), (Some("pod ns/me"), Duration::from_secs(3)));
        assert_eq!((options.cdi, options.metrics), (CdiMode::Annotation, Some(([127, 0, 0, 1], 1).into())));
    }

    #[test]
    fn what_is_wrong_on_the_command_line_is_refused() {
        for wrong in [
            "--software 0",
            "--software 1025",
            "--use-cdi --cdi field",
            "--cdi maybe",
            "--pod-name me",
            "--resource-prefix Intel.com",
            "--metrics x",
            "--nonsense",
        ] {
            let words = ["device-plugin"].into_iter().chain(wrong.split_whitespace()).map(OsString::from);
            assert!(Flags::try_parse_from(translate(words)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn short_flags_of_ours_are_left_alone() {
        let words = ["device-plugin", "-h"].map(OsString::from);
        assert_eq!(translate(words.clone().into_iter()), words);
    }
}
