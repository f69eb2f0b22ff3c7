//! Which kinds of node there are.

/// A kind of node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Kubernetes 1.36 with a control plane.
    Cluster,
    /// A kubelet 1.37 alone, with static pods.
    Standalone,
}
