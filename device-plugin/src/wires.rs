//! Keeps wires as they should be: there while a pod has one of their ends, named after their pods, gone when no pod has them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dpdk_forwarder_client::v1;
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::allocate::Allocator;
use crate::software::WireError;

/// Takes over what pods have from wires that are there, and then keeps all wires as they should be, also when the forwarder starts again.
/// Never ends by itself.
/// Tells `news` when a wire or a peer has come or gone: a pod may have.
pub async fn keep_wired(allocator: Arc<Allocator>, news: Arc<Notify>) {
    let mut was_told = false;
    loop {
        // Where nobody asked for software endpoints, there need be no forwarder; but one that is there may have wires of pods.
        let is_wanted = allocator.resources.has_software();
        if is_wanted || !allocator.resources.are_wires_known() {
            match watch(&allocator, &news, &mut was_told).await {
                Err(error) if was_told || !is_wanted => debug!(%error, "wires of pods stay as they are"),
                Err(error) => {
                    warn!(%error, "wires of pods stay as they are until the forwarder answers");
                    was_told = true;
                }
                Ok(()) => {}
            }
        }
        sleep(if is_wanted { PAUSE } else { PAUSE_UNWANTED }).await;
    }
}

/// Until the forwarder does not answer any more, or nobody wants software endpoints.
async fn watch(allocator: &Allocator, news: &Notify, was_told: &mut bool) -> Result<(), WireError> {
    allocator.adopt_wires_later().await?;
    if !allocator.resources.has_software() {
        return Ok(());
    }
    let mut watched = allocator.forwarder.watch().await?;
    let mut before = Vec::new();
    while allocator.resources.has_software() {
        let wires = watched.next().await?;
        if std::mem::take(was_told) {
            info!("the forwarder answers again");
        }
        let now: Vec<_> = wires.iter().map(ends).collect();
        if now != before {
            before = now;
            news.notify_one();
        }
        compare(allocator, &wires).await;
    }
    Ok(())
}

/// Whether somebody is at each end.
fn ends(wire: &v1::Wire) -> (String, Vec<String>) {
    (wire.name.clone(), wire.ends.iter().map(|end| end.state.clone()).collect())
}

async fn compare(allocator: &Allocator, wires: &[v1::Wire]) {
    let states = allocator.resources.pairs_in_use();
    let in_use: BTreeSet<&str> = states.iter().map(|state| state.pair.name()).collect();
    for state in &states {
        let is_good = wires.iter().any(|wire| allocator.forwarder.is_good(wire, state));
        if !is_good && let Err(error) = allocator.wire_again(state.pair.name()).await {
            debug!(wire = state.pair.name(), %error, "not as it should be; it is tried again");
        }
    }
    for wire in wires.iter().filter(|wire| !in_use.contains(wire.name.as_str())) {
        match allocator.unwire(wire).await {
            Ok(()) => info!(wire = wire.name, "removed: no pod has it"),
            Err(error) => debug!(wire = wire.name, %error, "not removed; it is tried again"),
        }
    }
}

const PAUSE: Duration = Duration::from_millis(200);
/// Where there is nothing to be made.
const PAUSE_UNWANTED: Duration = Duration::from_secs(2);
