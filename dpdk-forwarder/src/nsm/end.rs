//! The ends of a connection: what a mechanism's parameters say, and what the forwarder makes of them.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferrule_dataplane::spec::{
    EndSpec, Group, InterfaceName, KernelSpec, MacAddress, MemifSpec, Mode, NetNs, OpenNetNs, Role, SocketAccess,
    SocketAddress, User, VhostUserSpec,
};
use ferrule_ffi::netns;
use ferrule_nsm::proto::connection::{Connection, Mechanism};
use ferrule_nsm::proto::connectioncontext::EthernetContext;
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use tonic::Status;

use super::context::Side;
use super::interface::InterfacePlace;
use super::vf::{PCI_ADDRESS, VfEnd, VfForm};
use super::vxlan::{REMOTE, TunnelSite, VXLAN, Vxlan};
use super::wireguard::{WIREGUARD, WireGuardPeer};

/// How an end on this node is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndKind {
    Memif,
    Kernel,
    /// KERNEL too, by a token: the VF of that is the interface.
    KernelVf,
    /// A VF, by a token.
    Vfio,
    /// Of our own: the mesh has no word for it.
    VhostUser,
    /// Both ends have arranged it without us.
    Noop,
}

impl EndKind {
    const ALL: [Self; 5] = [Self::Memif, Self::Kernel, Self::Vfio, Self::VhostUser, Self::Noop];
    /// Those that one can have beside another, those that are asked for first in front.
    const JOINED: [Self; 3] = [Self::Memif, Self::Kernel, Self::VhostUser];

    /// What the mesh calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memif => "MEMIF",
            Self::Kernel | Self::KernelVf => "KERNEL",
            Self::Vfio => "VFIO",
            Self::VhostUser => "VHOST_USER",
            Self::Noop => "NOOP",
        }
    }

    /// The one that a mechanism asks for, if we can do all that it asks for.
    pub(super) fn of(mechanism: &Mechanism) -> Option<Self> {
        let asks = |key: &str| mechanism.parameters.get(key).is_some_and(|value| !NOTHING.contains(&value.as_str()));
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == mechanism.r#type)?;
        match kind {
            Self::Kernel | Self::KernelVf if KERNEL_LACKS.into_iter().any(asks) => None,
            Self::Kernel if asks(TOKEN) => Some(Self::KernelVf),
            Self::Vfio if !asks(TOKEN) => None,
            kind => Some(kind),
        }
    }

    /// Whether it is a VF, which reaches the other end by its NIC.
    pub(super) fn is_vf(self) -> bool {
        matches!(self, Self::KernelVf | Self::Vfio)
    }
}

/// One end of a connection.
#[derive(Clone, Debug)]
pub(super) struct MeshEnd {
    /// What its mechanism is called.
    kind: &'static str,
    /// As whoever is there is told.
    pub(super) mechanism: Mechanism,
    pub(super) port: Port,
    /// Where its interface is, if it has one.
    pub(super) place: Option<InterfacePlace>,
}

/// What is made at an end.
#[derive(Clone, Debug)]
pub(super) enum Port {
    /// By the engine.
    Local(EndSpec),
    /// By the kernel, as the end of this tunnel.
    Tunnel(Vxlan),
    /// By us, as the end of a tunnel of packets to this other side.
    Secure(WireGuardPeer),
    /// Of the VF that the pod has.
    Vf(VfEnd),
    /// By nobody here.
    Outside,
}

impl MeshEnd {
    /// The end at `side` of a connection that is on another node.
    pub(super) fn remote(side: Side, mechanism: Mechanism, site: &TunnelSite) -> Result<Self, Status> {
        let (kind, port) = match (mechanism.r#type.as_str(), side) {
            (WIREGUARD, Side::Client) => (WIREGUARD, Port::Secure(WireGuardPeer::answered(&mechanism, site)?)),
            (WIREGUARD, Side::Endpoint) => (WIREGUARD, Port::Secure(WireGuardPeer::asked(&mechanism, site)?)),
            (_, Side::Client) => (VXLAN, Port::Tunnel(Vxlan::answered(&mechanism, site)?)),
            (_, Side::Endpoint) => (VXLAN, Port::Tunnel(Vxlan::asked(&mechanism, site)?)),
        };
        Ok(Self { kind, mechanism, port, place: None })
    }

    /// The end at `side` of a connection, whose id is ours, by a mechanism of this node with the file that it names. Blocks for a moment.
    pub(super) fn local(
        side: Side,
        connection: &Connection,
        mechanism: &Mechanism,
        file: Option<&Arc<OwnedFd>>,
    ) -> Result<Self, Status> {
        let kind = EndKind::of(mechanism).ok_or_else(unsupported)?;
        if kind == EndKind::Noop {
            return Ok(Self { kind: kind.name(), mechanism: mechanism.clone(), port: Port::Outside, place: None });
        }
        if kind == EndKind::Vfio {
            return vfio(side, connection, mechanism);
        }
        let file = file.ok_or_else(|| {
            Status::invalid_argument(format!("{} without inodeURL: the file of that end is wanted", kind.name()))
        })?;
        match kind {
            EndKind::Kernel => kernel(side, connection, mechanism, file),
            EndKind::KernelVf => kernel_vf(side, connection, mechanism, file),
            EndKind::Memif => memif(side, connection, mechanism, file),
            EndKind::VhostUser => vhost_user(side, connection, mechanism, file),
            EndKind::Noop | EndKind::Vfio => Err(unsupported()),
        }
    }

    /// What metrics call it.
    pub(super) fn label(&self) -> String {
        let place = self.place.as_ref().map(|place| place.name.to_string());
        let place = match &self.port {
            Port::Tunnel(tunnel) => Some(tunnel.vni.to_string()),
            Port::Secure(peer) => Some(peer.address.to_string()),
            Port::Local(_) | Port::Outside => place.or_else(|| self.mechanism.parameters.get(SOCKET_FILE).cloned()),
            Port::Vf(_) => place.or_else(|| self.mechanism.parameters.get(PCI_ADDRESS).cloned()),
        };
        format!("{}/{}", self.kind, place.unwrap_or_default())
    }
}

/// Nobody can have what is asked for.
pub(super) fn unsupported() -> Status {
    let kinds: Vec<_> = EndKind::ALL.iter().map(|kind| kind.name()).collect();
    let kinds = kinds.join(", ");
    Status::unimplemented(format!("cannot support any of the requested mechanism: this forwarder has {kinds}"))
}

fn kernel(side: Side, connection: &Connection, mechanism: &Mechanism, file: &Arc<OwnedFd>) -> Result<MeshEnd, Status> {
    let netns = open_namespace(file)?;
    let name = match mechanism.parameters.get(NAME).map(String::as_str) {
        None | Some("") => interface_name(connection, side),
        Some(name) => name.to_owned(),
    };
    let name: InterfaceName = name.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
    let mut mechanism = mechanism.clone();
    mechanism.parameters.insert(NAME.to_owned(), name.to_string());
    let context = connection.context.as_ref();
    let spec = KernelSpec {
        netns: Some(NetNs::Open(netns.clone())),
        mac: Some(mac(side, connection)?),
        mtu: context.map(|context| context.mtu).filter(|mtu| *mtu > 0),
        ..KernelSpec::new(name.clone())
    };
    let place = Some(InterfacePlace { netns, name });
    Ok(MeshEnd { kind: EndKind::Kernel.name(), mechanism, port: Port::Local(EndSpec::Kernel(spec)), place })
}

/// The same by the VF of a token.
fn kernel_vf(
    side: Side,
    connection: &Connection,
    mechanism: &Mechanism,
    file: &Arc<OwnedFd>,
) -> Result<MeshEnd, Status> {
    let end = kernel(side, connection, mechanism, file)?;
    let place = end.place.clone().ok_or_else(|| Status::internal("a kernel end without a place"))?;
    let mtu = connection.context.as_ref().map(|context| context.mtu).filter(|mtu| *mtu > 0);
    let vf = vf_end(side, connection, mechanism, VfForm::Kernel { place, mtu })?;
    Ok(MeshEnd { port: Port::Vf(vf), ..end })
}

fn vfio(side: Side, connection: &Connection, mechanism: &Mechanism) -> Result<MeshEnd, Status> {
    if connection.payload == IP {
        return Err(Status::unimplemented("VFIO carries Ethernet frames, and the payload of this service is IP"));
    }
    let vf = vf_end(side, connection, mechanism, VfForm::Vfio)?;
    Ok(MeshEnd { kind: EndKind::Vfio.name(), mechanism: mechanism.clone(), port: Port::Vf(vf), place: None })
}

fn vf_end(side: Side, connection: &Connection, mechanism: &Mechanism, form: VfForm) -> Result<VfEnd, Status> {
    let ethernet = connection.context.as_ref().and_then(|context| context.ethernet_context.as_ref());
    let vlan = ethernet.map_or(0, |ethernet| ethernet.vlan_tag);
    let vlan = u32::try_from(vlan).ok().filter(|vlan| *vlan <= VLAN_MAX);
    Ok(VfEnd {
        token: mechanism.parameters.get(TOKEN).cloned().unwrap_or_default(),
        form,
        mac: mac(side, connection)?,
        vlan: vlan.ok_or_else(|| Status::invalid_argument(format!("vlan_tag: 0 to {VLAN_MAX} are possible")))?,
    })
}

fn memif(side: Side, connection: &Connection, mechanism: &Mechanism, file: &Arc<OwnedFd>) -> Result<MeshEnd, Status> {
    let mut mechanism = mechanism.clone();
    let (socket, netns, role) = match side {
        // We listen in the client's namespace.
        Side::Client => {
            let name = format!("@ferrule/nsm/{}/memif.socket", connection.id);
            mechanism.parameters.insert(SOCKET_FILE.to_owned(), name.clone());
            (socket_address(&name)?, Some(open_namespace(file)?), Role::Server)
        }
        Side::Endpoint if is_namespace(file) => {
            let name = mechanism.parameters.get(SOCKET_FILE).map_or("", String::as_str);
            let address = socket_address(name)?;
            // A path would be one of ours, opened with our rights.
            if matches!(address, SocketAddress::Path(_)) {
                return Err(Status::invalid_argument(format!(
                    "{SOCKET_FILE} {:?} is a path: with a namespace as inodeURL an abstract name is wanted, as in `@name`",
                    shown(name)
                )));
            }
            (address, Some(open_namespace(file)?), Role::Client)
        }
        // The socket itself was passed.
        Side::Endpoint => (SocketAddress::Path(path_of(file)), None, Role::Client),
    };
    let mode = if connection.payload == IP { Mode::Ip } else { Mode::Ethernet };
    let spec = MemifSpec { netns: netns.map(NetNs::Open), mode, ..MemifSpec::new(socket, role) };
    Ok(MeshEnd { kind: EndKind::Memif.name(), mechanism, port: Port::Local(EndSpec::Memif(spec)), place: None })
}

/// The device of a client is in a directory that it passes; that of an endpoint too, or its socket is passed itself.
fn vhost_user(
    side: Side,
    connection: &Connection,
    mechanism: &Mechanism,
    file: &Arc<OwnedFd>,
) -> Result<MeshEnd, Status> {
    if connection.payload == IP {
        return Err(Status::unimplemented("VHOST_USER carries Ethernet frames, and the payload of this service is IP"));
    }
    let mut mechanism = mechanism.clone();
    let name = mechanism.parameters.get(SOCKET_FILE).cloned().unwrap_or_default();
    let (path, role, access) = match side {
        Side::Client => {
            let name = if name.is_empty() { VHOST_SOCKET.to_owned() } else { name };
            mechanism.parameters.insert(SOCKET_FILE.to_owned(), name.clone());
            (path_of(file).join(plain_name(&name)?), Role::Server, for_its_owner(file)?)
        }
        Side::Endpoint if name.is_empty() => (path_of(file), Role::Client, SocketAccess::default()),
        Side::Endpoint => (path_of(file).join(plain_name(&name)?), Role::Client, SocketAccess::default()),
    };
    let spec = VhostUserSpec { access, ..VhostUserSpec::new(SocketAddress::Path(path), role) };
    Ok(MeshEnd { kind: EndKind::VhostUser.name(), mechanism, port: Port::Local(EndSpec::VhostUser(spec)), place: None })
}

/// A socket in a directory that a client has passed is for whoever has the directory. Whoever may pass one need not be allowed to write
/// in it, as we are: one that only root may change, as those of the node are, is refused.
fn for_its_owner(directory: &Arc<OwnedFd>) -> Result<SocketAccess, Status> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::TYPE | StatxFlags::MODE | StatxFlags::UID | StatxFlags::GID;
    let told = statx(directory, "", flags, wanted)
        .map_err(|error| Status::invalid_argument(format!("look at the file that inodeURL names: {error}")))?;
    let mode = u32::from(told.stx_mode);
    if FileType::from_raw_mode(mode) != FileType::Directory {
        return Err(Status::invalid_argument("VHOST_USER of a client: inodeURL names a file that is no directory"));
    }
    if told.stx_uid == 0 && mode & OTHERS_MAY_WRITE == 0 {
        return Err(Status::permission_denied(
            "inodeURL names a directory that only root may write in: pass one of another user or group, or one that others may write in",
        ));
    }
    // Where everybody may write, as in an `emptyDir`, nobody can say who it is for.
    let mode = if mode & EVERYBODY_MAY_WRITE == 0 { "0770" } else { "0777" };
    Ok(SocketAccess {
        owner: Some(User::Id(told.stx_uid)),
        group: Some(Group::Id(told.stx_gid)),
        mode: mode.parse().ok(),
    })
}

/// A file in a directory and nowhere else.
fn plain_name(name: &str) -> Result<&str, Status> {
    let is_plain = name.len() <= FILE_NAME_MAX && name != "." && name != ".." && !name.contains(['/', '\0']);
    let wrong = || Status::invalid_argument(format!("{SOCKET_FILE}: {:?} is no name of a file", shown(name)));
    is_plain.then_some(name).ok_or_else(wrong)
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The MAC address of an interface at an end: the one that the context wants, or one that is always the same for the connection, so
/// that the other end can be told of it, and a forwarder that starts again makes the same interface.
pub(super) fn mac(side: Side, connection: &Connection) -> Result<MacAddress, Status> {
    let none = EthernetContext::default();
    let context = connection.context.as_ref().and_then(|context| context.ethernet_context.as_ref()).unwrap_or(&none);
    let wanted = match side {
        Side::Client => &context.src_mac,
        Side::Endpoint => &context.dst_mac,
    };
    if !wanted.is_empty() {
        return wanted.parse().map_err(|error| Status::invalid_argument(format!("{error}")));
    }
    let hash = fnv(connection.id.bytes().chain([side as u8]));
    let [a, b, c, d, e, ..] = hash.to_le_bytes();
    Ok(MacAddress([0x02, a, b, c, d, e]))
}

/// The namespace that a file is, unless it is the node's own.
pub(super) fn open_namespace(file: &Arc<OwnedFd>) -> Result<OpenNetNs, Status> {
    if !is_namespace(file) {
        return Err(Status::invalid_argument("inodeURL names a file that is no network namespace"));
    }
    // Whoever may pass it need not be allowed to change the node's network, as we are.
    let inode = |path: &Path| netns::namespace_at(path).ok().flatten().map(|found| found.inode);
    let passed = inode(&path_of(file));
    if ["/proc/self/ns/net", "/proc/1/ns/net"].into_iter().any(|own| passed == inode(Path::new(own))) {
        return Err(Status::permission_denied(
            "inodeURL names the network namespace of the node, that of the forwarder: pass one of your own",
        ));
    }
    let cannot = |error| Status::invalid_argument(format!("open the namespace that inodeURL names: {error}"));
    let opened = netns::NetNs::open(&path_of(file)).map_err(cannot)?;
    OpenNetNs::try_from(OwnedFd::from(opened)).map_err(cannot)
}

/// Nobody is asked but the kernel: a file of another file system could keep us waiting.
fn is_namespace(file: &Arc<OwnedFd>) -> bool {
    netns::namespace_at(&path_of(file)).is_ok_and(|found| found.is_some())
}

fn path_of(file: &Arc<OwnedFd>) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn socket_address(text: &str) -> Result<SocketAddress, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("{SOCKET_FILE}: {error}")))
}

/// Some of the service's name, and letters that no other connection has.
fn interface_name(connection: &Connection, side: Side) -> String {
    let is_plain = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '-' || *letter == '_';
    let mut name: String = connection.network_service.chars().filter(is_plain).take(INTERFACE_SERVICE_MAX).collect();
    name.push('-');
    // Out of all of the number: its first digits hardly differ for ids that end differently.
    let mut rest = fnv(connection.id.bytes().chain([side as u8]));
    while name.len() < INTERFACE_MAX {
        name.extend(char::from_digit((rest % 36) as u32, 36));
        rest /= 36;
    }
    name
}

/// FNV-1a.
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What we can have at an endpoint of this node, beside a client of this kind, best first.
pub(super) fn preferences(client: EndKind, payload: &str, priority: &[String]) -> Vec<Mechanism> {
    if client == EndKind::Noop {
        return vec![mechanism(LOCAL, client)];
    }
    if client.is_vf() {
        // What has no VF is reached by the NIC's network, which is not ours.
        return [EndKind::Noop, EndKind::Kernel, EndKind::Vfio].map(|kind| mechanism(LOCAL, kind)).into();
    }
    // Without Ethernet headers a frame goes to its own kind only.
    let mut kinds: Vec<_> = EndKind::JOINED.into_iter().filter(|kind| payload != IP || *kind == client).collect();
    let rank = |kind: &EndKind| priority.iter().position(|name| name == kind.name()).unwrap_or(usize::MAX);
    kinds.sort_by_key(rank);
    kinds.into_iter().map(|kind| mechanism(LOCAL, kind)).collect()
}

/// What we can have at an endpoint of this node, beside a tunnel, best first: a device of the kernel is one already.
pub(super) fn beside_tunnel(payload: &str, priority: &[String]) -> Vec<Mechanism> {
    let kernel = std::iter::once(EndKind::Kernel.name().to_owned());
    let priority: Vec<_> = priority.iter().cloned().chain(kernel).collect();
    preferences(EndKind::Kernel, payload, &priority)
}

/// Whether a mechanism is a tunnel that carries such a payload.
pub(super) fn is_tunnel_of(mechanism: &Mechanism, payload: &str) -> bool {
    mechanism.r#type == if payload == IP { WIREGUARD } else { VXLAN }
}

/// What another node is asked for where nothing has to be made.
pub(super) fn noop_of_another_node() -> Vec<Mechanism> {
    vec![mechanism(REMOTE, EndKind::Noop)]
}

fn mechanism(class: &str, kind: EndKind) -> Mechanism {
    Mechanism { cls: class.to_owned(), r#type: kind.name().to_owned(), parameters: BTreeMap::new() }
}

pub(super) const LOCAL: &str = "LOCAL";
/// The payload that has no Ethernet header.
pub(super) const IP: &str = "IP";
/// The parameter that says what an interface is called.
pub(super) const NAME: &str = "name";
/// Parameters of KERNEL that need what is not built: VLAN breakout, address translation. Whoever has another forwarder for them is to find
/// that one.
const KERNEL_LACKS: [&str; 3] = ["vlan", "IPTables4NatTemplate", "routeLocalNet"];
/// The parameter that says by which of its VFs a pod wants its end.
pub(super) const TOKEN: &str = "tokenID";
const VLAN_MAX: u32 = 4094;
/// Values of parameters that ask for nothing.
const NOTHING: [&str; 3] = ["", "0", "false"];
const SOCKET_FILE: &str = "socketfile";
/// Of a directory: its group, or everybody.
const OTHERS_MAY_WRITE: u32 = 0o022;
const EVERYBODY_MAY_WRITE: u32 = 0o002;
/// What the socket of a client is called that does not say.
const VHOST_SOCKET: &str = "vhost-user.sock";
/// So short that a path with it fits into the address of a socket.
const FILE_NAME_MAX: usize = 64;
/// IFNAMSIZ, less the zero at its end.
const INTERFACE_MAX: usize = 15;
const INTERFACE_SERVICE_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn connection(id: &str) -> Connection {
        Connection { id: id.to_owned(), network_service: "icmp-responder".to_owned(), ..Connection::default() }
    }

    #[test]
    fn names_and_macs_are_those_of_a_connection_and_its_end() {
        let [a, b] = [connection("a"), connection("b")];
        let names =
            [interface_name(&a, Side::Client), interface_name(&a, Side::Endpoint), interface_name(&b, Side::Client)];
        assert!(names[0].starts_with("icmp-respo-") && names[0].len() == INTERFACE_MAX, "{}", names[0]);
        assert!(names[0] != names[1] && names[0] != names[2]);
        assert_eq!(names[0], interface_name(&a, Side::Client));
        let macs = [mac(Side::Client, &a), mac(Side::Endpoint, &a), mac(Side::Client, &b)].map(Result::unwrap);
        assert!(macs[0] != macs[1] && macs[0] != macs[2]);
        macs[0].to_string().parse::<MacAddress>().unwrap();
    }

    #[test]
    fn an_endpoint_is_asked_for_what_fits_beside_the_client() {
        let names = |client, payload, priority: &[&str]| {
            let priority: Vec<_> = priority.iter().map(|name| (*name).to_owned()).collect();
            let asked = preferences(client, payload, &priority).into_iter();
            asked.map(|mechanism| mechanism.r#type).collect::<Vec<_>>()
        };
        assert_eq!(names(EndKind::Kernel, "ETHERNET", &[]), ["MEMIF", "KERNEL", "VHOST_USER"]);
        assert_eq!(names(EndKind::Kernel, "ETHERNET", &["KERNEL"]), ["KERNEL", "MEMIF", "VHOST_USER"]);
        assert_eq!(names(EndKind::Kernel, "IP", &[]), ["KERNEL"]);
    }

    #[test]
    fn an_endpoint_beside_a_tunnel_is_asked_for_what_is_one_already_unless_told_otherwise() {
        let names = |priority: &[&str]| {
            let priority: Vec<_> = priority.iter().map(|name| (*name).to_owned()).collect();
            beside_tunnel("ETHERNET", &priority).into_iter().map(|mechanism| mechanism.r#type).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["KERNEL", "MEMIF", "VHOST_USER"]);
        assert_eq!(names(&["VHOST_USER"]), ["VHOST_USER", "KERNEL", "MEMIF"]);
    }

    #[test]
    fn where_nothing_is_made_the_other_end_is_asked_for_nothing_either() {
        let asked = preferences(EndKind::Noop, "ETHERNET", &["KERNEL".to_owned()]);
        assert_eq!(asked, [Mechanism { cls: LOCAL.to_owned(), r#type: "NOOP".to_owned(), ..Mechanism::default() }]);
        let end = MeshEnd::local(Side::Client, &connection("a"), &asked[0], None).unwrap();
        assert!(matches!(end.port, Port::Outside));
        assert_eq!(end.label(), "NOOP/");
    }

    #[test]
    fn a_socket_is_made_where_others_than_root_may_write_and_for_them() {
        let directory = tempfile::tempdir().unwrap();
        let open = |path: &Path| Arc::new(OwnedFd::from(std::fs::File::open(path).unwrap()));
        let set = |mode| std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let is_root = std::fs::metadata(directory.path()).unwrap().uid() == 0;
        for (mode, socket_mode) in [(0o777, 0o777), (0o770, 0o770), (0o700, 0o770)] {
            set(mode);
            match for_its_owner(&open(directory.path())) {
                Err(refused) => {
                    assert!(is_root && mode == 0o700, "{refused}");
                    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
                }
                Ok(access) => assert_eq!(access.mode.unwrap().bits(), socket_mode),
            }
        }
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(for_its_owner(&open(&file)).unwrap_err().code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn a_socket_is_in_the_directory_that_was_passed_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let file = Arc::new(OwnedFd::from(std::fs::File::open(directory.path()).unwrap()));
        let of = |name: &str| {
            let parameters = [(SOCKET_FILE.to_owned(), name.to_owned())].into();
            let mechanism = Mechanism { r#type: "VHOST_USER".to_owned(), parameters, ..Mechanism::default() };
            MeshEnd::local(Side::Client, &connection("a"), &mechanism, Some(&file))
        };
        assert_eq!(of("").unwrap().label(), "VHOST_USER/vhost-user.sock");
        assert_eq!(of("vm.sock").unwrap().mechanism.parameters[SOCKET_FILE], "vm.sock");
        for wrong in ["../vm.sock", "..", "a/b", &"x".repeat(65)] {
            assert_eq!(of(wrong).unwrap_err().code(), tonic::Code::InvalidArgument, "{wrong}");
        }
    }

    #[test]
    fn the_namespace_of_the_node_is_refused_and_so_is_a_path_in_it() {
        let file = Arc::new(OwnedFd::from(std::fs::File::open("/proc/self/ns/net").unwrap()));
        let of = |side, kind: &str, socket: &str| {
            let parameters = [(SOCKET_FILE.to_owned(), socket.to_owned())].into();
            let mechanism = Mechanism { r#type: kind.to_owned(), parameters, ..Mechanism::default() };
            MeshEnd::local(side, &connection("a"), &mechanism, Some(&file)).unwrap_err().code()
        };
        for side in [Side::Client, Side::Endpoint] {
            assert_eq!(of(side, "KERNEL", ""), tonic::Code::PermissionDenied);
            assert_eq!(of(side, "MEMIF", "@name"), tonic::Code::PermissionDenied);
        }
        assert_eq!(of(Side::Endpoint, "MEMIF", "/run/memif.sock"), tonic::Code::InvalidArgument);
    }

    #[test]
    fn what_a_mechanism_asks_for_beyond_us_is_not_passed_over() {
        let with = |key: &str, value: &str| {
            let parameters = [(key.to_owned(), value.to_owned())].into();
            EndKind::of(&Mechanism { r#type: "KERNEL".to_owned(), parameters, ..Mechanism::default() })
        };
        for (key, value) in [("vlan", "0"), ("tokenID", ""), ("routeLocalNet", "false"), ("name", "nsm-1")] {
            assert_eq!(with(key, value), Some(EndKind::Kernel), "{key} {value}");
        }
        for (key, value) in [("vlan", "7"), ("routeLocalNet", "true")] {
            assert_eq!(with(key, value), None, "{key} {value}");
        }
        assert_eq!(with(TOKEN, "sriov-1"), Some(EndKind::KernelVf));
    }

    #[test]
    fn an_end_by_a_token_is_a_vf_and_vfio_is_none_without_one() {
        let with = |token: &str| {
            let parameters = [(TOKEN.to_owned(), token.to_owned())].into();
            Mechanism { r#type: "VFIO".to_owned(), parameters, ..Mechanism::default() }
        };
        assert_eq!((EndKind::of(&with("")), EndKind::of(&with("sriov-1"))), (None, Some(EndKind::Vfio)));
        let mut connection = connection("a");
        let ethernet = EthernetContext { src_mac: "02:00:00:00:00:01".to_owned(), vlan_tag: 7, ..<_>::default() };
        connection.context.get_or_insert_default().ethernet_context = Some(ethernet);
        let Port::Vf(end) = MeshEnd::local(Side::Client, &connection, &with("sriov-1"), None).unwrap().port else {
            panic!("it is no VF")
        };
        assert_eq!((end.token.as_str(), end.vlan, end.form), ("sriov-1", 7, VfForm::Vfio));
        assert_eq!(end.mac.to_string(), "02:00:00:00:00:01");
        connection.context.get_or_insert_default().ethernet_context.get_or_insert_default().vlan_tag = 4095;
        let refused = MeshEnd::local(Side::Client, &connection, &with("sriov-1"), None).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        let asked = preferences(EndKind::Vfio, "ETHERNET", &[]);
        let asked: Vec<_> = asked.iter().map(|mechanism| mechanism.r#type.as_str()).collect();
        assert_eq!(asked, ["NOOP", "KERNEL", "VFIO"]);
    }

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let mechanism = Mechanism { r#type: "KERNEL".to_owned(), ..Mechanism::default() };
        let refused = MeshEnd::local(Side::Client, &connection("a"), &mechanism, Some(&file)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(MeshEnd::local(Side::Client, &connection("a"), &mechanism, None).is_err());
        let other = Mechanism { r#type: "VFIO".to_owned(), ..Mechanism::default() };
        let refused = MeshEnd::local(Side::Client, &connection("a"), &other, Some(&file)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unimplemented);
    }
}
