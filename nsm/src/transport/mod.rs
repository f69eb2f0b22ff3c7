//! How processes reach each other: mutual TLS with SPIFFE identities over Unix and TCP sockets, and gRPC over that.
//!
//! - [`Address`]: where; [`Allowed`]: who
//! - [`Listener`], [`server`]: the side that is called; [`Connection`], [`KeptConnection`]: the side that calls
//! - [`Peer`]: who is at the ends of a connection

mod address;
mod connection;
mod dial;
mod handshakes;
mod kept;
mod listen;
mod plain;
mod tcp;
mod tls;

#[cfg(test)]
mod tests;

pub use address::{Address, AddressError};
pub use connection::{Peer, SecureStream};
pub(crate) use dial::ran_out;
pub use dial::{Calls, Connection, DialError, DialOptions};
pub use kept::KeptConnection;
pub use listen::{ListenError, ListenLimits, Listener, server};
pub(crate) use plain::PlainListener;
pub use tls::Allowed;
