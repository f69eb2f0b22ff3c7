//! Tells a CNI plugin of the node what becomes of pods' devices: the networks of all resources, in a file.

use std::path::PathBuf;

use device_plugin_client::networks::{Endpoints, Networks, ResourceNetworks};
use tracing::warn;

use crate::config::Config;
use crate::software::Place;

/// The file of the CNI plugin.
#[derive(Clone, Debug)]
pub struct NetworksFile {
    path: PathBuf,
    place: Place,
}

impl NetworksFile {
    /// At this path, for endpoints in this place.
    pub fn at(path: impl Into<PathBuf>, place: Place) -> Self {
        Self { path: path.into(), place }
    }

    /// From now on it says what the configuration says. The kubelet is told of a resource only then: no pod has a device of one that the
    /// file does not know.
    pub fn write(&self, config: &Config) {
        if let Err(error) = self.of(config).write(&self.path) {
            let file = self.path.display();
            warn!(%file, %error, "a CNI plugin does not learn of networks, and attaches pods as it knew them before");
        }
    }

    fn of(&self, config: &Config) -> Networks {
        let with_networks = config.resources.iter().filter(|resource| !resource.networks.is_empty());
        let resources = with_networks.map(|resource| {
            let endpoints = resource.software.as_ref().map(|software| Endpoints {
                kind: software.kind.word().to_owned(),
                directory: self.place.root().to_owned(),
                socket: Place::socket_name(software.kind).to_owned(),
            });
            (resource.name.to_string(), ResourceNetworks { endpoints, networks: resource.networks.clone() })
        });
        Networks { resources: resources.collect() }
    }
}
