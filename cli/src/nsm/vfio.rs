//! The device nodes of a VF that a connection has brought, as the clients in Go make them: where the device plugin gave a container none.

use std::path::Path;

use ferrule_nsm::proto::connection::Connection;
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// Makes those that are missing. Says what could not be made.
pub(super) fn make_nodes(connection: &Connection) -> Vec<String> {
    let nodes = nodes(connection);
    if nodes.is_empty() {
        return Vec::new();
    }
    // What of it is missing is told with the nodes.
    let _ = std::fs::create_dir_all(DIRECTORY);
    let made = nodes.iter().map(|(path, device)| {
        let path = Path::new(path);
        if path.exists() {
            return Ok(());
        }
        match mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), *device) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(format!(
                "make {}: {errno}; give the container its VF by a resource of device-plugin with `driver: vfio-pci`, or the capability MKNOD",
                path.display()
            )),
        }
    });
    made.filter_map(Result::err).collect()
}

/// By what the answer says.
fn nodes(connection: &Connection) -> Vec<(String, u64)> {
    let Some(mechanism) = connection.mechanism.as_ref().filter(|mechanism| mechanism.r#type == "VFIO") else {
        return Vec::new();
    };
    let number = |key: &str| mechanism.parameters.get(key)?.parse::<u64>().ok();
    let node = |name: String, major: &str, minor: &str| {
        Some((format!("{DIRECTORY}/{name}"), makedev(number(major)?, number(minor)?)))
    };
    let group = number("iommuGroup").and_then(|group| node(group.to_string(), "deviceMajor", "deviceMinor"));
    [node("vfio".to_owned(), "vfioMajor", "vfioMinor"), group].into_iter().flatten().collect()
}

const DIRECTORY: &str = "/dev/vfio";

#[cfg(test)]
mod tests {
    use ferrule_nsm::proto::connection::Mechanism;

    use super::*;

    #[test]
    fn the_nodes_of_a_vf_are_those_that_its_answer_numbers() {
        let parameters = [
            ("iommuGroup", "42"),
            ("vfioMajor", "10"),
            ("vfioMinor", "196"),
            ("deviceMajor", "240"),
            ("deviceMinor", "3"),
        ];
        let parameters = parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let mechanism = Mechanism { r#type: "VFIO".to_owned(), parameters, ..Mechanism::default() };
        let mut connection = Connection { mechanism: Some(mechanism), ..Connection::default() };
        let wanted = [("/dev/vfio/vfio".to_owned(), makedev(10, 196)), ("/dev/vfio/42".to_owned(), makedev(240, 3))];
        assert_eq!(nodes(&connection), wanted);
        let mechanism = connection.mechanism.get_or_insert_default();
        mechanism.parameters.insert("iommuGroup".to_owned(), "../42".to_owned());
        assert_eq!(nodes(&connection).len(), 1, "a path is no group");
        connection.mechanism = Some(Mechanism { r#type: "KERNEL".to_owned(), ..Mechanism::default() });
        assert!(make_nodes(&connection).is_empty());
    }
}
