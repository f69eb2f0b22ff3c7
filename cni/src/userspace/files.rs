//! What a pod finds in the shared directory: its socket under the name that userspace-cni gives it, and what it says of the socket.
//!
//! The pods' names are links to the ends of wires beside them, so that an end outlives its pods, and the forwarder finds it again when it
//! starts again. Where the pod listens, the end is a link to the pod's socket.
//!
//! Pods write in that directory, too. So nothing here writes through a name that one of them can choose or foresee.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use serde_json::{Value, json};

use super::SocketConfig;
use super::seats::{SEATS, SocketAttachment, seat_path, short};
use crate::protocol::{AddResult, Attachment, CniError, Version};
use crate::socket_kind::Kind;

/// What a pod calls its socket.
pub(super) fn socket_file(config: &SocketConfig, attachment: &Attachment) -> String {
    let (container, interface) = (short(&attachment.container), &attachment.interface);
    let own = || match config.kind {
        Kind::Memif | Kind::MemifIp => format!("memif-{container}-{interface}.sock"),
        Kind::VhostUser => format!("{container}-{interface}"),
    };
    config.file.clone().unwrap_or_else(own)
}

/// Where the pod finds its socket, on the host.
pub(super) fn socket_path(record: &SocketAttachment) -> PathBuf {
    record.what.shared.join(&record.what.file)
}

/// The directory of the ends is there, and the link of this pod.
pub(super) fn make_link(record: &SocketAttachment) -> Result<(), CniError> {
    let (link, to) = link_of(record);
    let make = || {
        make_seats(&record.what.shared)?;
        remove_link(&link, &to)?;
        symlink(&to, &link)
    };
    make().map_err(|error| CniError::failed(&format!("make the link {}", link.display()), error))
}

/// The directory of the ends, which the forwarder will listen in: one that a pod has put there, or a link of its, is none.
fn make_seats(shared: &Path) -> io::Result<()> {
    fs::create_dir_all(shared)?;
    let seats = shared.join(SEATS);
    match fs::create_dir(&seats) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(&seats)?;
    if found.is_dir() && found.uid() == geteuid().as_raw() {
        return Ok(());
    }
    let what =
        format!("{} is no directory of the plugin's own; remove it, and ask which pod put it there", seats.display());
    Err(io::Error::new(io::ErrorKind::AlreadyExists, what))
}

/// What the pod reads of its socket, as userspace-cni writes it without an API server.
pub(super) fn write_config(
    record: &SocketAttachment,
    config: &SocketConfig,
    addresses: &AddResult,
) -> Result<(), CniError> {
    let path = config_path(record);
    let write = || -> io::Result<()> {
        // It is made under a name that nobody knows before, and never through a link.
        let everybody_reads = Permissions::from_mode(0o644);
        let mut new =
            tempfile::Builder::new().prefix(".new-").permissions(everybody_reads).tempfile_in(&record.what.shared)?;
        new.write_all(told(record, config, addresses).to_string().as_bytes())?;
        new.persist(&path).map(drop).map_err(|error| error.error)
    };
    write().map_err(|error| CniError::failed(&format!("write {}", path.display()), error))
}

/// Nothing of the pod is left there.
pub(super) fn remove(record: &SocketAttachment) -> Result<(), CniError> {
    let (link, to) = link_of(record);
    let remove = || -> io::Result<()> {
        remove_link(&link, &to)?;
        if !record.what.forwarder_listens {
            gone(fs::remove_file(socket_path(record)))?;
        }
        gone(fs::remove_file(config_path(record)))
    };
    remove().map_err(|error| CniError::failed(&format!("remove {}", link.display()), error))
}

/// Whether the pod's link is there.
pub(super) fn has_link(record: &SocketAttachment) -> bool {
    let (link, to) = link_of(record);
    fs::read_link(link).is_ok_and(|is| is == to)
}

/// The link of a pod, and where it leads: within the directory that the pod has as a mount.
fn link_of(record: &SocketAttachment) -> (PathBuf, PathBuf) {
    let what = &record.what;
    let seat = seat_path(&what.shared, &record.network, what.pair, what.seat);
    if what.forwarder_listens {
        let to = Path::new(SEATS).join(seat.file_name().unwrap_or_default());
        return (socket_path(record), to);
    }
    (seat, Path::new("..").join(&what.file))
}

/// Another pod's link of the same name, or anything else, is not ours to remove.
fn remove_link(link: &Path, to: &Path) -> io::Result<()> {
    if fs::read_link(link).is_ok_and(|is| is == to) { gone(fs::remove_file(link)) } else { Ok(()) }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn config_path(record: &SocketAttachment) -> PathBuf {
    record.what.shared.join(format!("configData-{}-{}.json", short(&record.container), record.interface))
}

/// The block `container`, and what it does not say is the other side of `host`.
fn told(record: &SocketAttachment, config: &SocketConfig, addresses: &AddResult) -> Value {
    let mut told = config.container.clone();
    if !told.is_object() {
        told = json!({});
    }
    let default = |value: &mut Value, says: &str| {
        if value.as_str().is_none_or(str::is_empty) {
            *value = says.into();
        }
    };
    default(&mut told["engine"], &config.engine);
    default(&mut told["iftype"], config.kind.iftype());
    default(&mut told["netType"], "interface");
    let listens = config.forwarder_listens;
    let block = match config.kind {
        Kind::Memif | Kind::MemifIp => {
            let memif = &mut told["memif"];
            default(&mut memif["role"], if listens { "slave" } else { "master" });
            default(&mut memif["mode"], if config.kind == Kind::MemifIp { "ip" } else { "ethernet" });
            memif
        }
        Kind::VhostUser => {
            let vhost = &mut told["vhost"];
            default(&mut vhost["mode"], if listens { "client" } else { "server" });
            vhost
        }
    };
    block["socketfile"] = record.what.file.as_str().into();
    json!({
        "containerId": record.container,
        "ifName": record.interface,
        "name": record.network,
        "config": told,
        "ipResult": addresses.document(Version::V1_0_0),
    })
}
