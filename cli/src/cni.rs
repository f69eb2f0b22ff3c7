//! `ferrule cni`: the CNI plugin comes to a node, chained behind the one that is there, and goes.
//!
//! Runtimes look into their folders at any moment, so each file is there whole, as it was or as it is to be. On the way in the program comes
//! first and then the entry that names it; on the way out the entry goes first.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use thiserror::Error;

use crate::CliError;

/// What can be done with it.
#[derive(Debug, Subcommand)]
pub enum CniCommand {
    /// Put the plugin where runtimes look for plugins, and chain it behind the node's network
    Install(InstallArgs),
    /// Take it out of every network, and remove it
    Remove(CniFolders),
}

/// Options of `ferrule cni install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    #[command(flatten)]
    place: CniFolders,
    /// The plugin's program; the one beside this one if nothing is said
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Only the program: no network is changed, as where Multus calls it
    #[arg(long)]
    unchained: bool,
}

/// Where a node has its plugins.
#[derive(Clone, Debug, Args)]
pub struct CniFolders {
    /// The node's root directory, as a container sees it
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub host: PathBuf,
    /// The runtime's folder of plugins, below it
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin: PathBuf,
    /// The runtime's folder of networks, below it
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf: PathBuf,
}

/// Does what was asked for, and says what was done.
pub fn run(command: &CniCommand) -> Result<(), CliError> {
    let done = match command {
        CniCommand::Install(args) => {
            let program = args.program.clone().map_or_else(beside_this_one, Ok)?;
            let mut done = args.place.install(&program)?;
            if !args.unchained {
                done += &args.place.chain()?;
            }
            done
        }
        CniCommand::Remove(place) => place.remove()?,
    };
    print!("{}", if done.is_empty() { "nothing had to be changed\n" } else { &done });
    Ok(())
}

/// Why a node does not have the plugin, or has it still.
#[derive(Debug, Error)]
pub enum CniCliError {
    /// A file cannot be read or written.
    #[error("{tried} {}: {error}", path.display())]
    File {
        /// What was tried.
        tried: &'static str,
        /// With which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// There is nothing to be chained behind.
    #[error("no network is in {}: install the cluster's own CNI first, or say --conf", .0.display())]
    NoNetwork(PathBuf),
    /// It is not what a runtime would read.
    #[error("{} is no list of plugins: {problem}", path.display())]
    NoList {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

impl CniFolders {
    /// Where everything is on a node as its distribution has it.
    pub fn usual(host: &Path) -> Self {
        Self { host: host.to_owned(), bin: "/opt/cni/bin".into(), conf: "/etc/cni/net.d".into() }
    }

    fn program(&self) -> PathBuf {
        self.below(&self.bin).join(PROGRAM)
    }

    fn below(&self, path: &Path) -> PathBuf {
        self.host.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn install(&self, program: &Path) -> Result<String, CniCliError> {
        let new = fs::read(program).map_err(|error| file("read", program, error))?;
        let path = self.program();
        if fs::read(&path).is_ok_and(|old| old == new) {
            return Ok(String::new());
        }
        replace(&path, &new, &|file| file.set_permissions(fs::Permissions::from_mode(0o755)))?;
        Ok(format!("{}: installed\n", path.display()))
    }

    /// Chains it behind the network that the runtime uses: the first of the folder.
    fn chain(&self) -> Result<String, CniCliError> {
        let conf = self.below(&self.conf);
        let networks = networks(&conf)?;
        let Some(path) = networks.first() else { return Err(CniCliError::NoNetwork(conf)) };
        let mut list = read_list(path)?;
        let plugins = plugins_of(&mut list).ok_or_else(|| CniCliError::NoList {
            path: path.clone(),
            problem: "it has one plugin and no key `plugins`; nothing can be chained behind it: make a .conflist of it"
                .to_owned(),
        })?;
        let entry = json!({ "type": PROGRAM, "devices": "pod", "capabilities": { ANNOTATIONS: true } });
        if plugins.last() == Some(&entry) && plugins.iter().filter(|plugin| is_ours(plugin)).count() == 1 {
            return Ok(String::new());
        }
        plugins.retain(|plugin| !is_ours(plugin));
        plugins.push(entry);
        write_list(path, &list)?;
        Ok(format!("{}: chained\n", path.display()))
    }

    /// Whether there is anything of it.
    pub fn is_empty(&self) -> bool {
        let has_entry = |path: &PathBuf| read_list(path).is_ok_and(|mut list| has_ours(&mut list));
        !self.program().exists() && !networks(&self.below(&self.conf)).unwrap_or_default().iter().any(has_entry)
    }

    /// Takes it out of every network, also of those that were used before.
    pub fn remove(&self) -> Result<String, CniCliError> {
        let mut done = String::new();
        for path in networks(&self.below(&self.conf))? {
            // Nothing of ours is in what cannot be read.
            let Ok(mut list) = read_list(&path) else { continue };
            if !has_ours(&mut list) {
                continue;
            }
            if let Some(plugins) = plugins_of(&mut list) {
                plugins.retain(|plugin| !is_ours(plugin));
            }
            write_list(&path, &list)?;
            let _ = writeln!(done, "{}: not chained any more", path.display());
        }
        let program = self.program();
        match fs::remove_file(&program) {
            Ok(()) => {
                let _ = writeln!(done, "{}: removed", program.display());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(file("remove", &program, error)),
        }
        Ok(done)
    }
}

/// As runtimes find them: by their endings, in the order of their names.
fn networks(folder: &Path) -> Result<Vec<PathBuf>, CniCliError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(file("list", folder, error)),
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let is_network = |path: &PathBuf| {
        path.extension().is_some_and(|ending| ["conf", "conflist", "json"].iter().any(|known| ending == *known))
    };
    let mut paths: Vec<_> = paths.filter(is_network).collect();
    paths.sort();
    Ok(paths)
}

fn read_list(path: &Path) -> Result<Value, CniCliError> {
    let contents = fs::read(path).map_err(|error| file("read", path, error))?;
    let problem = |error: serde_json::Error| CniCliError::NoList { path: path.to_owned(), problem: error.to_string() };
    serde_json::from_slice(&contents).map_err(problem)
}

fn plugins_of(list: &mut Value) -> Option<&mut Vec<Value>> {
    list.get_mut("plugins")?.as_array_mut()
}

fn has_ours(list: &mut Value) -> bool {
    plugins_of(list).is_some_and(|plugins| plugins.iter().any(is_ours))
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == PROGRAM
}

/// Owner and mode stay: a list may hold what not everybody is to read.
fn write_list(path: &Path, list: &Value) -> Result<(), CniCliError> {
    let mut text = serde_json::to_vec_pretty(list).unwrap_or_default();
    text.push(b'\n');
    let was = fs::metadata(path).map_err(|error| file("look at", path, error))?;
    replace(path, &text, &|file| {
        file.set_permissions(was.permissions())?;
        let is = file.metadata()?;
        if (is.uid(), is.gid()) == (was.uid(), was.gid()) {
            return Ok(());
        }
        chown(new_name(path), Some(was.uid()), Some(was.gid()))
    })
}

/// Whoever reads it finds the old one or the new one, whole. A machine that loses its power meanwhile has one of them as well.
fn replace(path: &Path, contents: &[u8], prepare: &dyn Fn(&File) -> io::Result<()>) -> Result<(), CniCliError> {
    let new = new_name(path);
    let write = || -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let _ = fs::remove_file(&new);
        let mut file = File::create_new(&new)?;
        io::Write::write_all(&mut file, contents)?;
        prepare(&file)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&new);
        file("write", path, error)
    })
}

/// No runtime takes a hidden file of this ending for a network or a plugin.
fn new_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.ferrule-new"))
}

fn beside_this_one() -> Result<PathBuf, CniCliError> {
    let this =
        std::env::current_exe().map_err(|error| file("find", Path::new("the program of this process"), error))?;
    Ok(this.with_file_name(PROGRAM))
}

fn file(tried: &'static str, path: &Path, error: io::Error) -> CniCliError {
    CniCliError::File { tried, path: path.to_owned(), error }
}

/// The plugin, and the type of its entries.
const PROGRAM: &str = "ferrule-cni";
/// The capability by which runtimes hand over a pod's annotations.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        folder: tempfile::TempDir,
        place: CniFolders,
    }

    impl Host {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let place = CniFolders::usual(folder.path());
            fs::create_dir_all(place.below(&place.conf)).unwrap();
            fs::write(folder.path().join("plugin"), "the program").unwrap();
            Self { folder, place }
        }

        fn conf(&self, name: &str) -> PathBuf {
            self.place.below(&self.place.conf).join(name)
        }

        fn install(&self) -> Result<String, CniCliError> {
            let done = self.place.install(&self.folder.path().join("plugin"))?;
            Ok(done + &self.place.chain()?)
        }

        fn types(&self, name: &str) -> Vec<String> {
            let mut list = read_list(&self.conf(name)).unwrap();
            let plugins = plugins_of(&mut list).unwrap().iter();
            plugins.map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
        }
    }

    const LIST: &str =
        r#"{"cniVersion": "1.0.0", "name": "k8s", "plugins": [{"type": "calico", "mtu": 0}, {"type": "portmap"}]}"#;

    #[test]
    fn the_plugin_is_chained_behind_the_first_network_once_and_goes_without_a_trace() {
        let host = Host::new();
        fs::write(host.conf("20-other.conflist"), LIST).unwrap();
        fs::write(host.conf("10-k8s.conflist"), LIST).unwrap();
        fs::set_permissions(host.conf("10-k8s.conflist"), fs::Permissions::from_mode(0o600)).unwrap();
        assert!(host.place.is_empty());
        let done = host.install().unwrap();
        assert_eq!(done.lines().count(), 2, "{done}");
        assert_eq!(host.install().unwrap(), "", "the second time changes nothing");
        assert_eq!(host.types("10-k8s.conflist"), ["calico", "portmap", PROGRAM]);
        assert_eq!(host.types("20-other.conflist"), ["calico", "portmap"]);
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(host.conf("10-k8s.conflist")), mode(host.place.program())), (0o600, 0o755));
        // An update; and another program has put its plugin behind ours.
        fs::write(host.folder.path().join("plugin"), "the next program").unwrap();
        let list = LIST.replace("}]}", r#"}, {"type": "ferrule-cni"}, {"type": "late"}]}"#);
        fs::write(host.conf("10-k8s.conflist"), list).unwrap();
        host.install().unwrap();
        assert_eq!(host.types("10-k8s.conflist"), ["calico", "portmap", "late", PROGRAM]);
        assert_eq!(fs::read(host.place.program()).unwrap(), b"the next program");
        assert!(!host.place.is_empty());

        // A network that is not the runtime's any more has an entry still.
        fs::copy(host.conf("10-k8s.conflist"), host.conf("30-old.conflist")).unwrap();
        let done = host.place.remove().unwrap();
        assert_eq!(done.lines().count(), 3, "{done}");
        assert_eq!(host.types("10-k8s.conflist"), ["calico", "portmap", "late"]);
        assert!(host.place.is_empty() && host.place.remove().unwrap().is_empty());
        let left = fs::read_dir(host.place.below(&host.place.conf)).unwrap().count();
        assert_eq!((left, fs::read_dir(host.place.below(&host.place.bin)).unwrap().count()), (3, 0));
    }

    #[test]
    fn what_cannot_be_chained_stays_as_it_is_and_is_named() {
        let host = Host::new();
        let error = host.install().unwrap_err().to_string();
        assert!(error.contains("no network is in") && error.contains("etc/cni/net.d"), "{error}");
        for (name, text, part) in [
            ("05-one.conf", r#"{"cniVersion": "1.0.0", "name": "one", "type": "ptp"}"#, "make a .conflist of it"),
            ("01-broken.conflist", "{", "01-broken.conflist is no list of plugins"),
        ] {
            fs::write(host.conf(name), text).unwrap();
            let error = host.install().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert_eq!(fs::read_to_string(host.conf(name)).unwrap(), text);
            host.place.remove().unwrap();
            assert_eq!(fs::read_to_string(host.conf(name)).unwrap(), text);
        }
    }
}
