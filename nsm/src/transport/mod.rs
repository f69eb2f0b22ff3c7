//! How processes reach each other: mutual TLS with SPIFFE identities over Unix and TCP sockets, and gRPC over that.
//!
//! - [`Address`]: where; [`Allowed`]: who
//! - [`Listener`], [`server`]: the side that is called; [`Connection`], [`KeptConnection`]: the side that calls
//! - [`Peer`]: who is at the ends of a connection

mod address;
mod connection;
mod dial;
mod kept;
mod listen;
mod tcp;
mod tls;

#[cfg(test)]
mod tests;

pub use address::{Address, AddressError};
pub use connection::{Peer, SecureStream};
pub use dial::{Calls, Connection, DialError, DialOptions};
pub use kept::KeptConnection;
pub(crate) use listen::PlainListener;
pub use listen::{ListenError, ListenLimits, Listener, server};
pub use tls::Allowed;
