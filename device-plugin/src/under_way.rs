//! How many calls are under way: a stop waits for them.

use tokio::sync::watch;

/// One call more, while this is kept.
#[derive(Debug)]
pub struct UnderWay(watch::Sender<usize>);

impl UnderWay {
    /// One more.
    pub fn new(calls: &watch::Sender<usize>) -> Self {
        calls.send_modify(|calls| *calls += 1);
        Self(calls.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|calls| *calls -= 1);
    }
}
