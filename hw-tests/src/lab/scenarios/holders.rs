//! VFs that somebody does not let go.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
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
    assert_eq!(next.vf(vf)?.lease.map(|lease| lease.id), Some("stuck".to_owned()));
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
