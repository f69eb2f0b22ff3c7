//! An image as an OCI layout in a tar file, which `ctr images import`, `skopeo copy oci-archive:` and `docker load` take.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::image::{
    ANNOTATION_REF_NAME, Arch, Config, ConfigBuilder, Descriptor, DescriptorBuilder, Digest, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, PlatformBuilder, RootFsBuilder,
};
use serde::Serialize;
use serde_json::json;
use tar::{Builder, EntryType};
use thiserror::Error;

use crate::layer::{Layer, add, sha256};

/// An image to be written.
#[derive(Clone, Debug)]
pub struct Image {
    /// Such as `localhost/ferrule/device-plugin:0.1.0`.
    pub reference: String,
    /// The machine that it is for.
    pub arch: Arch,
    /// The lowest first.
    pub layers: Vec<Layer>,
    /// What is run.
    pub entry_point: String,
    /// Of the image, by `org.opencontainers.image.*` names.
    pub labels: HashMap<String, String>,
}

impl Image {
    /// Writes it, and tells the digest of its manifest.
    pub fn write(&self, path: &Path) -> Result<String, ImageError> {
        let mut blobs = Blobs::default();
        let layers = self
            .layers
            .iter()
            .map(|layer| blobs.add(MediaType::ImageLayerGzip, layer.compressed.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        let config = blobs.add_json(MediaType::ImageConfig, &self.config()?)?;
        let docker = json!([{
            "Config": blob_path(config.digest()),
            "RepoTags": [self.reference],
            "Layers": layers.iter().map(|layer| blob_path(layer.digest())).collect::<Vec<_>>(),
        }]);
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(layers)
            .build()?;
        let mut manifest = blobs.add_json(MediaType::ImageManifest, &manifest)?;
        let digest = manifest.digest().to_string();
        let tag = self.reference.rsplit(':').next().unwrap_or_default();
        let names = [(CONTAINERD_NAME, self.reference.as_str()), (ANNOTATION_REF_NAME, tag)];
        manifest.set_annotations(Some(names.map(|(key, value)| (key.to_owned(), value.to_owned())).into()));
        manifest.set_platform(Some(PlatformBuilder::default().os(Os::Linux).architecture(self.arch.clone()).build()?));
        let index = ImageIndexBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageIndex)
            .manifests(vec![manifest])
            .build()?;
        let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;
        let mut archive = Builder::new(File::create(path)?);
        let mut file = |name: &str, bytes: &[u8]| add(&mut archive, name, EntryType::Regular, 0o644, bytes);
        file("oci-layout", &to_json(&layout)?)?;
        file("index.json", &to_json(&index)?)?;
        // What docker asks for beside an OCI layout where its store is not containerd's.
        file("manifest.json", &to_json(&docker)?)?;
        for (name, bytes) in &blobs.0 {
            file(name, bytes)?;
        }
        archive.into_inner()?.sync_all()?;
        Ok(digest)
    }

    fn config(&self) -> Result<oci_spec::image::ImageConfiguration, ImageError> {
        let config: Config = ConfigBuilder::default()
            .entrypoint(vec![self.entry_point.clone()])
            .env(vec!["PATH=/usr/bin".to_owned()])
            .labels(self.labels.clone())
            .build()?;
        let diff_ids = self.layers.iter().map(|layer| format!("sha256:{}", layer.diff_id)).collect::<Vec<_>>();
        let root = RootFsBuilder::default().typ("layers").diff_ids(diff_ids).build()?;
        let builder = ImageConfigurationBuilder::default().os(Os::Linux).architecture(self.arch.clone());
        Ok(builder.config(config).rootfs(root).build()?)
    }
}

/// An image cannot be written.
#[derive(Debug, Error)]
pub enum ImageError {
    /// What it says of itself is not as the specification wants it.
    #[error("describe the image: {0}")]
    Describe(#[from] OciSpecError),
    /// It cannot be written as JSON.
    #[error("write what the image says of itself: {0}")]
    Json(#[from] serde_json::Error),
    /// Its file cannot be written.
    #[error("write the image: {0}")]
    Write(#[from] io::Error),
}

/// By their path in the layout.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    fn add(&mut self, kind: MediaType, bytes: Vec<u8>) -> Result<Descriptor, ImageError> {
        let digest: Digest = format!("sha256:{}", sha256(&bytes)).parse()?;
        let described =
            DescriptorBuilder::default().media_type(kind).digest(digest.clone()).size(bytes.len() as u64).build()?;
        self.0.insert(blob_path(&digest), bytes);
        Ok(described)
    }

    fn add_json(&mut self, kind: MediaType, value: &impl Serialize) -> Result<Descriptor, ImageError> {
        self.add(kind, to_json(value)?)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

/// By way of a value, whose keys are in order: those of the specification's maps are not.
fn to_json(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&serde_json::to_value(value)?)
}

/// What containerd calls an image that it imports.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
