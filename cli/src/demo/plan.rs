//! The wires of the demo: names, addresses, and the wires file that makes them.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ferrule_dataplane::spec::{MacAddress, MemifSpec, Role, SocketAddress};

use super::DemoError;
use super::daemon::Launch;
use super::testbed::Testbed;

/// What is shown: a wire, or two of them in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DemoWire {
    /// Two namespaces joined by a veth pair.
    KernelKernel,
    /// A namespace and a responder on memif.
    KernelMemif,
    /// A generator and a sink, both on memif.
    MemifMemif,
    /// Two namespaces joined through userspace: TAP, memif, TAP.
    KernelMemifKernel,
}

impl DemoWire {
    pub(super) const ALL: [Self; 4] =
        [Self::KernelKernel, Self::KernelMemif, Self::MemifMemif, Self::KernelMemifKernel];

    /// What a person calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::KernelKernel => "kernel-kernel",
            Self::KernelMemif => "kernel-memif",
            Self::MemifMemif => "memif-memif",
            Self::KernelMemifKernel => "tap-memif-tap",
        }
    }

    /// The forwarder's wires that it is made of, from side A to side B.
    pub(super) fn wires(self) -> &'static [&'static str] {
        match self {
            Self::KernelKernel => &["kernel-kernel"],
            Self::KernelMemif => &["kernel-memif"],
            Self::MemifMemif => &["memif-memif"],
            Self::KernelMemifKernel => &["through-1", "through-2"],
        }
    }

    /// The interface in side A's namespace; where side B is one too, it has the same name.
    pub(super) fn interface(self) -> Option<&'static str> {
        match self {
            Self::KernelKernel => Some("veth0"),
            Self::KernelMemif => Some("tap0"),
            Self::MemifMemif => None,
            Self::KernelMemifKernel => Some("tap1"),
        }
    }

    /// Whether side B is in a namespace, where TCP can be spoken.
    pub(super) fn ends_in_kernel(self) -> bool {
        matches!(self, Self::KernelKernel | Self::KernelMemifKernel)
    }

    pub(super) fn v4(self, side: usize) -> IpAddr {
        Ipv4Addr::new(10, 99, self.number(), side_number(side)).into()
    }

    pub(super) fn v6(self, side: usize) -> IpAddr {
        Ipv6Addr::new(0xfd99, self.number().into(), 0, 0, 0, 0, 0, side_number(side).into()).into()
    }

    fn number(self) -> u8 {
        self as u8 + 1
    }

    /// This interface of side `side` in the wires file.
    fn kernel_end(self, place: &Testbed, side: usize) -> String {
        let netns = place.namespace_path(side);
        let name = self.interface().unwrap_or_default();
        let (v4, v6) = (self.v4(side), self.v6(side));
        format!("kernel: {{ netns: {}, name: {name}, addresses: [{v4}/24, \"{v6}/64\"] }}", netns.display())
    }
}

/// Who answers at side B of [`DemoWire::KernelMemif`].
pub(super) fn responder_spec(testbed: &Testbed) -> MemifSpec {
    client(testbed, "responder")
}

/// The MAC address of that responder.
pub(super) const RESPONDER_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0xfe, 1]);

/// The two ends of [`DemoWire::MemifMemif`].
pub(super) fn generator_specs(testbed: &Testbed) -> [MemifSpec; 2] {
    [client(testbed, "generator"), client(testbed, "sink")]
}

/// Where the forwarder serves its admin API.
pub(super) fn admin_socket(testbed: &Testbed) -> PathBuf {
    testbed.directory().join("admin.sock")
}

/// A forwarder of this name with a file of these contents, which is named after it.
pub(super) fn forwarder(
    testbed: &Testbed,
    name: &'static str,
    program: PathBuf,
    contents: &str,
) -> Result<Launch, DemoError> {
    let file = testbed.directory().join(format!("{name}.yaml"));
    let failed = |error| DemoError::testbed(format!("write {}", file.display()), error);
    fs::write(&file, contents).map_err(failed)?;
    let arguments = ["--config".into(), file.into_os_string(), "--drain-grace".into(), "200ms".into()].into();
    Ok(Launch { name, program, arguments })
}

/// The wires file.
pub(super) fn wires_file(testbed: &Testbed, cpu: usize) -> String {
    let memif =
        |socket: &str, role| format!("memif: {{ socket: {}, role: {role} }}", socket_path(testbed, socket).display());
    // Abstract: a forwarder keeps to one role on each socket that is a path.
    let through = |role| format!("memif: {{ socket: \"@{}\", role: {role} }}", testbed.name());
    let [kk, km, _, kmk] = DemoWire::ALL;
    let wires = [
        ("kernel-kernel", [kk.kernel_end(testbed, 0), kk.kernel_end(testbed, 1)]),
        ("kernel-memif", [km.kernel_end(testbed, 0), memif("responder", "server")]),
        ("memif-memif", [memif("generator", "server"), memif("sink", "server")]),
        ("through-1", [kmk.kernel_end(testbed, 0), through("server")]),
        ("through-2", [through("client"), kmk.kernel_end(testbed, 1)]),
    ];
    let mut text = format!("workers: [{cpu}]\nadmin: {}\nwires:\n", admin_socket(testbed).display());
    for (name, [a, b]) in wires {
        let _ = write!(text, "  - name: {name}\n    ends:\n      - {a}\n      - {b}\n");
    }
    text
}

fn client(testbed: &Testbed, socket: &str) -> MemifSpec {
    MemifSpec::new(SocketAddress::Path(socket_path(testbed, socket)), Role::Client)
}

fn socket_path(testbed: &Testbed, socket: &str) -> PathBuf {
    testbed.directory().join(format!("{socket}.sock"))
}

fn side_number(side: usize) -> u8 {
    if side == 0 { 1 } else { 2 }
}
