//! `ferrule nsm client`: a connection that is kept.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ferrule_nsm::client::{Client, Ping, Wanted};
use ferrule_nsm::process::{MANAGER_DEFAULT, ProcessArgs};
use ferrule_nsm::proto::connection::{Connection, State};
use ferrule_nsm::transport::KeptConnection;
use sriov_manager_client::tokens::tokens_of_variables;

use super::url::{WantedKind, WantedUrl};
use super::{NsmError, StopSignal, open_namespace, vfio};
use crate::text;

/// Options of `ferrule nsm client`.
#[derive(Debug, Args)]
pub(super) struct ClientArgs {
    /// What is wanted: `kernel://service/interface?label=value`, `memif://service`, `vfio://service?sriovToken=domain/capability`
    #[arg(env = "NSM_NETWORK_SERVICES", value_name = "URL")]
    url: String,
    /// Its name, which no other client of the manager has
    #[arg(long, env = "NSM_NAME", default_value = "nsc")]
    name: String,
    /// The manager of the node
    #[arg(long, env = "NSM_CONNECT_TO", value_name = "URL", default_value = MANAGER_DEFAULT)]
    connect_to: String,
    /// Where the interface, or the socket of a memif, is to be
    #[arg(long, value_name = "PATH", default_value = "/proc/self/ns/net")]
    netns: PathBuf,
    /// How long one request may take; less than 0.8 of the tokens' lifetime
    #[arg(long, env = "NSM_REQUEST_TIMEOUT", value_name = "TIME", default_value = "15s", value_parser = humantime::parse_duration)]
    request_timeout: Duration,
    #[command(flatten)]
    process: ProcessArgs,
}

pub(super) async fn run(args: ClientArgs, stop: StopSignal) -> Result<(), NsmError> {
    let url: WantedUrl = args.url.parse()?;
    let netns = open_namespace(&args.netns)?;
    let wanted = wanted(&url, Arc::clone(&netns))?;
    let manager: KeptConnection = args.process.kept(&args.connect_to, args.process.identity().await?)?;
    let client = Client::new(&args.name, manager, wanted, args.request_timeout);
    // Others have no addresses that the kernel could ping from.
    let client = if url.kind == WantedKind::Kernel { client.checked_by(Ping::new(netns, PING_MAX)) } else { client };
    let mut told = client.connection();
    let telling = async {
        while told.changed().await.is_ok() {
            let connection = told.borrow_and_update().clone();
            match connection {
                Some(connection) => {
                    for problem in vfio::make_nodes(&connection) {
                        eprintln!("{problem}");
                    }
                    println!("{}", in_words(&connection));
                }
                None => println!("no connection"),
            }
        }
    };
    tokio::select! {
        () = client.run(stop.future()) => {}
        () = telling => {}
    }
    Ok(())
}

pub(super) fn wanted(url: &WantedUrl, netns: Arc<std::os::fd::OwnedFd>) -> Result<Wanted, NsmError> {
    let token = url.token.as_deref().map(token_of).transpose()?;
    let wanted = match (url.kind, &token) {
        (WantedKind::Kernel, _) => Wanted::kernel(&url.service, &url.interface, netns)?,
        (WantedKind::Memif, _) => Wanted::memif(&url.service, netns)?.named(&url.interface),
        (WantedKind::Vfio, token) => {
            Wanted::vfio(&url.service, token.as_deref().unwrap_or_default()).named(&url.interface)
        }
    };
    let wanted = wanted.labels(url.labels.clone());
    Ok(match token {
        Some(token) => wanted.by_token(&token),
        None => wanted,
    })
}

/// The first token of a name that this container has.
fn token_of(name: &str) -> Result<String, NsmError> {
    let of_name = tokens_of_variables(std::env::vars_os()).find(|(resource, _)| resource == name);
    let token = of_name.and_then(|(_, tokens)| tokens.into_iter().next());
    token.ok_or_else(|| NsmError::NoToken(name.to_owned()))
}

/// One line.
pub(super) fn in_words(connection: &Connection) -> String {
    let word = match connection.state() {
        State::Up => "connected",
        State::Down => "down",
        State::RefreshRequested => "to be refreshed",
        State::ReselectRequested => "to be chosen anew",
    };
    let ip = connection.context.as_ref().and_then(|context| context.ip_context.clone()).unwrap_or_default();
    let parameters = connection.mechanism.as_ref().map(|mechanism| &mechanism.parameters);
    let told = |key: &str| parameters.and_then(|parameters| parameters.get(key)).cloned();
    // Whoever is at a memif needs its socket, and whoever drives a VF its address.
    let end = [told("socketfile"), told("pciAddress").filter(|_| told("iommuGroup").is_some()), told("name")];
    let end = end.into_iter().flatten().next();
    let line = format!(
        "{word}: {} by {}, {} with {}, there {}",
        connection.network_service,
        connection.network_service_endpoint_name,
        end.unwrap_or_default(),
        ip.src_ip_addrs.join(" "),
        ip.dst_ip_addrs.join(" ")
    );
    text::foreign(&line).into_owned()
}

/// As the clients in Go wait for an answer.
pub(super) const PING_MAX: Duration = Duration::from_secs(1);
