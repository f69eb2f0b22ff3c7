//! Files that are passed beside calls, below TLS: network namespaces and sockets.
//!
//! Nothing in the bytes says which file belongs to which call: a message names a file by device and number ([`Inode`]), and the
//! connection has it ([`Files`]), or gets it a little later.

mod inode;
mod stream;
mod table;

pub use inode::{Inode, InodeError};
pub(crate) use stream::FileStream;
pub use table::{FileError, Files};
