//! What is asked of a VF beside its driver.

use crate::v1::Attributes;

impl Attributes {
    /// Where `self` says nothing, what `other` says.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            mac: self.mac.or_else(|| other.mac.clone()),
            vlan: self.vlan.or(other.vlan),
            rate: self.rate.or(other.rate),
            spoof_check: self.spoof_check.or(other.spoof_check),
            trust: self.trust.or(other.trust),
            link_state: self.link_state.or(other.link_state),
            mtu: self.mtu.or(other.mtu),
        }
    }
}
