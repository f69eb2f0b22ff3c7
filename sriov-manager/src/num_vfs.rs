//! How many VFs a PF is to have.

use serde::{Deserialize, Serialize};

/// How many VFs a PF is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NumVfs {
    /// So many.
    Exactly(u32),
    /// As many as it offers, if it has none yet: what NSM's forwarder does.
    AllIfNone,
}

/// A number of VFs that somebody made, whatever the policies say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeByHand {
    /// The boot during which it was made: its VFs do not outlive it.
    pub boot: String,
    /// What the policies wanted: if they say something else, that counts.
    pub wanted: NumVfs,
}
