//! What a machine must have. Everything that lacks is named in one go.

use std::fs::{self, OpenOptions};
use std::path::Path;

use super::DemoError;

/// Fails unless the demo can run here.
pub(super) fn check() -> Result<(), DemoError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lacking: Vec<String> = missing_capability(&status).into_iter().collect();
    if let Err(error) = OpenOptions::new().read(true).write(true).open(TUN) {
        lacking.push(format!("open {TUN}: {error}; load it with `modprobe tun`, or pass the device to the container"));
    }
    for (program, package) in [("ip", "iproute2"), ("ping", "iputils-ping")] {
        if !is_in_path(program) {
            lacking.push(format!("no program `{program}`; install it with `apt-get install {package}`"));
        }
    }
    if !Path::new("/proc/sys/net/ipv6").exists() {
        lacking.push("this kernel has no IPv6; start it without `ipv6.disable`".to_owned());
    }
    if lacking.is_empty() { Ok(()) } else { Err(DemoError::Needs(lacking)) }
}

/// What `/proc/self/status` says that we may not do.
fn missing_capability(status: &str) -> Option<String> {
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(field.trim(), 16).ok()?;
    let missing: Vec<_> =
        CAPABILITIES.iter().filter(|(bit, _)| effective >> bit & 1 == 0).map(|(_, name)| *name).collect();
    let cure = "run it as root (`sudo ferrule demo`; in a container, `--privileged`)";
    (!missing.is_empty()).then(|| format!("namespaces and interfaces need {}; {cure}", missing.join(" and ")))
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

const TUN: &str = "/dev/net/tun";
/// Bit numbers of `linux/capability.h`.
const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_capabilities_that_lack_are_named() {
        assert_eq!(missing_capability("Name:\tx\nCapEff:\t000001ffffffffff\n"), None);
        let text = missing_capability("CapEff:\t0000000000001000\n").unwrap();
        assert!(text.starts_with("namespaces and interfaces need CAP_SYS_ADMIN; run it as root"), "{text}");
        let text = missing_capability("CapEff:\t0000000000000000\n").unwrap();
        assert!(text.contains("CAP_NET_ADMIN and CAP_SYS_ADMIN"), "{text}");
    }

    #[test]
    fn a_program_is_found_in_the_path() {
        assert!(is_in_path("sh"));
        assert!(!is_in_path("no-such-program"));
    }
}
