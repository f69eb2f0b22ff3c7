//! Which image holds which programs.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use oci_spec::image::{ANNOTATION_LICENSES, ANNOTATION_TITLE, ANNOTATION_VERSION};
use thiserror::Error;

use crate::closure::{Program, ProgramError};
use crate::dpdk::{DpdkError, DpdkFiles};
use crate::image::{Image, ImageError};
use crate::layer::{Files, Layer};

/// Each has an image of its name, and a DaemonSet.
pub const DAEMONS: [&str; 3] = ["device-plugin", "dpdk-forwarder", "sriov-manager"];

/// Has an image of its name too, for the pods of service chains.
pub const FUNCTION: &str = "network-function";

/// The one that loads libdpdk.
const FORWARDER: &str = "dpdk-forwarder";

/// What a person types, in every image.
pub const COMMAND: &str = "ferrule";

/// In the image of the device plugin, which brings it to the node.
pub const CNI_PLUGIN: &str = "ferrule-cni";

/// The one that brings it.
const DEVICE_PLUGIN: &str = "device-plugin";

/// Makes the images.
#[derive(Clone, Debug)]
pub struct Product {
    /// Where the programs are that were built.
    pub binaries: PathBuf,
    /// What names of images begin with.
    pub prefix: String,
    /// What stands behind the colon.
    pub tag: String,
}

impl Product {
    /// Writes the images into a directory. Layers come from what changes least to what changes most, and the lower two are the same in
    /// all images, so that a node has them once. That of the forwarder has a third one with libdpdk, if it was built for it.
    pub fn write(&self, directory: &Path) -> Result<Vec<Written>, ProductError> {
        fs::create_dir_all(directory).map_err(|error| ProductError::File { path: directory.to_owned(), error })?;
        let mut libraries = BTreeSet::new();
        let mut arch = None;
        for name in DAEMONS.into_iter().chain([FUNCTION, COMMAND, CNI_PLUGIN]) {
            let program = Program::read(&self.binaries.join(name))?;
            arch = Some(program.arch);
            libraries.extend(program.libraries);
        }
        let arch = arch.unwrap_or_default();
        let dpdk = self.dpdk(&libraries)?;
        let (base, command) = (base(&libraries)?, self.program(COMMAND)?);
        let write = |main: &'static str| {
            let of_dpdk = dpdk.as_ref().filter(|_| main == FORWARDER);
            let layers = [Some(base.clone()), Some(command.clone()), of_dpdk.map(|(layer, _)| layer.clone())];
            let image = Image {
                reference: format!("{}/{main}:{}", self.prefix, self.tag),
                arch: arch.clone(),
                layers: layers.into_iter().flatten().chain([self.program(main)?]).collect(),
                entry_point: format!("{PROGRAMS}/{main}"),
                labels: self.labels(main, of_dpdk.is_some()),
            };
            let path = directory.join(format!("{main}.tar"));
            let digest = image.write(&path).map_err(|error| ProductError::Image { path: path.clone(), error })?;
            let compressed = image.layers.iter().map(|layer| layer.compressed.len()).sum();
            let unpacked = image.layers.iter().map(|layer| layer.unpacked_size).sum();
            let drivers = of_dpdk.map_or(0, |(_, drivers)| *drivers);
            Ok(Written { path, reference: image.reference, digest, compressed, unpacked, drivers })
        };
        DAEMONS.into_iter().chain([FUNCTION]).map(write).collect()
    }

    /// A layer of libdpdk without what is below, and how many drivers it has.
    fn dpdk(&self, below: &BTreeSet<PathBuf>) -> Result<Option<(Layer, usize)>, ProductError> {
        let forwarder = self.binaries.join(FORWARDER);
        let Some(dpdk) = DpdkFiles::of(&forwarder, &Program::read(&forwarder)?)? else { return Ok(None) };
        let mut files = Files::default();
        for path in dpdk.paths.difference(below) {
            files.add(path.display().to_string(), read(path)?, 0o755);
        }
        Ok(Some((pack(&files)?, dpdk.drivers.len())))
    }

    fn program(&self, name: &str) -> Result<Layer, ProductError> {
        let mut files = Files::default();
        files.add(format!("{PROGRAMS}/{name}"), stripped(&self.binaries.join(name))?, 0o755);
        if name == COMMAND {
            files.link(PROBE, format!("{PROGRAMS}/{COMMAND}"));
        }
        if name == DEVICE_PLUGIN {
            files.add(format!("{PROGRAMS}/{CNI_PLUGIN}"), stripped(&self.binaries.join(CNI_PLUGIN))?, 0o755);
        }
        pack(&files)
    }

    fn labels(&self, title: &str, has_dpdk: bool) -> HashMap<String, String> {
        let licenses = if has_dpdk { format!("{LICENSES} AND {DPDK_LICENSES}") } else { LICENSES.to_owned() };
        let labels = [(ANNOTATION_TITLE, title), (ANNOTATION_VERSION, &self.tag), (ANNOTATION_LICENSES, &licenses)];
        labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }
}

/// An image that was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its file.
    pub path: PathBuf,
    /// Its name and tag.
    pub reference: String,
    /// That of its manifest.
    pub digest: String,
    /// Bytes of its layers, as a registry has them.
    pub compressed: usize,
    /// Bytes of its layers, as a node has them.
    pub unpacked: usize,
    /// Drivers of DPDK in it.
    pub drivers: usize,
}

/// The images cannot be made.
#[derive(Debug, Error)]
pub enum ProductError {
    /// A program is not there, or not for images.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// libdpdk is not there.
    #[error(transparent)]
    Dpdk(#[from] DpdkError),
    /// A file that goes into them cannot be read, or their directory not be made.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A program cannot be freed of its symbols.
    #[error("strip {}: {words}; `strip` of the Debian package binutils is needed", path.display())]
    Strip {
        /// Which.
        path: PathBuf,
        /// What `strip` says.
        words: String,
    },
    /// A layer cannot be packed.
    #[error("pack a layer: {0}")]
    Pack(io::Error),
    /// One cannot be written.
    #[error("{}: {error}", path.display())]
    Image {
        /// Its file.
        path: PathBuf,
        /// Why not.
        error: ImageError,
    },
}

/// Libraries, and the names of root for flags such as `--socket-owner`.
fn base(libraries: &BTreeSet<PathBuf>) -> Result<Layer, ProductError> {
    let mut files = Files::default();
    for path in libraries {
        files.add(path.display().to_string(), read(path)?, 0o755);
    }
    files.add("/etc/passwd", b"root:x:0:0:root:/:/\n".to_vec(), 0o644);
    files.add("/etc/group", b"root:x:0:\n".to_vec(), 0o644);
    files.add("/usr/share/doc/ferrule/LICENSE", include_bytes!("../../LICENSE").to_vec(), 0o644);
    pack(&files)
}

/// A program without symbols: most of its size, and of use to a debugger only.
fn stripped(program: &Path) -> Result<Vec<u8>, ProductError> {
    let failed = |words: String| ProductError::Strip { path: program.to_owned(), words };
    let out = tempfile::NamedTempFile::new().map_err(|error| failed(error.to_string()))?;
    let run = Command::new("strip").arg("--strip-all").arg("-o").arg(out.path()).arg(program).output();
    let run = run.map_err(|error| failed(error.to_string()))?;
    if !run.status.success() {
        return Err(failed(String::from_utf8_lossy(&run.stderr).trim().to_owned()));
    }
    fs::read(out.path()).map_err(|error| failed(error.to_string()))
}

fn read(path: &Path) -> Result<Vec<u8>, ProductError> {
    fs::read(path).map_err(|error| ProductError::File { path: path.to_owned(), error })
}

fn pack(files: &Files) -> Result<Layer, ProductError> {
    Layer::pack(files).map_err(ProductError::Pack)
}

/// What the manifests of Network Service Mesh call in the image of a forwarder.
const PROBE: &str = "/bin/grpc-health-probe";
/// Where programs are in an image.
const PROGRAMS: &str = "/usr/bin";

/// Ours, that of the C library, and that of libgcc.
const LICENSES: &str = "Apache-2.0 AND LGPL-2.1-or-later AND GPL-3.0-or-later WITH GCC-exception-3.1";

/// That of libdpdk, and those of libnuma, libfdt and libbsd, which its drivers need.
const DPDK_LICENSES: &str = "BSD-3-Clause AND LGPL-2.1-only AND BSD-2-Clause";
