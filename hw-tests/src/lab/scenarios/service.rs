//! The manager as a service of the node: it is stopped, started twice, has a disk that is only to be read, and ends leases by itself.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::eventually;
use crate::lab::manager::{Manager, ManagerOptions, Start};
use crate::lab::scenario::Lab;
use crate::lab::testpmd;

use super::ip;

/// SIGTERM ends the manager while a call hangs in the kernel, and its successor before that is ready. The lease is there afterwards.
pub fn stopped(lab: &Lab) -> Result<()> {
    let pause = lab.state().join("unbind");
    // Longer than the scenario: nobody waits for the call to be late.
    let call_timeout = Some(Duration::from_mins(5));
    let options =
        ManagerOptions { call_timeout, pause_before_unbind: Some(pause.clone()), ..ManagerOptions::default() };
    let manager = Manager::start(lab, &options)?;
    manager.create(&lab.pfs[..1], 1)?;
    let vf = &lab.pfs[0].vfs()[0];
    manager.acquire("stuck", vf, "vfio-pci", None)?;
    let holder = thread::scope(|scope| -> Result<_> {
        let stopping = scope.spawn(|| -> Result<_> {
            eventually("the manager is about to unbind", || pause.exists());
            let holder = testpmd::start(&[vf], &[])?;
            fs::remove_file(&pause).context("let it unbind")?;
            eventually("the kernel waits for the holder", || vf.driver().is_none());
            let took = stop(manager.id(), || manager.signal(Signal::SIGTERM));
            lab.time("a stop while a call hangs", took);
            Ok(holder)
        });
        manager.release("stuck", Duration::ZERO).expect_err("it was stopped");
        stopping.join().expect("it does not panic")
    })?;
    assert!(manager.log().contains("stopping; leases stay"), "{}", manager.log());

    let options = ManagerOptions { call_timeout, ..ManagerOptions::default() };
    let starting = Manager::spawn(lab, &options)?;
    eventually("it answers", || UnixStream::connect(options.socket(lab)).is_ok());
    let took = stop(starting.id(), || starting.signal(Signal::SIGTERM));
    lab.time("a stop during a start beside a call that hangs", took);

    testpmd::quit(holder);
    let next = Manager::start(lab, &ManagerOptions::default())?;
    eventually("the release goes on", || next.vf(vf).is_ok_and(|vf| vf.state().word() == "free"));
    Ok(())
}

/// How long it takes until all of a process has ended but threads that hang in the kernel.
fn stop(id: u32, ask: impl FnOnce()) -> Duration {
    let began = Instant::now();
    ask();
    let has_ended = || fs::read_to_string(format!("/proc/{id}/stat")).map_or(true, |stat| stat.contains(") Z "));
    eventually("it has ended", has_ended);
    let took = began.elapsed();
    // It is to be within a second; the machine is emulated, and clients that do not go have 5 s.
    assert!(took < Duration::from_secs(4), "{took:?}");
    took
}

/// The lock is a file of the PCI bus, which is the same one for every process of the machine.
pub fn second(lab: &Lab) -> Result<()> {
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    let elsewhere = ManagerOptions { elsewhere: true, ..ManagerOptions::default() };
    let Start::Ended(log) = Manager::start_crashing(lab, &elsewhere)? else { bail!("two managers have one node") };
    assert!(log.contains("another sriov-manager does"), "{log}");
    assert!(!elsewhere.socket(lab).exists(), "nobody is answered by it");
    manager.kill();
    Manager::start(lab, &elsewhere).map(drop)
}

/// The file system of the journal is mounted to be read only, as it is after an error of its disk.
pub fn read_only_disk(lab: &Lab) -> Result<()> {
    let options = ManagerOptions::default();
    let manager = Manager::start(lab, &options)?;
    manager.create(&lab.pfs[..1], 2)?;
    let [kept, other] = &lab.pfs[0].vfs()[..] else { bail!("the PF has two VFs") };
    manager.acquire("kept", kept, "vfio-pci", None)?;
    manager.kill();

    let state = options.state(lab);
    let none = None::<&str>;
    mount(Some(&state), &state, none, MsFlags::MS_BIND, none).context("mount the state over itself")?;
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, &state, none, read_only, none).context("make it read only")?;
    let manager = Manager::start(lab, &options)?;
    let lease = manager.vf(kept)?.lease.context("the lease is shown")?;
    assert_eq!((lease.id.as_str(), lease.stage().word(), lease.fault.as_str()), ("kept", "lent", ""));
    assert!(manager.explain(other)?.is_empty());
    let refused = manager.acquire("other", other, "vfio-pci", None).expect_err("it cannot be recorded");
    assert!(refused.message().contains("Read-only file system"), "{refused}");
    assert_eq!(other.driver(), None, "nothing is done that is not recorded");
    manager.release("kept", Duration::ZERO).expect_err("it cannot be recorded");
    assert_eq!(kept.driver().as_deref(), Some("vfio-pci"));

    // As by `mount -o remount,rw`: the same manager goes on.
    let writable = MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount(none, &state, none, writable, none).context("make it writable")?;
    manager.acquire("other", other, "vfio-pci", None)?;
    for id in ["other", "kept"] {
        manager.release(id, Duration::ZERO)?;
    }
    manager.kill();
    umount2(&state, MntFlags::MNT_DETACH).context("unmount the state")
}

/// The namespace of a pod goes, and nobody gives its VFs back: one whose interface was in it, one that has none.
pub fn until_namespace(lab: &Lab) -> Result<()> {
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    manager.create(&lab.pfs[..1], 2)?;
    let vfs = lab.pfs[0].vfs();
    ip(&["netns", "add", "pod"])?;
    let until = ["--until-netns", "/run/netns/pod"];
    for (id, vf, driver) in [("net1", &vfs[0], "kernel"), ("net2", &vfs[1], "vfio-pci")] {
        manager.ferrule(&[&["acquire", id, "--vf", &vf.address, "--driver", driver][..], &until].concat())?;
    }
    ip(&["link", "set", &vfs[0].wait_for_interface(), "netns", "pod", "name", "net1"])?;
    let lent = || manager.list().map(|list| list.vfs.iter().filter(|vf| vf.lease.is_some()).count());
    assert_eq!(lent()?, 2);
    ip(&["netns", "del", "pod"])?;
    eventually("both are taken back", || lent().is_ok_and(|lent| lent == 0));
    assert_eq!(vfs.iter().map(crate::lab::pci::Function::driver).collect::<Vec<_>>(), [None, None]);
    // Another one of that name is another one: nothing is lent for it.
    ip(&["netns", "add", "pod"])?;
    assert_eq!(lent()?, 0);
    // Nor is one that the kernel gave the same number, which it does soon, and while nobody looks.
    let number = || fs::metadata("/run/netns/pod").map(|file| file.ino()).ok();
    manager.ferrule(&[&["acquire", "net3", "--vf", &vfs[0].address, "--driver", "vfio-pci"][..], &until].concat())?;
    let first = number();
    manager.signal(Signal::SIGSTOP);
    eventually("another one has its number", || {
        [["netns", "del", "pod"], ["netns", "add", "pod"]].iter().all(|arguments| ip(arguments).is_ok())
            && number() == first
    });
    manager.signal(Signal::SIGCONT);
    eventually("the VF is taken back", || lent().is_ok_and(|lent| lent == 0));
    ip(&["netns", "del", "pod"]).map(drop)
}
