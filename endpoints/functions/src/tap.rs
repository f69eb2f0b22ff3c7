//! Copies of the frames of a function, for `ferrule trace`.

use std::sync::Arc;

use ferrule_dataplane::capture::Capture;
use ferrule_trace::server::{Tap, Tapped};
use tonic::Status;

use crate::function::Side;
use crate::packet::Link;
use crate::running::{Functions, Running};

impl Functions {
    /// The one that is meant: of this name, or the only one.
    fn meant(&self, target: &str) -> Result<(String, Arc<Running>), Status> {
        let mut all = self.all();
        if let Some(at) = all.iter().position(|(name, _)| name == target) {
            return Ok(all.swap_remove(at));
        }
        if target.is_empty() && all.len() == 1 {
            return Ok(all.swap_remove(0));
        }
        let names: Vec<_> = all.iter().take(SHOWN_MAX).map(|(name, _)| name.as_str()).collect();
        Err(Status::not_found(match (names.is_empty(), target) {
            (true, _) => "nobody is connected through this function now".to_owned(),
            (false, "") => format!("several connections go through it; name one of {}", names.join(", ")),
            (false, target) => format!("no connection `{target}` goes through it; there are {}", names.join(", ")),
        }))
    }
}

impl Tapped for Functions {
    fn tap(&self, target: &str, capture: &Arc<Capture>) -> Result<Tap, Status> {
        let (name, running) = self.meant(target)?;
        if !running.tap(Arc::clone(capture)) {
            return Err(Status::failed_precondition("somebody traces it already; end that first"));
        }
        let interfaces = Side::BOTH.map(|side| side.word().to_owned()).into();
        Ok(Tap { target: name, interfaces, is_ip: running.link() == Link::Ip })
    }

    fn untap(&self, tap: &Tap) {
        // One that is gone copies none.
        if let Some(running) = self.get(&tap.target) {
            running.untap();
        }
    }
}

/// Names in an error.
const SHOWN_MAX: usize = 8;
