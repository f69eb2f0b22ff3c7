//! `ferrule demo secure-intranet`: two clients reach a VPN gateway, each through a firewall and three passthroughs.
//!
//! The chain, the rules, the addresses and the lines are those of the example `secure-intranet-connectivity` of Network Service Mesh. Both
//! clients check at the same time.

use std::net::Ipv4Addr;
use std::panic::resume_unwind;
use std::thread;

use super::checks::{check_ping, get, serve, word};
use super::hops::{ChainBed, ChainEnd, ChainHop, ChainPlan, Interface};
use super::http::HttpError;
use super::report::{ChainReport, ClientReport};
use crate::demo::DemoError;

/// Does all of it.
pub(super) fn perform(bed: &ChainBed<'_>, report: &mut ChainReport) -> Result<(), DemoError> {
    let chain = bed.start(&CLIENTS.each_ref().map(IntranetClient::plan))?;
    bed.loopback(GATEWAY_SIDE)?;
    let servers = [OPEN, SHUT].map(|port| serve(bed, GATEWAY_SIDE, port, PAGE));
    let servers = servers.into_iter().collect::<Result<Vec<_>, _>>()?;
    let targets = CLIENTS.each_ref().map(|client| client.target.to_string()).join(" and ");
    bed.progress.say(format_args!(
        "two clients at once ping {targets}, through {} functions each, and ask for the page on ports {OPEN} and {SHUT}",
        CLIENTS[0].hops.len()
    ));
    let found = thread::scope(|scope| {
        let checking = CLIENTS.each_ref().map(|client| scope.spawn(move || client.check(bed)));
        checking.map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    for client in found {
        report.add(client?);
    }
    bed.progress.say("stopping the chains");
    drop(servers);
    chain.stop()
}

/// A client with the chain that is its own.
struct IntranetClient {
    name: &'static str,
    /// The address of the gateway, at the end of its chain.
    target: Ipv4Addr,
    interface: Interface,
    hops: [ChainHop; 4],
    end: ChainEnd,
}

impl IntranetClient {
    fn plan(&self) -> ChainPlan<'_> {
        ChainPlan { name: self.name, client: self.interface, hops: &self.hops, end: self.end }
    }

    fn check(&self, bed: &ChainBed<'_>) -> Result<ClientReport, DemoError> {
        let mut report = ClientReport::new(self.name);
        let line = format!("{} pinging vpn-gateway-nse TargetIP: {}", self.who(), self.target);
        check_ping(bed, &mut report, self.interface.side, self.target, &line)?;
        self.check_ports(bed, &mut report)?;
        Ok(report)
    }

    fn check_ports(&self, bed: &ChainBed<'_>, report: &mut ClientReport) -> Result<(), DemoError> {
        let (side, target) = (self.interface.side, self.target);
        let open = get(bed, side, target, OPEN);
        bed.stop.check()?;
        let (passed, seen) = match &open {
            Ok(page) => (page.body == PAGE, format!("{} bytes", page.body.len())),
            Err(error) => (false, error.to_string()),
        };
        let line = |verb: &str, port: u16, word: &str| {
            format!("{} {verb} vpn-gateway-nse TargetIP: {target} TargetPort:{port}{word}", self.who())
        };
        report.check("port 80", passed, line("accessing", OPEN, &format!(" {}", word(passed))), seen);
        // The server listens there: whoever is beside it gets the page.
        let beside = get(bed, GATEWAY_SIDE, target, SHUT).is_ok_and(|page| page.body == PAGE);
        let shut = get(bed, side, target, SHUT);
        bed.stop.check()?;
        let passed = beside && matches!(shut, Err(HttpError::TimedOut));
        let seen = match (&shut, beside) {
            (_, false) => format!("nothing listens on {SHUT} at the gateway itself"),
            (Ok(page), _) => format!("{} bytes came through the firewall", page.body.len()),
            (Err(error), _) => error.to_string(),
        };
        let text = if passed { line("blocked", SHUT, "") } else { line("accessing", SHUT, " successful") };
        report.check("port 8080", passed, text, seen);
        Ok(())
    }

    fn who(&self) -> String {
        format!("NSC {} with IP {}", self.name, self.interface.address.trim_end_matches("/30"))
    }
}

const fn hops([firewall, first, second, third]: [&'static str; 4]) -> [ChainHop; 4] {
    [
        ChainHop { name: firewall, settings: FIREWALL },
        ChainHop { name: first, settings: PASSTHROUGH },
        ChainHop { name: second, settings: PASSTHROUGH },
        ChainHop { name: third, settings: PASSTHROUGH },
    ]
}

/// As the mesh gives addresses to clients of a gateway: four for each.
static CLIENTS: [IntranetClient; 2] = [
    IntranetClient {
        name: "vpn-gateway-nsc-1",
        target: Ipv4Addr::new(172, 16, 1, 2),
        interface: Interface { side: 0, name: "nsm0", address: "172.16.1.1/30", routes: "" },
        hops: hops(["firewall-1", "passthrough-1-1", "passthrough-1-2", "passthrough-1-3"]),
        end: ChainEnd::Gateway(
            "vpn-gateway-1",
            Interface { side: GATEWAY_SIDE, name: "nsm0", address: "172.16.1.2/30", routes: "" },
        ),
    },
    IntranetClient {
        name: "vpn-gateway-nsc-2",
        target: Ipv4Addr::new(172, 16, 1, 6),
        interface: Interface { side: 2, name: "nsm0", address: "172.16.1.5/30", routes: "" },
        hops: hops(["firewall-2", "passthrough-2-1", "passthrough-2-2", "passthrough-2-3"]),
        end: ChainEnd::Gateway(
            "vpn-gateway-2",
            Interface { side: GATEWAY_SIDE, name: "nsm1", address: "172.16.1.6/30", routes: "" },
        ),
    },
];
const GATEWAY_SIDE: usize = 1;
const FIREWALL: &str = "firewall:\n  aclRules:\n    \"Allow ICMP\": \"action=reflect,icmptype=8\"\n    \"Allow TCP 80\": \
                        \"action=reflect,tcplowport=80,tcpupport=80\"";
const PASSTHROUGH: &str = "passthrough: {}";
const OPEN: u16 = 80;
const SHUT: u16 = 8080;
/// As many bytes as the example's page has.
const PAGE: &str = "<!DOCTYPE html>\n<html>\n<head><title>Hello</title></head>\n<body>\n<h1>Hello from VPN gateway!</h1>\n</body>\n</html>";
