//! What a scenario is.

use anyhow::Result;

use super::machine::Node;

/// Something that has to hold on a real node, as one function.
pub struct Scenario {
    /// A sentence, as a test has it.
    pub name: &'static str,
    /// On which node.
    pub stand: Stand,
    /// What runs. It fails by an error or a panic.
    pub run: fn(&mut Node) -> Result<()>,
}

/// A kind of node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Kubernetes 1.36 with a control plane.
    Cluster,
    /// A kubelet 1.37 alone, with static pods.
    Standalone,
}

impl Scenario {
    /// One on a cluster.
    pub const fn cluster(name: &'static str, run: fn(&mut Node) -> Result<()>) -> Self {
        Self { name, stand: Stand::Cluster, run }
    }

    /// One on a kubelet alone.
    pub const fn standalone(name: &'static str, run: fn(&mut Node) -> Result<()>) -> Self {
        Self { name, stand: Stand::Standalone, run }
    }
}
