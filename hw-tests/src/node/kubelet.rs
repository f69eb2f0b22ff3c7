//! A running kubelet.

use std::path::Path;

use anyhow::Result;

use super::kubectl::kubeconfig;
use super::pieces::NodePieces;
use super::runtime::logged;
use super::stand::Stand;
use super::until;
use crate::process::Process;

/// It is killed with this value; its containers are not.
pub struct Kubelet {
    process: Process,
}

impl Kubelet {
    /// Starts one; returns when plugins can register.
    pub fn start(pieces: &NodePieces, stand: Stand) -> Result<Self> {
        let program = match stand {
            Stand::Cluster => "kubelet",
            Stand::Standalone => "kubelet-1.37",
        };
        let mut command = logged(pieces, &pieces.program(program));
        command.arg("--config").arg(pieces.run().join("config/kubelet.yaml"));
        command.arg("--cert-dir").arg(pieces.run().join("kubelet-pki"));
        command.args(["--hostname-override", NODE, "--node-ip=10.88.0.1", "--v=4"]);
        if stand == Stand::Cluster {
            command.arg("--kubeconfig").arg(kubeconfig(pieces));
        }
        let kubelet = Self { process: Process::start(&mut command) };
        until("the kubelet takes registrations", || {
            let listens = std::os::unix::net::UnixStream::connect(
                Path::new(ferrule_kubelet::PLUGINS_DIRECTORY).join(ferrule_kubelet::KUBELET_SOCKET),
            );
            Ok(listens.ok().map(drop))
        })?;
        Ok(kubelet)
    }

    /// Kills it, so that it can tell nobody.
    pub fn kill(mut self) {
        self.process.kill();
    }
}

/// What the node is called.
pub const NODE: &str = "ferrule-node";
