//! `ferrule nsm identities`: a Workload API for processes of this machine.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ferrule_nsm::identity::{Authority, SpiffeId, TrustDomain, WorkloadApi};
use tokio::task::JoinSet;

use super::{NsmError, StopSignal};

/// Options of `ferrule nsm identities`.
#[derive(Debug, Args)]
pub(super) struct IdentitiesArgs {
    /// Where the sockets are made: one for each name, `NAME.sock`
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// The trust domain
    #[arg(long, default_value = "ferrule.local")]
    trust_domain: String,
    /// How long a certificate lives; a new one comes when half of that is over
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    lifetime: Duration,
    /// Who there is
    #[arg(required = true)]
    names: Vec<String>,
}

pub(super) async fn run(args: &IdentitiesArgs, stop: StopSignal) -> Result<(), NsmError> {
    let names: Vec<_> = args.names.iter().map(String::as_str).collect();
    let mut serving = serve(&args.directory, &args.trust_domain, args.lifetime, &names, &stop)?;
    println!("identities of {}: {} in {}", args.trust_domain, names.join(", "), args.directory.display());
    while let Some(ended) = serving.join_next().await {
        ended.map_err(std::io::Error::other)??;
    }
    Ok(())
}

/// Serves a socket for each name until `stop`. They are there when this returns the first time to the runtime.
pub(super) fn serve(
    directory: &Path,
    domain: &str,
    lifetime: Duration,
    names: &[&str],
    stop: &StopSignal,
) -> Result<JoinSet<Result<(), NsmError>>, NsmError> {
    let domain: TrustDomain = domain.parse()?;
    make_directory(directory)?;
    let api = WorkloadApi::new(Arc::new(Authority::new(domain.clone())?), lifetime);
    let mut serving = JoinSet::new();
    for name in names {
        let id: SpiffeId = format!("spiffe://{domain}/{name}").parse()?;
        let (api, path, stop) = (api.clone(), directory.join(format!("{name}.sock")), stop.future());
        serving.spawn(async move { Ok(api.serve(&path, id, stop).await?) });
    }
    Ok(serving)
}

/// For our user alone: whoever opens a socket there has its identity.
pub(super) fn make_directory(directory: &Path) -> Result<(), NsmError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(NsmError::file("make the directory", directory))
}
