//! Names and addresses of kernel interfaces.

use std::fmt;
use std::str::FromStr;

use super::SpecError;

/// A name that the kernel gives to an interface exactly as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let wrong = |problem: &str| Err(SpecError::new("name", text, problem));
        // dev_valid_name() of the kernel's net/core/dev.c, whose isspace() counts byte 0xa0 too.
        if text.is_empty() || text.len() > NAME_MAX {
            return Err(SpecError::new(
                "name",
                text,
                format!("{} bytes; the kernel takes 1 to {NAME_MAX}", text.len()),
            ));
        }
        if text == "." || text == ".." || text.contains(['/', ':', '\0']) || text.bytes().any(is_space) {
            return wrong("the kernel takes no `/`, `:`, space, `.` or `..`");
        }
        // __dev_alloc_name(): the kernel fills in a number, so that nobody finds the interface under the name that
        // was asked for.
        if text.contains('%') {
            return wrong("the kernel takes `%` for a pattern and picks a name of its own; write the whole name");
        }
        // sysctl_dev_name_is_allowed(): these are directories of /proc/sys/net/ipv4/conf.
        if text == "all" || text == "default" {
            return wrong("the kernel keeps `all` and `default` for its settings of every interface");
        }
        Ok(Self(text.to_owned()))
    }
}

/// As the kernel's `isspace`, whose table is Latin-1.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0)
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A unicast MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let problem =
            || SpecError::new("mac", text, "six hexadecimal bytes with colons are wanted, as in 02:00:00:00:00:01");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()))
                .ok_or_else(problem)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| problem())?;
        }
        if parts.next().is_some() {
            return Err(problem());
        }
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(SpecError::new("mac", text, "an interface needs a unicast address that is not all zeros"));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The kernel's IFNAMSIZ, less its closing NUL.
const NAME_MAX: usize = 15;

/// The kernel's ETH_MIN_MTU.
pub(crate) const MTU_MIN: u32 = 68;
/// What a TAP device takes: 65535 less its Ethernet header.
pub(crate) const MTU_MAX: u32 = 65_521;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_judged_as_the_kernel_judges_it() {
        for good in ["eth0", "nsm-1", "a.b", "x@y", "...", "all0", "Default", "\u{2003}", "123456789012345"] {
            assert!(good.parse::<InterfaceName>().is_ok(), "{good:?}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "\u{e0}", "1234567890123456", "a\0"] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad:?}");
        }
        for (bad, cause) in [("nsm%d", "pattern"), ("a%", "pattern"), ("all", "every interface"), ("default", "every")]
        {
            let error = bad.parse::<InterfaceName>().unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains(cause), "{error}");
        }
    }

    #[test]
    fn a_mac_address_is_six_unicast_bytes() {
        assert_eq!("02:00:00:00:00:01".parse(), Ok(MacAddress([2, 0, 0, 0, 0, 1])));
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }
}
