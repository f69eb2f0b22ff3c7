//! The service chain of `deploy/examples`, as it is written there: each container's command runs in a namespace in the place of its pod.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferrule_nsm::proto::registry::{Destination, Match, NetworkService};
use serde_json::Value;

use crate::TIMEOUT;
use crate::nsm::cases::wait_until;
use crate::nsm::chain::{PAGE, get, register, serve_page};
use crate::nsm::mesh::{Mesh, client_name};
use crate::nsm::pod::MeshPod;
use crate::nsm::programs::ours;
use crate::process::Process;

/// Its client reaches port 80 of its gateway, and not port 8080.
pub(super) fn secure_intranet(mesh: &mut Mesh) -> Result<()> {
    let example = Example::read(mesh)?;
    register(mesh, &example.service()?)?;
    let deployments: Vec<_> = example.of_kind("Deployment").cloned().collect();
    let mut pods = Vec::new();
    for deployment in &deployments {
        let name = text(deployment, "/metadata/name")?;
        let pod = MeshPod::new();
        let process = example.start(mesh, &pod, name, &deployment["spec"]["template"])?;
        process.wait_for(": registered");
        pods.push((name, pod, process));
    }
    let client = MeshPod::new();
    let asking = example.of_kind("Pod").next().context("the example has a client")?;
    let process = example.start(mesh, &client, &client_name(0), asking)?;
    mesh.wait_connected(&process);

    let (_, gateway, _) = pods.iter().find(|(name, ..)| *name == "vpn-gateway").context("the example has a gateway")?;
    let servers = [80, 8080].map(|port| serve_page(gateway, port));
    let target = "172.16.1.0";
    client.wait_ping(target, TIMEOUT)?;
    let target: IpAddr = target.parse()?;
    let page = get(&client, target, 80, LIMIT)?;
    ensure!(page == PAGE, "port 80 gives {page:?}");
    let shut = get(&client, target, 8080, LIMIT);
    ensure!(shut.is_err(), "port 8080 gives {shut:?}");
    drop(servers);
    process.stop();
    client.wait_interfaces(0, TIMEOUT)?;
    gateway.wait_interfaces(0, TIMEOUT)?;
    wait_until("no wire is left", || Ok(!mesh.near().has_wire()?))
}

/// The documents, and a folder with the files of their ConfigMap.
struct Example {
    documents: Vec<Value>,
    files: PathBuf,
}

impl Example {
    fn read(mesh: &Mesh) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/secure-intranet.yaml");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let example = Self { documents: serde_saphyr::from_multiple(&text)?, files: mesh.path("example") };
        fs::create_dir_all(&example.files)?;
        let files = example.of_kind("ConfigMap").filter_map(|map| map["data"].as_object()).flatten();
        for (name, contents) in files {
            fs::write(example.files.join(name), contents.as_str().context("a ConfigMap has texts")?)?;
        }
        Ok(example)
    }

    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.documents.iter().filter(move |document| document["kind"] == kind)
    }

    fn service(&self) -> Result<NetworkService> {
        let document = self.of_kind("NetworkService").next().context("the example has a service")?;
        // None at all is none.
        let labels = |selector: &Value| -> Result<_> {
            let labels: Option<BTreeMap<_, _>> = serde_json::from_value(selector.clone())?;
            Ok(labels.unwrap_or_default())
        };
        let one = |rule: &Value| -> Result<Match> {
            let routes = rule["routes"].as_array().context("a match has routes")?;
            let route = |route: &Value| -> Result<_> {
                Ok(Destination { destination_selector: labels(&route["destination_selector"])?, weight: 0 })
            };
            Ok(Match {
                source_selector: labels(&rule["source_selector"])?,
                routes: routes.iter().map(route).collect::<Result<_>>()?,
                ..Match::default()
            })
        };
        let matches = document["spec"]["matches"].as_array().context("the service has matches")?;
        Ok(NetworkService {
            name: text(document, "/metadata/name")?.to_owned(),
            payload: text(document, "/spec/payload")?.to_owned(),
            matches: matches.iter().map(one).collect::<Result<_>>()?,
            ..NetworkService::default()
        })
    }

    /// Runs what the first container of a pod runs, with the sockets of this mesh in the place of the node's.
    fn start(&self, mesh: &mut Mesh, pod: &MeshPod, name: &str, of: &Value) -> Result<Process> {
        let container = &of["spec"]["containers"][0];
        let entry_point = ["network-function".to_owned()];
        let words = |key: &str| -> Vec<String> {
            let words = container[key].as_array().into_iter().flatten();
            words.filter_map(|word| word.as_str()).map(|word| self.here(word)).collect()
        };
        let command = words("command");
        let command = if command.is_empty() { &entry_point[..] } else { &command };
        let mut run = pod.command(&ours(&command[0])?);
        run.args(&command[1..]).args(words("args"));
        let variables =
            container["env"].as_array().into_iter().flatten().filter_map(|variable| variable["name"].as_str());
        let variables: Vec<_> = variables.collect();
        ensure!(variables == ["NSM_NAME", "NSM_CONNECT_TO", "SPIFFE_ENDPOINT_SOCKET"], "{name} is told {variables:?}");
        mesh.common.set(&mut run, name);
        run.env("NSM_CONNECT_TO", mesh.near().manager_url());
        if of["kind"] != "Pod" {
            run.arg("--listen-on").arg(mesh.path(&format!("{name}.sock")));
        }
        Ok(Process::start(&mut run))
    }

    /// A word of a command line, where the folder of the ConfigMap is another one.
    fn here(&self, word: &str) -> String {
        word.replace("/etc/ferrule", &self.files.display().to_string())
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("the example has no {pointer}"))
}

/// As the client of the example waits.
const LIMIT: Duration = Duration::from_secs(2);
