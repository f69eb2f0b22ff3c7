//! The daemon as it runs: its settings followed, its page asked, its end.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use ferrule_functions::config::ConfigFile;
use ferrule_functions::daemon::run;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

#[tokio::test(flavor = "multi_thread")]
async fn it_runs_until_it_is_told_to_stop_also_without_a_page() {
    let directory = tempfile::tempdir().unwrap();
    let (stop, daemon) = start(&write(directory.path(), "", "passthrough: {}"));
    // It looks at its threads a few times.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(!daemon.is_finished());
    stop.send(()).unwrap();
    daemon.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_rules_are_taken_and_wrong_ones_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rules = |name: &str| format!("firewall: {{ rules: [{{ name: {name}, action: permit }}] }}");
    let metrics = format!("metrics: {port}");
    let path = write(directory.path(), &metrics, &rules("one"));
    let (stop, daemon) = start(&path);
    let shown = |name: &str| {
        scrape(port).contains(&format!("ferrule_firewall_rule_frames_total{{function=\"f\",rule=\"{name}\"}} 0"))
    };
    until(|| shown("one")).await;
    assert!(scrape(port).contains("ferrule_function_connected{function=\"f\",side=\"client\"} 0"));
    write(directory.path(), &metrics, &rules("two"));
    until(|| shown("two")).await;
    write(directory.path(), &metrics, "firewall: { rules: [{ name: three }] }");
    write(directory.path(), &metrics, &rules("four"));
    until(|| shown("four")).await;
    assert!(!shown("three") && !daemon.is_finished());
    stop.send(()).unwrap();
    daemon.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_translator_takes_another_prefix_while_it_runs_and_shows_what_it_counts() {
    let directory = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let npt = |outside: &str| {
        format!(
            "nptv6: {{ inside: {{ address: \"fd01::1/64\" }}, outside: {{ address: \"2001:db8:ffff::2/64\" }}, prefixes: {{ inside: \"fd01::/48\", outside: \"{outside}\" }} }}"
        )
    };
    let metrics = format!("metrics: {port}");
    let path = write(directory.path(), &metrics, &npt("2001:db8:1::/48"));
    let (stop, daemon) = start(&path);
    until(|| scrape(port).contains("ferrule_nptv6_translated_total{function=\"f\",side=\"client\"} 0")).await;
    assert!(scrape(port).contains("ferrule_nptv6_other_frames_total{function=\"f\",reason=\"no-counterpart\"} 0"));
    let [before, after] = [1, 2].map(|number| npt(&format!("2001:db8:{number}::/48")));
    let [before, after] =
        [before, after].map(|text| ConfigFile::load(&write(directory.path(), &metrics, &text)).unwrap().config);
    assert!(before.needs_restart(&after).is_empty());
    stop.send(()).unwrap();
    daemon.await.unwrap().unwrap();
}

fn start(path: &Path) -> (oneshot::Sender<()>, JoinHandle<Result<(), String>>) {
    let file = ConfigFile::load(path).unwrap();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async { drop(stopped.await) };
    let daemon = async move { run(file, shutdown).await.map_err(|error| error.to_string()) };
    (stop, tokio::spawn(daemon))
}

fn write(directory: &Path, metrics: &str, function: &str) -> std::path::PathBuf {
    let end = |side: &str| {
        format!("{side}: {{ memif: {{ socket: \"@none-{}-{side}\", role: client }} }}", std::process::id())
    };
    let text = format!("name: f\n{metrics}\n{}\n{}\n{function}\n", end("client"), end("network"));
    let path = directory.join("function.yaml");
    fs::write(&path, text).unwrap();
    path
}

fn scrape(page: SocketAddr) -> String {
    let mut answer = String::new();
    let asked = TcpStream::connect(page).and_then(|mut stream| {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        stream.read_to_string(&mut answer)
    });
    asked.map(|_| answer).unwrap_or_default()
}

async fn until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "it takes too long");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
