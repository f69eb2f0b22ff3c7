use std::path::Path;

use ferrule_daemon::settings::FileSettings as _;

use super::*;
use crate::config::Config;

/// Of the example, with both spellings of names, which its files mix as well.
const ALL: &str = include_str!("../../../../docs/cnf-nat-functions.yaml");

/// The document of one microservice.
fn document(microservice: &str) -> &'static str {
    let is_it = |document: &&str| document.contains(&format!("  microservice: {microservice}\n"));
    ALL.split("---\n").find(is_it).unwrap()
}

/// The settings of an agent with these documents, and with these keys more.
fn load(documents: &str, more: &str) -> Result<Config, Vec<String>> {
    load_with(documents, &format!(", sockets: /run/f{more}"))
}

/// The same with these keys beside the file only.
fn load_with(documents: &str, more: &str) -> Result<Config, Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("cnf.yaml"), documents).unwrap();
    let text = format!("name: f\nagent: {{ file: cnf.yaml{more} }}\n");
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
    assert_eq!(load(document("cnf-nat44"), "").unwrap(), nat);
    let client = settings(
        "client: { kernel: { netns: /run/netns/c, name: tap0, addresses: [192.168.100.10/24], routes: [{ to: 80.80.80.0/24, via: 192.168.100.1 }] } }
network: { memif: { socket: /run/f/tap0.sock, role: client } }
passthrough: {}",
    );
    assert_eq!(load(document("client"), ", netns: /run/netns/c").unwrap(), client);
    let webserver = settings(
        "client: { memif: { socket: /run/f/memif0.sock, role: client } }
gateway: { name: memif0, addresses: [80.80.80.80/24] }",
    );
    assert_eq!(load(document("webserver"), "").unwrap(), webserver);
}

#[test]
fn without_sockets_the_mesh_says_where_its_ends_are() {
    let nat = document("cnf-nat44");
    let config = load_with(nat, "").unwrap();
    assert_eq!((config.ends, &config.function), (None, &load(nat, "").unwrap().function));
    for alone in ["client", "webserver"] {
        let wrong = load_with(document(alone), "").unwrap_err();
        assert!(wrong[0].contains("has an end without a mesh; add `sockets`"), "{wrong:?}");
    }
}

#[test]
fn of_documents_for_several_one_is_chosen() {
    assert_eq!(load(ALL, ", microservice: cnf-nat44").unwrap(), load(document("cnf-nat44"), "").unwrap());
    assert_eq!(load(ALL, ", microservice: webserver").unwrap(), load(document("webserver"), "").unwrap());
    let wrong = load(ALL, "").unwrap_err();
    assert!(
        wrong[0].contains("spec.microservice: `cnf-nat44`, and items before are for `client`; say with `microservice`"),
        "{wrong:?}"
    );
    assert!(load(ALL, ", microservice: other").unwrap_err()[0].contains("no cnf.nsm client and no endpoint"));
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
    let FunctionSettings::Nat44(nat) = load(&[document("cnf-nat44"), more].concat(), "").unwrap().function else {
        panic!()
    };
    assert_eq!(nat.forwards, [PortForward { protocol: 6, outside: (0x5050_5064, 80), inside: (0xc0a8_640a, 8080) }]);
}

#[test]
fn without_nat_items_it_is_a_passthrough() {
    let items = document("cnf-nat44").split("    - module: vpp.nat").next().unwrap();
    let wrong = load(items, "").unwrap_err();
    assert!(wrong[0].contains("memif0 is a side of a passthrough"), "{wrong:?}");
    let plain = items
        .replace("        ipAddresses:\n          - 192.168.100.1/24\n", "")
        .replace("        ipAddresses: [80.80.80.100/24]\n", "");
    assert_eq!(load(&plain, "").unwrap().function, FunctionSettings::Passthrough);
}

#[test]
fn what_is_not_known_is_refused_by_its_name_and_place() {
    for (microservice, old, new, problem) in [
        (
            "cnf-nat44",
            "type: nat44-pool",
            "type: nat64-pool",
            "spec.configItems[4].module: `vpp.nat` `nat64-pool` is not known here",
        ),
        (
            "cnf-nat44",
            "first_ip",
            "firstip",
            "spec.configItems[4].data: 1:1: firstip: unknown key; did you mean `first_ip`?",
        ),
        (
            "cnf-nat44",
            "last_ip: 80.80.80.105",
            "last_ip: 80.80.80.105\n        vrf_id: 2",
            "data: 3:9: vrf_id: not known here but for `0`; leave it out",
        ),
        (
            "cnf-nat44",
            "last_ip: 80.80.80.105",
            "last_ip: 80.80.80.105\n        lastIp: 80.80.80.101",
            "data: 3:9: lastIp: it is the same as `last_ip`, which is there too; remove one of them",
        ),
        ("cnf-nat44", "last_ip: 80.80.80.105", "last_ip: 80.80.80.10", "the pool begins behind its end"),
        ("cnf-nat44", "nat_inside: true", "nat_outside: true", "`memif0` is to be `nat_inside: true`"),
        (
            "cnf-nat44",
            "name: memif1\n        nat_outside",
            "name: memif7\n        nat_outside",
            "`memif1` is to be `nat_outside: true`",
        ),
        ("cnf-nat44", "80.80.80.100/24", "192.168.100.2/24", "outside.address: it overlaps the inside network"),
        ("cnf-nat44", "        ipAddresses: [80.80.80.100/24]\n", "", "memif1 is a side of a NAT44: one IPv4 address"),
        (
            "cnf-nat44",
            "single_client: true",
            "single_client: false",
            "ipAddresses: it is for an endpoint with `single_client: true` only",
        ),
        (
            "cnf-nat44",
            "single_client",
            "interface_name_suffix_from_label: app\n        single_client",
            "interface_name_suffix_from_label: it is not known here",
        ),
        ("cnf-nat44", "pantheon.tech/v1", "pantheon.tech/v2", "apiVersion: `pantheon.tech/v2`"),
        (
            "cnf-nat44",
            "      version: v1\n      type: client",
            "      version: v7\n      type: client",
            "spec.configItems[1].version: `v7`; `v1` is wanted",
        ),
        (
            "client",
            "outgoing_interface: tap0",
            "outgoing_interface: tap9",
            "its linux.l3 route to 80.80.80.0/24 leaves by `tap9`; interfaces of the kernel are tap0",
        ),
        ("client", "scope: GLOBAL", "scope: LINK", "`LINK` is not what the kernel gives such a route; write `GLOBAL`"),
        ("client", "KERNEL_INTERFACE", "TAP_INTERFACE", "interface_type: `TAP_INTERFACE`"),
        (
            "webserver",
            "      type: endpoint",
            "      type: endpoints",
            "`cnf.nsm` `endpoints` is not known here; known are cnf.nsm client, cnf.nsm endpoint, linux.l3 route",
        ),
    ] {
        let documents = document(microservice);
        assert!(documents.contains(old), "{old}");
        let lines = load(&documents.replacen(old, new, 1), "").unwrap_err();
        assert!(lines.iter().any(|line| line.contains("cnf.yaml") && line.contains(problem)), "{new}: {lines:#?}");
    }
    let both = "name: f\nagent: { file: none.yaml, sockets: /run/f }\nnat44: {}\n";
    let lines = Config::from_bytes(Path::new("f.yaml"), both.as_bytes()).map_err(|error| error.lines()).unwrap_err();
    assert!(lines.iter().any(|line| line.contains("nat44: the documents of `agent` say it")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("agent.file: read none.yaml")), "{lines:?}");
}
