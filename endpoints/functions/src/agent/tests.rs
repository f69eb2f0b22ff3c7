use std::path::Path;

use ferrule_daemon::settings::FileSettings as _;

use super::*;
use crate::config::Config;

/// The NAT of the example, but for the mixture of both spellings, which the example's files have as well.
const NAT: &str = r"
apiVersion: pantheon.tech/v1
kind: CNFConfiguration
metadata:
  name: cnf-nat44
spec:
  microservice: cnf-nat44
  configItems:
    - module: cnf.nsm
      version: v1
      type: endpoint
      data: |-
        network_service: cnf-nat-example
        advertised_labels:
          - key: app
            value: nat44
        interface_name_prefix: memif
        interface_type: MEM_INTERFACE
        single_client: true
        ipAddresses:
          - 192.168.100.1/24
    - module: cnf.nsm
      version: v1
      type: client
      data: |-
        name: cnf-nat44-client
        network_service: cnf-nat-example
        outgoing_labels: [{ key: app, value: nat44 }]
        interface_name: memif1
        interface_type: MEM_INTERFACE
        ipAddresses: [80.80.80.100/24]
    - module: vpp.nat
      version: v2
      type: nat44-interface
      data: |-
        name: memif0
        nat_inside: true
    - module: vpp.nat
      version: v2
      type: nat44-interface
      data: |-
        name: memif1
        nat_outside: true
        output_feature: true
    - module: vpp.nat
      version: v2
      type: nat44-pool
      data: |-
        first_ip: 80.80.80.100
        last_ip: 80.80.80.105
";
const CLIENT: &str = r"---
apiVersion: pantheon.tech/v1
kind: CNFConfiguration
metadata: { name: client }
spec:
  microservice: client
  configItems:
    - module: cnf.nsm
      version: v1
      type: client
      data: |
        name: client
        network_service: cnf-nat-example
        outgoing_labels: [{ key: app, value: client }]
        interface_name: tap0
        interface_type: KERNEL_INTERFACE
        ip_addresses: [192.168.100.10/24]
    - module: linux.l3
      version: v2
      type: route
      data: |
        outgoing_interface: tap0
        scope: GLOBAL
        dst_network: 80.80.80.0/24
        gw_addr: 192.168.100.1
";
const WEBSERVER: &str = r"---
apiVersion: pantheon.tech/v1
kind: CNFConfiguration
metadata: { name: webserver }
spec:
  microservice: webserver
  configItems:
    - module: cnf.nsm
      type: endpoint
      data: |
        network_service: cnf-nat-example
        advertised_labels: [{ key: app, value: webserver }]
        interface_name_prefix: memif
        single_client: true
        interface_type: MEM_INTERFACE
        ip_addresses: [80.80.80.80/24]
";

/// The settings of an agent with these documents, and with these keys more.
fn load(documents: &str, more: &str) -> Result<Config, Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("cnf.yaml"), documents).unwrap();
    let text = format!("name: f\nagent: {{ file: cnf.yaml, sockets: /run/f{more} }}\n");
    Config::from_bytes(&directory.path().join("f.yaml"), text.as_bytes()).map_err(|error| error.lines())
}

/// Settings without an agent.
fn settings(text: &str) -> Config {
    Config::from_bytes(Path::new("f.yaml"), format!("name: f\n{text}").as_bytes()).unwrap()
}

#[test]
fn the_documents_of_the_example_mean_what_their_names_say() {
    let nat = settings(
        "client: { memif: { socket: /run/f/memif0.sock, role: client } }
network: { memif: { socket: /run/f/memif1.sock, role: client } }
nat44: { inside: { address: 192.168.100.1/24 }, outside: { address: 80.80.80.100/24 }, pool: [80.80.80.100-80.80.80.105] }",
    );
    assert_eq!(load(NAT, "").unwrap(), nat);
    let client = settings(
        "client: { kernel: { netns: /run/netns/c, name: tap0, addresses: [192.168.100.10/24], routes: [{ to: 80.80.80.0/24, via: 192.168.100.1 }] } }
network: { memif: { socket: /run/f/tap0.sock, role: client } }
passthrough: {}",
    );
    assert_eq!(load(CLIENT, ", netns: /run/netns/c").unwrap(), client);
    let webserver = settings(
        "client: { memif: { socket: /run/f/memif0.sock, role: client } }
gateway: { name: memif0, addresses: [80.80.80.80/24] }",
    );
    assert_eq!(load(WEBSERVER, "").unwrap(), webserver);
}

#[test]
fn of_documents_for_several_one_is_chosen() {
    let all = [NAT, CLIENT, WEBSERVER].concat();
    assert_eq!(load(&all, ", microservice: cnf-nat44").unwrap(), load(NAT, "").unwrap());
    assert_eq!(load(&all, ", microservice: webserver").unwrap(), load(WEBSERVER, "").unwrap());
    let wrong = load(&all, "").unwrap_err();
    assert!(
        wrong[0].contains("spec.microservice: `client`, and items before are for `cnf-nat44`; say with `microservice`"),
        "{wrong:?}"
    );
    assert!(load(&all, ", microservice: other").unwrap_err()[0].contains("no cnf.nsm client and no endpoint"));
}

#[test]
fn port_forwards_and_settings_that_change_nothing_are_taken() {
    let more = "    - module: vpp.nat
      type: dnat44
      data: |
        label: web
        st_mappings:
          - { external_ip: 80.80.80.100, external_port: 80, protocol: TCP, local_ips: [{ local_ip: 192.168.100.10, local_port: 8080 }] }
    - { module: vpp.nat, type: nat44-global, data: \"forwarding: false\" }
";
    let FunctionSettings::Nat44(nat) = load(&[NAT, more].concat(), "").unwrap().function else { panic!() };
    assert_eq!(nat.forwards, [PortForward { protocol: 6, outside: (0x5050_5064, 80), inside: (0xc0a8_640a, 8080) }]);
}

#[test]
fn without_nat_items_it_is_a_passthrough() {
    let items = NAT.split("    - module: vpp.nat").next().unwrap();
    let wrong = load(items, "").unwrap_err();
    assert!(wrong[0].contains("memif0 is a side of a passthrough"), "{wrong:?}");
    let plain = items
        .replace("        ipAddresses:\n          - 192.168.100.1/24\n", "")
        .replace("        ipAddresses: [80.80.80.100/24]\n", "");
    assert_eq!(load(&plain, "").unwrap().function, FunctionSettings::Passthrough);
}

#[test]
fn what_is_not_known_is_refused_by_its_name_and_place() {
    for (documents, old, new, problem) in [
        (
            NAT,
            "type: nat44-pool",
            "type: nat64-pool",
            "spec.configItems[4].module: `vpp.nat` `nat64-pool` is not known here",
        ),
        (NAT, "first_ip", "firstip", "spec.configItems[4].data: 1:1: firstip: unknown key; did you mean `first_ip`?"),
        (
            NAT,
            "last_ip: 80.80.80.105",
            "last_ip: 80.80.80.105\n        vrf_id: 2",
            "data: 3:9: vrf_id: not known here but for `0`; leave it out",
        ),
        (NAT, "last_ip: 80.80.80.105", "last_ip: 80.80.80.10", "the pool begins behind its end"),
        (NAT, "nat_inside: true", "nat_outside: true", "`memif0` is to be `nat_inside: true`"),
        (NAT, "name: memif1\n", "name: memif7\n", "`memif1` is to be `nat_outside: true`"),
        (NAT, "80.80.80.100/24", "192.168.100.2/24", "outside.address: it overlaps the inside network"),
        (NAT, "        ipAddresses: [80.80.80.100/24]\n", "", "memif1 is a side of a NAT44: one IPv4 address"),
        (
            NAT,
            "single_client: true",
            "single_client: false",
            "ipAddresses: it is for an endpoint with `single_client: true` only",
        ),
        (
            NAT,
            "single_client",
            "interface_name_suffix_from_label: app\n        single_client",
            "interface_name_suffix_from_label: it is not known here",
        ),
        (NAT, "pantheon.tech/v1", "pantheon.tech/v2", "apiVersion: `pantheon.tech/v2`"),
        (
            NAT,
            "      version: v1\n      type: client",
            "      version: v7\n      type: client",
            "spec.configItems[1].version: `v7`; `v1` is wanted",
        ),
        (
            CLIENT,
            "outgoing_interface: tap0",
            "outgoing_interface: tap9",
            "its linux.l3 route to 80.80.80.0/24 leaves by `tap9`; interfaces of the kernel are tap0",
        ),
        (CLIENT, "scope: GLOBAL", "scope: LINK", "`LINK` is not what the kernel gives such a route; write `GLOBAL`"),
        (CLIENT, "KERNEL_INTERFACE", "TAP_INTERFACE", "interface_type: `TAP_INTERFACE`"),
        (
            WEBSERVER,
            "      type: endpoint",
            "      type: endpoints",
            "`cnf.nsm` `endpoints` is not known here; known are cnf.nsm client, cnf.nsm endpoint, linux.l3 route",
        ),
    ] {
        assert!(documents.contains(old), "{old}");
        let lines = load(&documents.replacen(old, new, 1), "").unwrap_err();
        assert!(lines.iter().any(|line| line.contains("cnf.yaml") && line.contains(problem)), "{new}: {lines:#?}");
    }
    let both = "name: f\nagent: { file: none.yaml, sockets: /run/f }\nnat44: {}\n";
    let lines = Config::from_bytes(Path::new("f.yaml"), both.as_bytes()).map_err(|error| error.lines()).unwrap_err();
    assert!(lines.iter().any(|line| line.contains("nat44: the documents of `agent` say it")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("agent.file: read none.yaml")), "{lines:?}");
}
