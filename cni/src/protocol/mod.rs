//! What a runtime and a plugin say to each other: the specification of CNI, releases 0.3.1 to 1.1.0.
//!
//! - [`Environment`]: what is asked, of which attachment;
//! - [`Version`]: in which release;
//! - [`AddResult`]: what an attachment is;
//! - [`CniError`]: why not.

mod environment;
mod error;
mod result;
mod version;

pub use environment::{Attachment, Command, Environment, is_interface};
pub use error::{CniError, Code};
pub use result::{AddResult, Interface, IpAddress, Route};
pub use version::Version;
