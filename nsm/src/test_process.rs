//! A process of a test that can be killed: what it serves ends at once, connections too.

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Runs tasks until it is dropped.
pub(crate) struct TestProcess(Option<Runtime>);

impl TestProcess {
    pub(crate) fn new() -> Self {
        Self(Some(Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()))
    }

    pub(crate) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.0.as_ref().expect("it runs").spawn(task)
    }
}

impl Drop for TestProcess {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
