//! Threads that share no open file with their process.
//!
//! A thread that hangs inside the kernel outlives a kill of its process, and keeps alive whatever table of open files it uses:
//! locks stay locked, sockets stay bound, and no successor can start. With a table of its own it keeps nothing.

use std::io;
use std::thread::{Builder, JoinHandle};

use nix::errno::Errno;

/// Runs `work` on a new thread that has no file of the process but its standard streams. `work` must not hold a file, a socket
/// or anything else that was opened outside, and must return none: their numbers mean other things there. On a kernel before
/// 5.9 the thread shares the files as any other does.
pub fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        leave();
        work()
    })
}

fn leave() {
    // SAFETY: no memory is involved. The descriptors that are closed are those of a table that this call makes for the calling
    // thread alone, which is new and owns none; every other thread keeps the table that it has.
    let left = unsafe { libc::close_range(FIRST_OWN, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE.cast_signed()) };
    debug_assert!(left == 0 || matches!(Errno::last(), Errno::ENOSYS | Errno::EINVAL | Errno::EPERM));
}

/// Behind the standard streams: the next file that is opened must not become one of them.
const FIRST_OWN: libc::c_uint = 3;

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn the_thread_has_none_of_our_files_and_we_have_all_of_them() {
        let file = File::open("/proc/self/status").unwrap();
        let ours = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
        assert!(fs::read_link(&ours).is_ok_and(|target| target.ends_with("status")));
        let seen = ours.clone();
        let theirs = spawn("alone", move || fs::read_link(seen).is_ok_and(|target| target.ends_with("status")));
        assert!(!theirs.unwrap().join().unwrap(), "it has the file");
        assert!(fs::read_link(&ours).is_ok_and(|target| target.ends_with("status")));
    }
}
