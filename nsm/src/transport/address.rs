//! Where a process listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A place to listen or to connect, as the environment and the registry name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// `unix:///path`. Files can be passed.
    Unix(PathBuf),
    /// `tcp://host:port`. Files cannot be passed. Without a host, all of this machine.
    Tcp(String),
}

/// A url names no place to connect to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address: it is unix:///path or tcp://host:port")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AddressError(text.chars().take(SHOWN_MAX).collect());
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(error()) };
        }
        let host_port = text.strip_prefix("tcp://").ok_or_else(error)?;
        let (host, port) = host_port.rsplit_once(':').ok_or_else(error)?;
        port.parse::<u16>().map_err(|_| error())?;
        Ok(Self::Tcp(if host.is_empty() { format!("[::]:{port}") } else { host_port.to_owned() }))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(host_port) => write!(f, "tcp://{host_port}"),
        }
    }
}

const SHOWN_MAX: usize = 120;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_a_port() {
        assert_eq!("unix:///run/nsm.sock".parse(), Ok(Address::Unix("/run/nsm.sock".into())));
        assert_eq!("tcp://127.0.0.1:5001".parse(), Ok(Address::Tcp("127.0.0.1:5001".into())));
        assert_eq!("tcp://:5001".parse(), Ok(Address::Tcp("[::]:5001".into())));
        assert_eq!("tcp://[2001:db8::1]:5001".parse::<Address>().unwrap().to_string(), "tcp://[2001:db8::1]:5001");
        for text in
            ["", "/run/nsm.sock", "unix://nsm.sock", "tcp://host", "tcp://host:port", "tcp://host:70000", "inode://4/5"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
