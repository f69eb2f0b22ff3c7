//! The real binary against a forwarder that only pretends.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use ferrule::admin::proto::WireSpec;
use ferrule::admin::proto::end_spec::Kind;
use serde_json::Value;
use tempfile::TempDir;

mod fake;

/// A fake forwarder in a directory of its own, and what to run against it.
struct Fixture {
    directory: TempDir,
    forwarder: Option<fake::Fake>,
}

impl Fixture {
    fn new() -> Self {
        let mut fixture = Self::without_forwarder();
        fixture.forwarder = Some(fake::Fake::serve(&fixture.socket()));
        fixture
    }

    fn without_forwarder() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), forwarder: None }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("admin.sock")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferrule"));
        command.args(arguments).env("FERRULE_SOCKET", self.socket()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> CommandOutput {
        self.command(arguments).output().unwrap().into()
    }

    fn added(&self) -> Vec<WireSpec> {
        self.forwarder.as_ref().unwrap().added.lock().unwrap().clone()
    }
}

/// What the command said, and how it ended.
struct CommandOutput {
    out: String,
    err: String,
    code: Option<i32>,
}

impl From<Output> for CommandOutput {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { out: text(output.stdout), err: text(output.stderr), code: output.status.code() }
    }
}

#[test]
fn wires_prints_a_plain_table_on_a_pipe() {
    let said = Fixture::new().run(&["wires"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let first: Vec<_> = said.out.lines().nth(1).unwrap().split_whitespace().take(2).collect();
    assert_eq!(first, ["a-b", "up"]);
    assert!(said.out.contains("namespace /run/netns/pod is gone"), "{}", said.out);
    assert!(!said.out.contains('\x1b'));
}

#[test]
fn wires_prints_json_for_programs() {
    let said = Fixture::new().run(&["wires", "--json"]);
    let document: Value = serde_json::from_str(&said.out).unwrap();
    let states: Vec<_> = document["wires"].as_array().unwrap().iter().map(|wire| wire["state"].as_str()).collect();
    assert_eq!(states, [Some("up"), Some("waiting"), Some("failed")]);
    assert_eq!(document["wires"][0]["directions"][0]["frames"], 14_000_000);
}

#[test]
fn a_missing_forwarder_is_told_with_the_cure() {
    let fixture = Fixture::without_forwarder();
    let path = fixture.socket();
    let cure = "start one with `dpdk-forwarder --config wires.yaml` or name its socket with --socket\n";
    let expected = |reason| format!("no forwarder answers on {} ({reason}): {cure}", path.display());
    let said = fixture.run(&["wires"]);
    assert_eq!((said.code, said.err), (Some(1), expected("no such file")));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert_eq!(fixture.run(&["top"]).err, expected("connection refused"));
}

#[test]
fn a_node_without_anything_of_ours_is_told_and_nothing_is_removed_without_doing_it() {
    let host = tempfile::tempdir().unwrap();
    let root = host.path().to_str().unwrap();
    let fixture = Fixture::without_forwarder();
    let said = fixture.run(&["uninstall", "--host", root]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), "nothing of Ferrule is on this node\n"));
    let state = host.path().join("var/lib/ferrule/device-plugin");
    std::fs::create_dir_all(&state).unwrap();
    let said = fixture.run(&["uninstall", "--host", root, "--dry-run"]);
    assert_eq!(said.out, format!("{root}/var/lib/ferrule: would be removed\n"));
    assert!(state.exists());
}

#[test]
fn the_socket_option_beats_the_environment() {
    let (fixture, elsewhere) = (Fixture::new(), Fixture::without_forwarder());
    let socket = fixture.socket();
    let said = elsewhere.run(&["wires", "--socket", socket.to_str().unwrap()]);
    assert_eq!(said.code, Some(0), "{}", said.err);
}

#[test]
fn a_wire_is_added_from_a_short_form() {
    let fixture = Fixture::new();
    let ends = ["--end", "memif:socket=@x,id=0,role=server", "--end", "kernel:name=nsm-1,address=10.0.0.1/30"];
    let said = fixture.run(&[&["wire", "add", "--name", "a-b"], &ends[..]].concat());
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), "added a-b\n", ""));
    let sent = &fixture.added()[0];
    let Some(Kind::Kernel(kernel)) = &sent.ends[1].kind else { panic!("a kernel end") };
    assert_eq!((sent.name.as_str(), &kernel.addresses[..]), ("a-b", &["10.0.0.1/30".to_owned()][..]));

    let again = fixture.run(&[&["wire", "add", "--name", "a-b"], &ends[..]].concat());
    assert_eq!(again.out, "unchanged a-b\n");
    let changed =
        fixture.run(&[&["wire", "add", "--name", "a-b", "--full", "drop", "--owner", "me"], &ends[..]].concat());
    assert_eq!((changed.out.as_str(), fixture.added()[2].owner.as_str()), ("changed a-b\n", "me"));
}

#[test]
fn wires_are_added_from_a_file_or_from_standard_input() {
    let fixture = Fixture::new();
    let file = fixture.directory.path().join("wires.yaml");
    let ends = "ends: [{ kernel: { name: x } }, { kernel: { name: y } }]";
    let list = format!("workers: [0]\nwires:\n  - {{ name: a, {ends} }}\n  - name: b\n    {ends}\n  - {{ name: c }}\n");
    std::fs::write(&file, list).unwrap();
    let said = fixture.run(&["wire", "add", file.to_str().unwrap()]);
    assert_eq!((said.code, said.out.as_str()), (Some(1), "added a\nadded b\n"));
    assert!(
        said.err.contains("wires.yaml:6:5: wires[2].ends: missing"),
        "errors name the line of the file: {}",
        said.err
    );
    assert_eq!(fixture.added()[1].name, "b");

    let mut child =
        fixture.command(&["wire", "add", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("name: d\n{ends}\n").as_bytes()).unwrap();
    assert_eq!(CommandOutput::from(child.wait_with_output().unwrap()).out, "added d\n");
}

#[test]
fn errors_of_a_file_name_it_and_its_wires() {
    let fixture = Fixture::new();
    let file = fixture.directory.path().join("w.yaml");
    let wire =
        |name| format!("  - name: {name}\n    ends: [{{ kernel: {{ name: x }} }}, {{ kernel: {{ name: y }} }}]\n");
    std::fs::write(&file, format!("wires:\n{}{}{}", wire("a"), wire("a"), wire("b"))).unwrap();
    let said = fixture.run(&["wire", "add", file.to_str().unwrap()]);
    let place = format!("{}:4:11: wires[1]: the wire `a` is on line 2 already; rename one of them\n", file.display());
    assert_eq!((said.out.as_str(), said.err), ("added a\nadded b\n", place + "1 of 3 wires failed\n"));

    std::fs::write(&file, "name: a\nends: [{ memif: { socket: /x, role: master } }, { kernel: { name: x } }]\n")
        .unwrap();
    let said = fixture.run(&["wire", "add", file.to_str().unwrap()]);
    assert!(said.err.contains("w.yaml:2:37: ends[0].memif.role: `master` is `server` here"), "{}", said.err);
}

#[test]
fn a_short_form_says_what_needs_a_file() {
    let device = ["--end", "ethdev:device=net_af_packet0,iface=eth1", "--end", "kernel:name=b"];
    let said = Fixture::new().run(&[&["wire", "add", "--name", "a"], &device[..]].concat());
    assert_eq!(
        said.err,
        "ends[0].ethdev.iface: unknown key; the keys here are device, queues, mtu; a value with a comma needs a file\n"
    );
}

#[test]
fn a_refused_wires_file_is_told_below_the_wires() {
    let fixture = Fixture::new();
    let said = fixture.run(&["wires"]).out;
    let told = "\nthe wires file is refused, and the wires before it stay:\n  w.yaml:1:1: wrong\n";
    assert!(said.ends_with(told), "{said}");
}

#[test]
fn a_refusal_is_the_forwarders_own_words() {
    let fixture = Fixture::new();
    let said = fixture.run(&["wire", "add", "--name", "taken", "--end", "kernel:name=a", "--end", "kernel:name=b"]);
    let words = "wire `taken` belongs to `somebody`; choose another name\n";
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(1), "", words));
    assert_eq!(fixture.run(&["wire", "add", "/nonexistent.yaml"]).code, Some(1));
}

#[test]
fn what_the_forwarder_says_of_a_removal_is_told_in_its_own_words() {
    let fixture = Fixture::new();
    assert_eq!(fixture.run(&["wire", "remove", "of-file"]).out, "removed of-file from the journal only\n");
    let said = fixture.run(&["wire", "remove", "draining"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("the forwarder is draining; ask its successor"), "{}", said.err);
}

#[test]
fn a_forwarder_that_answers_nobody_is_not_waited_for_without_end() {
    let fixture = Fixture::without_forwarder();
    // As that of a stopped process: clients stay in its backlog.
    let _stopped = std::os::unix::net::UnixListener::bind(fixture.socket()).unwrap();
    let said = fixture.run(&["wires"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("does not answer; is it stopped"), "{}", said.err);
}

#[test]
fn one_wire_that_fails_does_not_keep_the_others_from_being_removed() {
    let said = Fixture::new().run(&["wire", "remove", "x", "a-b"]);
    assert_eq!((said.code, said.out.as_str()), (Some(1), "removed a-b\n"));
    assert_eq!(said.err, "x: wire `x`: there is none of this name\n1 of 2 wires failed\n");
}

#[test]
fn wrong_usage_ends_with_code_2() {
    let fixture = Fixture::without_forwarder();
    for arguments in [
        &["wire", "add"][..],
        &["wire", "add", "--name", "a-b"],
        &["wire", "add", "--name", "a-b", "--end", "kernel:name=a"],
        &["wire", "add", "--name", "a-b", "--end", "nonsense/"],
        &["wire", "add", "file.yaml", "--name", "a-b"],
        &["wire", "remove"],
        &["top", "--interval", "1ms"],
        &["top", "--count", "0"],
        // They ask no running forwarder.
        &["demo", "--socket", "x"],
        &["bench", "--socket", "x"],
        &["completions", "bash", "--socket", "x"],
        &["vf", "list", "--socket", "x"],
        // A tree is only read.
        &["vf", "--root", "/", "create", "ens1f0=1", "--dry-run"],
        &["bench", "--time", "0s"],
        &["bench", "--rate", "1M"],
        &["fly"],
    ] {
        let said = fixture.run(arguments);
        assert_eq!(said.code, Some(2), "{arguments:?}: {}", said.err);
    }
}

#[test]
fn what_is_missing_is_told_with_the_usage_of_its_command() {
    let fixture = Fixture::without_forwarder();
    let nothing = fixture.run(&["wire", "add"]).err;
    assert!(nothing.contains("a FILE is wanted, or --name and two --end"), "{nothing}");
    let one_end = fixture.run(&["wire", "add", "--name", "a-b", "--end", "kernel:name=a"]).err;
    assert!(one_end.contains("--end is needed twice, and 1 came"), "{one_end}");
    assert!(one_end.contains("Usage: ferrule wire add"), "{one_end}");
    let no_choice = fixture.run(&["vf", "acquire", "pod"]).err;
    assert!(no_choice.contains("--vf <ADDRESS>|--pool <NAME>"), "{no_choice}");
}

#[test]
fn top_prints_one_table_per_interval_on_a_pipe() {
    let said = Fixture::new().run(&["top", "--interval", "100ms", "--count", "2"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let tables: Vec<_> = said.out.split("\n\n").collect();
    assert_eq!(tables.len(), 2, "{}", said.out);
    for table in tables {
        let words: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
        // 14 million frames of 64 bytes in each 100 ms.
        assert_eq!(words, ["a-b", "up", "140", "M", "20.0", "M", "71.7", "G", "10.2", "G", "80"]);
    }
}

#[test]
fn top_ends_quietly_when_its_reader_has_seen_enough() {
    let fixture = Fixture::new();
    let mut child =
        fixture.command(&["top", "--interval", "100ms"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let said = CommandOutput::from(child.wait_with_output().unwrap());
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
}

#[test]
fn top_says_that_the_forwarder_went_away() {
    let mut fixture = Fixture::new();
    let mut command = fixture.command(&["top", "--interval", "100ms"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Its first table has come: it is connected.
    let mut byte = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
    fixture.forwarder = None;
    let said = CommandOutput::from(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("went away"), "{}", said.err);
}

#[test]
fn completions_are_scripts_for_each_shell() {
    let fixture = Fixture::without_forwarder();
    for shell in ["bash", "zsh", "fish"] {
        let said = fixture.run(&["completions", shell]);
        assert_eq!(said.code, Some(0));
        assert!(said.out.contains("ferrule") && said.out.contains("completions"), "{shell}");
    }
}
