//! The files of a machine: its own, or those below a folder that stands for one.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Where `/sys`, `/proc` and `/usr` are.
#[derive(Clone, Debug)]
pub struct Tree(PathBuf);

impl Tree {
    /// Below this folder.
    pub fn new(root: &Path) -> Self {
        Self(root.to_owned())
    }

    /// Whether it is the machine that this runs on, so that its programs can be asked too.
    pub fn is_here(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// What a file says, without space around it; none: it is not there, may not be read, or says nothing.
    pub fn text(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?.trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// The number that a file says.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// What is in a folder, in order.
    pub fn names(&self, path: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// The last part of where a link leads to.
    pub fn link(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// Whether something is there.
    pub fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// CPUs, as a file of the kernel lists them.
    pub fn cpus(&self, path: &str) -> CpuList {
        self.text(path).map(|text| CpuList::parse(&text)).unwrap_or_default()
    }

    /// The value of an argument that the kernel was started with; the last one counts.
    pub fn kernel_argument(&self, name: &str) -> Option<String> {
        let line = self.text("proc/cmdline")?;
        let value = |word: &str| word.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
        line.split_whitespace().rev().find_map(value)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }
}

/// CPUs by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuList(pub BTreeSet<usize>);

impl CpuList {
    /// As the kernel writes them: `0-3,8`. Words that are no numbers, such as the flags of `isolcpus=`, are left out.
    pub fn parse(text: &str) -> Self {
        let range = |part: &str| {
            let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
            let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
            (last < CPUS_MAX).then_some(first..=last)
        };
        Self(text.split(',').filter_map(range).flatten().collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that `others` has not.
    pub fn without(&self, others: &Self) -> Self {
        Self(self.0.difference(&others.0).copied().collect())
    }

    /// Those that both have.
    pub fn shared_with(&self, others: &Self) -> Self {
        Self(self.0.intersection(&others.0).copied().collect())
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for &cpu in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => ranges.push((cpu, cpu)),
            }
        }
        let text = |&(first, last): &(usize, usize)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        f.write_str(&ranges.iter().map(text).collect::<Vec<_>>().join(","))
    }
}

/// More than any machine has.
const CPUS_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_read_and_written_as_the_kernel_does() {
        let list = CpuList::parse("nohz,domain,2-4,7,9-10");
        assert_eq!(list.0.iter().copied().collect::<Vec<_>>(), [2, 3, 4, 7, 9, 10]);
        assert_eq!(list.to_string(), "2-4,7,9-10");
        assert!(CpuList::parse("").is_empty() && CpuList::parse("0-99999999999").is_empty());
        let others = CpuList::parse("3,7,20");
        assert_eq!(
            (list.without(&others).to_string(), list.shared_with(&others).to_string()),
            ("2,4,9-10".into(), "3,7".into())
        );
    }

    #[test]
    fn the_last_of_equal_kernel_arguments_counts() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("proc")).unwrap();
        fs::write(folder.path().join("proc/cmdline"), "quiet rcu_nocbs=1 rcu_nocbs_poll rcu_nocbs=2-3\n").unwrap();
        let tree = Tree::new(folder.path());
        assert_eq!(tree.kernel_argument("rcu_nocbs").as_deref(), Some("2-3"));
        assert_eq!(tree.kernel_argument("quiet"), None);
        assert!(!tree.is_here() && Tree::new(Path::new("/")).is_here());
    }
}
