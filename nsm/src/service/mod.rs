//! Serving connections and asking for them: what a manager, a forwarder and an endpoint have in common.
//!
//! - [`ConnectionServer`]: who calls, is it allowed, whose turn is it, how long does it live; [`Handler`], [`Call`]: what is behind it
//! - [`NextHop`]: calling the next process; [`KeptHops`]: over connections that are kept; [`MechanismFiles`]: the namespaces that mechanisms name
//! - [`check_request`], [`check_connection`]: how large a connection may be; [`limit_mtu`]: how long its packets may be; [`time_to_close`]: how long a close may take

mod handler;
mod kept_hops;
mod limits;
mod mechanism_files;
mod mtu;
mod next_hop;
mod server;
mod table;

#[cfg(test)]
mod tests;

pub use handler::{Answered, Call, Handler};
pub use kept_hops::KeptHops;
pub(crate) use limits::MESSAGE_MAX;
pub use limits::{SizeError, check_connection, check_request};
pub use mechanism_files::{INODE_URL, MechanismFiles};
pub use mtu::limit_mtu;
pub use next_hop::{NextHop, NotMade};
pub use server::{ConnectionServer, time_to_close};
pub(crate) use table::CONNECTIONS_MAX;
