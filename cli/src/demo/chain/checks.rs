//! What the chains' clients look at alike.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use ferrule_functions::webserver::Webserver;

use super::hops::ChainBed;
use super::http::{self, HttpError, Page};
use super::report::ClientReport;
use crate::demo::{DemoError, ping};

/// Whether all pings from a namespace are answered. `line` is what is said of it, but for the last word.
pub(super) fn check_ping(
    bed: &ChainBed<'_>,
    client: &mut ClientReport,
    side: usize,
    target: Ipv4Addr,
    line: &str,
) -> Result<(), DemoError> {
    let result = ping::ping(bed.testbed.namespace(side), IpAddr::V4(target));
    bed.stop.check()?;
    let (passed, seen) = match result {
        Ok(pinged) => (
            pinged.received == pinged.sent && pinged.sent > 0,
            format!("{} of {} answered", pinged.received, pinged.sent),
        ),
        Err(error) => (false, error.to_string()),
    };
    client.check("ping", passed, format!("{line} {}", word(passed)), seen);
    Ok(())
}

/// The root page, asked for from a namespace.
pub(super) fn get(bed: &ChainBed<'_>, side: usize, target: Ipv4Addr, port: u16) -> Result<Page, HttpError> {
    http::get(bed.testbed.namespace(side), SocketAddr::new(target.into(), port), "/", TIMEOUT)
}

/// Serves a page in a namespace, at each of its addresses.
pub(super) fn serve(bed: &ChainBed<'_>, side: usize, port: u16, page: &str) -> Result<Webserver, DemoError> {
    let listen = move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
    let listener = bed.testbed.namespace(side).run(listen).and_then(|listener| listener);
    let server = listener.and_then(|listener| Webserver::start(listener, [("/".to_owned(), page.to_owned())]));
    server.map_err(|error| DemoError::testbed(format!("serve a page on port {port}"), error))
}

/// As the example's script says it.
pub(super) fn word(passed: bool) -> &'static str {
    if passed { "successful" } else { "unsuccessful" }
}

/// As the example's `wget --timeout`.
const TIMEOUT: Duration = Duration::from_secs(3);
