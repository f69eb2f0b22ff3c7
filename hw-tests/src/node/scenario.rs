//! What a scenario is.

use anyhow::Result;

use super::machine::Node;
use super::stand::Stand;

/// Something that has to hold on a real node, as one function.
pub struct NodeScenario {
    /// A sentence, as a test has it.
    pub name: &'static str,
    /// On which node.
    pub stand: Stand,
    /// What runs. It fails by an error or a panic.
    pub run: fn(&mut Node) -> Result<()>,
}

impl NodeScenario {
    /// One on a cluster.
    pub const fn cluster(name: &'static str, run: fn(&mut Node) -> Result<()>) -> Self {
        Self { name, stand: Stand::Cluster, run }
    }

    /// One on a kubelet alone.
    pub const fn standalone(name: &'static str, run: fn(&mut Node) -> Result<()>) -> Self {
        Self { name, stand: Stand::Standalone, run }
    }
}
