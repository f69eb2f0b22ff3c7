//! `ferrule demo secure-intranet`: a client reaches a VPN gateway through a firewall and three passthroughs.
//!
//! The chain, the rules, the addresses and the lines are those of the example `secure-intranet-connectivity` of Network Service Mesh.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use ferrule_functions::webserver::Webserver;

use super::hops::{ChainBed, ChainHop, Interface};
use super::http::{self, HttpError};
use super::report::{ChainReport, ClientReport};
use crate::demo::{DemoError, ping};

/// Does all of it.
pub(super) fn perform(bed: &ChainBed<'_>, report: &mut ChainReport) -> Result<(), DemoError> {
    let chain = bed.start([CLIENT, GATEWAY], &HOPS)?;
    bed.loopback(1)?;
    let serving = |port| serve(bed, port).map_err(|error| DemoError::testbed("serve the gateway's pages", error));
    let servers = [OPEN, SHUT].into_iter().map(serving).collect::<Result<Vec<_>, _>>()?;
    let client = report.client(CLIENT_NAME);
    bed.progress.say(format_args!("pinging {TARGET} from namespace a, through {} functions", HOPS.len()));
    check_ping(bed, client)?;
    bed.progress.say(format_args!("asking {TARGET} for its page on ports {OPEN} and {SHUT}"));
    check_ports(bed, client)?;
    bed.progress.say("stopping the chain");
    drop(servers);
    chain.stop()
}

fn check_ping(bed: &ChainBed<'_>, client: &mut ClientReport) -> Result<(), DemoError> {
    let result = ping::ping(bed.testbed.namespace(0), IpAddr::V4(TARGET));
    bed.stop.check()?;
    let (passed, seen) = match result {
        Ok(pinged) => (
            pinged.received == pinged.sent && pinged.sent > 0,
            format!("{} of {} answered", pinged.received, pinged.sent),
        ),
        Err(error) => (false, error.to_string()),
    };
    let word = if passed { "successful" } else { "unsuccessful" };
    client.check("ping", passed, format!("{} pinging vpn-gateway-nse TargetIP: {TARGET} {word}", who()), seen);
    Ok(())
}

fn check_ports(bed: &ChainBed<'_>, client: &mut ClientReport) -> Result<(), DemoError> {
    let get =
        |side: usize, port| http::get(bed.testbed.namespace(side), SocketAddr::new(TARGET.into(), port), "/", TIMEOUT);
    let open = get(0, OPEN);
    bed.stop.check()?;
    let (passed, seen) = match &open {
        Ok(page) => (page == PAGE, format!("{} bytes", page.len())),
        Err(error) => (false, error.to_string()),
    };
    let word = if passed { "successful" } else { "unsuccessful" };
    let line = |verb: &str, port: u16, word: &str| {
        format!("{} {verb} vpn-gateway-nse TargetIP: {TARGET} TargetPort:{port}{word}", who())
    };
    client.check("port 80", passed, line("accessing", OPEN, &format!(" {word}")), seen);
    // The server listens there: whoever is beside it gets the page.
    let beside = get(1, SHUT).is_ok_and(|page| page == PAGE);
    let shut = get(0, SHUT);
    bed.stop.check()?;
    let passed = beside && matches!(shut, Err(HttpError::TimedOut));
    let seen = match (&shut, beside) {
        (_, false) => format!("nothing listens on {SHUT} at the gateway itself"),
        (Ok(page), _) => format!("{} bytes came through the firewall", page.len()),
        (Err(error), _) => error.to_string(),
    };
    let text = if passed { line("blocked", SHUT, "") } else { line("accessing", SHUT, " successful") };
    client.check("port 8080", passed, text, seen);
    Ok(())
}

/// Serves the page in the gateway's namespace.
fn serve(bed: &ChainBed<'_>, port: u16) -> std::io::Result<Webserver> {
    let listener = bed.testbed.namespace(1).run(move || TcpListener::bind((TARGET, port)))??;
    Webserver::start(listener, [("/".to_owned(), PAGE.to_owned())])
}

fn who() -> String {
    format!("NSC {CLIENT_NAME} with IP {}", CLIENT.address.trim_end_matches("/30"))
}

const CLIENT_NAME: &str = "vpn-gateway-nsc";
const CLIENT: Interface = Interface { name: "nsm0", address: "172.16.1.1/30", routes: "" };
const GATEWAY: Interface = Interface { name: "nsm0", address: "172.16.1.2/30", routes: "" };
const TARGET: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 2);
const HOPS: [ChainHop; 4] = [
    ChainHop {
        name: "firewall",
        settings: "firewall:\n  aclRules:\n    \"Allow ICMP\": \"action=reflect,icmptype=8\"\n    \"Allow TCP 80\": \
                   \"action=reflect,tcplowport=80,tcpupport=80\"",
    },
    ChainHop { name: "passthrough-1", settings: "passthrough: {}" },
    ChainHop { name: "passthrough-2", settings: "passthrough: {}" },
    ChainHop { name: "passthrough-3", settings: "passthrough: {}" },
];
const OPEN: u16 = 80;
const SHUT: u16 = 8080;
/// As many bytes as the example's page has.
const PAGE: &str = "<!DOCTYPE html>\n<html>\n<head><title>Hello</title></head>\n<body>\n<h1>Hello from VPN gateway!</h1>\n</body>\n</html>";
/// As the example's `wget --timeout`.
const TIMEOUT: Duration = Duration::from_secs(3);
