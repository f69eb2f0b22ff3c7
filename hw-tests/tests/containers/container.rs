//! A container as a manifest describes it, of an image as we make it: a mount namespace, a root of its own, the volumes, the
//! capabilities.

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use ferrule_deploy::product::Product;
use ferrule_hw_tests::need::{Need, lacks, skip};
use ferrule_hw_tests::netns::TestNetNs;
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::{TIMEOUT, eventually};
use flate2::read::GzDecoder;
use serde_json::Value;
use tempfile::TempDir;

/// The container of a manifest.
pub struct Container {
    daemon: String,
    spec: Value,
    volumes: Vec<Value>,
}

impl Container {
    /// That of a daemon.
    pub fn of(daemon: &str) -> Self {
        let pod = &manifest(daemon, "daemonset.yaml")["spec"]["template"]["spec"];
        let volumes = pod["volumes"].as_array().unwrap().clone();
        Self { daemon: daemon.to_owned(), spec: pod["containers"][0].clone(), volumes }
    }

    /// With what a component adds.
    pub fn with(mut self, component: &str) -> Self {
        let patch = &manifest(&self.daemon, &format!("{component}/patch.yaml"))["spec"]["template"]["spec"];
        let more = &patch["containers"][0];
        for (key, value) in more["securityContext"].as_object().unwrap() {
            self.spec["securityContext"][key] = value.clone();
        }
        let mounts = self.spec["volumeMounts"].as_array_mut().unwrap();
        mounts.extend(more["volumeMounts"].as_array().unwrap().clone());
        self.volumes.extend(patch["volumes"].as_array().unwrap().clone());
        self
    }

    /// With no more rights than these capabilities, and the devices that it was given.
    pub fn unprivileged(mut self, capabilities: &[&str]) -> Self {
        self.spec["securityContext"]["privileged"] = false.into();
        self.spec["securityContext"]["capabilities"] = serde_json::json!({"drop": ["ALL"], "add": capabilities});
        self
    }

    /// A file of its ConfigMap.
    pub fn config(&self, file: &str) -> String {
        manifest(&self.daemon, "config.yaml")["data"][file].as_str().unwrap().to_owned()
    }

    fn args(&self) -> Vec<String> {
        let words = self.spec["args"].as_array().unwrap().iter();
        words.map(|word| word.as_str().unwrap().replace("$(HOST_IP)", "127.0.0.1")).collect()
    }

    fn port(&self) -> u16 {
        u16::try_from(self.spec["ports"][0]["containerPort"].as_u64().unwrap()).unwrap()
    }

    /// Names of the capabilities that its programs may have; none: all of them.
    fn capabilities(&self) -> Option<Vec<String>> {
        let context = &self.spec["securityContext"];
        if context["privileged"] == true {
            return None;
        }
        assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
        let added = context["capabilities"]["add"].as_array().cloned().unwrap_or_default();
        Some(added.iter().map(|name| format!("cap_{}", name.as_str().unwrap().to_lowercase())).collect())
    }

    /// Each mount: what of the host, where, and whether it may only be read.
    fn mounts(&self, node: &Node, config: &Path) -> Vec<(PathBuf, String, bool)> {
        let mount = |mount: &Value| {
            let volume = self.volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
            let source = match volume["hostPath"]["path"].as_str() {
                Some(path) => node.host(path),
                None if volume["emptyDir"].is_object() => node.folder("empty"),
                None => config.to_owned(),
            };
            (source, mount["mountPath"].as_str().unwrap().to_owned(), mount["readOnly"] == true)
        };
        self.spec["volumeMounts"].as_array().unwrap().iter().map(mount).collect()
    }
}

/// A made-up host: its own `/run` and `/var`, this machine's `/sys`, `/proc` and `/dev`, and unpacked images.
pub struct Node {
    images: &'static Path,
    folder: TempDir,
    netns: TestNetNs,
    next: Cell<u32>,
}

impl Node {
    /// With every image. None: it was said what lacks.
    pub fn new(test: &str) -> Option<Self> {
        if lacks(test, &[Need::Root, STRIP, CAPSH, UNSHARE, NSENTER, IP, TUN]) {
            return None;
        }
        let images = images(test)?;
        Some(Self { images, folder: tempfile::tempdir().unwrap(), netns: TestNetNs::new(), next: Cell::new(0) })
    }

    /// Where something of the host is.
    pub fn host(&self, path: &str) -> PathBuf {
        // Nobody had VFIO on here yet: no device is there, as on a node without.
        let is_real = ["/sys", "/proc", "/dev", "/run/netns"].iter().any(|real| path.starts_with(real));
        if is_real && Path::new(path).exists() {
            return PathBuf::from(path);
        }
        let made_up = self.folder.path().join("host").join(path.trim_start_matches('/'));
        fs::create_dir_all(&made_up).unwrap();
        made_up
    }

    /// An empty folder.
    pub fn folder(&self, name: &str) -> PathBuf {
        let number = self.next.replace(self.next.get() + 1);
        let path = self.folder.path().join(format!("{name}-{number}"));
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Runs a program of an image to its end.
    pub fn run(&self, image: &str, program: &str, args: &[&str]) -> (Option<i32>, String) {
        Process::start(&mut self.command(image, program, &words(args), &[], Some(&[]))).wait()
    }

    /// The same, with a folder as its `/etc/ferrule`.
    pub fn run_with(&self, config: &Path, image: &str, args: &[&str]) -> (Option<i32>, String) {
        let mounts = [(config.to_owned(), "/etc/ferrule".to_owned(), true)];
        Process::start(&mut self.command(image, image, &words(args), &mounts, Some(&[]))).wait()
    }

    /// Checks a configuration by the command line of the manifest.
    pub fn check(&self, container: &Container, file: &str, config: &str) -> (Option<i32>, String) {
        let args = [container.args(), vec!["--check".to_owned()]].concat();
        Process::start(&mut self.of(container, &container.daemon, &args, &[(file, config)])).wait()
    }

    /// Starts a daemon with files as its ConfigMap.
    pub fn start(&self, container: &Container, config: &[(&str, &str)]) -> Running<'_> {
        let process = Process::start(&mut self.of(container, &container.daemon, &container.args(), config));
        Running { netns: &self.netns, daemon: container.daemon.clone(), port: container.port(), process }
    }

    /// Runs another program of the image beside the daemon, with its sockets.
    pub fn exec(&self, running: &Running, program: &str, args: &[&str]) -> (Option<i32>, String) {
        let mounts = [(self.host("/run/ferrule"), "/run/ferrule".to_owned(), false)];
        Process::start(&mut self.command(&running.daemon, program, &words(args), &mounts, Some(&[]))).wait()
    }

    /// The init container of the overlay `uninstall`.
    pub fn uninstall(&self) -> (Option<i32>, String) {
        let mounts = [
            ("/run", "/host/run"),
            ("/var/lib", "/host/var/lib"),
            ("/dev/vfio", "/dev/vfio"),
            ("/run/netns", "/run/netns"),
        ]
        .map(|(source, target)| (self.host(source), target.to_owned(), false));
        let args = words(&["uninstall", "--host=/host"]);
        Process::start(&mut self.command("sriov-manager", "ferrule", &args, &mounts, None)).wait()
    }

    /// Files and directories of the host but those that were there before us: the kubelet's, and what is everybody's.
    pub fn left(&self) -> Vec<PathBuf> {
        let mut left = Vec::new();
        let mut folders = vec![self.folder.path().join("host")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if name.contains("ferrule") || (!path.is_dir() && name != "kubelet.sock") {
                    left.push(path.clone());
                }
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        left
    }

    fn of(&self, container: &Container, program: &str, args: &[String], config: &[(&str, &str)]) -> Command {
        let files = self.folder("config");
        for (name, text) in config {
            fs::write(files.join(name), text).unwrap();
        }
        let mounts = container.mounts(self, &files);
        self.command(&container.daemon, program, args, &mounts, container.capabilities().as_deref())
    }

    /// What a runtime does, in a few lines of shell. The root may only be read, so that mounts need their places first.
    fn command(
        &self,
        image: &str,
        program: &str,
        args: &[String],
        mounts: &[(PathBuf, String, bool)],
        capabilities: Option<&[String]>,
    ) -> Command {
        let image = self.images.join(image);
        let root = self.folder("root");
        let at = |target: &str| root.join(target.trim_start_matches('/')).display().to_string();
        let mut script = vec![format!("mount --bind {} {}", image.display(), at(""))];
        for (source, target, _) in mounts {
            let (above, _) = target.rsplit_once('/').unwrap();
            let make = if source.is_dir() { "mkdir -p" } else { "touch" };
            script.push(format!("mkdir -p {}; {make} {}", at(above), at(target)));
        }
        script.push(format!("mkdir -p {} {} {}; touch {}", at("proc"), at("sys"), at("dev"), at("dev/null")));
        script.push(format!("mount -o remount,bind,ro {}; mount --rbind /proc {}", at(""), at("proc")));
        script.push(format!("mount --bind /sys {}; mount --bind /dev/null {}", at("sys"), at("dev/null")));
        if capabilities.is_some() {
            script.push(format!("mount -o remount,bind,ro {}", at("sys")));
        }
        for (source, target, is_read_only) in mounts {
            script.push(format!("mount --rbind {} {}", source.display(), at(target)));
            if *is_read_only {
                script.push(format!("mount -o remount,bind,ro {}", at(target)));
            }
        }
        let drop = capabilities.map(|kept| format!("--no-new-privs --drop={}", all_but(kept).join(",")));
        let drop = drop.unwrap_or_default();
        script.push(format!("exec capsh {drop} --chroot={} --shell=/usr/bin/{program} -- \"$@\"", at("")));
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.path().display()));
        command.args(["unshare", "--mount", "sh", "-euc", &script.join("\n"), "sh"]).args(args);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs([("POD_NAME", "device-plugin-x"), ("POD_NAMESPACE", "ferrule")]);
        command
    }
}

/// A daemon that runs. Ends with this value.
pub struct Running<'a> {
    netns: &'a TestNetNs,
    daemon: String,
    port: u16,
    process: Process,
}

impl Running<'_> {
    /// Waits until its probe says that it is ready.
    pub fn until_ready(&self) {
        eventually(&format!("{} is ready", self.daemon), || self.try_page("/readyz").starts_with("HTTP/1.1 200"));
        assert!(self.page("/livez").starts_with("HTTP/1.1 200"));
    }

    /// A page of it, with what stands above it.
    pub fn page(&self, path: &str) -> String {
        let page = self.try_page(path);
        assert!(!page.is_empty(), "{} does not answer:\n{}", self.daemon, self.process.output());
        page
    }

    /// Ends it as the kubelet does.
    pub fn stop(self) {
        let said = self.process.stop();
        assert!(said.contains("stopp"), "{}: {said}", self.daemon);
    }

    /// Nothing: nobody answers.
    fn try_page(&self, path: &str) -> String {
        let address = ([127, 0, 0, 1], self.port).into();
        let Ok(mut stream) = self.netns.run(|| TcpStream::connect_timeout(&address, TIMEOUT)) else {
            std::thread::sleep(Duration::from_millis(20));
            return String::new();
        };
        let mut page = String::new();
        let asked = write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        // Whoever ends meanwhile has said nothing.
        let _ = asked.and_then(|()| stream.read_to_string(&mut page));
        page
    }
}

/// Made of the programs beside this one. None: it was said that they are not there.
pub fn product(test: &str) -> Option<Product> {
    let here = std::env::current_exe().unwrap();
    let binaries = here.parent()?.parent()?.to_owned();
    let programs = ["device-plugin", "dpdk-forwarder", "network-function", "sriov-manager", "ferrule"];
    if let Some(program) = programs.into_iter().find(|program| !binaries.join(program).exists()) {
        skip(test, &format!("{program} (cargo build --workspace)"));
        return None;
    }
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Some(Product { binaries, prefix: "localhost/ferrule".to_owned(), tag: version })
}

/// Made and unpacked, once for all tests: for each a file and a folder. None: it was said what lacks.
pub fn images(test: &str) -> Option<&'static Path> {
    static IMAGES: OnceLock<PathBuf> = OnceLock::new();
    let product = product(test)?;
    let unpacked = IMAGES.get_or_init(|| {
        let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
        // Of a run before; it may not be there.
        let _ = fs::remove_dir_all(&all);
        for image in product.write(&all).unwrap() {
            unpack(&image.path, &all.join(image.path.file_stem().unwrap()));
        }
        all
    });
    Some(unpacked)
}

/// The folder `deploy`.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy")
}

fn manifest(daemon: &str, file: &str) -> Value {
    let path = deploy().join("chart/manifests").join(daemon).join(file);
    serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// As a runtime does: layer by layer, as the manifest names them.
fn unpack(image: &Path, root: &Path) {
    let layout = tempfile::tempdir().unwrap();
    tar::Archive::new(fs::File::open(image).unwrap()).unpack(layout.path()).unwrap();
    let json = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blob =
        |descriptor: &Value| layout.path().join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"));
    let index = json(&layout.path().join("index.json"));
    let manifest = json(&blob(&index["manifests"][0]));
    for layer in manifest["layers"].as_array().unwrap() {
        let mut archive = tar::Archive::new(GzDecoder::new(fs::File::open(blob(layer)).unwrap()));
        archive.unpack(root).unwrap();
    }
}

/// All that this kernel knows, without some.
fn all_but(kept: &[String]) -> Vec<String> {
    let shown = Command::new("capsh").arg("--print").output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let all = shown.lines().find_map(|line| line.strip_prefix("Bounding set =")).unwrap();
    all.split(',').map(str::to_owned).filter(|name| !kept.contains(name)).collect()
}

fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|&word| word.to_owned()).collect()
}

/// What images are made with.
pub const STRIP: Need = Need::Program { name: "strip", package: "binutils" };
const CAPSH: Need = Need::Program { name: "capsh", package: "libcap2-bin" };
const UNSHARE: Need = Need::Program { name: "unshare", package: "util-linux" };
const NSENTER: Need = Need::Program { name: "nsenter", package: "util-linux" };
const IP: Need = Need::Program { name: "ip", package: "iproute2" };
const TUN: Need = Need::Device { path: "/dev/net/tun", cure: "modprobe tun" };
