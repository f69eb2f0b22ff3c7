//! An endpoint that has addresses translated in its namespace, as those of proxies do.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use ferrule_ffi::netns::NetNs;

use super::cases::NsmCase;
use super::forwarder_cases::{Driven, FAR_IP};
use super::mesh::{Mesh, MeshOptions};
use super::pod::MeshPod;
use super::programs::Cast;
use crate::TIMEOUT;
use crate::need::Need;

/// All of them, with our own programs.
pub fn all() -> Vec<NsmCase> {
    vec![NsmCase {
        name: "an_endpoint_has_addresses_translated_by_its_template",
        cast: Cast::default(),
        options: MeshOptions::default(),
        needs: &[Need::Program { name: "iptables", package: "iptables" }],
        run: translated,
    }]
}

fn translated(mesh: &mut Mesh) -> Result<()> {
    let driven = Driven::new(mesh, |_| {})?;
    let pod = &driven.endpoint_pod;
    rules(pod, "-A POSTROUTING -s 192.0.2.1/32 -j ACCEPT")?;
    let before = rules(pod, "-S")?;
    let say = |key: &str, value: &str| {
        driven.endpoint.script().mechanisms[0].parameters.insert(key.to_owned(), value.to_owned());
    };
    say("routeLocalNet", "true");
    // What it wants is refused as a whole: nothing of it is done.
    say("IPTables4NatTemplate", "-N MESH;-A MESH --modprobe=/bin/true");
    let refused = driven.first().err().context("any option was taken")?;
    ensure!(refused.to_string().contains("--modprobe=/bin/true"), "{refused:#}");
    ensure!(rules(pod, "-S")? == before, "something is left of what was refused");
    driven.has_nothing_left()?;
    say("IPTables4NatTemplate", TEMPLATE);
    let known = driven.first()?;
    let during = rules(pod, "-S")?;
    ensure!(during.contains("-A MESH -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:8080"), "{during}");
    // It listens where only its own machine reaches it.
    let listener = NetNs::open(&pod.netns().path())?.run(|| TcpListener::bind("127.0.0.1:8080"))??;
    let serving = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"translated")
    });
    let to: SocketAddr = format!("{FAR_IP}:80").parse()?;
    let client = NetNs::open(&driven.client_pod.netns().path())?;
    let mut stream = client.run(|| TcpStream::connect_timeout(&to, TIMEOUT))?.context("connect to the endpoint")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    ensure!(text == "translated", "the endpoint has said {text:?}");
    serving.join().map_err(|_| anyhow::anyhow!("the listener panicked"))??;
    let known = driven.again(&known)?;
    ensure!(rules(pod, "-S")? == during, "a refresh has changed the rules");
    // Whoever comes in a killed forwarder's place takes them over.
    mesh.near().kill("forwarder")?;
    mesh.near().start_forwarder()?;
    let mut known = driven.again_soon(&known)?;
    ensure!(rules(pod, "-S")? == during, "after a restart the rules are others");
    driven.endpoint.script().mechanisms[0].parameters.remove("IPTables4NatTemplate");
    known = driven.again(&known)?;
    ensure!(rules(pod, "-S")? == before, "rules that the endpoint wants no more are there");
    say("IPTables4NatTemplate", TEMPLATE);
    known = driven.again(&known)?;
    driven.close(known)?;
    ensure!(rules(pod, "-S")? == before, "rules are left, or others are gone");
    driven.has_nothing_left()
}

/// What iptables says in a pod.
fn rules(pod: &MeshPod, arguments: &str) -> Result<String> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", pod.netns().name(), "iptables", "-t", "nat"]).args(arguments.split(' '));
    let output = command.output().context("run iptables")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

const TEMPLATE: &str = "-N MESH;-A MESH -p tcp --dport 80 -j DNAT --to-destination 127.0.0.1:8080;\
                        -I PREROUTING 1 -i {{ .NsmInterfaceName }} -d {{ index .NsmDstIPs 0 }}/32 -j MESH";
