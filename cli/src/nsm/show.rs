//! `ferrule nsm`: what there is in the mesh of this node: services, endpoints, and connections, hop by hop.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use clap::Args;
use ferrule_nsm::process::{MANAGER_DEFAULT, ProcessArgs};
use ferrule_nsm::proto::connection::monitor_connection_client::MonitorConnectionClient;
use ferrule_nsm::proto::connection::{Connection, MonitorScopeSelector, State};
use ferrule_nsm::proto::registry::{NetworkService, NetworkServiceEndpoint};
use serde::Serialize;
use tokio::time::timeout;

use super::NsmError;
use crate::text;
use crate::wires::table::TableStyle;

/// Options of `ferrule nsm`.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw each connection from its client to its endpoint
    #[arg(long, conflicts_with = "json")]
    draw: bool,
    /// The manager of the node
    #[arg(long, env = "NSM_CONNECT_TO", value_name = "URL", default_value = MANAGER_DEFAULT)]
    connect_to: String,
    #[command(flatten)]
    process: ProcessArgs,
}

pub(super) async fn run(args: &ShowArgs) -> Result<(), NsmError> {
    let mesh = Box::pin(Mesh::ask(args)).await?;
    let text = if args.json {
        serde_json::to_string_pretty(&mesh).map_err(std::io::Error::from)? + "\n"
    } else if args.draw {
        mesh.connections.iter().map(drawn).collect::<Vec<_>>().join("\n")
    } else {
        mesh.tables(TableStyle::of_stdout())
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// What a manager knows.
#[derive(Debug, Serialize)]
struct Mesh {
    services: Vec<Service>,
    endpoints: Vec<Endpoint>,
    connections: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Service {
    name: String,
    payload: String,
    /// Rules by which it chooses endpoints.
    matches: usize,
}

#[derive(Debug, Serialize)]
struct Endpoint {
    name: String,
    services: Vec<String>,
    url: String,
    /// Who has registered it.
    owner: String,
}

/// A connection.
#[derive(Debug, Serialize)]
struct Shown {
    service: String,
    endpoint: String,
    state: &'static str,
    payload: String,
    client_addresses: Vec<String>,
    endpoint_addresses: Vec<String>,
    hops: Vec<Hop>,
}

/// A process on its way.
#[derive(Debug, Serialize)]
struct Hop {
    name: String,
    id: String,
    /// What the process has told of its part.
    metrics: std::collections::BTreeMap<String, String>,
}

impl Mesh {
    async fn ask(args: &ShowArgs) -> Result<Self, NsmError> {
        let identity = args.process.identity().await?;
        let registry = args.process.registry(&args.connect_to, identity)?;
        let services = Box::pin(registry.find_services(NetworkService::default())).await;
        let services = services.map_err(NsmError::refused("ask for services"))?;
        let endpoints = Box::pin(registry.find_endpoints(NetworkServiceEndpoint::default())).await;
        let endpoints = endpoints.map_err(NsmError::refused("ask for endpoints"))?;
        let mut watching = MonitorConnectionClient::new(Box::pin(registry.connection()).await?.calls());
        let stream = watching.monitor_connections(MonitorScopeSelector::default()).await;
        let mut stream = stream.map_err(NsmError::refused("ask for connections"))?.into_inner();
        let mut connections = Vec::new();
        // Very many come in several messages, one behind the other.
        let mut limit = FIRST_MAX;
        while let Ok(Ok(Some(event))) = timeout(limit, stream.message()).await {
            connections.extend(event.connections.into_values());
            limit = NEXT_MAX;
        }
        let mut connections: Vec<_> = connections.iter().map(Shown::from).collect();
        connections.sort_by(|a, b| text::natural_order(&a.client(), &b.client()));
        Ok(Self {
            services: services.into_iter().map(Service::from).collect(),
            endpoints: endpoints.into_iter().map(|found| Endpoint::from(found.endpoint)).collect(),
            connections,
        })
    }

    fn tables(&self, style: TableStyle) -> String {
        let mut services = style.table(&["SERVICE", "PAYLOAD"], &["ENDPOINTS", "MATCHES"]);
        for service in &self.services {
            let offered = self.endpoints.iter().filter(|endpoint| endpoint.services.contains(&service.name)).count();
            services.add_row([
                text::foreign(&service.name).into_owned(),
                text::foreign(&service.payload).into_owned(),
                offered.to_string(),
                service.matches.to_string(),
            ]);
        }
        let mut endpoints = style.table(&["ENDPOINT", "SERVICES", "URL", "REGISTERED BY"], &[]);
        for endpoint in &self.endpoints {
            let services = endpoint.services.join(", ");
            let words: [&str; 4] = [&endpoint.name, &services, &endpoint.url, &endpoint.owner];
            endpoints.add_row(words.map(|word| text::foreign(word).into_owned()));
        }
        let mut connections = style.table(&["CLIENT", "SERVICE", "STATE", "ADDRESSES", "PATH"], &[]);
        for shown in &self.connections {
            let addresses = format!("{} - {}", shown.client_addresses.join(" "), shown.endpoint_addresses.join(" "));
            let path: Vec<_> = shown.hops.iter().map(|hop| hop.name.as_str()).collect();
            let (client, path) = (shown.client(), path.join(" > "));
            let words: [&str; 5] = [&client, &shown.service, shown.state, &addresses, &path];
            connections.add_row(words.map(|word| text::foreign(word).into_owned()));
        }
        let mut text = String::new();
        for (table, count, none) in [
            (services, self.services.len(), "no services"),
            (endpoints, self.endpoints.len(), "no endpoints"),
            (connections, self.connections.len(), "no connections"),
        ] {
            let shown = if count == 0 { none.to_owned() } else { table.trim_fmt() };
            let _ = writeln!(text, "{shown}\n");
        }
        text
    }
}

impl From<NetworkService> for Service {
    fn from(service: NetworkService) -> Self {
        Self { matches: service.matches.len(), name: service.name, payload: service.payload }
    }
}

impl From<NetworkServiceEndpoint> for Endpoint {
    fn from(endpoint: NetworkServiceEndpoint) -> Self {
        let owner = endpoint.path_ids.into_iter().next().unwrap_or_default();
        Self { name: endpoint.name, services: endpoint.network_service_names, url: endpoint.url, owner }
    }
}

impl From<&Connection> for Shown {
    fn from(connection: &Connection) -> Self {
        let state = match connection.state() {
            State::Up => "up",
            State::Down => "down",
            State::RefreshRequested => "refresh",
            State::ReselectRequested => "reselect",
        };
        let ip = connection.context.as_ref().and_then(|context| context.ip_context.clone()).unwrap_or_default();
        let segments = connection.path.as_ref().map_or(&[][..], |path| &path.path_segments);
        let hop = |segment: &ferrule_nsm::proto::connection::PathSegment| Hop {
            name: segment.name.clone(),
            id: segment.id.clone(),
            metrics: segment.metrics.clone(),
        };
        Self {
            service: connection.network_service.clone(),
            endpoint: connection.network_service_endpoint_name.clone(),
            state,
            payload: connection.payload.clone(),
            client_addresses: ip.src_ip_addrs,
            endpoint_addresses: ip.dst_ip_addrs,
            hops: segments.iter().map(hop).collect(),
        }
    }
}

impl Shown {
    fn client(&self) -> String {
        self.hops.first().map_or_else(String::new, |hop| hop.name.clone())
    }
}

/// A connection from top to bottom: who is asked by whom, and which interfaces a forwarder joins.
fn drawn(shown: &Shown) -> String {
    let mut text = text::foreign(&format!("{} ({}, {})", shown.service, shown.state, shown.payload)).into_owned();
    text.push('\n');
    let last = shown.hops.len().saturating_sub(1);
    for (at, hop) in shown.hops.iter().enumerate() {
        let metric = |key: &str| hop.metrics.get(key).map(String::as_str).unwrap_or_default();
        let addresses = match at {
            0 => shown.client_addresses.join(" "),
            _ if at == last => shown.endpoint_addresses.join(" "),
            _ => String::new(),
        };
        let joined = match (metric("server_interface"), metric("client_interface")) {
            ("", "") => String::new(),
            (server, "") => format!("[{server}]"),
            ("", client) => format!("[{client}]"),
            (server, client) => format!(
                "[{server}]==[{client}]  {} packets there, {} back",
                metric("server_rx_packets"),
                metric("client_rx_packets")
            ),
        };
        let line = format!("  o {}  {joined}  {addresses}", hop.name);
        let _ = writeln!(text, "{}", text::foreign(line.trim_end()));
        if at != last {
            text.push_str("  |\n");
        }
    }
    text
}

const FIRST_MAX: Duration = Duration::from_secs(2);
const NEXT_MAX: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use ferrule_nsm::proto::connection::{Path, PathSegment};

    use super::*;

    fn connection() -> Connection {
        let segment = |name: &str, metrics: &[(&str, &str)]| PathSegment {
            name: name.to_owned(),
            metrics: metrics.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..PathSegment::default()
        };
        let joined =
            [("server_interface", "KERNEL/nsm-1"), ("client_interface", "KERNEL/vpn-7"), ("server_rx_packets", "3")];
        let path_segments =
            vec![segment("nsc", &[]), segment("nsmgr", &[]), segment("fwd", &joined), segment("nse\u{1b}", &[])];
        Connection {
            network_service: "vpn\u{1b}".to_owned(),
            payload: "ETHERNET".to_owned(),
            path: Some(Path { index: 1, path_segments }),
            ..Connection::default()
        }
    }

    #[test]
    fn a_connection_is_drawn_hop_by_hop_and_foreign_names_give_no_orders() {
        let drawn = drawn(&Shown::from(&connection()));
        assert!(drawn.starts_with("vpn\u{fffd} (up, ETHERNET)\n  o nsc\n  |\n  o nsmgr\n  |\n"), "{drawn}");
        assert!(drawn.contains("o fwd  [KERNEL/nsm-1]==[KERNEL/vpn-7]  3 packets there,"), "{drawn}");
        assert!(drawn.ends_with("  o nse\u{fffd}\n"), "{drawn:?}");
    }

    #[test]
    fn tables_name_what_there_is_and_what_there_is_not() {
        let mesh = Mesh { services: Vec::new(), endpoints: Vec::new(), connections: vec![Shown::from(&connection())] };
        let text = mesh.tables(TableStyle { width: None, colour: false });
        assert!(text.contains("no services") && text.contains("no endpoints"), "{text}");
        assert!(text.contains("nsc > nsmgr > fwd > nse"), "{text}");
    }
}
