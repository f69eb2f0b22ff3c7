//! What a client wants, as the clients of the mesh write it: `kernel://service@domain/interface?label=value`.

use std::collections::BTreeMap;
use std::str::FromStr;

use thiserror::Error;

/// One connection that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedUrl {
    /// With its domain, if it is of another one.
    pub(crate) service: String,
    /// What the interface is to be called.
    pub(crate) interface: String,
    /// By which services choose endpoints.
    pub(crate) labels: BTreeMap<String, String>,
}

/// A text is no such url.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?}: {1}; a connection is wanted as in kernel://service/nsm-1?color=red")]
pub struct UrlError(String, &'static str);

impl FromStr for WantedUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |problem| UrlError(text.chars().take(128).collect(), problem);
        let rest = text.strip_prefix("kernel://").ok_or_else(|| wrong("this client has kernel interfaces only"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (service, interface) = place.split_once('/').unwrap_or((place, ""));
        if service.is_empty() {
            return Err(wrong("it names no service"));
        }
        if interface.is_empty() || interface.len() > 15 {
            return Err(wrong("it names no interface of 1 to 15 bytes"));
        }
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').ok_or_else(|| wrong("a label has no value"))?;
            Ok((name.to_owned(), value.to_owned()))
        };
        let labels = pairs.map(pair).collect::<Result<_, _>>()?;
        Ok(Self { service: service.to_owned(), interface: interface.to_owned(), labels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_a_service_an_interface_and_labels() {
        let wanted: WantedUrl = "kernel://vpn@far.example/nsm-1?color=red&size=1".parse().unwrap();
        assert_eq!((wanted.service.as_str(), wanted.interface.as_str()), ("vpn@far.example", "nsm-1"));
        assert_eq!(wanted.labels.len(), 2);
        for wrong in
            ["vfio://vpn/x", "kernel:///nsm-1", "kernel://vpn", "kernel://vpn/a-very-long-name", "kernel://vpn/x?color"]
        {
            assert!(wrong.parse::<WantedUrl>().is_err(), "{wrong}");
        }
    }
}
