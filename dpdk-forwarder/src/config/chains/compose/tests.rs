use ferrule_dataplane::spec::{MemifSpec, Role, SocketAddress};

use super::*;
use crate::config::chains::document;

/// The chain of the example, but for its two last passthroughs.
const SECURE: &str = "
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: { name: secure }
spec:
  payload: IP
  matches:
    - { source_selector: { app: firewall }, routes: [{ destination_selector: { app: passthrough } }] }
    - { source_selector: { app: passthrough }, routes: [{ destination_selector: { app: gateway } }] }
    - { routes: [{ destination_selector: { app: firewall } }] }
";

fn services(text: &str) -> Vec<NetworkService> {
    document::read("services.yaml", text).unwrap().services
}

fn memif(name: &str) -> EndSpec {
    EndSpec::Memif(MemifSpec::new(SocketAddress::Abstract(name.to_owned()), Role::Server))
}

fn labels(app: &str) -> Labels {
    Labels::from([("app".to_owned(), app.to_owned())])
}

/// Functions by their names, of which what is before the dash is the label.
fn functions(names: &[&str]) -> Vec<ChainFunction> {
    let function = |name: &&str| {
        let (app, _) = name.split_once('-').unwrap();
        ChainFunction {
            name: (*name).to_owned(),
            service: "secure".to_owned(),
            labels: labels(app),
            client: memif(&format!("{name}-client")),
            network: (app != "gateway").then(|| memif(&format!("{name}-network"))),
        }
    };
    names.iter().map(function).collect()
}

fn clients(names: &[&str]) -> Vec<ChainClient> {
    let client = |name: &&str| ChainClient {
        name: (*name).to_owned(),
        service: "secure".to_owned(),
        labels: Labels::new(),
        end: memif(name),
    };
    names.iter().map(client).collect()
}

const TWO: [&str; 6] = ["firewall-1", "passthrough-1", "gateway-1", "firewall-2", "passthrough-2", "gateway-2"];

fn names(composed: &Composed) -> Vec<&str> {
    composed.wires.iter().map(|(_, wire)| wire.name.as_str()).collect()
}

#[test]
fn a_client_without_labels_goes_through_each_function_once() {
    let composed = compose(&services(SECURE), &functions(&TWO), &clients(&["nsc"]), &Assignments::new()).unwrap();
    assert_eq!(names(&composed), ["nsc:firewall-1", "firewall-1:passthrough-1", "passthrough-1:gateway-1"]);
    let (_, wire) = &composed.wires[1];
    assert_eq!(wire.ends, [memif("firewall-1-network"), memif("passthrough-1-client")]);
    assert_eq!(wire.labels["client"], "nsc");
    assert!(wire.check().is_empty());
}

#[test]
fn two_clients_share_no_function() {
    let composed = compose(&services(SECURE), &functions(&TWO), &clients(&["a", "b"]), &Assignments::new()).unwrap();
    assert_eq!(names(&composed)[3..], ["b:firewall-2", "firewall-2:passthrough-2", "passthrough-2:gateway-2"]);
    let problem = |names: &[&str]| {
        let result = compose(&services(SECURE), &functions(&TWO), &clients(names), &Assignments::new());
        result.unwrap_err().into_iter().map(|unserved| (unserved.client, unserved.problem)).collect::<Vec<_>>()
    };
    let [(2, third)] = &problem(&["a", "b", "c"])[..] else { panic!() };
    let wanted = "nobody comes behind `c` (no labels): `firewall-1` serves `a`, `firewall-2` serves `b`; add a function with the same labels";
    assert!(third.starts_with(wanted), "{third}");
}

#[test]
fn who_stays_keeps_what_they_have_whoever_comes_and_goes() {
    let (services, all) = (services(SECURE), functions(&TWO));
    let first = compose(&services, &all, &clients(&["a", "b"]), &Assignments::new()).unwrap();
    // The first client goes: the second one could have its functions now, and does not.
    let second = compose(&services, &all, &clients(&["b"]), &first.next).unwrap();
    assert_eq!(names(&second), names(&first)[3..]);
    // Somebody new in front of it gets what is free.
    let third = compose(&services, &all, &clients(&["new", "b"]), &second.next).unwrap();
    let mut wires = names(&third);
    wires.sort_unstable();
    assert_eq!(wires[..2], ["b:firewall-2", "firewall-1:passthrough-1"]);
    assert!(wires.contains(&"new:firewall-1"), "{wires:?}");
}

#[test]
fn a_function_that_is_put_between_two_changes_only_their_wire() {
    let before = compose(&services(SECURE), &functions(&TWO), &clients(&["nsc"]), &Assignments::new()).unwrap();
    let longer = SECURE.replace(
        "    - { source_selector: { app: passthrough }, routes: [{ destination_selector: { app: gateway } }] }",
        "    - { source_selector: { app: passthrough }, routes: [{ destination_selector: { app: nat } }] }
    - { source_selector: { app: nat }, routes: [{ destination_selector: { app: gateway } }] }",
    );
    let all = functions(&[&TWO[..], &["nat-1"]].concat());
    let after = compose(&services(&longer), &all, &clients(&["nsc"]), &before.next).unwrap();
    assert_eq!(names(&after), ["nsc:firewall-1", "firewall-1:passthrough-1", "passthrough-1:nat-1", "nat-1:gateway-1"]);
    assert_eq!(after.wires[..2], before.wires[..2]);
}

#[test]
fn why_a_chain_does_not_come_to_its_end_is_said_with_the_cure() {
    for (functions, text, problem) in [
        (
            functions(&["firewall-1", "gateway-1"]),
            SECURE.to_owned(),
            "nobody comes behind `firewall-1` (app=firewall): no function of `secure` has the labels that its matches[0] wants, (app=passthrough); add one",
        ),
        (
            functions(&TWO),
            SECURE.replace("app: gateway", "app: firewall"),
            "nobody comes behind `passthrough-2` (app=passthrough): `firewall-1` is on this chain already, `firewall-2` is on this chain already",
        ),
        (
            functions(&TWO),
            SECURE.replace("    - { routes:", "    - { source_selector: { app: nsc }, routes:"),
            "nobody comes behind `nsc` (no labels): no match of `secure` is for it; add one",
        ),
        (functions(&[]), SECURE.split("  matches").next().unwrap().to_owned(), "`secure` has no functions; add one"),
        (
            functions(&TWO),
            SECURE.replace("name: secure", "name: other"),
            "no document has the network service `secure`; they have `other`",
        ),
    ] {
        let unserved = compose(&services(&text), &functions, &clients(&["nsc"]), &Assignments::new()).unwrap_err();
        assert!(unserved[0].problem.contains(problem), "{}", unserved[0].problem);
    }
}

#[test]
fn a_template_stands_for_a_label_of_who_asks() {
    let text = SECURE.replace(
        "    - { routes: [{ destination_selector: { app: firewall } }] }",
        "    - { routes: [{ destination_selector: { app: \"{{.wanted}}\" } }] }",
    );
    let mut nsc = clients(&["nsc"]);
    nsc[0].labels = Labels::from([("wanted".to_owned(), "gateway".to_owned())]);
    let composed = compose(&services(&text), &functions(&TWO), &nsc, &Assignments::new()).unwrap();
    assert_eq!(names(&composed), ["nsc:gateway-1"]);
}
