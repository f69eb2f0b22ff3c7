//! By what the manager of VFs tells this forwarder from another one of the same socket path, which is what two containers have: a word that
//! nobody else has, in a file beside the journal. Like leases, it outlives the machine.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// It cannot be kept.
#[derive(Debug, Error)]
#[error("keep the forwarder's identity in {}: {source}; give the journal a directory that can be written to", path.display())]
pub struct IdentityError {
    path: PathBuf,
    source: io::Error,
}

/// The word beside this journal, made if there is none. Whoever asks has the journal's lock.
pub fn of_journal(journal: &Path) -> Result<String, IdentityError> {
    let mut path = journal.as_os_str().to_owned();
    path.push(".id");
    let path = PathBuf::from(path);
    read_or_make(&path).map_err(|source| IdentityError { path, source })
}

fn read_or_make(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        // Its writer was killed.
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let word: String = fs::read_to_string(RANDOM)?.chars().filter(char::is_ascii_hexdigit).take(12).collect();
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{word}")?;
    file.sync_all()?;
    Ok(word)
}

/// The kernel makes a new one each time.
const RANDOM: &str = "/proc/sys/kernel/random/uuid";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_journal_has_a_word_of_its_own_that_stays() {
        let directory = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| directory.path().join(name));
        let word = of_journal(&one).unwrap();
        assert!(word.len() == 12 && of_journal(&one).unwrap() == word);
        assert_ne!(of_journal(&other).unwrap(), word);
        // Cut short by a kill.
        fs::write(directory.path().join("one.id"), "").unwrap();
        assert_eq!(of_journal(&one).unwrap().len(), 12);
        let error = of_journal(&directory.path().join("none/x")).unwrap_err().to_string();
        assert!(error.contains("none/x.id: No such file or directory (os error 2); give the journal"), "{error}");
    }
}
