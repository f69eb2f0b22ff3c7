//! A daemon over its socket, asked one thing after the other: a plugin has nothing else to do meanwhile.

use std::fmt::Display;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tonic::{Response, Status};

/// A client whose calls wait. The runtime is there once somebody is asked, and has no thread of its own.
pub struct Asking<C> {
    runtime: Runtime,
    client: C,
}

impl<C> Asking<C> {
    /// Waits for a connection.
    pub fn connect<E: Display>(connecting: impl Future<Output = Result<C, E>>) -> Result<Self, String> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("start a runtime: {error}"))?;
        let client = runtime.block_on(connecting).map_err(|error| error.to_string())?;
        Ok(Self { runtime, client })
    }

    /// Asks something; none: there was no answer in time.
    pub fn ask<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut C) -> Result<Response<T>, Status>,
    ) -> Option<Result<T, Status>> {
        let asked = async { timeout(ANSWER_WAIT, call(&mut self.client)).await };
        self.runtime.block_on(asked).ok().map(|answer| answer.map(Response::into_inner))
    }
}

/// What a daemon waits for it gives up sooner.
pub const ANSWER_WAIT: Duration = Duration::from_secs(30);
