//! The product on the node, as a user brings it there: images, and `kubectl apply -k` or Helm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::kubectl::kubeconfig;
use super::machine::{CONFIG, Node};
use super::runtime::{IMAGE, ctr, run};
use super::{TIMEOUT, until};

/// Which part of `deploy/` a node gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// VFs, of the NIC that is made up: its manager runs beside the node, so that of the overlay is left out.
    Sriov,
    /// Endpoints of the forwarder.
    Software,
    /// Endpoints that are interfaces of their pods, by the CNI plugin.
    Interfaces,
    /// All three daemons, with endpoints of the forwarder. The manager has the machine's own NICs, and no pool of them.
    Dpdk,
}

impl Node {
    /// Brings the images of this build into containerd.
    pub fn import_images(&self) -> Result<()> {
        let images = self.pieces.folder.join("images");
        for file in fs::read_dir(&images).with_context(|| format!("read {}", images.display()))?.flatten() {
            run(&mut ctr(&self.pieces, &["images", "import", &file.path().to_string_lossy()]))?;
        }
        Ok(())
    }

    /// Applies an example as it stands: what it takes from a registry is the image of pods here.
    pub fn apply_example(&self, example: &str) -> Result<()> {
        run(&mut ctr(&self.pieces, &["images", "tag", "--force", IMAGE, IMAGE_OF_EXAMPLES]))?;
        self.kubectl.run(&["apply", "--filename", &path_of(example)]).map(drop)
    }

    /// Deletes its pods; returns when they are gone.
    pub fn delete_example(&self, example: &str) -> Result<()> {
        self.kubectl.run(&["delete", "--filename", &path_of(example), TIMEOUT]).map(drop)
    }

    /// Applies an overlay; returns when all its pods are ready.
    pub fn apply_overlay(&self, overlay: Overlay) -> Result<()> {
        let folder = self.write_overlay(overlay)?;
        self.kubectl.run(&["apply", "--kustomize", &folder.to_string_lossy()])?;
        self.until_rolled_out(overlay)
    }

    /// Deletes what an overlay made; returns when all of it is gone.
    pub fn delete_overlay(&self, overlay: Overlay) -> Result<()> {
        let folder = self.write_overlay(overlay)?;
        self.kubectl.run(&["delete", "--kustomize", &folder.to_string_lossy(), TIMEOUT]).map(drop)
    }

    /// Waits until the pods of an overlay are those of its newest form, and ready.
    pub fn until_rolled_out(&self, overlay: Overlay) -> Result<()> {
        for daemon_set in overlay.daemon_sets() {
            let name = format!("daemonset/{daemon_set}");
            let status = ["--namespace", NAMESPACE, "rollout", "status", &name, TIMEOUT];
            self.kubectl.run(&status).with_context(|| self.pods_of_product())?;
        }
        Ok(())
    }

    /// Makes new pods of a DaemonSet, as an update does; returns when they are ready.
    pub fn update(&self, overlay: Overlay, daemon_set: &str) -> Result<()> {
        self.kubectl.run(&["--namespace", NAMESPACE, "rollout", "restart", &format!("daemonset/{daemon_set}")])?;
        self.until_rolled_out(overlay)
    }

    /// Values of the chart for the made-up NIC, whose manager runs beside the node.
    pub fn values_with(&self, config: &str) -> Result<String> {
        self.make_missing_files()?;
        Ok(format!(
            "sriovManager: {{ enabled: false }}
devicePlugin:
  config: {config}
  args: [--kubelet-settle=5s]
  pod:
    volumes:
{VOLUMES}{}",
            self.volumes_of_nic("      ")
        ))
    }

    /// Installs the chart with these values; returns when all its pods are ready.
    pub fn install_chart(&self, values: &str) -> Result<()> {
        let file = self.pieces.run().join("values.yaml");
        fs::write(&file, values).context("write the values")?;
        let chart = deploy().join("chart");
        let arguments = ["install", "ferrule", &chart.to_string_lossy(), "--create-namespace", "--wait", TIMEOUT];
        run(self.helm().args(arguments).arg("--values").arg(&file)).with_context(|| self.pods_of_product()).map(drop)
    }

    /// Removes what the chart made.
    pub fn uninstall_chart(&self) -> Result<()> {
        run(self.helm().args(["uninstall", "ferrule", "--wait", TIMEOUT])).map(drop)
    }

    fn helm(&self) -> Command {
        let mut helm = Command::new(self.pieces.program("helm"));
        helm.env("KUBECONFIG", kubeconfig(&self.pieces)).env("HOME", self.pieces.run());
        helm.args(["--namespace", NAMESPACE]);
        helm
    }

    /// Removes what the product left on the node, as its pages say.
    pub fn uninstall(&self) -> Result<()> {
        let folder = deploy().join("kustomize/uninstall");
        let folder = folder.to_string_lossy();
        self.kubectl.run(&["apply", "--kustomize", &folder])?;
        let status = ["--namespace", NAMESPACE, "rollout", "status", "daemonset/uninstall", TIMEOUT];
        self.kubectl.run(&status).with_context(|| self.pods_of_product())?;
        self.kubectl.run(&["delete", "--kustomize", &folder, TIMEOUT]).map(drop)
    }

    /// Waits until no pod of the product is left.
    pub fn until_product_is_gone(&self) -> Result<()> {
        until("no pod of the product is left", || {
            let left = self.kubectl.get(&["pods", "--namespace", NAMESPACE])?;
            ensure!(left["items"].as_array().is_some_and(Vec::is_empty), "{}", self.pods_of_product());
            Ok(Some(()))
        })
    }

    /// What is known of its pods: for errors.
    fn pods_of_product(&self) -> String {
        let ask = |arguments: &[&str]| self.kubectl.run(&[&["--namespace", NAMESPACE], arguments].concat());
        let told = [
            ask(&["get", "pods", "--output=wide"]),
            ask(&["describe", "pods"]),
            ask(&["logs", "--selector", SELECTOR]),
        ];
        told.map(|told| told.unwrap_or_else(|error| format!("{error:#}"))).join("\n")
    }

    /// The overlay with what a user fills in, and with the made-up NIC in place of the host's.
    fn write_overlay(&self, overlay: Overlay) -> Result<PathBuf> {
        let copy = self.pieces.run().join("deploy");
        let _ = fs::remove_dir_all(&copy);
        run(Command::new("cp").arg("-r").arg(deploy()).arg(&copy))?;
        let folder = self.pieces.run().join("overlay-of-test");
        fs::create_dir_all(&folder).context("make an overlay")?;
        let base = copy.join("kustomize").join(overlay.name());
        let patches = match overlay {
            Overlay::Sriov => {
                fs::write(base.join("config.json"), CONFIG).context("fill in config.json")?;
                self.make_missing_files()?;
                self.patches_for_nic()
            }
            // As it stands.
            Overlay::Interfaces => String::new(),
            Overlay::Software | Overlay::Dpdk => {
                let config = format!(r#"{{"resourceList": [{{"resourceName": "dpdk", "software": {SOFTWARE}}}]}}"#);
                fs::write(base.join("config.json"), config).context("fill in config.json")?;
                if overlay == Overlay::Dpdk {
                    fs::write(base.join("policies.yaml"), "pools: []\n").context("fill in policies.yaml")?;
                }
                String::new()
            }
        };
        let base = format!("../deploy/kustomize/{}", overlay.name());
        let text =
            format!("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [{base}]\n{patches}");
        fs::write(folder.join("kustomization.yaml"), text).context("write kustomization.yaml")?;
        Ok(folder)
    }

    /// Those that show the host, which is made up; each a line that begins so.
    fn volumes_of_nic(&self, begin: &str) -> String {
        let root = self.hardware.root();
        let volume = |(name, path, kind): (&str, &str, &str)| {
            format!("{begin}- {{ name: {name}, hostPath: {{ path: {}, type: {kind} }} }}\n", root.join(path).display())
        };
        HOST_FILES.map(volume).concat()
    }

    fn patches_for_nic(&self) -> String {
        format!(
            "patches:
  - patch: |
      apiVersion: apps/v1
      kind: DaemonSet
      metadata: {{ name: sriov-manager, namespace: {NAMESPACE} }}
      $patch: delete
  - patch: |
      apiVersion: apps/v1
      kind: DaemonSet
      metadata: {{ name: device-plugin, namespace: {NAMESPACE} }}
      spec:
        template:
          spec:
            volumes:
{}  - target: {{ kind: DaemonSet, name: device-plugin }}
    patch: |
      - {{ op: add, path: /spec/template/spec/containers/0/args/-, value: --kubelet-settle=5s }}
",
            self.volumes_of_nic("            ")
        )
    }

    /// What a made-up tree lacks and every host has.
    fn make_missing_files(&self) -> Result<()> {
        for (_, path, kind) in HOST_FILES {
            let path = self.hardware.root().join(path);
            if kind == "Directory" {
                fs::create_dir_all(&path)
            } else {
                fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))
                    .and_then(|()| fs::File::options().append(true).create(true).open(&path).map(drop))
            }
            .with_context(|| format!("make {}", path.display()))?;
        }
        Ok(())
    }
}

impl Overlay {
    fn name(self) -> &'static str {
        match self {
            Self::Sriov => "sriov",
            Self::Software => "software",
            Self::Interfaces => "interfaces",
            Self::Dpdk => "dpdk",
        }
    }

    /// What it makes.
    pub fn daemon_sets(self) -> &'static [&'static str] {
        match self {
            Self::Sriov => &["device-plugin"],
            Self::Software | Self::Interfaces => &["dpdk-forwarder", "device-plugin"],
            Self::Dpdk => &["dpdk-forwarder", "sriov-manager", "device-plugin"],
        }
    }
}

fn path_of(example: &str) -> String {
    deploy().join("examples").join(example).to_string_lossy().into_owned()
}

/// `deploy/` of this repository.
fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Volumes of device-plugin that show the host, below which path.
const HOST_FILES: [(&str, &str, &str); 6] = [
    ("sys-bus", "sys/bus", "Directory"),
    ("sys-devices", "sys/devices", "Directory"),
    ("sys-iommu-groups", "sys/kernel/iommu_groups", "Directory"),
    ("sys-module", "sys/module", "Directory"),
    ("routes", "proc/net/route", "File"),
    ("boot-id", "proc/sys/kernel/random/boot_id", "File"),
];

/// How many endpoints there are in the software overlay.
pub const SOFTWARE: u32 = 4;

/// Its other ones, as its manifest has them.
const VOLUMES: &str = "      - { name: config, configMap: { name: device-plugin } }
      - { name: plugins, hostPath: { path: /var/lib/kubelet/device-plugins, type: Directory } }
      - { name: pod-resources, hostPath: { path: /var/lib/kubelet/pod-resources, type: Directory } }
      - { name: sockets, hostPath: { path: /run/ferrule, type: DirectoryOrCreate } }
      - { name: state, hostPath: { path: /var/lib/ferrule/device-plugin, type: DirectoryOrCreate } }
      - { name: cdi, hostPath: { path: /var/run/cdi, type: DirectoryOrCreate } }
      - { name: device-info, hostPath: { path: /var/run/k8s.cni.cncf.io/devinfo/dp, type: DirectoryOrCreate } }
";

const IMAGE_OF_EXAMPLES: &str = "docker.io/library/busybox:1";

/// Where it is on the cluster.
pub const NAMESPACE: &str = "ferrule";
const SELECTOR: &str = "app.kubernetes.io/part-of=ferrule";
