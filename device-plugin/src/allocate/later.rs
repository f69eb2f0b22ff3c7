//! What could not be lent at once: it is asked for again until it is lent, or until nobody wants it any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::Allocator;
use crate::grants::Tenant;
use crate::leases::{LeaseError, Wanted};
use crate::resources::Allotted;

/// Lends devices that a pod was admitted with.
pub(super) async fn lend_later(allocator: Arc<Allocator>, allotted: Vec<Allotted>) {
    let mut pause = PAUSE_FIRST;
    loop {
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        let left: Vec<_> = allotted.iter().filter_map(|device| unready(&allocator, device)).collect();
        let Some(first) = left.first() else { return };
        let resource = first.resource.name.to_string();
        match timeout(LEND_WAIT, allocator.lend(&left)).await.unwrap_or(Err(LeaseError::Late(LEND_WAIT))) {
            Ok(_) => {
                info!(resource, devices = left.len(), "a pod's devices are ready now");
                return;
            }
            Err(error) if error.is_final() => {
                warn!(resource, %error, "a pod that was admitted will not have its devices; delete it");
                return;
            }
            Err(error) => debug!(resource, %error, "a pod's devices are not ready yet"),
        }
    }
}

fn unready(allocator: &Allocator, device: &Allotted) -> Option<Allotted> {
    let tenant = allocator.resources.with_grants(|grants| grants.unready(&device.lease_name()))?;
    Some(Allotted { tenant, ..device.clone() })
}

/// Looks again and again whether devices that a pod was refused are to be had by now. Nothing else waits for a manager that does not
/// answer. Never ends by itself.
pub async fn keep_trying_refused(allocator: Arc<Allocator>) {
    loop {
        sleep(REFUSED_PAUSE).await;
        allocator.try_refused().await;
    }
}

impl Allocator {
    async fn try_refused(&self) {
        for (resource, member) in self.resources.refused() {
            let id = &member.device.id;
            let Some(wanted) = Wanted::new(&resource, &member.device, Tenant::New) else {
                self.resources.retried(id, None);
                continue;
            };
            match timeout(LEND_WAIT, self.manager.try_acquire(&wanted)).await {
                Ok(Ok(())) => self.resources.retried(id, None),
                Ok(Err(error)) if error.is_final() => self.resources.retried(id, Some(error.to_string())),
                // Nobody knows, of none of them; they are looked at again.
                Ok(Err(_)) => return,
                // The others come first next time.
                Err(_) => return self.resources.retry_later(id),
            }
        }
    }
}

const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Between looks at those that were refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);
const LEND_WAIT: Duration = Duration::from_secs(25);
