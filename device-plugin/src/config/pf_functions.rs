//! Some functions of a PF, as the configuration writes them: `ens1f0`, `ens1f0#0-3,7`, `0000:3b:00.0#1`.

use std::fmt;
use std::ops::RangeInclusive;

/// Some functions of a PF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PfFunctions {
    /// Its interface, or its address.
    pub pf: String,
    /// Numbers of VFs, counted from 0; none: all of its functions.
    pub vfs: Option<Vec<RangeInclusive<u32>>>,
}

impl PfFunctions {
    /// The error says what is wrong with the text, and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((pf, list)) = text.split_once('#') else {
            return Ok(Self { pf: text.to_owned(), vfs: None });
        };
        let wrong =
            || format!("`{text}` means no function; numbers of VFs are wanted after one `#`, as in `{pf}#0-3,7`");
        let range = |part: &str| -> Option<RangeInclusive<u32>> {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
        };
        let vfs = list.split(',').map(range).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
        if vfs.iter().any(RangeInclusive::is_empty) {
            return Err(format!("{}; the smaller number comes first", wrong()));
        }
        Ok(Self { pf: pf.to_owned(), vfs: Some(vfs) })
    }

    /// Whether it means a function of the PF that has one of these names. `index`: of a VF.
    pub fn means<'a>(&self, mut pf_names: impl Iterator<Item = &'a str>, index: Option<u32>) -> bool {
        pf_names.any(|name| self.pf.eq_ignore_ascii_case(name))
            && match (&self.vfs, index) {
                (None, _) => true,
                (Some(vfs), Some(index)) => vfs.iter().any(|range| range.contains(&index)),
                (Some(_), None) => false,
            }
    }
}

impl fmt::Display for PfFunctions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(vfs) = &self.vfs else { return f.write_str(&self.pf) };
        let range = |range: &RangeInclusive<u32>| match (range.start(), range.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        write!(f, "{}#{}", self.pf, vfs.iter().map(range).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_count_from_zero_and_hold_both_ends() {
        let functions = PfFunctions::parse("ens1f0#0,2-4,7").unwrap();
        assert_eq!(functions.to_string(), "ens1f0#0,2-4,7");
        let has = |name: &str, index| functions.means([name].into_iter(), index);
        let vfs: Vec<_> = (0..10).filter(|&index| has("ENS1F0", Some(index))).collect();
        assert_eq!(vfs, [0, 2, 3, 4, 7]);
        assert!(!has("ens1f0", None) && !has("ens1f1", Some(2)), "not the PF itself, nor another one");
        let whole = PfFunctions::parse("0000:3B:00.0").unwrap();
        assert!(whole.means(["ens1f0", "0000:3b:00.0"].into_iter(), None), "also the PF itself");
    }

    #[test]
    fn what_is_no_list_of_numbers_is_refused_with_a_cure() {
        for text in ["ens1f0#", "ens1f0#0-1-2", "ens1f0#a", "ens1f0#1#2", "ens1f0#3-1", "ens1f0#1,"] {
            let error = PfFunctions::parse(text).unwrap_err();
            assert!(error.contains(text) && error.contains("ens1f0#0-3,7"), "{error}");
        }
    }
}
