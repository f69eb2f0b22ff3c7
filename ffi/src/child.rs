//! Child processes that do not outlive us, however we end.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

/// Starts `command`, which the kernel kills when the *thread* that called this ends, for whatever reason.
///
/// # Errors
/// It cannot be started.
pub fn spawn_bound(command: &mut Command) -> io::Result<Child> {
    let parent = Pid::this();
    let bind = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have gone between fork and prctl: nobody would tell the child any more.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: between fork and exec only calls that are safe in a signal handler are allowed: these are two system calls,
    // and errors of numbers, without memory to allocate.
    unsafe { command.pre_exec(bind) }.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let started = std::thread::spawn(|| spawn_bound(Command::new("sleep").arg("600")).unwrap());
        let mut child = started.join().unwrap();
        // Waits for ever if nobody kills it.
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }
}
