//! The declarative agent: documents of modules say which interfaces there are and what is between them, and the hop becomes that function.
//!
//! ```yaml
//! name: cnf-nat44
//! agent: { file: cnf-nat44.yaml, sockets: /run/ferrule/cnf-nat44 }
//! ```
//!
//! `document` reads the documents; here they become ends and a function. An endpoint is where clients come in, a client where the chain goes
//! on. A memif is the socket of its name in `sockets`; without that the mesh says what the ends are.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use ferrule_daemon::settings::Field;
use ferrule_dataplane::spec::{KernelSpec, MemifSpec, NetNs, Role, Route, SocketAddress};
use ipnet::IpNet;

use self::document::{CnfInterface, Modules};
use crate::config::end::HopEnd;
use crate::config::function::FunctionSettings;
use crate::nat44::settings::{NatInterface, NatSettings, PortForward};

mod document;
#[cfg(test)]
mod tests;

/// Reads the section, and the documents beside the file in `directory`.
pub(crate) fn read(field: &Field<'_>, directory: &Path) -> Option<(Option<[HopEnd; 2]>, FunctionSettings)> {
    let table = field.table(&["file", "sockets", "microservice", "netns"])?;
    let file = table.required("file", "the file of the documents");
    let path = |field: Field<'_>| {
        let path = PathBuf::from(field.text()?);
        if path.is_absolute() {
            return Some(path);
        }
        field.wrong(format!("`{}`; an absolute path is wanted", path.display()));
        None
    };
    let sockets = table.optional("sockets").map_or(Some(None), |field| path(field).map(Some));
    let netns = table.optional("netns").map_or(Some(None), |field| path(field).map(|path| Some(NetNs::Path(path))));
    let microservice = table.optional("microservice").map_or(Some(None), |field| field.text().map(Some));
    let (file, place) = (file?, Place { sockets: sockets?, netns: netns? });
    let path = directory.join(file.text()?);
    let name = path.display().to_string();
    let text = fs::read_to_string(&path).map_err(|error| file.wrong(format!("read {name}: {error}"))).ok()?;
    match document::read(&name, &text, microservice?) {
        Ok(modules) => turn_into(modules, &place).map_err(|problem| file.wrong(format!("{name}: {problem}"))).ok(),
        Err(errors) => {
            errors.lines().for_each(|line| file.wrong(line));
            None
        }
    }
}

/// Where the function's interfaces are.
struct Place {
    /// None: the mesh says.
    sockets: Option<PathBuf>,
    netns: Option<NetNs>,
}

/// What the documents make of a hop. A problem is said with its cure.
fn turn_into(modules: Modules, place: &Place) -> Result<(Option<[HopEnd; 2]>, FunctionSettings), String> {
    let Modules { mut clients, mut endpoints, routes, nat_interfaces, pool, forwards, nat_global } = modules;
    let is_nat = nat_global || !(nat_interfaces.is_empty() && pool.is_empty() && forwards.is_empty());
    let (endpoint, client) = (endpoints.pop(), clients.pop());
    if !(endpoints.is_empty() && clients.is_empty()) {
        return Err("it has more than one cnf.nsm client or endpoint; a function here has one on each side".to_owned());
    }
    match (endpoint, client) {
        (None, None) => Err("it has no cnf.nsm client and no endpoint; add one".to_owned()),
        (Some(interface), None) | (None, Some(interface)) if is_nat => Err(format!(
            "it has vpp.nat items and only the interface {}; add the cnf.nsm item of the other side",
            interface.name
        )),
        (Some(endpoint), None) => {
            let memif = place.only_memif(&endpoint)?;
            Ok((Some([memif, place.kernel(endpoint, routes)?]), FunctionSettings::Gateway))
        }
        (None, Some(client)) => {
            let memif = place.only_memif(&client)?;
            Ok((Some([place.kernel(client, routes)?, memif]), FunctionSettings::Passthrough))
        }
        (Some(endpoint), Some(client)) if is_nat => {
            no_routes(&routes, &[])?;
            let nat = Nat { names: nat_interfaces, pool, forwards }.settings(&endpoint, &client)?;
            Ok((place.memifs(&endpoint, &client), FunctionSettings::Nat44(nat)))
        }
        (Some(endpoint), Some(client)) => {
            no_routes(&routes, &[])?;
            for interface in [&endpoint, &client] {
                if !(interface.is_memif && interface.addresses.is_empty() && interface.mac.is_none()) {
                    return Err(format!(
                        "{} is a side of a passthrough, for there is no vpp.nat item: a MEM_INTERFACE without addresses is wanted",
                        interface.name
                    ));
                }
            }
            Ok((place.memifs(&endpoint, &client), FunctionSettings::Passthrough))
        }
    }
}

impl Place {
    fn memifs(&self, endpoint: &CnfInterface, client: &CnfInterface) -> Option<[HopEnd; 2]> {
        Some([self.memif(endpoint)?, self.memif(client)?])
    }

    fn memif(&self, interface: &CnfInterface) -> Option<HopEnd> {
        let socket = self.sockets.as_ref()?.join(format!("{}.sock", interface.name));
        Some(HopEnd::Memif(MemifSpec::new(SocketAddress::Path(socket), Role::Client)))
    }

    /// The memif beside an interface of the kernel, which no mesh makes.
    fn only_memif(&self, interface: &CnfInterface) -> Result<HopEnd, String> {
        self.memif(interface).ok_or_else(|| format!("{} has an end without a mesh; add `sockets`", interface.name))
    }

    /// The interface as one of the kernel, with all routes, which are to leave by it.
    fn kernel(&self, interface: CnfInterface, routes: Vec<(String, Route)>) -> Result<HopEnd, String> {
        no_routes(&routes, &[interface.name.as_str()])?;
        Ok(HopEnd::Kernel(KernelSpec {
            netns: self.netns.clone(),
            mac: interface.mac,
            addresses: interface.addresses,
            routes: routes.into_iter().map(|(_, route)| route).collect(),
            ..KernelSpec::new(interface.name)
        }))
    }
}

/// Whether all routes leave by interfaces of the kernel, which these are.
fn no_routes(routes: &[(String, Route)], interfaces: &[&str]) -> Result<(), String> {
    match routes.iter().find(|(name, _)| !interfaces.contains(&name.as_str())) {
        Some((name, route)) => {
            let there = if interfaces.is_empty() { "none".to_owned() } else { interfaces.join(", ") };
            Err(format!("its linux.l3 route to {} leaves by `{name}`; interfaces of the kernel are {there}", route.to))
        }
        None => Ok(()),
    }
}

/// What the items of `vpp.nat` say together.
struct Nat {
    names: Vec<document::NatSide>,
    pool: Vec<RangeInclusive<u32>>,
    forwards: Vec<PortForward>,
}

impl Nat {
    fn settings(self, endpoint: &CnfInterface, client: &CnfInterface) -> Result<NatSettings, String> {
        for (interface, is_inside, word) in [(endpoint, true, "nat_inside"), (client, false, "nat_outside")] {
            let name = interface.name.as_str();
            let is_it = |side: &&document::NatSide| side.name == name && side.is_inside == is_inside;
            if self.names.iter().filter(is_it).count() != 1 {
                return Err(format!(
                    "`{name}` is to be `{word}: true` in one vpp.nat nat44-interface: clients come in at the endpoint's side"
                ));
            }
        }
        if let Some(other) =
            self.names.iter().find(|side| ![endpoint, client].iter().any(|one| one.name.as_str() == side.name))
        {
            return Err(format!(
                "vpp.nat nat44-interface has `{}`; the interfaces are `{}` and `{}`",
                other.name, endpoint.name, client.name
            ));
        }
        let (inside, outside) = (nat_interface(endpoint)?, nat_interface(client)?);
        let settings = NatSettings { pool: self.pool, forwards: self.forwards, ..NatSettings::new(inside, outside) };
        settings.check().map_err(|(field, problem)| format!("{field}: {problem}"))?;
        Ok(settings)
    }
}

fn nat_interface(interface: &CnfInterface) -> Result<NatInterface, String> {
    let name = &interface.name;
    if !interface.is_memif {
        return Err(format!("{name} is a side of a NAT44: `interface_type: MEM_INTERFACE` is wanted"));
    }
    let [IpNet::V4(address)] = interface.addresses[..] else {
        return Err(format!("{name} is a side of a NAT44: one IPv4 address in `ip_addresses` is wanted"));
    };
    let made = NatInterface::at(address);
    Ok(NatInterface { mac: interface.mac.unwrap_or(made.mac), ..made })
}
