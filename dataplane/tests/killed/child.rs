//! This program in another role.

use std::process::{Child, Command};

/// A process that does not outlive its test, however that ends.
pub struct Killed(Child);

impl Killed {
    pub fn start(role: &str, arguments: impl IntoIterator<Item = String>) -> Self {
        let program = std::env::current_exe().unwrap();
        Self(Command::new(program).arg(role).args(arguments).spawn().unwrap())
    }

    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.0.id().cast_signed())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // SIGKILL.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
