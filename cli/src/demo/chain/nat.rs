//! `ferrule demo nat`: a client reaches a web server through a NAT44, and the server does not learn who it is.
//!
//! The chain and the addresses are those of the example `cnf-nat-example`. The server's own log is what counts: it is behind the kernel's
//! TCP, as the client is.

use std::net::{IpAddr, Ipv4Addr};

use ferrule_functions::webserver::{Served, Webserver};

use super::checks::{check_ping, get, serve, word};
use super::hops::{ChainBed, ChainEnd, ChainHop, ChainPlan, Interface};
use super::report::{ChainReport, ClientReport};
use crate::demo::DemoError;

/// Does all of it.
pub(super) fn perform(bed: &ChainBed<'_>, report: &mut ChainReport) -> Result<(), DemoError> {
    let chain = bed.start(&[ChainPlan { name: "nat", client: CLIENT, hops: &HOPS, end: ChainEnd::Wire(WEBSERVER) }])?;
    let server = serve(bed, SERVER_SIDE, PORT, PAGE)?;
    let mut client = ClientReport::new("client");
    bed.progress.say(format_args!("pinging {SERVER} from namespace a, through a NAT44"));
    let line = format!("client with IP {CLIENT_IP} pinging webserver TargetIP: {SERVER}");
    check_ping(bed, &mut client, CLIENT_SIDE, SERVER, &line)?;
    bed.progress.say(format_args!("asking {SERVER} for its page, and its log for who asked"));
    check_page(bed, &mut client, &server)?;
    report.add(client);
    bed.progress.say("stopping the chain");
    drop(server);
    chain.stop()
}

fn check_page(bed: &ChainBed<'_>, client: &mut ClientReport, server: &Webserver) -> Result<(), DemoError> {
    let got = get(bed, CLIENT_SIDE, SERVER, PORT);
    bed.stop.check()?;
    let passed = got.as_ref().is_ok_and(|page| page.body == PAGE);
    let seen = got.as_ref().map_or_else(ToString::to_string, |page| format!("{} bytes", page.body.len()));
    let line =
        format!("client with IP {CLIENT_IP} accessing webserver TargetIP: {SERVER} TargetPort:{PORT} {}", word(passed));
    client.check("page", passed, line, seen);

    // It is noted before the connection is closed, and we have read to the close.
    let log = server.served();
    let passed = is_hidden(&log);
    let asked = got.map_or_else(|_| CLIENT_IP.to_string(), |page| page.client.to_string());
    let entry = |served: &Served| format!("{} `{}` {}", served.client, served.request, served.status);
    let seen = if log.is_empty() {
        "the server's log is empty".to_owned()
    } else {
        log.iter().map(entry).collect::<Vec<_>>().join(", ")
    };
    let line = match log.first() {
        Some(first) if passed => format!("client {asked} known to webserver as {}", first.client),
        _ => format!("client {asked} not known to webserver as {OUTSIDE}"),
    };
    client.check("server's log", passed, line, seen);
    Ok(())
}

/// Whether the server knows its only client by the first address of the pool.
fn is_hidden(log: &[Served]) -> bool {
    !log.is_empty() && log.iter().all(|served| served.client.ip() == IpAddr::V4(OUTSIDE))
}

const CLIENT_SIDE: usize = 0;
const SERVER_SIDE: usize = 1;
const CLIENT: Interface = Interface {
    side: CLIENT_SIDE,
    name: "tap0",
    address: "192.168.100.10/24",
    routes: "{ to: 80.80.80.0/24, via: 192.168.100.1 }",
};
/// It needs no route: whoever asks is on its own network.
const WEBSERVER: Interface = Interface { side: SERVER_SIDE, name: "memif0", address: "80.80.80.80/24", routes: "" };
const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 10);
const SERVER: Ipv4Addr = Ipv4Addr::new(80, 80, 80, 80);
/// The address of the pool. The example's has five more; a NAT of ours chooses one for each client, and nobody could say which.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(80, 80, 80, 100);
const HOPS: [ChainHop; 1] = [ChainHop {
    name: "cnf-nat44",
    settings: "nat44:\n  inside: { address: 192.168.100.1/24 }\n  outside: { address: 80.80.80.100/24 }\n  pool: \
               [80.80.80.100]",
}];
const PORT: u16 = 80;
const PAGE: &str = "<!DOCTYPE html>\n<html>\n<body>\n<h1>Hello from the web server!</h1>\n</body>\n</html>\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn served(client: &str) -> Served {
        Served { client: client.parse().unwrap(), request: "GET / HTTP/1.1".to_owned(), status: 200 }
    }

    #[test]
    fn a_client_is_hidden_only_if_every_request_is_of_the_pool() {
        assert!(is_hidden(&[served("80.80.80.100:4000"), served("80.80.80.100:4001")]));
        assert!(!is_hidden(&[served("80.80.80.100:4000"), served("192.168.100.10:4001")]));
        assert!(!is_hidden(&[]), "nobody asked");
    }
}
