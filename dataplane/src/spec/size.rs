//! Amounts of memory.

use std::fmt;
use std::str::FromStr;

use super::SpecError;

/// Bytes, written as a number or with a unit: `1073741824`, `512MiB`, `2GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many times 1024 * 1024 bytes.
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }

    /// The number of bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|&(_, scale)| scale);
        let bytes = number.parse::<u64>().ok().zip(scale).and_then(|(number, scale)| number.checked_mul(scale));
        bytes.map(Self).ok_or_else(|| {
            SpecError::new("size", text, "bytes are wanted, as a number or with a unit as in `512MiB` or `2GiB`")
        })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().rev().find(|&&(_, scale)| self.0 != 0 && self.0.is_multiple_of(scale));
        match unit {
            Some((name, scale)) => write!(f, "{}{name}", self.0 / scale),
            None => write!(f, "{}", self.0),
        }
    }
}

const UNITS: [(&str, u64); 5] = [("", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_bytes_with_or_without_a_unit() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("512MiB", 512 << 20), ("2 GiB", 2 << 30), ("1TiB", 1 << 40)] {
            assert_eq!(text.parse(), Ok(ByteSize::bytes(bytes)), "{text}");
        }
        for bad in ["", "MiB", "512MB", "-1", "1.5GiB", "99999999999TiB", "0x10"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        for text in ["4KiB", "512MiB", "1025", "0", "3TiB"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
    }
}
