//! Where the sockets of endpoints are: on the host, and in pods.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::pairs::is_endpoint;
use crate::config::SoftwareKind;

/// The directory that holds a directory for each endpoint.
#[derive(Clone, Debug)]
pub struct Place(PathBuf);

impl Place {
    /// This directory, which need not be there yet.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// What a socket is called in the directory of its endpoint.
    pub fn socket_name(kind: SoftwareKind) -> &'static str {
        match kind {
            SoftwareKind::Memif => "memif.sock",
            SoftwareKind::VhostUser => "vhost-user.sock",
        }
    }

    /// What is mounted into the pod that has an endpoint.
    pub fn directory(&self, id: &str) -> PathBuf {
        self.0.join(id)
    }

    /// Where the forwarder listens.
    pub fn socket(&self, id: &str, kind: SoftwareKind) -> PathBuf {
        self.directory(id).join(Self::socket_name(kind))
    }

    /// Whether somebody listens, or did.
    pub fn has_socket(&self, id: &str, kind: SoftwareKind) -> bool {
        self.socket(id, kind).exists()
    }

    /// Makes the directory of an endpoint. Only root comes to it on the host; a pod has it as a mount, whoever its user is.
    pub fn make(&self, id: &str) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        self.close()?;
        let directory = self.directory(id);
        fs::create_dir_all(&directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
    }

    /// Makes it accessible to its owner only, unless it has other things of others.
    fn close(&self) -> io::Result<()> {
        let of_others = fs::metadata(&self.0)?.permissions().mode() & 0o077;
        if of_others == 0 {
            return Ok(());
        }
        let is_ours = |name: &OsString| name.to_str().is_some_and(is_endpoint);
        if let Some(other) = names(&self.0)?.into_iter().find(|name| !is_ours(name)) {
            let (directory, other) = (self.0.display(), other.to_string_lossy());
            let problem = format!(
                "{directory} has {other}, which is no endpoint's, and others have access: name a directory that is nobody else's \
                 (--software-dir)"
            );
            return Err(io::Error::other(problem));
        }
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700))
    }

    /// Names of endpoints that have a directory.
    pub fn ids(&self) -> Vec<String> {
        let names = names(&self.0).unwrap_or_default().into_iter();
        names.filter_map(|name| name.into_string().ok()).filter(|name| is_endpoint(name)).collect()
    }

    /// Removes the directory of an endpoint that no pod has.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.directory(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// What an endpoint is called whose socket is here; none: it is not one of ours.
    pub fn id_of(&self, socket: &Path) -> Option<String> {
        let directory = socket.parent().filter(|directory| directory.parent() == Some(&self.0))?;
        Some(directory.file_name()?.to_str()?.to_owned())
    }
}

fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
}

/// Where a pod finds the directory of an endpoint.
pub fn container_path(id: &str) -> String {
    format!("{IN_CONTAINERS}/{id}")
}

/// Where it finds the socket.
pub fn container_socket(id: &str, kind: SoftwareKind) -> String {
    format!("{}/{}", container_path(id), Place::socket_name(kind))
}

/// What makes a port of DPDK of it. A name of a virtual device has no hyphen.
pub fn eal_argument(id: &str, kind: SoftwareKind) -> String {
    let (name, socket) = (id.strip_prefix("soft-").unwrap_or(id).replace('-', "_"), container_socket(id, kind));
    match kind {
        SoftwareKind::Memif => format!("--vdev=net_memif_{name},role=client,id=0,socket={socket},socket-abstract=no"),
        SoftwareKind::VhostUser => format!("--vdev=net_virtio_user_{name},path={socket},queues=1"),
    }
}

/// Short: a Unix address has 107 bytes.
const IN_CONTAINERS: &str = "/run/ferrule";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_pods_fit_into_an_address_and_those_on_the_host_lead_back() {
        let longest = format!("soft-{}-1023", "x".repeat(42));
        assert!(container_socket(&longest, SoftwareKind::VhostUser).len() <= 107);
        let argument = eal_argument(&longest, SoftwareKind::VhostUser);
        let name = argument.trim_start_matches("--vdev=").split(',').next().unwrap();
        assert!(name.len() <= 63, "{name}");
        let place = Place::at("/run/ferrule/software");
        let socket = place.socket("soft-a-1", SoftwareKind::Memif);
        assert_eq!(socket, Path::new("/run/ferrule/software/soft-a-1/memif.sock"));
        assert_eq!(place.id_of(&socket).as_deref(), Some("soft-a-1"));
        assert_eq!(place.id_of(Path::new("/run/other/soft-a-1/memif.sock")), None);
    }

    #[test]
    fn dpdk_is_told_what_it_knows() {
        assert_eq!(
            eal_argument("soft-sriov-net_a-0", SoftwareKind::Memif),
            "--vdev=net_memif_sriov_net_a_0,role=client,id=0,socket=/run/ferrule/soft-sriov-net_a-0/memif.sock,\
             socket-abstract=no"
        );
        let vhost = eal_argument("soft-b-1", SoftwareKind::VhostUser);
        assert_eq!(vhost, "--vdev=net_virtio_user_b_1,path=/run/ferrule/soft-b-1/vhost-user.sock,queues=1");
    }

    #[test]
    fn only_root_comes_to_a_directory_on_the_host_and_every_user_of_its_pod() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::at(directory.path().join("software"));
        place.make("soft-a-0").unwrap();
        place.make("soft-a-0").unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(directory.path().join("software")), mode(place.directory("soft-a-0"))), (0o700, 0o755));
        fs::write(place.socket("soft-a-0", SoftwareKind::Memif), "").unwrap();
        assert!(place.has_socket("soft-a-0", SoftwareKind::Memif));
        assert_eq!(place.ids(), ["soft-a-0"]);
        place.remove("soft-a-0").unwrap();
        place.remove("soft-a-0").unwrap();
        assert!(!place.directory("soft-a-0").exists());
    }

    #[test]
    fn a_directory_that_others_use_is_refused_and_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let shared = directory.path().join("shared");
        fs::create_dir(&shared).unwrap();
        let mode = || fs::metadata(&shared).unwrap().permissions().mode() & 0o777;
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(shared.join("admin.sock"), "").unwrap();
        let error = Place::at(&shared).make("soft-a-0").unwrap_err().to_string();
        assert!(error.contains("has admin.sock, which is no endpoint's") && mode() == 0o755, "{error}");
        // One that a plugin before made, or that the kubelet has just made for its mount.
        fs::remove_file(shared.join("admin.sock")).unwrap();
        Place::at(&shared).make("soft-a-0").unwrap();
        assert_eq!(mode(), 0o700);
    }
}
