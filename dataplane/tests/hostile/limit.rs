//! How many descriptors this process may have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A lower limit of open descriptors, until it is dropped.
pub struct FileLimit(u64);

impl FileLimit {
    pub fn lower_to(count: u64) -> Self {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, count.min(soft), hard).unwrap();
        Self(soft)
    }

    /// As many descriptors as this process may have: the attackers live in it.
    pub fn raise() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    }
}

impl Drop for FileLimit {
    fn drop(&mut self) {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, self.0, hard).unwrap();
    }
}
