//! What becomes of pods' devices, by resource: the networks of the plugin's configuration, as a file of the node that the CNI plugin reads.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Networks of all resources that have some.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networks {
    /// By what pods ask for.
    pub resources: BTreeMap<String, ResourceNetworks>,
}

/// Networks of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceNetworks {
    /// Its devices are endpoints of the forwarder; none: they are VFs.
    pub endpoints: Option<Endpoints>,
    /// Configurations as those of CNI plugins, each with a name. The first is for devices of pods that name none.
    pub networks: Vec<Value>,
}

/// Where the forwarder listens for the endpoints of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// `memif` or `vhost-user`.
    pub kind: String,
    /// It has a directory for each endpoint, called after it.
    pub directory: PathBuf,
    /// What the socket is called there.
    pub socket: String,
}

impl Networks {
    /// Reads the file. One that is not there has none: no plugin with networks has run since this machine started.
    pub fn read(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(contents) => Ok(serde_json::from_slice(&contents)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Writes the file. Whoever reads it finds the old one or the new one, whole.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(&new, path)
    }
}

/// Where the file is if nobody says otherwise.
pub const NETWORKS_DEFAULT: &str = "/run/ferrule/networks.json";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_no_file_is_no_network() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/networks.json");
        assert_eq!(Networks::read(&path).unwrap(), Networks::default());
        let endpoints = Endpoints { kind: "memif".into(), directory: "/run/s".into(), socket: "memif.sock".into() };
        let one = ResourceNetworks { endpoints: Some(endpoints), networks: vec![json!({ "name": "blue" })] };
        let networks = Networks { resources: [("intel.com/port".to_owned(), one)].into() };
        networks.write(&path).unwrap();
        assert_eq!(Networks::read(&path).unwrap(), networks);
        fs::write(&path, "{").unwrap();
        assert!(Networks::read(&path).is_err());
    }
}
