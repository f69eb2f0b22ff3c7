//! Between messages of the admin API and what they mean.
//!
//! Modules: `spec` (what a wire should be, both ways), `end` (the kinds of ends, joined), `memif`, `vhost_user`, `kernel`
//! (one kind each), `reader` (what they share), `status` (what a wire is doing).

mod end;
mod kernel;
mod memif;
mod reader;
mod spec;
mod status;
mod vhost_user;

pub use spec::{FieldErrors, Secrets, spec_from_proto, spec_to_proto};
pub(super) use status::{event, response};
