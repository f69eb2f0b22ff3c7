//! The programs of a node, as `hw-tests/node/build` left them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::stand::Stand;
use crate::need::Need;
use crate::vm::pieces::profile_folder;

/// Where everything is.
#[derive(Clone, Debug)]
pub struct NodePieces {
    /// `target/node`: programs, logs and what runs.
    pub folder: PathBuf,
    /// Where the programs of this repository are.
    pub ours: PathBuf,
}

impl NodePieces {
    /// Those of this build, for a node of this kind. An error says what is missing and how to get it.
    pub fn find(stand: Stand) -> Result<Self> {
        let pieces = Self { folder: folder()?, ours: profile_folder() };
        let (needs, built): (&[Need], &[&str]) = match stand {
            Stand::Cluster => (&NEEDS_OF_CLUSTER, &CLUSTER),
            Stand::Standalone => (&[], &STANDALONE),
        };
        let needs = NEEDS.iter().chain(needs).filter(|need| !need.is_met());
        let mut missing: Vec<_> = needs.map(ToString::to_string).collect();
        for name in RUNTIME.iter().chain(built) {
            if !pieces.program(name).is_file() {
                missing.push(format!("target/node/bin/{name} (make node-pieces)"));
            }
        }
        let plugin = pieces.ours.join(PLUGIN);
        if !plugin.is_file() {
            missing.push(format!("{} (cargo build --workspace)", plugin.display()));
        }
        ensure!(missing.is_empty(), "{}", missing.join(", "));
        Ok(pieces)
    }

    /// A program that was built for the node.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin().join(name)
    }

    /// Where those are.
    pub fn bin(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// A program of this repository.
    pub fn our_program(&self, name: &str) -> PathBuf {
        self.ours.join(name)
    }

    /// Where the node keeps its files, which go with it.
    pub fn run(&self) -> PathBuf {
        self.folder.join("run")
    }
}

/// `target/node`, where everything about nodes is kept.
pub fn folder() -> Result<PathBuf> {
    profile_folder().parent().map(|target| target.join("node")).context("this program is in a folder of cargo's")
}

/// A script of `hw-tests/node`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("node").join(name)
}

/// The program of the device plugin.
pub const PLUGIN: &str = "device-plugin";

const NEEDS: [Need; 5] = [
    Need::Root,
    Need::Program { name: "unshare", package: "util-linux" },
    Need::Program { name: "ip", package: "iproute2" },
    Need::Program { name: "busybox", package: "busybox-static" },
    Need::Program { name: "python3", package: "python3" },
];
/// For keys of service accounts, and for the dashboard.
const NEEDS_OF_CLUSTER: [Need; 2] = [
    Need::Program { name: "openssl", package: "openssl" },
    Need::Program { name: "prometheus", package: "prometheus" },
];
const RUNTIME: [&str; 7] = ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "host-local", "loopback", "ptp"];
const CLUSTER: [&str; 6] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet"];
const STANDALONE: [&str; 1] = ["kubelet-1.37"];
