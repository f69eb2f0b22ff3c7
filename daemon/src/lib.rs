//! What every daemon of Ferrule shares: how it reads its settings, listens, answers, and is looked at.
//!
//! It knows neither wires nor VFs: the daemons bring what they serve.
//!
//! Modules in reading order:
//! - [`settings`]: a file of settings, checked as a whole, every error at its line; and the file followed
//! - [`api_socket`]: where an API listens and who may use it, in files and on command lines
//! - [`socket`]: that Unix socket, made and removed with care
//! - [`clients`]: how many of them one user may be
//! - [`grpc`]: the API on it, with health and reflection; and how a client reaches it
//! - [`page`]: the HTTP page for Prometheus and for probes
//! - [`metrics`]: how the text of that page is written
//! - [`phase`]: what a daemon is doing, for all of them
//! - [`mod@run`]: signals, servers and the end; [`reload`]: the file read again while the daemon runs
//! - [`inotify`]: news of directories
//! - [`logging`]: the log, which nobody waits for; [`text`]: words of it

pub mod api_socket;
pub mod clients;
pub mod grpc;
pub mod inotify;
pub mod logging;
pub mod metrics;
pub mod page;
pub mod phase;
pub mod reload;
pub mod run;
pub mod settings;
pub mod socket;
pub mod text;

pub use api_socket::{ApiSocket, SocketFlags};
pub use phase::Phase;
pub use run::{ServerError, Servers, Shutdown, run};
pub use socket::{ServiceSocket, SocketError};
pub use text::counted;

/// Of tests that open many descriptors, one of which counts them.
#[cfg(test)]
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
