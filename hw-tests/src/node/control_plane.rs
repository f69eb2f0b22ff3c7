//! etcd, the API server, the controller manager and the scheduler.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::kubectl::Kubectl;
use super::pieces::NodePieces;
use super::runtime::{logged, run};
use super::until_within;
use crate::process::Process;

/// All of them, running.
pub struct ControlPlane {
    _processes: [Process; 4],
}

impl ControlPlane {
    /// Starts them; returns when the API server is ready and knows the default service account.
    pub fn start(pieces: &NodePieces, kubectl: &Kubectl) -> Result<Self> {
        let folder = pieces.run();
        make_keys(&folder)?;
        let start = |name: &str, arguments: &[&str]| {
            let arguments = arguments.iter().map(|argument| argument.replace("$RUN", &folder.to_string_lossy()));
            Process::start(logged(pieces, &pieces.program(name)).args(arguments))
        };
        let etcd = start("etcd", &ETCD);
        let api_server = start("kube-apiserver", &API_SERVER);
        until_within(START_MAX, "the API server is ready", || kubectl.run(&["get", "--raw", "/readyz"]).map(Some))?;
        let controllers = start("kube-controller-manager", &CONTROLLER_MANAGER);
        let scheduler = start("kube-scheduler", &SCHEDULER);
        // Without it no pod is admitted.
        until_within(START_MAX, "there is a service account", || {
            kubectl.run(&["get", "serviceaccount", "default"]).map(Some)
        })?;
        Ok(Self { _processes: [etcd, api_server, controllers, scheduler] })
    }
}

/// Those that service accounts are signed with, and who may ask.
fn make_keys(folder: &Path) -> Result<()> {
    let key = folder.join("sa.key");
    run(Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048"))?;
    run(Command::new("openssl").args(["rsa", "-pubout", "-in"]).arg(&key).arg("-out").arg(folder.join("sa.pub")))?;
    fs::write(folder.join("tokens.csv"), "node,admin,1,\"system:masters\"\n").context("write the file of tokens")
}

/// An API server is ready after seconds; on two cores with six builds beside it was not after three minutes.
const START_MAX: Duration = Duration::from_mins(10);

const ETCD: [&str; 7] = [
    "--data-dir=$RUN/etcd",
    "--listen-client-urls=http://127.0.0.1:12379",
    "--advertise-client-urls=http://127.0.0.1:12379",
    "--listen-peer-urls=http://127.0.0.1:12380",
    "--initial-advertise-peer-urls=http://127.0.0.1:12380",
    "--initial-cluster=default=http://127.0.0.1:12380",
    // It need not survive a power cut.
    "--unsafe-no-fsync",
];

const API_SERVER: [&str; 15] = [
    "--etcd-servers=http://127.0.0.1:12379",
    "--bind-address=127.0.0.1",
    "--advertise-address=10.88.0.1",
    "--endpoint-reconciler-type=none",
    "--secure-port=16443",
    "--cert-dir=$RUN/pki",
    "--token-auth-file=$RUN/tokens.csv",
    "--authorization-mode=RBAC",
    "--service-account-issuer=https://node",
    "--service-account-key-file=$RUN/sa.pub",
    "--service-account-signing-key-file=$RUN/sa.key",
    "--service-cluster-ip-range=10.90.0.0/24",
    "--allow-privileged=true",
    "--enable-priority-and-fairness=false",
    "--kubelet-preferred-address-types=InternalIP",
];

const CONTROLLER_MANAGER: [&str; 5] = [
    "--kubeconfig=$RUN/config/kubeconfig.yaml",
    "--leader-elect=false",
    "--secure-port=0",
    "--service-account-private-key-file=$RUN/sa.key",
    "--root-ca-file=$RUN/pki/apiserver.crt",
];

const SCHEDULER: [&str; 3] = ["--kubeconfig=$RUN/config/kubeconfig.yaml", "--leader-elect=false", "--secure-port=0"];
