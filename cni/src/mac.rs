//! Addresses of interfaces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The address of an interface of Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}`, where a unicast address as 02:00:00:00:00:01 is wanted");
        let separator = if text.contains('-') { '-' } else { ':' };
        let is_hex = |part: &str| part.len() == 2 && part.chars().all(|c| c.is_ascii_hexdigit());
        let byte = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| is_hex(part));
        let bytes: Option<Vec<_>> = text.split(separator).map(byte).collect();
        let bytes: [u8; 6] = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)?;
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
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
        for text in ["", "02:00:00:00:00", "01:00:00:00:00:01", "00:00:00:00:00:00", "+2:00:00:00:00:01"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
