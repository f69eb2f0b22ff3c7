//! `ferrule bench` on two VFs of one PF: the switch of the PF is what is between them.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::scenario::Lab;
use crate::process::Process;

use super::ip;

pub fn two_vfs(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[0];
    let interface = pf.interface().context("a PF has an interface")?;
    ip(&["link", "set", &interface, "up"])?;
    pf.write("sriov_drivers_autoprobe", "0")?;
    pf.set_vfs(2)?;
    let vfs = pf.vfs();
    for (index, vf) in vfs.iter().enumerate() {
        ip(&["link", "set", &interface, "vf", &index.to_string(), "mac", &format!("52:54:00:00:01:0{index}")])?;
        vf.bind("vfio-pci")?;
    }
    doctor(&vfs[0].address, &vfs[1].address)?;

    let folder = lab.state().join("bench");
    let mut command = Command::new("ferrule");
    command.args(["bench", "--port", &vfs[0].address, "--port", &vfs[1].address]);
    // An emulated CPU makes few frames, and an emulated NIC fewer.
    command.args(
        "--at switch --both --method fixed --rate 100 --size 64,1518 --rounds 1 --time 1s --memory 64".split(' '),
    );
    let (code, text) = Process::start(command.arg("--report").arg(&folder)).wait();
    ensure!(code == Some(0), "{text}");
    let report = fs::read_to_string(folder.join("report.details.json")).context("read the report")?;
    let report: Value = serde_json::from_str(&report).context("understand the report")?;
    let cases = report["cases"].as_array().context("the report has cases")?;
    let trials = || cases.iter().flat_map(|case| case["programs"][0]["rounds"][0].as_array().into_iter().flatten());
    let sum = |name: &str| trials().filter_map(|trial| trial[name].as_f64()).sum::<f64>();
    lab.figure(
        "frames a second that crossed between two VFs, of 100 offered each way",
        sum("arrived_pps") / 2.0,
        "1/s",
    );
    ensure!(sum("arrived_pps") > 0.0 && sum("disorder") == 0.0 && sum("loss") == 0.0, "{report:#}");
    let latency = cases[0]["programs"][0]["latency"][0]["p50"].as_f64().context("frames have a latency")?;
    lab.figure("the same: median latency", latency, "us");
    // The VF says that its link has 1 Gbit/s: 1.488 million of the smallest frames, both ways.
    let line = cases[0]["line_pps"].as_f64().context("a VF has a line")?;
    ensure!((line / 2.0 / 1_488_095.0 - 1.0).abs() < 1e-3, "{line}");
    let said = report["programs"][0]["agreements"][0].as_str().unwrap_or_default();
    for part in [&*vfs[0].address, "net_e1000_igb_vf", "1 Gbit/s", "52:54:00:00:01:00"] {
        ensure!(said.contains(part), "`{part}` is not told: {said}");
    }
    Ok(())
}

/// What it says of the VFs, of their PF and of this machine.
fn doctor(near: &str, far: &str) -> Result<()> {
    let output = Command::new("ferrule").args(["bench", "doctor", "--json", "--port", near, "--port", far]).output();
    let found: Value =
        serde_json::from_slice(&output.context("run ferrule")?.stdout).context("understand the doctor")?;
    let findings = found["findings"].as_array().context("the doctor has findings")?;
    let of = |check: &str, subject: Option<&str>| {
        let wanted = |finding: &&Value| finding["check"] == check && finding["subject"].as_str() == subject;
        findings.iter().find(wanted).with_context(|| format!("{check} is looked at"))
    };
    for check in ["driver", "iommu-group", "vfs"] {
        let finding = of(check, Some(near))?;
        ensure!(finding["verdict"] == "ok", "{finding}");
    }
    for check in ["vfio", "libdpdk"] {
        let finding = of(check, None)?;
        ensure!(finding["verdict"] == "ok", "{finding}");
    }
    // Nobody has isolated a CPU there.
    let finding = of("isolcpus", None)?;
    ensure!(finding["verdict"] == "error", "{finding}");
    Ok(())
}
