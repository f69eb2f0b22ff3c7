//! Starts nodes and runs scenarios on them. One node serves many scenarios, until one of them fails.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::cgroups;
use super::machine::{Node, shell};
use super::pieces::{NodePieces, script};
use super::scenario::NodeScenario;
use super::scenarios::ALL;
use super::stand::Stand;
use crate::lab::report::{Line, Report, Verdict};

/// Runs scenarios, each on its kind of node.
pub fn run(scenarios: &[&'static NodeScenario]) -> Result<Report> {
    let mut report = Report::new(TITLE, scenarios.iter().map(|scenario| scenario.name));
    for stand in [Stand::Cluster, Stand::Standalone] {
        let mut left: VecDeque<_> =
            scenarios.iter().filter(|scenario| scenario.stand == stand).map(|scenario| scenario.name).collect();
        if left.is_empty() {
            continue;
        }
        match NodePieces::find(stand) {
            Ok(pieces) => {
                while !left.is_empty() {
                    run_some(&pieces, stand, &mut left, &mut report)?;
                }
            }
            Err(missing) => {
                let why = format!("lacks {missing:#}");
                let verdict = if crate::need::may_skip() { Verdict::Skipped } else { Verdict::Failed };
                for name in left {
                    report.add(Line::new(name, verdict(why.clone())));
                }
            }
        }
    }
    Ok(report)
}

/// Gives the terminal to a person on a node.
pub fn open_shell() -> Result<()> {
    let pieces = NodePieces::find(Stand::Cluster)?;
    let folder = NodeFolder::new(pieces)?;
    // The one who types interrupts what runs in the shell, and not this.
    let runtime = tokio::runtime::Runtime::new().context("make a runtime")?;
    runtime.spawn(async { while tokio::signal::ctrl_c().await.is_ok() {} });
    let status = inside(&folder.pieces, &["inside-shell"]).status().context("run unshare")?;
    ensure!(status.success(), "the shell ended: {status}");
    Ok(())
}

/// Runs scenarios on one node, until all are done or one fails. Those that ran are taken off the list.
fn run_some(pieces: &NodePieces, stand: Stand, left: &mut VecDeque<&'static str>, report: &mut Report) -> Result<()> {
    let folder = NodeFolder::new(pieces.clone())?;
    let mut command = inside(pieces, &["inside-run"]);
    command.args(left.iter()).process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
    let began = Instant::now();
    let mut child = command.spawn().context("run unshare")?;
    let events = listen(&mut child)?;
    let before = left.len();
    let problem = loop {
        match events.recv_timeout(SCENARIO_MAX) {
            Ok(Event::Told(News::Ready)) => {
                println!("{:>8}  a node: {stand:?}  ({:.1} s)", "ready", began.elapsed().as_secs_f64());
            }
            Ok(Event::Told(News::Did(line))) => {
                left.pop_front();
                report.add(line);
            }
            Ok(Event::Told(News::Broken(problem))) => break Some(problem),
            Ok(Event::Ended) if left.len() == before => break Some("the node ended".to_owned()),
            Ok(Event::Ended) => break None,
            // What drops tidies up.
            Ok(Event::Interrupted) => {
                end(&mut child)?;
                bail!("interrupted");
            }
            Err(_) => break Some(format!("not done within {SCENARIO_MAX:?}")),
        }
    };
    end(&mut child)?;
    let logs = folder.keep_logs(report.counts().iter().sum())?;
    if let Some(problem) = problem {
        let verdict = Verdict::Failed(format!("{problem}\nlogs: {logs}"));
        report.add(Line::new(left.pop_front().context("a node without a scenario is not started")?, verdict));
    }
    Ok(())
}

/// What the program inside tells, one line each.
#[derive(Serialize, Deserialize)]
enum News {
    /// The node is ready.
    Ready,
    /// A scenario is done.
    Did(Line),
    /// The node cannot go on.
    Broken(String),
}

/// What is heard of a node.
enum Event {
    Told(News),
    Ended,
    /// Somebody typed ^C.
    Interrupted,
}

impl News {
    fn tell(&self) {
        println!("{}", serde_json::to_string(self).unwrap_or_default());
    }
}

/// Inside: starts a node and runs these scenarios on it.
pub fn run_inside(names: &[String]) -> Result<()> {
    end_with_caller();
    let wanted: Vec<_> = names.iter().filter_map(|name| ALL.iter().find(|scenario| scenario.name == *name)).collect();
    let stand = wanted.first().context("nothing to run")?.stand;
    let mut node = match start(stand) {
        Ok(node) => node,
        Err(error) => {
            News::Broken(format!("start a node: {error:#}")).tell();
            return Ok(());
        }
    };
    News::Ready.tell();
    for scenario in wanted {
        let began = Instant::now();
        let verdict = verdict(scenario, &mut node);
        let is_good = verdict == Verdict::Passed;
        let figures = std::mem::take(&mut node.figures);
        News::Did(Line { seconds: began.elapsed().as_secs_f64(), figures, ..Line::new(scenario.name, verdict) }).tell();
        if !is_good {
            break;
        }
    }
    // What runs goes with this process; to end it in order would only take time.
    std::process::exit(0)
}

/// Inside: starts a node and a shell on it.
pub fn shell_inside() -> Result<()> {
    println!("starting a node ...");
    let mut node = start(Stand::Cluster)?;
    shell(&mut node)
}

fn start(stand: Stand) -> Result<Node> {
    let node = catch_unwind(AssertUnwindSafe(|| Node::start(NodePieces::find(stand)?, stand)));
    node.unwrap_or_else(|panic| bail!("{}", text_of(&*panic)))
}

fn verdict(scenario: &NodeScenario, node: &mut Node) -> Verdict {
    let done = catch_unwind(AssertUnwindSafe(|| {
        node.make_fresh().context("make the node fresh")?;
        (scenario.run)(node)
    }));
    match done {
        Ok(Ok(())) => Verdict::Passed,
        Ok(Err(error)) => Verdict::Failed(format!("{error:#}")),
        Err(panic) => Verdict::Failed(text_of(&*panic)),
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("without words"))
}

/// This program, in namespaces of its own.
fn inside(pieces: &NodePieces, arguments: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--mount-proc", "--kill-child", "sh"]);
    command.arg(script("inside")).arg(pieces.run());
    // Not the program that runs: that may be a test.
    command.arg(pieces.our_program("node")).args(arguments);
    command.env("TMPDIR", pieces.run().join("tmp"));
    command
}

/// Ends this process, and all others inside with it, when the one that started it is gone.
fn end_with_caller() {
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
}

fn listen(child: &mut Child) -> Result<Receiver<Event>> {
    let (tell, events) = channel();
    let lines = BufReader::new(child.stdout.take().context("standard output is a pipe")?).lines();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
    let interrupt = tell.clone();
    // ^C reaches this program only: the node is in a group of its own.
    thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            let _ = interrupt.send(Event::Interrupted);
        }
    });
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let news = serde_json::from_str(&line).unwrap_or_else(|_| News::Broken(format!("it printed: {line}")));
            // Nobody listens any more.
            if tell.send(Event::Told(news)).is_err() {
                return;
            }
        }
        let _ = tell.send(Event::Ended);
    });
    Ok(events)
}

fn end(child: &mut Child) -> Result<()> {
    // Process 1 inside dies with `unshare`, and all others with it.
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    let status = child.wait().context("wait for unshare")?;
    ensure!(status.signal().is_some() || status.code().is_some(), "unshare did not end");
    Ok(())
}

/// The node's files. They go with this value, and so do its cgroups.
struct NodeFolder {
    pieces: NodePieces,
    /// Held as long as there is a node: two of them would share cgroups.
    _lock: fs::File,
}

impl NodeFolder {
    fn new(pieces: NodePieces) -> Result<Self> {
        let lock = fs::File::create(pieces.folder.join("lock")).context("make the file that is locked")?;
        lock.try_lock().context("another node of this tree runs")?;
        cgroups::remove()?;
        let _ = fs::remove_dir_all(pieces.run());
        fs::create_dir_all(pieces.run().join("tmp")).with_context(|| format!("make {}", pieces.run().display()))?;
        Ok(Self { pieces, _lock: lock })
    }

    /// Puts the logs where they stay; returns where. Their folder says how many scenarios were done when the node ended.
    fn keep_logs(&self, done: usize) -> Result<String> {
        fs::create_dir_all(self.pieces.folder.join("logs")).context("make a folder for logs")?;
        let logs = self.pieces.folder.join("logs").join(done.to_string());
        let _ = fs::remove_dir_all(&logs);
        if fs::exists(self.pieces.run().join("logs"))? {
            fs::rename(self.pieces.run().join("logs"), &logs).context("keep the logs")?;
        }
        Ok(logs.display().to_string())
    }
}

impl Drop for NodeFolder {
    fn drop(&mut self) {
        if let Err(error) = cgroups::remove() {
            eprintln!("{error:#}");
        }
        let _ = fs::remove_dir_all(self.pieces.run());
    }
}

/// `target/node`.
pub fn folder() -> Result<std::path::PathBuf> {
    let folder = super::pieces::folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// The first word of the last line.
const TITLE: &str = "node";

/// How long a scenario may take, and the start of a node.
const SCENARIO_MAX: Duration = Duration::from_mins(20);
