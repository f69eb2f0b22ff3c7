//! Addresses of interfaces of Ethernet.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A MAC address; all zeros means that nobody has set one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// What is no MAC address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}`; six bytes as in `02:00:00:00:00:01` are wanted")]
pub struct MacError(String);

impl Mac {
    /// Whether nobody has set one.
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }

    /// Whether an interface may have it.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && !self.is_zero()
    }

    /// A locally administered address for VF `index` of the PF that has `self`: the same after every start, and
    /// different for neighbouring PFs of one NIC, whose addresses differ by one.
    #[must_use]
    pub fn derived(self, index: u32) -> Self {
        // FNV-1a, 64 bits: short, and the same in every release.
        let bytes = self.0.into_iter().chain(index.to_be_bytes());
        let hash = bytes
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let [.., a, b, c, d, e] = hash.to_be_bytes();
        Self([0x02, a, b, c, d, e])
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let separator = if text.contains('-') { '-' } else { ':' };
        let is_hex = |part: &&str| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
        let byte = |part: &str| Some(part).filter(is_hex).and_then(|part| u8::from_str_radix(part, 16).ok());
        let bytes: Option<Vec<_>> = text.split(separator).map(byte).collect();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| MacError(text.to_owned()))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_what_it_was_written_as() {
        for text in ["02:00:00:00:00:0a", "02-00-00-00-00-0A"] {
            assert_eq!(text.parse::<Mac>().unwrap().to_string(), "02:00:00:00:00:0a");
        }
        for text in ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "+2:00:00:00:00:01", "02:00:00-00:00:01"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        let is_unicast = |text: &str| text.parse::<Mac>().unwrap().is_unicast();
        assert!(
            is_unicast("02:00:00:00:00:01") && !is_unicast("01:00:00:00:00:01") && !is_unicast("00:00:00:00:00:00")
        );
    }

    #[test]
    fn derived_addresses_are_local_unicast_and_differ_between_neighbours() {
        let (first, second) = (Mac([0, 1, 2, 3, 4, 5]), Mac([0, 1, 2, 3, 4, 6]));
        let mut all: Vec<_> = (0..64).flat_map(|index| [first.derived(index).0, second.derived(index).0]).collect();
        assert!(all.iter().all(|mac| mac[0] == 2));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 128);
    }
}
