//! Between messages of the admin API and what they mean.
//!
//! Modules: `spec` (what a wire should be, both ways), `end` (the kinds of ends, joined), `memif`, `vhost_user`, `kernel`,
//! `ethdev`, `vf` (one kind each), `reader` (what they share), `secrets` (whether these are written), `status` (what a wire is doing).

mod end;
mod ethdev;
mod kernel;
mod memif;
mod reader;
mod secrets;
mod spec;
mod status;
mod vf;
mod vhost_user;

pub use secrets::Secrets;
pub use spec::{FieldErrors, spec_from_proto, spec_to_proto};
pub(super) use status::{event, response};
