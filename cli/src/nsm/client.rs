//! `ferrule nsm client`: a connection that is kept.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ferrule_nsm::client::{Client, Ping, Wanted};
use ferrule_nsm::proto::connection::{Connection, State};
use ferrule_nsm::transport::KeptConnection;

use super::process::{MANAGER_DEFAULT, ProcessArgs};
use super::url::WantedUrl;
use super::{NsmError, StopSignal, open_namespace};
use crate::text;

/// Options of `ferrule nsm client`.
#[derive(Debug, Args)]
pub(super) struct ClientArgs {
    /// What is wanted: `kernel://service/interface?label=value`
    #[arg(env = "NSM_NETWORK_SERVICES", value_name = "URL")]
    url: String,
    /// Its name, which no other client of the manager has
    #[arg(long, env = "NSM_NAME", default_value = "nsc")]
    name: String,
    /// The manager of the node
    #[arg(long, env = "NSM_CONNECT_TO", value_name = "URL", default_value = MANAGER_DEFAULT)]
    connect_to: String,
    /// Where the interface is to be
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
    let client = client.checked_by(Ping::new(netns, PING_MAX));
    let mut told = client.connection();
    let telling = async {
        while told.changed().await.is_ok() {
            let connection = told.borrow_and_update().clone();
            match connection {
                Some(connection) => println!("{}", in_words(&connection)),
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
    Ok(Wanted::kernel(&url.service, &url.interface, netns)?.labels(url.labels.clone()))
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
    let interface = connection.mechanism.as_ref().and_then(|mechanism| mechanism.parameters.get("name").cloned());
    let line = format!(
        "{word}: {} by {}, {} with {}, there {}",
        connection.network_service,
        connection.network_service_endpoint_name,
        interface.unwrap_or_default(),
        ip.src_ip_addrs.join(" "),
        ip.dst_ip_addrs.join(" ")
    );
    text::foreign(&line).into_owned()
}

/// As the clients in Go wait for an answer.
pub(super) const PING_MAX: Duration = Duration::from_secs(1);
