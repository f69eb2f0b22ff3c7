//! Which devices may be asked for, and what may be said of them.
//!
//! Whoever may make a wire may not do all that a driver does for its arguments: some run commands (`net_failsafe`), write files (`net_pcap`), load
//! programs into the kernel (`net_af_xdp`), wait for somebody (a FIFO) or in a burst (`qdisc_bypass=0`). So drivers and arguments are those of a
//! list.

use crate::address::pci_address;

/// What is wrong with devargs, if anything is.
pub(crate) fn check(devargs: &str) -> Result<(), String> {
    if devargs.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("`{}`; devargs have no spaces", devargs.escape_debug()));
    }
    let (name, arguments) = devargs.split_once(',').unwrap_or((devargs, ""));
    let keys = keys_of(name).ok_or_else(|| format!("`{}`; {FORM}", name.escape_debug()))?;
    let arguments = arguments.split(',').filter(|argument| !argument.is_empty());
    for argument in arguments {
        let key = argument.split('=').next().unwrap_or_default();
        if !keys.contains(&key) || argument.contains(['[', ']', '(', ')', '"', '\'']) {
            let possible = if keys.is_empty() { "none are".to_owned() } else { format!("{} are", keys.join(", ")) };
            return Err(format!("argument `{}` of {name}; {possible} possible", argument.escape_debug()));
        }
    }
    Ok(())
}

/// The arguments that a device of this name may have; `None`: it is of no driver that we know.
fn keys_of(name: &str) -> Option<&'static [&'static str]> {
    if pci_address(name).is_some() {
        return Some(&[]);
    }
    let is_word = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    DRIVERS.iter().find(|(driver, _)| name.strip_prefix(driver).is_some_and(is_word)).map(|(_, keys)| *keys)
}

/// Drivers of software devices, with the arguments that do nothing but describe the device.
const DRIVERS: [(&str, &[&str]); 7] = [
    ("net_af_packet", &["iface", "qpairs", "blocksz", "framesz", "framecnt"]),
    ("net_af_xdp", &["iface", "start_queue", "queue_count", "force_copy"]),
    ("net_memif", &["role", "id", "socket", "socket-abstract", "mac", "secret", "rsize", "bsize"]),
    ("net_null", &["size", "copy"]),
    ("net_pcap", &["iface", "rx_iface", "tx_iface", "rx_iface_in"]),
    ("net_ring", &[]),
    ("net_tap", &["iface", "mac"]),
];
const FORM: &str = "a PCI address (`0000:3b:02.1`) is wanted, or a device of net_af_packet, net_af_xdp, net_memif, net_null, net_pcap, net_ring or \
                    net_tap, as in `net_af_packet0,iface=eth1`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_the_list_may_be_asked_for_with_their_arguments() {
        for devargs in [
            "net_af_packet0,iface=eth1,qpairs=2",
            "net_af_xdp0,iface=eth1,start_queue=0",
            "net_memif0,role=server,socket=/run/a.sock,socket-abstract=no",
            "net_null_a-1,size=64",
            "net_pcap0,iface=eth1",
            "net_ring7",
            "net_tap0,iface=tap7",
            "0000:3b:02.1",
            "3b:02.1",
        ] {
            assert_eq!(check(devargs), Ok(()), "{devargs}");
        }
    }

    #[test]
    fn what_runs_commands_writes_files_or_waits_is_refused() {
        for (devargs, problem) in [
            ("net_failsafe0,exec(touch,/tmp/x)", "`net_failsafe0`; a PCI address"),
            ("net_pcap0,tx_pcap=/etc/passwd", "argument `tx_pcap=/etc/passwd` of net_pcap0; iface, rx_iface"),
            ("net_pcap0,rx_pcap=/tmp/fifo", "argument `rx_pcap=/tmp/fifo`"),
            ("net_af_xdp0,iface=eth1,xdp_prog=/tmp/x.o", "argument `xdp_prog=/tmp/x.o`"),
            ("net_tap0,remote=eth0", "argument `remote=eth0` of net_tap0; iface, mac are possible"),
            ("net_af_packet0,iface=a,qdisc_bypass=0", "argument `qdisc_bypass=0`"),
            ("net_softnic0,firmware=/tmp/x", "`net_softnic0`"),
            ("net_virtio_user0,path=/tmp/x", "`net_virtio_user0`"),
            ("net_bonding0,slave=0000:3b:02.1", "`net_bonding0`"),
            ("eth_af_packet0,iface=eth1", "`eth_af_packet0`"),
            ("crypto_null.1", "`crypto_null.1`"),
            ("vdev:net_ring0", "`vdev:net_ring0`"),
            ("0000:3b:02.1,representor=[0-3]", "argument `representor=[0-3]` of 0000:3b:02.1; none are possible"),
            ("net_null0,size=64 copy=1", "devargs have no spaces"),
            ("", "``; a PCI address"),
        ] {
            let told = check(devargs).unwrap_err();
            assert!(told.contains(problem), "{devargs}: {told}");
        }
    }
}
