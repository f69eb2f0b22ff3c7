//! Gives back what no pod has any more.
//!
//! The kubelet never says that a device is free. Its list of pods is asked for, often while something is about to change, and a
//! device that left it is given back; the manager refuses that while somebody still holds it, and then it is tried again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::allocate::Allocator;
use crate::lease_name::LeaseName;
use crate::leases::LeaseError;
use crate::pod_resources::Pods;
use crate::software::is_endpoint;

/// Looks again and again, and whenever `news` says so. Never ends by itself.
pub async fn keep_releasing(allocator: Arc<Allocator>, news: Arc<Notify>) {
    let (mut was_told, mut is_whole, mut is_swept) = (false, false, false);
    loop {
        match allocator.pod_resources.list().await {
            Ok(pods) => {
                was_told = false;
                allocator.resources.note_pods_problem(None);
                is_whole = pods.is_whole;
                look(&allocator, pods).await;
                if !is_swept && is_whole && allocator.resources.are_wires_known() {
                    allocator.sweep().await;
                    is_swept = true;
                }
            }
            Err(error) if was_told => debug!(%error, "nothing can be given back"),
            Err(error) => {
                let problem = format!("nothing can be given back until it is known what pods have: {error}");
                allocator.resources.note_pods_problem(Some(problem));
                warn!(%error, "nothing can be given back until it is known what pods have; it is tried again");
                was_told = true;
            }
        }
        let is_ending = allocator.resources.with_grants(|grants| grants.is_ending());
        let pause = if is_ending || !is_whole { LOOK_SOON } else { LOOK_LATER };
        tokio::select! {
            () = sleep(pause) => {}
            // What has just changed settles first.
            () = news.notified() => sleep(LOOK_SOON).await,
        }
    }
}

async fn look(allocator: &Arc<Allocator>, pods: Pods) {
    // By whatever name: it may have been renamed, or another plugin's.
    let ours = allocator.resources.device_ids();
    let now = Instant::now();
    let (told, due) = allocator.resources.with_grants(|grants| {
        let is_ours = |name: &LeaseName| ours.contains(&name.device) || grants.is_held(name);
        let listing = pods.listing.into_iter().filter(|(name, _)| is_ours(name)).collect();
        (grants.note_listing(&listing, pods.is_whole, now), grants.due(now))
    });
    // Wires say it by themselves, since they are looked at all the time.
    for (name, pod) in told.into_iter().filter(|(name, _)| !is_endpoint(&name.device)) {
        // Whoever asks for it anew says who has it as well.
        let _lock = allocator.locks.lock(std::iter::once(name.device.clone())).await;
        // Only words for people: a lease without them is as good.
        if let Err(error) = timeout(CALL_WAIT, allocator.manager.tell_tenant(&name, pod)).await.unwrap_or(Ok(())) {
            debug!(lease = %name, %error, "the lease does not say which pod has it");
        }
    }
    each(due.into_iter().map(|name| give_back(Arc::clone(allocator), name))).await;
}

/// Ends with all of these, several at a time: one that the manager does not answer keeps nobody else's VF.
async fn each(work: impl Iterator<Item = impl Future<Output = ()> + Send + 'static>) {
    let mut running = JoinSet::new();
    for one in work {
        if running.len() >= AT_ONCE_MAX {
            running.join_next().await;
        }
        running.spawn(one);
    }
    running.join_all().await;
}

async fn give_back(allocator: Arc<Allocator>, name: LeaseName) {
    let name = &name;
    let _lock = allocator.locks.lock(std::iter::once(name.device.clone())).await;
    // While the lock was waited for, the kubelet may have given it to the next pod.
    if !allocator.resources.with_grants(|grants| grants.is_due(name, Instant::now())) {
        return;
    }
    let given_back = async {
        if is_endpoint(&name.device) {
            return allocator.take_back(name).await;
        }
        allocator.manager.release(name).await
    };
    match timeout(CALL_WAIT, given_back).await.unwrap_or(Err(LeaseError::Late(CALL_WAIT))) {
        Ok(()) => {
            info!(lease = %name, "given back");
            allocator.resources.with_grants(|grants| grants.released(name, Instant::now()));
            let is_free = !allocator.resources.with_grants(|grants| grants.is_held(name));
            if is_free {
                allocator.forget(name);
            }
            allocator.counters.released(&name.resource);
        }
        Err(error) => {
            if error.is_held() {
                debug!(lease = %name, %error, "not given back yet");
            } else {
                warn!(lease = %name, %error, "not given back; it is tried again");
            }
            allocator.counters.release_failed(&name.resource);
            allocator.resources.with_grants(|grants| grants.postpone(name, Instant::now() + RETRY_AFTER));
        }
    }
}

/// Between looks while something changes.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// And while nothing does.
const LOOK_LATER: Duration = Duration::from_secs(10);
/// A VF is reset and may change its driver meanwhile.
const CALL_WAIT: Duration = Duration::from_secs(30);
/// How many are given back at a time.
const AT_ONCE_MAX: usize = 8;
/// After somebody still held it.
const RETRY_AFTER: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn one_that_hangs_holds_up_no_other_and_few_are_done_at_a_time() {
        let (left, running) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let one = |number: usize| {
            let (left, running) = (Arc::clone(&left), Arc::clone(&running));
            async move {
                assert!(running.fetch_add(1, Ordering::Relaxed) < AT_ONCE_MAX);
                if number == 0 {
                    // It is answered when all others are.
                    let _all = left.acquire_many(WORK - 1).await.unwrap();
                }
                running.fetch_sub(1, Ordering::Relaxed);
                left.add_permits(1);
            }
        };
        let done = timeout(CALL_WAIT, each((0..WORK as usize).map(one))).await;
        assert!(done.is_ok(), "{} of {WORK} were done", left.available_permits());
        assert_eq!(left.available_permits(), WORK as usize);
    }

    const WORK: u32 = 40;
}
