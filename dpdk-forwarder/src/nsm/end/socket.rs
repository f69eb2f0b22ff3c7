//! Ends at a socket: memif in a namespace, vhost-user in a directory that was passed.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferrule_dataplane::spec::{
    EndSpec, Group, MemifSpec, Mode, NetNs, Role, SocketAccess, SocketAddress, User, VhostUserSpec,
};
use ferrule_nsm::proto::connection::{Connection, Mechanism};
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use tonic::Status;

use super::super::context::Side;
use super::namespace::{is_namespace, open_namespace, path_of};
use super::{EndKind, IP, MeshEnd, Port, SOCKET_FILE};

pub(super) fn memif(
    side: Side,
    connection: &Connection,
    mechanism: &Mechanism,
    file: &Arc<OwnedFd>,
) -> Result<MeshEnd, Status> {
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
pub(super) fn vhost_user(
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

fn socket_address(text: &str) -> Result<SocketAddress, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("{SOCKET_FILE}: {error}")))
}

/// Of a directory: its group, or everybody.
const OTHERS_MAY_WRITE: u32 = 0o022;
const EVERYBODY_MAY_WRITE: u32 = 0o002;
/// What the socket of a client is called that does not say.
const VHOST_SOCKET: &str = "vhost-user.sock";
/// So short that a path with it fits into the address of a socket.
const FILE_NAME_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;

    use super::*;

    fn connection(id: &str) -> Connection {
        Connection { id: id.to_owned(), network_service: "icmp-responder".to_owned(), ..Connection::default() }
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
}
