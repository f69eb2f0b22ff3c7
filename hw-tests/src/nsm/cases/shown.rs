//! What a person is shown.

use anyhow::{Context, Result, ensure};

use super::ONE_FAMILY;
use crate::nsm::mesh::{Mesh, client_name};

pub(super) fn mesh_is_shown(mesh: &mut Mesh) -> Result<()> {
    let pair = mesh.connect(ONE_FAMILY, "ETHERNET")?;
    let node = mesh.near();
    let table = node.shown(&[])?;
    ensure!(table.contains(&format!("{} > nsmgr-1 > fwd-1 > nse", client_name(0))), "the table is {table}");
    let json: serde_json::Value = serde_json::from_str(&node.shown(&["--json"])?)?;
    let hops = json["connections"][0]["hops"].as_array().context("no hops")?;
    ensure!(hops.len() == 4 && hops[2]["metrics"]["server_interface"] == "KERNEL/nsm-1", "the hops are {hops:?}");
    let drawn = node.shown(&["--draw"])?;
    ensure!(drawn.contains("[KERNEL/nsm-1]==[KERNEL/icmp-respo-"), "it is drawn as {drawn}");
    pair.close()
}
