//! A running virtual machine.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::job::{Job, SharedJobs};
use super::pieces::{Pieces, QEMU};
use super::protocol::{PORT, ToGuest};
use crate::process::Process;

/// A machine; it ends with this value, whatever it is doing.
pub struct Machine {
    process: Process,
    channel: UnixStream,
    jobs: Arc<SharedJobs>,
    next_job: AtomicU32,
    began: Instant,
    /// Where its sockets are.
    folder: TempDir,
}

/// How to make one.
#[derive(Clone, Debug, Default)]
pub struct MachineOptions {
    /// The initramfs.
    pub initramfs: PathBuf,
    /// Added to the kernel's command line.
    pub kernel: Vec<String>,
    /// Added to QEMU's: the machine's type, its memory and its devices.
    pub qemu: Vec<String>,
    /// It does not boot, and waits for a guest to move in ([`Moving`](super::migration::Moving)).
    pub incoming: bool,
}

impl Machine {
    /// Starts one and waits until its `vm-guest` answers.
    pub fn boot(pieces: &Pieces, options: &MachineOptions) -> Result<Self> {
        let machine = Self::start(pieces, options)?;
        machine.wait_until_booted()?;
        Ok(machine)
    }

    /// Starts one. It ends with the thread that started it, if not earlier.
    pub fn start(pieces: &Pieces, options: &MachineOptions) -> Result<Self> {
        let began = Instant::now();
        let folder = tempfile::tempdir().context("make a folder for the channel to a guest")?;
        let socket = folder.path().join("channel");
        let listener = UnixListener::bind(&socket).context("listen for a guest")?;
        listener.set_nonblocking(true).context("listen for a guest")?;
        let mut command = options.command(pieces);
        command.args(["-chardev", &format!("socket,id=channel,path={}", socket.display())]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", folder.path().join(MONITOR).display())]);
        if options.incoming {
            command.args(["-incoming", &format!("unix:{}", folder.path().join(INCOMING).display())]);
        }
        let mut process = Process::start(command.args(["-serial", "stdio", "-monitor", "none"]));
        let channel = accept(&listener, &mut process)?;
        let jobs = Arc::new(SharedJobs::default());
        listen(channel.try_clone().context("listen to a guest")?, &jobs);
        Ok(Self { process, channel, jobs, next_job: AtomicU32::new(0), began, folder })
    }

    /// Waits until its `vm-guest` answers; returns how long it took from the start.
    pub fn wait_until_booted(&self) -> Result<Duration> {
        let ready = self.jobs.wait(BOOT_MAX, |state| state.booted || state.gone).booted;
        let took = self.began.elapsed();
        ensure!(ready, "the guest has not booted after {took:?}; its console:\n{}", self.console());
        Ok(took)
    }

    /// Starts a program inside, killed there when its timeout is over.
    pub fn spawn(&self, program: &[&str], timeout: Duration) -> Result<Job> {
        let number = self.next_job.fetch_add(1, Relaxed);
        let program = program.iter().map(ToString::to_string).collect();
        self.tell(&ToGuest::Start { job: number, program, timeout })?;
        Ok(Job { number, jobs: Arc::clone(&self.jobs), timeout })
    }

    /// Runs a program inside to its end; returns all that it printed. It is an error that it fails.
    pub fn run(&self, program: &[&str]) -> Result<String> {
        self.spawn(program, RUN_MAX)?.succeed().with_context(|| program.join(" "))
    }

    /// A program that was started in another machine, and has moved into this one with its guest.
    pub fn follow(&self, job: &Job) -> Job {
        Job { number: job.number, jobs: Arc::clone(&self.jobs), timeout: job.timeout }
    }

    /// Kills a program inside.
    pub fn kill(&self, job: &Job) -> Result<()> {
        self.tell(&ToGuest::Kill { job: job.number })
    }

    /// What it printed to its console: what the kernel had to say.
    pub fn console(&self) -> String {
        self.process.output()
    }

    /// Whether it has ended by itself, as it does when its kernel panics.
    pub fn has_ended(&mut self) -> bool {
        self.process.ended().is_some()
    }

    /// A guest moves in: its jobs keep their numbers, and new ones get others.
    pub(super) fn take_in(&self, from: &Self) {
        self.next_job.store(from.next_job.load(Relaxed), Relaxed);
    }

    /// The socket of its monitor.
    pub(super) fn monitor(&self) -> PathBuf {
        self.folder.path().join(MONITOR)
    }

    /// Where it waits for a guest.
    pub(super) fn incoming(&self) -> PathBuf {
        self.folder.path().join(INCOMING)
    }

    /// Switches it off, as a power cut does.
    pub fn cut(mut self) {
        self.process.kill();
    }

    fn tell(&self, message: &ToGuest) -> Result<()> {
        let line = serde_json::to_string(message).context("write a message")? + "\n";
        (&self.channel).write_all(line.as_bytes()).context("write to a guest that is gone")
    }
}

impl MachineOptions {
    /// QEMU with everything but the channel, the serial line and the monitor.
    pub fn command(&self, pieces: &Pieces) -> Command {
        // It goes with the thread that started it, also if that is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        // With a thread a CPU, QEMU 10 dies when one of them maps a device (a VF's BARs, say) that the other is about to
        // touch: `iotlb_to_section: Assertion ... failed`.
        command.args(["-accel", "tcg,thread=single", "-cpu", "max"]).args(&self.qemu);
        command.args(["-device", "virtio-serial-pci,bus=pcie.0", "-device"]);
        command.arg(format!("virtserialport,chardev=channel,name={PORT}"));
        command.arg("-kernel").arg(pieces.kernel()).arg("-initrd").arg(&self.initramfs);
        // A panic ends the machine at once. What hangs is said after 30 s; nothing here takes so long. Clocks are not
        // judged: on a busy host an emulated one is late. Pages are not cleared before they are needed, and ciphers not
        // tried out: that is a third of a boot.
        let always = "console=ttyS0 panic=-1 oops=panic mitigations=off sysctl.kernel.hung_task_timeout_secs=30 \
                      no_timer_check tsc=reliable init_on_alloc=0 cryptomgr.notests";
        command.args(["-append", &format!("{always} {}", self.kernel.join(" "))]);
        command
    }
}

fn accept(listener: &UnixListener, process: &mut Process) -> Result<UnixStream> {
    let deadline = Instant::now() + START_MAX;
    loop {
        match listener.accept() {
            Ok((channel, _)) => {
                channel.set_nonblocking(false).context("open a channel to a guest")?;
                return Ok(channel);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("open a channel to a guest"),
        }
        if process.ended().is_some() || Instant::now() > deadline {
            bail!("QEMU does not start: {}", process.output());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn listen(channel: UnixStream, jobs: &Arc<SharedJobs>) {
    let jobs = Arc::clone(jobs);
    thread::spawn(move || {
        for line in BufReader::new(channel).lines().map_while(Result::ok) {
            // A guest that was killed may leave half a line.
            if let Ok(message) = serde_json::from_str(&line) {
                jobs.take(message);
            }
        }
        jobs.end();
    });
}

/// Makes a disk with an empty file system.
pub fn make_disk(path: &Path, mebibytes: u32) -> Result<()> {
    let mut command = Command::new("mke2fs");
    let output = command.args(["-q", "-F", "-t", "ext4"]).arg(path).arg(format!("{mebibytes}M")).output();
    let output = output.context("run mke2fs")?;
    ensure!(output.status.success(), "make a disk: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Sockets in a machine's folder.
const MONITOR: &str = "monitor";
const INCOMING: &str = "incoming";

/// How long QEMU may take to open its channel.
const START_MAX: Duration = Duration::from_secs(20);

/// How long a kernel may take to boot: 10 s alone on two cores, and many times that beside a build.
const BOOT_MAX: Duration = Duration::from_mins(4);

/// How long a program may take that nobody has set a limit for.
const RUN_MAX: Duration = Duration::from_secs(30);
