//! Between messages of the admin API and what they mean.
//!
//! Modules: `spec` (what a wire should be, both ways), `status` (what it is doing).

mod spec;
mod status;

pub use spec::{FieldErrors, Secrets, spec_from_proto, spec_to_proto};
pub(super) use status::{event, response};
