//! Tokens of Network Service Mesh for VFs: a pod that has one may ask a forwarder for connections by the VF that it has been lent.
//!
//! `device-plugin` makes a token when a pod is given a VF, the same one for each of its containers, and `dpdk-forwarder` looks up what it
//! is for. In between there is a directory with a file for each token: named after it, with the lease in it. Nobody can guess a token,
//! and one that a pod had before means nothing.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The tokens of this node.
#[derive(Clone, Debug)]
pub struct Tokens {
    directory: PathBuf,
}

impl Tokens {
    /// Those in this directory, which need not be there.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes a token for a lease. One that it had before is void.
    pub fn issue(&self, lease: &str) -> io::Result<String> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let directory = self.lock()?;
        self.remove(|other| other != lease)?;
        self.make(lease, &directory)
    }

    /// The token that a lease has; a new one if it has none.
    pub fn share(&self, lease: &str) -> io::Result<String> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let directory = self.lock()?;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if let Some(token) = entry.file_name().to_str().filter(|name| is_token(name))
                && fs::read_to_string(entry.path())? == lease
            {
                return Ok(token.to_owned());
            }
        }
        self.make(lease, &directory)
    }

    fn make(&self, lease: &str, directory: &File) -> io::Result<String> {
        let token = format!("{PREFIX}{}", fs::read_to_string(RANDOM)?.trim());
        // It is there as a whole or not at all, also after a power cut.
        let (begun, path) = (self.directory.join(format!("{BEGUN}{token}")), self.directory.join(&token));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&begun)?;
        file.write_all(lease.as_bytes())?;
        file.sync_all()?;
        fs::rename(&begun, &path)?;
        directory.sync_all()?;
        Ok(token)
    }

    /// The lease that a token is for; none: there is no such token.
    pub fn lease_of(&self, token: &str) -> io::Result<Option<String>> {
        if !is_token(token) {
            return Ok(None);
        }
        match fs::read_to_string(self.directory.join(token)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    /// Tokens of a lease mean nothing from now on.
    pub fn void(&self, lease: &str) -> io::Result<()> {
        self.keep_only(|other| other != lease)
    }

    /// Only tokens of these leases go on meaning something. Nobody makes one meanwhile, so that `is_kept` should ask what is so now.
    pub fn keep_only(&self, is_kept: impl Fn(&str) -> bool) -> io::Result<()> {
        match self.lock() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            locked => locked.and_then(|_directory| self.remove(is_kept)),
        }
    }

    /// One changes them at a time, in whatever process: another one would take a token that is just being made for one that was never
    /// finished, and miss a file that it has seen. It ends with what is returned, which is the directory.
    fn lock(&self) -> io::Result<File> {
        let directory = File::open(&self.directory)?;
        directory.lock()?;
        Ok(directory)
    }

    fn remove(&self, is_kept: impl Fn(&str) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            // What was begun and not ended is nobody's.
            let is_begun = name.to_str().is_some_and(|name| name.starts_with(BEGUN));
            let is_void = || Ok::<_, io::Error>(!is_kept(&fs::read_to_string(entry.path())?));
            if is_begun || name.to_str().is_some_and(is_token) && is_void()? {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// The variable that tells a container of its tokens of a resource, as cmd-forwarder-sriov's plugin writes it, and its value.
pub fn token_variable(resource: &str, tokens: &[String]) -> (String, String) {
    (format!("{VARIABLE}{resource}"), tokens.join(","))
}

/// The tokens of each resource that variables tell of.
pub fn tokens_of_variables(
    variables: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
) -> impl Iterator<Item = (String, Vec<String>)> {
    variables.into_iter().filter_map(|(name, value)| {
        let resource = name.as_ref().to_str()?.strip_prefix(VARIABLE)?.to_owned();
        let tokens = value.as_ref().to_str()?.split(',').filter(|token| !token.is_empty());
        Some((resource, tokens.map(ToOwned::to_owned).collect()))
    })
}

/// Whether a text has the form of a token: then it is the name of a file and no path.
fn is_token(text: &str) -> bool {
    let is_id = |id: &str| id.len() == ID_LEN && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    text.strip_prefix(PREFIX).is_some_and(is_id)
}

/// Where tokens are unless told otherwise.
pub const TOKENS_DEFAULT: &str = "/var/lib/ferrule/device-plugin/nsm-tokens";
/// As Network Service Mesh has it.
const VARIABLE: &str = "NSM_SRIOV_TOKENS_";
const PREFIX: &str = "sriov-";
const BEGUN: &str = ".begun-";
/// Of a UUID.
const ID_LEN: usize = 36;
/// The kernel makes a new one each time.
const RANDOM: &str = "/proc/sys/kernel/random/uuid";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_its_lease_until_another_one_is_made_or_it_is_void() {
        let directory = tempfile::tempdir().unwrap();
        let tokens = Tokens::at(directory.path().join("nsm/tokens"));
        assert_eq!(tokens.lease_of("sriov-12407061-cf50-4a35-acae-142428c6536f").unwrap(), None);
        tokens.void("a").unwrap();
        let [a, b] = ["worker.domain/10G@0000:3b:02.0", "worker.domain/10G@0000:3b:02.1"];
        let (first, other) = (tokens.issue(a).unwrap(), tokens.issue(b).unwrap());
        assert!(is_token(&first) && first != other, "{first}");
        assert_eq!(tokens.lease_of(&first).unwrap().as_deref(), Some(a));
        let second = tokens.issue(a).unwrap();
        assert_eq!(
            [&first, &second, &other].map(|token| tokens.lease_of(token).unwrap()),
            [None, Some(a.to_owned()), Some(b.to_owned())]
        );
        assert_eq!(tokens.share(a).unwrap(), second);
        fs::write(tokens.directory().join(format!("{BEGUN}x")), "").unwrap();
        tokens.keep_only(|lease| lease == b).unwrap();
        assert_eq!(fs::read_dir(tokens.directory()).unwrap().count(), 1);
        tokens.void(b).unwrap();
        assert_eq!(tokens.lease_of(&other).unwrap(), None);
        let shared = tokens.share(b).unwrap();
        assert_eq!((tokens.lease_of(&shared).unwrap().as_deref(), shared != other), (Some(b), true));
    }

    #[test]
    fn many_pods_may_come_and_go_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let tokens = Tokens::at(directory.path().join("tokens"));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let tokens = &tokens;
                scope.spawn(move || {
                    for pod in 0..50 {
                        let (stays, goes) = (format!("stays@{thread}-{pod}"), format!("goes@{thread}"));
                        let token = tokens.issue(&stays).unwrap();
                        tokens.issue(&goes).unwrap();
                        tokens.void(&goes).unwrap();
                        assert_eq!(tokens.lease_of(&token).unwrap(), Some(stays));
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(tokens.directory()).unwrap().count(), 200);
    }

    #[test]
    fn a_path_is_no_token() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("sriov-x"), "lease").unwrap();
        let tokens = Tokens::at(directory.path().join("tokens"));
        for wrong in ["sriov-../sriov-x", "../sriov-x", "sriov-", "sriov-x", "sriov-............/../sriov-x0123456789"]
        {
            assert_eq!(tokens.lease_of(wrong).unwrap(), None, "{wrong}");
        }
    }

    #[test]
    fn a_container_is_told_as_the_plugin_of_the_mesh_tells_it() {
        let told = token_variable("worker.domain/10G", &["sriov-1".to_owned(), "sriov-2".to_owned()]);
        assert_eq!(told, ("NSM_SRIOV_TOKENS_worker.domain/10G".to_owned(), "sriov-1,sriov-2".to_owned()));
        let read: Vec<_> = tokens_of_variables([told, ("PATH".to_owned(), "/bin".to_owned())]).collect();
        assert_eq!(read, [("worker.domain/10G".to_owned(), vec!["sriov-1".to_owned(), "sriov-2".to_owned()])]);
    }
}
