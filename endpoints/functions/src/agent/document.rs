//! Documents `CNFConfiguration`: items of modules, each with its data as a text.
//!
//! Names of fields are written `like_this` or `likeThis`, as the examples mix them. What is not known is refused by its name: a module, a
//! type, a field, or a value that would ask for what this function does not do.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use ferrule_daemon::settings::{ConfigErrors, Field, Table, parse, parse_documents};
use ferrule_dataplane::spec::{InterfaceName, MacAddress, Route};
use ipnet::IpNet;

use crate::nat44::settings::PortForward;
use crate::packet::{TCP, UDP};

/// What the items of one microservice say.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Modules {
    /// Of `cnf.nsm`: where it asks for the next function.
    pub(super) clients: Vec<CnfInterface>,
    /// Of `cnf.nsm`: where it is asked.
    pub(super) endpoints: Vec<CnfInterface>,
    /// Of `linux.l3`, by the interface that they leave by.
    pub(super) routes: Vec<(String, Route)>,
    /// Of `vpp.nat`.
    pub(super) nat_interfaces: Vec<NatSide>,
    pub(super) pool: Vec<RangeInclusive<u32>>,
    pub(super) forwards: Vec<PortForward>,
    /// A `nat44-global` was there; the NAT is meant also without.
    pub(super) nat_global: bool,
}

/// An interface of a client or an endpoint.
#[derive(Debug, PartialEq)]
pub(super) struct CnfInterface {
    pub(super) name: InterfaceName,
    pub(super) is_memif: bool,
    pub(super) addresses: Vec<IpNet>,
    pub(super) mac: Option<MacAddress>,
}

/// What an interface is to the NAT.
#[derive(Debug, PartialEq)]
pub(super) struct NatSide {
    pub(super) name: String,
    pub(super) is_inside: bool,
}

/// Reads the items of a microservice; none: there is to be one only.
pub(super) fn read(file: &str, text: &str, microservice: Option<&str>) -> Result<Modules, ConfigErrors> {
    parse_documents(file, text, |documents, _| {
        let mut reader = Reader {
            microservice: microservice.map(ToOwned::to_owned),
            is_given: microservice.is_some(),
            modules: Modules::default(),
        };
        for document in documents.iter().filter(|document| !document.is_null()) {
            reader.document(document);
        }
        reader.modules
    })
}

struct Reader {
    microservice: Option<String>,
    is_given: bool,
    modules: Modules,
}

impl Reader {
    fn document(&mut self, document: &Field<'_>) -> Option<()> {
        let table = document.table(&["apiVersion", "kind", "metadata", "spec", "status"])?;
        table.required("apiVersion", VERSION).and_then(|field| field.choice(&[(VERSION, ())]));
        table.required("kind", KIND).and_then(|field| field.choice(&[(KIND, ())]));
        let spec = table.required("spec", "`microservice` and `configItems`")?;
        let spec = spec.table(&["microservice", "configItems"])?;
        let service = spec.required("microservice", "whom the items are for")?;
        let items = spec.required("configItems", "a list of items").and_then(|field| field.items())?;
        for item in items {
            self.item(&item, &service);
        }
        Some(())
    }

    fn item(&mut self, item: &Field<'_>, service: &Field<'_>) -> Option<()> {
        let table = item.table(&["module", "version", "type", "name", "microservice", "data"])?;
        if !self.is_mine(&table.optional("microservice").unwrap_or_else(|| service.clone()))? {
            return Some(());
        }
        let module = table.required("module", "a module as in `cnf.nsm`")?;
        let kind = table.required("type", "a type as in `client`")?;
        let (module_name, kind_name) = (module.text()?, kind.text()?);
        let known = ITEMS.iter().find(|(module, kind, ..)| (*module, *kind) == (module_name, kind_name));
        let Some((_, _, version, read)) = known else {
            let known: Vec<_> = ITEMS.iter().map(|(module, kind, ..)| format!("{module} {kind}")).collect();
            module.wrong(format!("`{module_name}` `{kind_name}` is not known here; known are {}", known.join(", ")));
            return None;
        };
        table.optional("version").and_then(|field| field.choice(&[(version, ())]));
        let data = table.required("data", "a text with the item's fields")?;
        let modules = &mut self.modules;
        if let Err(wrong) = parse("data", data.text()?, |field, _| read(field, modules).unwrap_or_default()) {
            for error in wrong.errors {
                data.wrong(error.to_string());
            }
        }
        Some(())
    }

    fn is_mine(&mut self, field: &Field<'_>) -> Option<bool> {
        let name = field.text()?;
        match &self.microservice {
            None => self.microservice = Some(name.to_owned()),
            Some(mine) if mine == name => {}
            Some(_) if self.is_given => return Some(false),
            Some(mine) => {
                field
                    .wrong(format!("`{name}`, and items before are for `{mine}`; say with `microservice` who this is"));
                return None;
            }
        }
        Some(true)
    }
}

/// Notes what an item says.
type ReadItem = fn(&Field<'_>, &mut Modules) -> Option<()>;

const ITEMS: [(&str, &str, &str, ReadItem); 7] = [
    ("cnf.nsm", "client", "v1", read_client),
    ("cnf.nsm", "endpoint", "v1", read_endpoint),
    ("linux.l3", "route", "v2", read_route),
    ("vpp.nat", "nat44-interface", "v2", read_nat_interface),
    ("vpp.nat", "nat44-pool", "v2", read_pool),
    ("vpp.nat", "nat44-global", "v2", read_global),
    ("vpp.nat", "dnat44", "v2", read_dnat),
];

fn read_client(field: &Field<'_>, modules: &mut Modules) -> Option<()> {
    let table = field.table(&[
        "name",
        "network_service",
        "networkService",
        "interface_name",
        "interfaceName",
        "outgoing_labels",
        "outgoingLabels",
        "interface_type",
        "interfaceType",
        "ip_addresses",
        "ipAddresses",
        "phys_address",
        "physAddress",
    ])?;
    table.required("name", "the client's name").and_then(|field| field.text());
    required(&table, NETWORK_SERVICE, "the service that it asks for").and_then(|field| field.text());
    check_labels(&table, ["outgoing_labels", "outgoingLabels"]);
    let name = required(&table, ["interface_name", "interfaceName"], "the name of its interface");
    modules.clients.push(read_interface(&table, name?.parse()?)?);
    Some(())
}

fn read_endpoint(field: &Field<'_>, modules: &mut Modules) -> Option<()> {
    let table = field.table(&[
        "network_service",
        "networkService",
        "interface_name_prefix",
        "interfaceNamePrefix",
        "advertised_labels",
        "advertisedLabels",
        "single_client",
        "singleClient",
        "interface_name_suffix_from_label",
        "interfaceNameSuffixFromLabel",
        "interface_type",
        "interfaceType",
        "ip_addresses",
        "ipAddresses",
        "phys_address",
        "physAddress",
    ])?;
    required(&table, NETWORK_SERVICE, "the service that it offers").and_then(|field| field.text());
    check_labels(&table, ["advertised_labels", "advertisedLabels"]);
    if let Some(field) = either(&table, ["interface_name_suffix_from_label", "interfaceNameSuffixFromLabel"]) {
        field.wrong(
            "it is not known here: only a mesh knows a client's labels; remove it, and the interface is number 0",
        );
    }
    let is_single =
        either(&table, ["single_client", "singleClient"]).map_or(Some(false), |field| field.choice(&SWITCH))?;
    for names in [ADDRESSES, MAC] {
        if !is_single && let Some(field) = either(&table, names) {
            field.wrong("it is for an endpoint with `single_client: true` only");
        }
    }
    let prefix =
        required(&table, ["interface_name_prefix", "interfaceNamePrefix"], "what the interface's name begins with")?;
    // The lowest number that is free: there is one client.
    let name = format!("{}0", prefix.text()?).parse().map_err(|error| prefix.wrong(format!("{error}"))).ok()?;
    modules.endpoints.push(read_interface(&table, name)?);
    Some(())
}

fn read_interface(table: &Table<'_>, name: InterfaceName) -> Option<CnfInterface> {
    let kind = either(table, ["interface_type", "interfaceType"]);
    let is_memif = kind.map_or(Some(false), |field| field.choice(&INTERFACE_TYPES));
    let addresses = either(table, ADDRESSES).map_or(Some(Vec::new()), |field| field.items())?;
    let addresses: Vec<_> = addresses.iter().map(|field| field.parse_as("an address with its prefix")).collect();
    let mac = either(table, MAC).map_or(Some(None), |field| field.parse().map(Some));
    Some(CnfInterface {
        name,
        is_memif: is_memif?,
        addresses: addresses.into_iter().collect::<Option<_>>()?,
        mac: mac?,
    })
}

fn check_labels(table: &Table<'_>, names: [&str; 2]) {
    for label in either(table, names).and_then(|field| field.items()).unwrap_or_default() {
        if let Some(label) = label.table(&["key", "value"]) {
            for key in ["key", "value"] {
                label.required(key, "a text").and_then(|field| field.text());
            }
        }
    }
}

fn read_route(field: &Field<'_>, modules: &mut Modules) -> Option<()> {
    let table = field.table(&[
        "outgoing_interface",
        "outgoingInterface",
        "dst_network",
        "dstNetwork",
        "scope",
        "gw_addr",
        "gwAddr",
        "metric",
    ])?;
    let interface = required(&table, ["outgoing_interface", "outgoingInterface"], "the interface that it leaves by")?;
    let to: IpNet = required(&table, ["dst_network", "dstNetwork"], "where it leads")?.parse_as("a network")?;
    let via = either(&table, ["gw_addr", "gwAddr"])
        .map_or(Some(None), |field| field.parse_as::<IpAddr>("an address").map(Some))?;
    if let Some(scope) = table.optional("scope") {
        // Which of them a route has follows from whether it has a gateway.
        let scopes = ["UNDEFINED", "GLOBAL", "SITE", "LINK", "HOST"].map(|word| (word, word));
        let fits = ["UNDEFINED", if via.is_some() { "GLOBAL" } else { "LINK" }];
        if let Some(word) = scope.choice(&scopes)
            && !fits.contains(&word)
        {
            scope.wrong(format!(
                "`{word}` is not what the kernel gives such a route; write `{}`, or leave it out",
                fits[1]
            ));
        }
    }
    if let Some(metric) = table.optional("metric")
        && metric.text() != Some("0")
    {
        metric.wrong("a metric is not known here; leave it out");
    }
    modules.routes.push((interface.text()?.to_owned(), Route { to, via }));
    Some(())
}

fn read_nat_interface(field: &Field<'_>, modules: &mut Modules) -> Option<()> {
    let table = field.table(&[
        "name",
        "nat_inside",
        "natInside",
        "nat_outside",
        "natOutside",
        "output_feature",
        "outputFeature",
    ])?;
    let name = table.required("name", "the name of an interface").and_then(|field| field.text())?;
    let switch = |names| either(&table, names).map_or(Some(false), |field| field.choice(&SWITCH));
    let (inside, outside) = (switch(["nat_inside", "natInside"])?, switch(["nat_outside", "natOutside"])?);
    // Translation follows routing in any case.
    switch(["output_feature", "outputFeature"])?;
    if inside == outside {
        field.wrong("an interface is one of `nat_inside: true` and `nat_outside: true`");
        return None;
    }
    modules.nat_interfaces.push(NatSide { name: name.to_owned(), is_inside: inside });
    Some(())
}

fn read_pool(field: &Field<'_>, modules: &mut Modules) -> Option<()> {
    let table = field.table(&[
        "name",
        "first_ip",
        "firstIp",
        "last_ip",
        "lastIp",
        "vrf_id",
        "vrfId",
        "twice_nat",
        "twiceNat",
    ])?;
    let first: Ipv4Addr =
        required(&table, ["first_ip", "firstIp"], "the first address")?.parse_as("an IPv4 address")?;
    let last = either(&table, ["last_ip", "lastIp"]).filter(|field| !field.is_empty());
    let last = last.map_or(Some(first), |field| field.parse_as("an IPv4 address"))?;
    only(&table, ["vrf_id", "vrfId"], "0");
    only(&table, ["twice_nat", "twiceNat"], "false");
    if first > last {
        field.wrong(format!("the pool begins behind its end; write {last} first"));
        return None;
    }
    modules.pool.push(u32::from(first)..=u32::from(last));
    Some(())
}

fn read_global(field: &Field<'_>, modules: &mut Modules) -> Option<()> {
    let table = field.table(&[
        "forwarding",
        "endpoint_independent",
        "endpointIndependent",
        "virtual_reassembly",
        "virtualReassembly",
    ])?;
    // Nothing passes without a session, a session is for one destination, and parts of packets are always followed.
    only(&table, ["forwarding", "forwarding"], "false");
    only(&table, ["endpoint_independent", "endpointIndependent"], "false");
    modules.nat_global = true;
    Some(())
}

fn read_dnat(field: &Field<'_>, modules: &mut Modules) -> Option<()> {
    let table = field.table(&["label", "st_mappings", "stMappings"])?;
    let mappings = required(&table, ["st_mappings", "stMappings"], "a list of mappings")?.items()?;
    for mapping in mappings {
        read_mapping(&mapping, modules);
    }
    Some(())
}

fn read_mapping(field: &Field<'_>, modules: &mut Modules) -> Option<()> {
    let table = field.table(&[
        "external_ip",
        "externalIp",
        "external_port",
        "externalPort",
        "protocol",
        "local_ips",
        "localIps",
    ])?;
    let end = |table: &Table<'_>, ip, port| {
        let ip: Option<Ipv4Addr> =
            required(table, ip, "an IPv4 address").and_then(|field| field.parse_as("an IPv4 address"));
        let port = required(table, port, "a port").and_then(|field| field.number(1..=u64::from(u16::MAX)));
        Some((u32::from(ip?), port?))
    };
    let outside = end(&table, ["external_ip", "externalIp"], ["external_port", "externalPort"]);
    let protocol = table.optional("protocol").map_or(Some(TCP), |field| field.choice(&[("TCP", TCP), ("UDP", UDP)]));
    let locals = required(&table, ["local_ips", "localIps"], "where it leads")?;
    let items = locals.items()?;
    let [local] = &items[..] else {
        locals.wrong(format!("{} addresses; it leads to one", items.len()));
        return None;
    };
    let local = local.table(&["local_ip", "localIp", "local_port", "localPort"])?;
    let inside = end(&local, ["local_ip", "localIp"], ["local_port", "localPort"]);
    modules.forwards.push(PortForward { protocol: protocol?, outside: outside?, inside: inside? });
    Some(())
}

/// A field that may be there with this value only, which it has when it is left out.
fn only(table: &Table<'_>, names: [&str; 2], value: &str) {
    if let Some(field) = either(table, names)
        && field.text() != Some(value)
    {
        field.wrong(format!("not known here but for `{value}`; leave it out"));
    }
}

/// The value of a field by one of its two names.
fn either<'a>(table: &Table<'a>, [name, other]: [&str; 2]) -> Option<Field<'a>> {
    let (first, second) = (table.optional(name), table.optional(other));
    if let (Some(_), Some(second)) = (&first, &second)
        && name != other
    {
        second.wrong(format!("it is the same as `{name}`, which is there too; remove one of them"));
    }
    first.or(second)
}

fn required<'a>(table: &Table<'a>, names: [&str; 2], what: &str) -> Option<Field<'a>> {
    either(table, names).or_else(|| table.required(names[0], what))
}

const VERSION: &str = "pantheon.tech/v1";
const KIND: &str = "CNFConfiguration";
const NETWORK_SERVICE: [&str; 2] = ["network_service", "networkService"];
const ADDRESSES: [&str; 2] = ["ip_addresses", "ipAddresses"];
const MAC: [&str; 2] = ["phys_address", "physAddress"];
const SWITCH: [(&str, bool); 2] = [("true", true), ("false", false)];
/// Whether it is a memif, by the names and the numbers of the model.
const INTERFACE_TYPES: [(&str, bool); 6] = [
    ("DEFAULT_INTERFACE", false),
    ("KERNEL_INTERFACE", false),
    ("MEM_INTERFACE", true),
    ("0", false),
    ("1", false),
    ("3", true),
];
