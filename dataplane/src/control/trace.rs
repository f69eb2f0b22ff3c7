//! Copies of a wire's frames go to whoever looks at them.

use std::sync::Arc;

use super::state::State;
use super::wire::{Body, LanePlace, Wire};
use crate::capture::Capture;
use crate::engine::EngineError;
use crate::worker::LaneId;

impl State {
    /// Has the lanes of a wire captured, those of now and those that come, or not any more.
    pub(super) fn trace(&mut self, name: &str, capture: Option<&Arc<Capture>>) -> Result<(), EngineError> {
        let key = self.names.get(name).copied().ok_or_else(|| EngineError::NoSuchWire(name.to_owned()))?;
        let wire = &mut self.wires[key];
        if capture.is_some()
            && let Some(problem) = obstacle(wire)
        {
            return Err(EngineError::NotTraced { wire: name.to_owned(), problem });
        }
        wire.capture = capture.cloned();
        let Some(served) = wire.workers_mut() else { return Ok(()) };
        for place in &mut served.lanes {
            match place {
                LanePlace::Unserved(lane) | LanePlace::Back(lane) => lane.capture = capture.cloned(),
                LanePlace::Served(..) | LanePlace::Lost => {}
            }
        }
        let lanes: Vec<(usize, LaneId)> = served.served().collect();
        for (worker, id) in lanes {
            self.workers[worker].trace(id, capture.cloned());
        }
        Ok(())
    }
}

/// Why nobody can look at the frames of a wire.
fn obstacle(wire: &Wire) -> Option<&'static str> {
    if wire.capture.is_some() {
        return Some("somebody traces it already; end that first");
    }
    if matches!(wire.body, Body::Kernel(_)) {
        return Some(
            "the kernel joins its two interfaces, and no frame passes the forwarder; use tcpdump on one of them",
        );
    }
    wire.spec.trusted.then_some("it is trusted, and its frames are not copied; make the wire without `trusted`")
}
