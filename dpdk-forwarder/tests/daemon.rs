//! A whole forwarder in this process: file, admin API, reload, metrics and drain, with real memif listeners in a
//! temporary directory. Needs no privilege.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dpdk_forwarder::admin::{AdminClient, Secrets, connect, spec_to_proto, v1};
use dpdk_forwarder::config::{WiresFile, parse_wire};
use dpdk_forwarder::{Forwarder, Options};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn the_wires_of_the_file_are_served_and_listed() {
    let lab = Lab::new(&["a", "b"]);
    let forwarder = lab.start().await;
    let mut client = lab.client().await;

    let wires = list(&mut client).await;
    assert_eq!(names(&wires), ["a", "b"]);
    assert!(wires.iter().all(|wire| wire.origin() == v1::Origin::File && wire.ends.len() == 2));
    assert_eq!(wires[0].ends[0].state, "listening");
    assert!(lab.socket("a", 0).exists());
    forwarder.stop().await;
    assert!(!lab.admin().exists(), "the admin socket goes with the forwarder");
    assert!(!lab.socket("a", 0).exists(), "and so do the wires' sockets");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_comes_and_goes_by_the_admin_api() {
    let lab = Lab::new(&["of-file"]);
    let forwarder = lab.start().await;
    let mut client = lab.client().await;
    let remove = |name: &str| v1::RemoveWireRequest { name: name.to_owned() };

    assert_eq!(put(&mut client, &lab.wire("mine")).await.unwrap(), (v1::Change::Made, 1));
    let wires = list(&mut client).await;
    assert_eq!(names(&wires), ["mine", "of-file"]);
    assert_eq!((wires[0].origin(), wires[0].persistent), (v1::Origin::Admin, false));

    assert_eq!(put(&mut client, &lab.wire("of-file")).await.unwrap_err().code(), Code::FailedPrecondition);
    let nothing = v1::PutWireRequest { wire: Some(v1::WireSpec::default()), persist: None };
    let wrong = client.put_wire(nothing).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let told: Vec<_> = wrong.message().lines().collect();
    assert_eq!(told[0], "ends: a wire has exactly two ends, not 0");
    assert!(told[1].starts_with("name: "), "{told:?}");
    let persist = v1::PutWireRequest { wire: Some(spec(&lab.wire("kept"))), persist: Some(true) };
    let refused = client.put_wire(persist).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("has no journal; start it with `--journal PATH`"), "{}", refused.message());

    assert_eq!(client.remove_wire(remove("of-file")).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(client.remove_wire(remove("nobody")).await.unwrap_err().code(), Code::NotFound);
    client.remove_wire(remove("mine")).await.unwrap();
    assert_eq!(names(&list(&mut client).await), ["of-file"]);
    forwarder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_put_twice_is_unchanged_and_what_no_peer_sees_changes_in_place() {
    let lab = Lab::new(&[]);
    let forwarder = lab.start().await;
    let mut client = lab.client().await;
    assert_eq!(put(&mut client, &lab.wire("w")).await.unwrap(), (v1::Change::Made, 1));
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(lab.socket("w", 0)).unwrap());
    let before = inode();
    assert_eq!(put(&mut client, &lab.wire("w")).await.unwrap(), (v1::Change::Unchanged, 1));
    let dropping = lab.wire("w").replace("{ name: w", "{ name: w, full: drop, owner: '', labels: {app: nat}");
    assert_eq!(put(&mut client, &dropping).await.unwrap(), (v1::Change::Updated, 2));
    assert_eq!(inode(), before, "its sockets stayed");

    let foreign = dropping.replace("owner: ''", "owner: nsm");
    let refused = put(&mut client, &foreign).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("belongs to nobody in particular"), "{}", refused.message());

    put(&mut client, &lab.wire("other").replace("{ name: other", "{ name: other, owner: nsm")).await.unwrap();
    let found = |owner: Option<&str>, label: Option<(&str, &str)>| v1::ListWiresRequest {
        owner: owner.map(str::to_owned),
        labels: label.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
    };
    for (filter, expected) in [
        (found(None, None), &["other", "w"][..]),
        (found(Some("nsm"), None), &["other"]),
        (found(Some(""), None), &["w"]),
        (found(None, Some(("app", "nat"))), &["w"]),
        (found(Some("nsm"), Some(("app", "nat"))), &[]),
    ] {
        assert_eq!(names(&client.list_wires(filter).await.unwrap().into_inner().wires), expected);
    }
    forwarder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_told_by_no_list() {
    let lab = Lab::new(&[]);
    let forwarder = lab.start().await;
    let mut client = lab.client().await;
    put(&mut client, &lab.wire("w").replace("role: server", "role: server, secret: hunter2")).await.unwrap();
    assert!(!format!("{:?}", list(&mut client).await).contains("hunter2"));
    forwarder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wires_that_persist_are_there_after_a_restart_and_the_others_are_not() {
    let lab = Lab::new(&["of-file"]);
    let options = || {
        let mut options = lab.options();
        options.config.journal = Some(lab.directory.path().join("state/wires.journal"));
        options
    };
    let forwarder = soon(Forwarder::start(options())).await.unwrap();
    let mut client = lab.client().await;
    put(&mut client, &lab.wire("kept").replace("role: server", "role: server, secret: hunter2")).await.unwrap();
    put(&mut client, &lab.wire("changed")).await.unwrap();
    put(&mut client, &lab.wire("changed").replace("{ name", "{ full: drop, name")).await.unwrap();
    put(&mut client, &lab.wire("removed")).await.unwrap();
    client.remove_wire(v1::RemoveWireRequest { name: "removed".to_owned() }).await.unwrap();
    let once = v1::PutWireRequest { wire: Some(spec(&lab.wire("once"))), persist: Some(false) };
    client.put_wire(once).await.unwrap();
    // What cannot be made is not remembered either.
    fs::create_dir(lab.socket("impossible", 0)).unwrap();
    put(&mut client, &lab.wire("impossible")).await.unwrap_err();
    forwarder.stop().await;

    let forwarder = soon(Forwarder::start(options())).await.unwrap();
    let wires = list(&mut lab.client().await).await;
    assert_eq!(names(&wires), ["changed", "kept", "of-file"]);
    assert_eq!((wires[0].full.as_str(), wires[1].persistent, wires[2].persistent), ("drop", true, false));
    assert!(wires.iter().all(|wire| wire.ends[0].state == "listening"));
    forwarder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_only_the_journal_remembers_can_be_removed_there() {
    let lab = Lab::new(&[]);
    let options = || {
        let mut options = lab.options();
        options.config.journal = Some(lab.directory.path().join("wires.journal"));
        options
    };
    let forwarder = soon(Forwarder::start(options())).await.unwrap();
    put(&mut lab.client().await, &lab.wire("both")).await.unwrap();
    forwarder.stop().await;

    lab.write(&lab.file(&["both"]));
    let forwarder = soon(Forwarder::start(options())).await.unwrap();
    let mut client = lab.client().await;
    assert_eq!(list(&mut client).await[0].origin(), v1::Origin::File);
    let remove = || v1::RemoveWireRequest { name: "both".to_owned() };
    assert!(client.remove_wire(remove()).await.unwrap().into_inner().journal_only);
    assert_eq!(client.remove_wire(remove()).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(names(&list(&mut client).await), ["both"], "that of the file stays");
    forwarder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_of_events_hears_what_happens_to_wires_and_an_end() {
    let lab = Lab::new(&[]);
    let forwarder = lab.start().await;
    let mut client = lab.client().await;
    let mut events = client.watch_events(v1::WatchEventsRequest {}).await.unwrap().into_inner();
    put(&mut client, &lab.wire("w")).await.unwrap();
    client.remove_wire(v1::RemoveWireRequest { name: "w".to_owned() }).await.unwrap();
    let mut heard = Vec::new();
    soon(async {
        while !matches!(heard.last(), Some(v1::wire_event::Change::Removed(_))) {
            let event = events.message().await.unwrap().expect("the forwarder serves");
            assert_eq!(event.wire, "w");
            heard.extend(event.change);
        }
    })
    .await;
    assert!(matches!(heard[0], v1::wire_event::Change::Made(_)), "{heard:?}");
    soon(forwarder.stop()).await;
    soon(async { while let Ok(Some(_)) = events.message().await {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_followed_and_a_bad_one_changes_nothing() {
    let lab = Lab::new(&["stays", "goes"]);
    let forwarder = lab.start().await;
    let mut client = lab.client().await;
    put(&mut client, &lab.wire("mine")).await.unwrap();
    let inode = |name: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(lab.socket(name, 0)).unwrap());
    let before = inode("stays");

    lab.write("wires: [{ name: broken }]\n");
    lab.write(&lab.file(&["stays", "comes"]));
    until_names(&mut client, &["comes", "mine", "stays"]).await;
    assert_eq!(inode("stays"), before, "what did not change was not touched");

    lab.write("wires: [{ name: broken }]\n");
    lab.write(&lab.file(&["stays"]));
    until_names(&mut client, &["mine", "stays"]).await;
    forwarder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_cannot_be_made_is_told_and_made_when_its_cause_is_gone() {
    let lab = Lab::new(&["good", "bad"]);
    // A directory where the socket should be: nobody can listen there.
    fs::create_dir(lab.socket("bad", 0)).unwrap();
    let forwarder = lab.start().await;
    let mut client = lab.client().await;

    let wires = list(&mut client).await;
    assert_eq!(names(&wires), ["bad", "good"]);
    assert!(wires[0].ends.iter().all(|end| end.state == "failed"), "{:?}", wires[0]);
    assert!(wires[0].ends[0].detail.contains("a file that is not a socket is there"), "{:?}", wires[0]);
    assert_eq!(wires[0].ends[1].detail, "not made, because the other end cannot be", "not the error of end 0");
    assert_eq!(wires[1].ends[0].state, "listening");

    fs::remove_dir(lab.socket("bad", 0)).unwrap();
    until(&mut client, |wires| wires[0].ends[0].state == "listening").await;
    forwarder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_page_tells_wires_and_health() {
    let lab = Lab::new(&["a"]);
    let forwarder = lab.start().await;
    let address = forwarder.metrics().unwrap();

    let metrics = get(address, "/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
    assert!(metrics.contains("content-type: application/openmetrics-text"), "{metrics}");
    assert!(metrics.contains("ferrule_wire_up{wire=\"a\"} 0"), "{metrics}");
    assert!(metrics.contains("state=\"listening\"} 1"), "{metrics}");
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    forwarder.stop().await;
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn that_the_file_is_refused_is_in_every_list_and_a_metric_until_it_is_right() {
    let lab = Lab::new(&["a"]);
    let forwarder = lab.start().await;
    let (address, mut client) = (forwarder.metrics().unwrap(), lab.client().await);
    assert!(get(address, "/metrics").await.contains("\nferrule_wires_refused 0\n"));
    let request = v1::WatchWiresRequest { interval_ms: 100, filter: None };
    let mut watch = client.watch_wires(request).await.unwrap().into_inner();
    let mut next = async || watch.message().await.unwrap().expect("the forwarder serves").file_problems;

    lab.write("wires: [{ name: broken }]\n");
    let problems = soon(async {
        loop {
            let problems = next().await;
            if !problems.is_empty() {
                break problems;
            }
        }
    });
    assert!(problems.await[0].contains("wires.yaml:1:"), "the first error of the file, at its line");
    assert!(get(address, "/metrics").await.contains("\nferrule_wires_refused 1\n"));
    lab.write(&lab.file(&["a"]));
    soon(async { while !next().await.is_empty() {} }).await;
    assert!(get(address, "/metrics").await.contains("\nferrule_wires_refused 0\n"));
    forwarder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_gets_a_list_at_once_and_again_and_an_end_when_the_forwarder_stops() {
    let lab = Lab::new(&["a"]);
    let forwarder = lab.start().await;
    let request = v1::WatchWiresRequest { interval_ms: 100, filter: None };
    let mut watch = lab.client().await.watch_wires(request).await.unwrap().into_inner();
    let first = soon(watch.message()).await.unwrap().unwrap();
    let second = soon(watch.message()).await.unwrap().unwrap();
    assert!(second.monotonic_ns > first.monotonic_ns);
    soon(forwarder.stop()).await;
    soon(async { while let Ok(Some(_)) = watch.message().await {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_forwarder_which_answers_before_its_wires_are_there() {
    use tonic_health::pb::health_check_response::ServingStatus;
    let lab = Lab::new(&["a"]);
    let mut forwarder = soon(Forwarder::launch(lab.options())).await.unwrap();
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", lab.admin().display())).unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(endpoint.connect().await.unwrap());
    list(&mut lab.client().await).await;
    assert!(get(forwarder.metrics().unwrap(), "/healthz").await.ends_with("starting\n"));
    for expected in [ServingStatus::NotServing, ServingStatus::Serving] {
        for service in ["", "ferrule.admin.v1.Admin"] {
            let request = || tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
            // Health follows the phase a moment later.
            soon(async { while health.check(request()).await.unwrap().into_inner().status() != expected {} }).await;
        }
        soon(forwarder.ready()).await.unwrap();
    }
    assert_eq!(names(&list(&mut lab.client().await).await), ["a"]);
    forwarder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_forwarder_at_the_same_socket_is_refused() {
    let lab = Lab::new(&["a"]);
    let forwarder = lab.start().await;
    let error = Forwarder::start(lab.options()).await.err().expect("refused").to_string();
    assert!(error.contains("another forwarder answers there"), "{error}");
    assert_eq!(names(&list(&mut lab.client().await).await), ["a"], "the first one goes on");
    forwarder.stop().await;
}

/// A directory with a wires file and everything the forwarder makes.
struct Lab {
    directory: TempDir,
}

impl Lab {
    fn new(wires: &[&str]) -> Self {
        let lab = Self { directory: tempfile::tempdir().unwrap() };
        lab.write(&lab.file(wires));
        lab
    }

    fn admin(&self) -> PathBuf {
        self.directory.path().join("run/admin.sock")
    }

    fn socket(&self, wire: &str, end: usize) -> PathBuf {
        self.directory.path().join(format!("{wire}-{end}.sock"))
    }

    /// A wire between two listeners, on one line.
    fn wire(&self, name: &str) -> String {
        let end = |index| format!("{{ memif: {{ socket: {}, role: server }} }}", self.socket(name, index).display());
        format!("{{ name: {name}, ends: [{}, {}] }}", end(0), end(1))
    }

    fn file(&self, wires: &[&str]) -> String {
        let entries = wires.iter().map(|name| format!("  - {}", self.wire(name))).collect::<Vec<_>>().join("\n");
        format!("admin: {}\nmetrics: 127.0.0.1:0\nwires:\n{entries}\n", self.admin().display())
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("wires.yaml")
    }

    /// Replaces the file as editors do.
    fn write(&self, text: &str) {
        let fresh = self.directory.path().join(".wires.yaml.new");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.path()).unwrap();
    }

    fn options(&self) -> Options {
        let file = WiresFile::load(&self.path()).unwrap();
        Options {
            config: file.config.clone(),
            file: Some(file),
            by_flag: Vec::new(),
            drain_grace: Duration::from_millis(100),
        }
    }

    async fn start(&self) -> Forwarder {
        soon(Forwarder::start(self.options())).await.unwrap()
    }

    async fn client(&self) -> AdminClient {
        connect(Path::new(&self.admin())).await.unwrap()
    }
}

/// One entry of a wires file as the API has it.
fn spec(yaml: &str) -> v1::WireSpec {
    spec_to_proto(&parse_wire(yaml).unwrap(), Secrets::Shown)
}

async fn put(client: &mut AdminClient, yaml: &str) -> Result<(v1::Change, u64), tonic::Status> {
    let request = v1::PutWireRequest { wire: Some(spec(yaml)), persist: None };
    let answer = client.put_wire(request).await?.into_inner();
    Ok((answer.change(), answer.generation))
}

async fn list(client: &mut AdminClient) -> Vec<v1::Wire> {
    client.list_wires(v1::ListWiresRequest::default()).await.unwrap().into_inner().wires
}

fn names(wires: &[v1::Wire]) -> Vec<&str> {
    wires.iter().map(|wire| wire.name.as_str()).collect()
}

async fn until_names(client: &mut AdminClient, wanted: &[&str]) {
    until(client, |wires| names(wires) == wanted).await;
}

/// Watches until the wires are as wanted.
async fn until(client: &mut AdminClient, wanted: impl Fn(&[v1::Wire]) -> bool) {
    let request = v1::WatchWiresRequest { interval_ms: 100, filter: None };
    let mut watch = client.watch_wires(request).await.unwrap().into_inner();
    soon(async { while !wanted(&watch.message().await.unwrap().expect("the forwarder serves").wires) {} }).await;
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("it happens within 20 seconds")
}
