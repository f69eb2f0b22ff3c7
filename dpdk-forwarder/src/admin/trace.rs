//! Copies of the frames of a wire, for `ferrule trace`.

use std::sync::Arc;

use ferrule_dataplane::EngineError;
use ferrule_dataplane::capture::Capture;
use ferrule_dataplane::spec::{EndSpec, Mode, WireSpec, end_name};
use ferrule_trace::server::{Tap, Tapped};
use tonic::Status;

use super::refusal;
use crate::wires::Wires;

/// Taps wires.
pub(super) struct WireTaps(pub(super) Arc<Wires>);

impl Tapped for WireTaps {
    fn tap(&self, target: &str, capture: &Arc<Capture>) -> Result<Tap, Status> {
        let missing = || refusal(&EngineError::NoSuchWire(target.to_owned()).into());
        let spec = self.0.status(target).ok_or_else(missing)?.spec;
        self.0.trace(target, Some(Arc::clone(capture))).map_err(|error| refusal(&error.into()))?;
        let interfaces = [0, 1].map(|end| format!("{target}/{}", end_name(end))).into();
        Ok(Tap { target: target.to_owned(), interfaces, is_ip: is_ip(&spec) })
    }

    fn untap(&self, tap: &Tap) {
        // It may be gone, and then nothing is traced.
        let _ = self.0.trace(&tap.target, None);
    }
}

fn is_ip(spec: &WireSpec) -> bool {
    spec.ends.iter().any(|end| matches!(end, EndSpec::Memif(memif) if memif.mode == Mode::Ip))
}
