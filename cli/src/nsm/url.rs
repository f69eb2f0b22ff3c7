//! What a client wants, as the clients of the mesh write it: `kernel://service@domain/interface?label=value`.

use std::collections::BTreeMap;
use std::str::FromStr;

use thiserror::Error;

/// One connection that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedUrl {
    /// What the client's end is to be.
    pub(crate) kind: WantedKind,
    /// With its domain, if it is of another one.
    pub(crate) service: String,
    /// What the interface is to be called; empty: it need not be called anything.
    pub(crate) interface: String,
    /// By which services choose endpoints.
    pub(crate) labels: BTreeMap<String, String>,
    /// The name of the tokens by one of which it is asked for, `domain/capability`.
    pub(crate) token: Option<String>,
}

/// A kind of end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WantedKind {
    /// An interface.
    Kernel,
    /// A memif.
    Memif,
    /// A VF on VFIO.
    Vfio,
}

/// A text is no such url.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?}: {1}; a connection is wanted as in kernel://service/nsm-1?color=red")]
pub struct UrlError(String, &'static str);

impl FromStr for WantedUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |problem| UrlError(text.chars().take(128).collect(), problem);
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("it has no `://`"))?;
        let kind = match scheme {
            "kernel" => WantedKind::Kernel,
            "memif" => WantedKind::Memif,
            "vfio" => WantedKind::Vfio,
            _ => return Err(wrong("this client has kernel, memif and vfio")),
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (service, interface) = place.split_once('/').unwrap_or((place, ""));
        if service.is_empty() {
            return Err(wrong("it names no service"));
        }
        if interface.is_empty() && kind == WantedKind::Kernel || interface.len() > 15 {
            return Err(wrong("it names no interface of 1 to 15 bytes"));
        }
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').ok_or_else(|| wrong("a label has no value"))?;
            Ok((name.to_owned(), value.to_owned()))
        };
        let mut labels: BTreeMap<_, _> = pairs.map(pair).collect::<Result<_, _>>()?;
        let token = labels.remove(TOKEN);
        if let Some(domain) = token.as_deref().and_then(|token| Some(token.split_once('/')?.0)) {
            labels.insert(DOMAIN.to_owned(), domain.to_owned());
        }
        if kind == WantedKind::Vfio && token.is_none() {
            return Err(wrong("vfio wants a VF: sriovToken=domain/capability"));
        }
        let (service, interface) = (service.to_owned(), interface.to_owned());
        Ok(Self { kind, service, interface, labels, token })
    }
}

/// Labels with a meaning.
const TOKEN: &str = "sriovToken";
const DOMAIN: &str = "serviceDomain";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_a_service_an_interface_and_labels() {
        let wanted: WantedUrl = "kernel://vpn@far.example/nsm-1?color=red&size=1".parse().unwrap();
        assert_eq!((wanted.service.as_str(), wanted.interface.as_str()), ("vpn@far.example", "nsm-1"));
        assert_eq!((wanted.kind, wanted.labels.len(), wanted.token), (WantedKind::Kernel, 2, None));
        for wrong in [
            "vfio://vpn/x",
            "vxlan://vpn/x",
            "vpn/x",
            "kernel:///nsm-1",
            "kernel://vpn",
            "kernel://vpn/a-very-long-name",
            "kernel://vpn/x?color",
        ] {
            assert!(wrong.parse::<WantedUrl>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_is_no_label_and_its_domain_is_one() {
        let wanted: WantedUrl = "vfio://vpn?sriovToken=worker.domain/10G".parse().unwrap();
        let labels = BTreeMap::from([("serviceDomain".to_owned(), "worker.domain".to_owned())]);
        assert_eq!((wanted.kind, &wanted.labels, wanted.interface.as_str()), (WantedKind::Vfio, &labels, ""));
        assert_eq!(wanted.token.as_deref(), Some("worker.domain/10G"));
        let wanted: WantedUrl = "memif://vpn".parse().unwrap();
        assert_eq!((wanted.kind, wanted.token), (WantedKind::Memif, None));
    }
}
