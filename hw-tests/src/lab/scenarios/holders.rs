//! VFs that somebody does not let go.

use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferrule_ffi::netns::NetNs;
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use tonic::Code;

use crate::eventually;
use crate::lab::manager::{Manager, ManagerOptions};
use crate::lab::scenario::Lab;
use crate::lab::testpmd;

use super::ip;

pub fn process(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[..1];
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    manager.create(pf, 2)?;
    let vfs = pf[0].vfs();
    let [lent, free] = [&vfs[0], &vfs[1]];
    manager.acquire("dpdk", lent, "vfio-pci", None)?;
    // Somebody bound the other one by hand, and did not ask.
    free.bind("vfio-pci")?;
    let holder = testpmd::start(&[lent, free], &[])?;
    let name = "(dpdk-testpmd)";

    let refused = manager.release("dpdk", Duration::ZERO).expect_err("it is held");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(name), "{refused}");
    assert_eq!(manager.vf(lent)?.lease.map(|lease| lease.stage().word()), Some("lent"), "the lease stays");
    let reasons = manager.explain(free)?;
    assert!(reasons.iter().any(|reason| reason.contains(name)), "{reasons:?}");
    let refused = manager.acquire("other", free, "vfio-pci", None).expect_err("it is held");
    assert!(refused.message().contains(name), "{refused}");
    assert_eq!(pf[0].vfs().len(), 2);

    // A release that waits succeeds when the holder goes.
    let after = Duration::from_millis(300);
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(after);
            testpmd::quit(holder);
        });
        manager.release("dpdk", crate::TIMEOUT)
    })?;
    assert!(began.elapsed() >= after);

    // No lease is in the way of a removal now, but a holder is.
    let holder = testpmd::start(&[free], &[])?;
    let created = manager.create(pf, 0)?;
    assert!(created[0].error.contains(name) && created[0].error.contains(&free.address), "{created:?}");
    assert_eq!(pf[0].vfs().len(), 2);
    testpmd::quit(holder);
    let created = manager.create(pf, 0)?;
    assert!(created[0].error.is_empty() && pf[0].vfs().is_empty(), "{created:?}");
    Ok(())
}

pub fn namespace(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[..1];
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    manager.create(pf, 2)?;
    let vfs = pf[0].vfs();
    let [vf, free] = [&vfs[0], &vfs[1]];
    manager.acquire("pod", vf, "kernel", None)?;
    ip(&["netns", "add", "pod"])?;
    ip(&["link", "set", &vf.wait_for_interface(), "netns", "pod", "name", "net1"])?;
    // Another wish for the lease would take the interface away from the pod.
    let refused = manager.acquire("pod", vf, "vfio-pci", None).expect_err("its interface is in the namespace");
    assert!(refused.message().contains("change the lease pod: "), "{refused}");

    let refused = manager.release("pod", Duration::ZERO).expect_err("its interface is in the namespace");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("its interface net1 is in the network namespace"), "{refused}");
    assert!(refused.message().contains("/run/netns/pod"), "{refused}");
    assert!(ip(&["-n", "pod", "link", "show", "net1"]).is_ok(), "it was left alone");

    ip(&["netns", "del", "pod"])?;
    // The kernel brings it back in its own time.
    manager.release("pod", crate::TIMEOUT)?;
    assert_eq!(manager.vf(vf)?.state().word(), "free");

    // Somebody gave a VF to a pod without asking: no lease is in the way of a removal, but a holder is.
    free.bind("igbvf")?;
    ip(&["netns", "add", "pod"])?;
    ip(&["link", "set", &free.wait_for_interface(), "netns", "pod", "name", "net1"])?;
    let created = manager.create(pf, 0)?;
    assert!(created[0].error.contains("/run/netns/pod") && created[0].error.contains(&free.address), "{created:?}");
    assert_eq!(pf[0].vfs().len(), 2);
    ip(&["netns", "del", "pod"])?;
    free.wait_for_interface();
    let created = manager.create(pf, 0)?;
    assert!(created[0].error.is_empty() && pf[0].vfs().is_empty(), "{created:?}");
    Ok(())
}

/// Namespaces that have no name of `ip netns`: of a process, of a thread alone, kept by an open file, mounted as a container engine
/// does it, and kept by a socket, to which nothing leads. An interface in any of them keeps its VF.
pub fn nameless_namespaces(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[..1];
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    manager.create(pf, 1)?;
    let vf = &pf[0].vfs()[0];
    let own = std::process::id();
    for keeper in Keeper::ALL {
        step(&format!("{keeper:?} has the interface"), || {
            manager.acquire("pod", vf, "kernel", None)?;
            let namespace = NetNs::private()?;
            let file = format!("/proc/{own}/fd/{}", namespace.as_fd().as_raw_fd());
            ip(&["link", "set", &vf.wait_for_interface(), "netns", &file, "name", "net1"])?;
            let kept = keeper.keep(namespace)?;
            let told = kept.told();
            let refused = manager.release("pod", Duration::ZERO).expect_err("its interface is in the namespace");
            assert_eq!(refused.code(), Code::FailedPrecondition);
            assert!(refused.message().contains(&told), "{keeper:?}: {told} in {refused}");
            assert_eq!(vf.driver().as_deref(), Some("igbvf"), "it is left alone");
            let created = manager.create(pf, 0)?;
            assert!(!created[0].error.is_empty() && pf[0].vfs().len() == 1, "{keeper:?}: {created:?}");
            drop(kept);
            Ok(())
        })?;
        // The kernel brings it back in its own time.
        step(&format!("{keeper:?} has it no more"), || Ok(manager.release("pod", crate::TIMEOUT)?))?;
        assert_eq!(manager.vf(vf)?.state().word(), "free");
    }
    Ok(())
}

/// What keeps a namespace.
#[derive(Clone, Copy, Debug)]
enum Keeper {
    Process,
    Thread,
    File,
    /// As a container engine names it.
    Mount,
    /// Nothing leads from it to its namespace.
    Socket,
}

impl Keeper {
    const ALL: [Self; 5] = [Self::Process, Self::Thread, Self::File, Self::Mount, Self::Socket];

    /// Keeps a namespace, and nothing else does.
    fn keep(self, namespace: NetNs) -> Result<Kept> {
        Ok(match self {
            Self::Process => Kept::Process(namespace.run(|| Command::new("sleep").arg("1000").spawn())??),
            Self::Thread => {
                let (end, until) = channel();
                let (inside, is_inside) = channel();
                let thread = thread::spawn(move || {
                    inside.send(setns(&namespace, CloneFlags::CLONE_NEWNET)).expect("somebody waits for it");
                    drop(namespace);
                    // It ends by an error: nothing is ever sent.
                    let _ = until.recv();
                });
                is_inside.recv().context("wait for the thread")??;
                Kept::Thread(Some(end), Some(thread))
            }
            Self::File => Kept::File(namespace),
            Self::Mount => {
                let at = Path::new(ENGINE);
                std::fs::create_dir_all(at.parent().unwrap_or(at)).context("make the engine's folder")?;
                std::fs::write(at, "").context("make the engine's file")?;
                let file = format!("/proc/self/fd/{}", namespace.as_fd().as_raw_fd());
                mount(Some(file.as_str()), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .context("mount the namespace")?;
                Kept::Mount
            }
            Self::Socket => Kept::Socket(namespace.run(|| UdpSocket::bind("0.0.0.0:0"))??),
        })
    }
}

/// A namespace that is kept until this value goes.
enum Kept {
    Process(Child),
    Thread(Option<Sender<()>>, Option<JoinHandle<()>>),
    File(#[expect(dead_code, reason = "it is open")] NetNs),
    Mount,
    Socket(#[expect(dead_code, reason = "it is open")] UdpSocket),
}

impl Kept {
    /// How the manager tells where the interface is.
    fn told(&self) -> String {
        let own = std::process::id();
        let is_in = |place: String| format!("its interface net1 is in the network namespace{place}");
        match self {
            Self::Process(process) => is_in(format!(" of process {} (sleep), /proc/{0}/ns/net", process.id())),
            Self::Thread(..) => is_in(format!(" of process {own} (vm-guest), /proc/{own}/task/")),
            Self::File(_) => is_in(format!(" of process {own} (vm-guest), /proc/{own}/fd/")),
            Self::Mount => is_in(format!(" {ENGINE}")),
            Self::Socket(_) => "its interface is in a network namespace that no process, file or mount".to_owned(),
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        match self {
            Self::Process(process) => {
                let _ = process.kill().and_then(|()| process.wait());
            }
            Self::Thread(end, thread) => {
                drop(end.take());
                let _ = thread.take().map(JoinHandle::join);
            }
            Self::Mount => {
                let _ = umount(ENGINE);
                let _ = std::fs::remove_file(ENGINE);
            }
            Self::File(_) | Self::Socket(_) => {}
        }
    }
}

/// Does something, and ends the scenario with its name if that takes too long: a call into the kernel may hang.
fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (done, is_done) = channel::<()>();
    let name = what.to_owned();
    let deadline = thread::spawn(move || {
        if is_done.recv_timeout(STEP_MAX) == Err(RecvTimeoutError::Timeout) {
            println!("{name}: not done within {STEP_MAX:?}");
            std::process::exit(1);
        }
    });
    let result = work().with_context(|| what.to_owned());
    drop(done);
    deadline.join().expect("a thread that only waits does not panic");
    result
}

/// Where Docker gives a namespace its name.
const ENGINE: &str = "/run/docker/netns/engine";
/// One step of a scenario of several.
const STEP_MAX: Duration = Duration::from_secs(15);

/// To look whether a VF is open is to open it: those who look at the same moment do not take each other for its holder.
pub fn looks_at_once(lab: &Lab) -> Result<()> {
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    manager.create(&lab.pfs[..1], 1)?;
    let vf = &lab.pfs[0].vfs()[0];
    vf.bind("vfio-pci")?;
    for _ in 0..10 {
        let told = manager.explain_at_once(vf, 16)?;
        assert!(told.is_empty(), "nobody has it: {told:?}");
    }
    Ok(())
}

/// A holder that a manager in a container does not see in `/proc` is a holder all the same: the kernel says so.
pub fn unseen(lab: &Lab) -> Result<()> {
    let manager = Manager::start(lab, &ManagerOptions { alone: true, ..ManagerOptions::default() })?;
    assert!(manager.log().contains("the pod needs `hostPID: true`"), "it knows that it does not see everybody");
    manager.create(&lab.pfs[..1], 1)?;
    let vf = &lab.pfs[0].vfs()[0];
    manager.acquire("pod", vf, "vfio-pci", None)?;
    let holder = testpmd::start(&[vf], &[])?;
    let refused = manager.release("pod", Duration::ZERO).expect_err("it is held");
    assert!(refused.message().contains("a process that /proc does not show has /dev/vfio/"), "{refused}");
    assert_eq!(manager.vf(vf)?.lease.map(|lease| lease.stage().word()), Some("lent"), "the lease stays");
    testpmd::quit(holder);
    manager.release("pod", crate::TIMEOUT)?;
    Ok(())
}

/// Killed while the kernel waits, the manager leaves a thread that cannot die; the next one starts all the same.
pub fn killed_while_stuck(lab: &Lab) -> Result<()> {
    let pause = lab.state().join("unbind");
    let options = ManagerOptions {
        call_timeout: Some(Duration::from_millis(300)),
        pause_before_unbind: Some(pause.clone()),
        ..ManagerOptions::default()
    };
    let manager = Manager::start(lab, &options)?;
    manager.create(&lab.pfs[..1], 1)?;
    let vf = &lab.pfs[0].vfs()[0];
    manager.acquire("stuck", vf, "vfio-pci", None)?;
    let holder = thread::scope(|scope| -> Result<_> {
        let holder = scope.spawn(|| -> Result<_> {
            eventually("the manager is about to unbind", || pause.exists());
            let holder = testpmd::start(&[vf], &[])?;
            std::fs::remove_file(&pause)?;
            Ok(holder)
        });
        manager.release("stuck", Duration::ZERO).expect_err("the kernel waits for the holder");
        holder.join().expect("the holder's thread does not panic")
    })?;
    // It is not waited for: it cannot end before the holder does.
    manager.signal(Signal::SIGKILL);
    let stat = || std::fs::read_to_string(format!("/proc/{}/stat", manager.id())).unwrap_or_default();
    eventually("all of it is dead but the thread that hangs", || stat().contains(") Z "));

    let began = Instant::now();
    let next = Manager::start(lab, &ManagerOptions::default())?;
    lab.time("a start beside a killed manager whose call hangs", began.elapsed());
    let lease = next.vf(vf)?.lease.context("it is still lent")?;
    assert_eq!(lease.id, "stuck");
    // The VF has lost its driver by now, and its group is open all the same: nothing is begun that would hang as well.
    assert!(lease.fault.contains("(dpdk-testpmd)"), "{}", lease.fault);
    testpmd::quit(holder);
    eventually("the VF comes back by itself", || next.vf(vf).is_ok_and(|vf| vf.state().word() == "free"));
    Ok(())
}

/// Whoever takes a VF between the question and the unbind makes the kernel wait for him.
pub fn stuck(lab: &Lab) -> Result<()> {
    let timeout = Duration::from_secs(1);
    let pause = lab.state().join("unbind");
    let options = ManagerOptions {
        call_timeout: Some(timeout),
        pause_before_unbind: Some(pause.clone()),
        ..ManagerOptions::default()
    };
    let manager = Manager::start(lab, &options)?;
    manager.create(&lab.pfs[..1], 3)?;
    let vfs = lab.pfs[0].vfs();
    manager.acquire("stuck", &vfs[0], "vfio-pci", None)?;

    let (holder, began) = thread::scope(|scope| -> Result<_> {
        let holder = scope.spawn(|| -> Result<_> {
            eventually("the manager is about to unbind", || pause.exists());
            let holder = testpmd::start(&[&vfs[0]], &[])?;
            // From now on it pauses no more: a folder is in the way of its file.
            std::fs::remove_file(&pause)?;
            std::fs::create_dir(&pause)?;
            Ok((holder, Instant::now()))
        });
        let refused = manager.release("stuck", Duration::ZERO).expect_err("the kernel waits for the holder");
        assert!(refused.message().contains("has not come back"), "{refused}");
        holder.join().expect("the holder's thread does not panic")
    })?;
    lab.time("a stuck unbind is reported", began.elapsed());
    assert!(began.elapsed() < timeout + Duration::from_secs(2));
    // Its neighbours, the other PF, and every question about it are served meanwhile.
    let mut served = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        manager.acquire("neighbour", &vfs[1], "vfio-pci", None)?;
        manager.release("neighbour", Duration::ZERO)?;
        served.push(began.elapsed());
    }
    lab.times("a neighbour's lease beside a stuck one", &mut served);
    let created = manager.create(&lab.pfs[1..], 1)?;
    assert!(created[0].error.is_empty(), "{created:?}");
    let reasons = manager.explain(&vfs[0])?;
    assert!(reasons.iter().any(|reason| reason.contains("stuck")), "{reasons:?}");

    testpmd::quit(holder);
    eventually("the VF comes back by itself", || manager.vf(&vfs[0]).is_ok_and(|vf| vf.state().word() == "free"));
    manager.acquire("again", &vfs[0], "vfio-pci", None)?;
    manager.release("again", Duration::ZERO)?;
    Ok(())
}
