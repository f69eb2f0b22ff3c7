//! A file of settings that a daemon keeps itself equal to: at SIGHUP, and whenever it has new contents.

use tokio::signal::unix::Signal;
use tracing::info;

use crate::settings::{Cause, Followed};

/// What is kept equal to a file.
pub trait Reload {
    /// Reads the file, and makes what it says true.
    fn reload(&mut self, file: &mut Followed, cause: Cause) -> impl Future<Output = ()> + Send;
}

/// Has `target` reloaded whenever the file is to be read again, and never ends by itself. Without a file, a SIGHUP is
/// answered in the log; `what` is what that calls it.
pub async fn reload_on_change<R: Reload>(file: Option<(Followed, R)>, what: &str, mut hangup: Signal) {
    let Some((mut file, mut target)) = file else {
        while hangup.recv().await.is_some() {
            info!("SIGHUP, but there is no {what} to read again");
        }
        return std::future::pending().await;
    };
    // It may have changed between its reading and its watching.
    target.reload(&mut file, Cause::Changed).await;
    loop {
        let cause = tokio::select! {
            Some(()) = hangup.recv() => Cause::Asked,
            () = file.changed() => Cause::Changed,
        };
        target.reload(&mut file, cause).await;
    }
}
