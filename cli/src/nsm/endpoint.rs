//! `ferrule nsm endpoint`: a service whose ends are kernel interfaces, memifs that answer pings, or VFs of the pod.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ferrule_nsm::endpoint::{Endpoint, EndpointMechanism};
use ferrule_nsm::identity::IdentitySource;
use ferrule_nsm::process::{OfferArgs, ProcessArgs, Trusted};
use ferrule_nsm::service::ConnectionServer;
use sriov_manager_client::tokens::tokens_of_variables;

use super::identities::make_directory;
use super::memifs::MemifResponders;
use super::{NsmError, StopSignal, open_namespace};

/// Options of `ferrule nsm endpoint`.
#[derive(Clone, Debug, Args)]
pub(super) struct EndpointArgs {
    #[command(flatten)]
    pub(super) offer: OfferArgs,
    /// Addresses for both ends come out of these, one pair of each
    #[arg(long = "prefix", env = "NSM_CIDR_PREFIX", value_name = "PREFIX", value_delimiter = ',', required = true)]
    pub(super) prefixes: Vec<ipnet::IpNet>,
    /// What its ends may be: which of them a client gets is the forwarder's to choose
    #[arg(long = "mechanism", value_name = "MECHANISM", value_delimiter = ',', default_value = "kernel")]
    pub(super) mechanisms: Vec<MechanismFlag>,
    /// Where its ends are
    #[arg(long, value_name = "PATH", default_value = "/proc/self/ns/net")]
    pub(super) netns: PathBuf,
    #[command(flatten)]
    pub(super) trusted: Trusted,
    #[command(flatten)]
    pub(super) process: ProcessArgs,
}

/// What an end may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum MechanismFlag {
    /// An interface of the kernel; for a client with a VF that of a VF too, by a token of the pod
    Kernel,
    /// A memif, at which we answer ARP, neighbour solicitations and pings
    Memif,
    /// A VF on VFIO for a client with a VF, by a token of the pod
    Vfio,
}

impl From<MechanismFlag> for EndpointMechanism {
    fn from(flag: MechanismFlag) -> Self {
        match flag {
            MechanismFlag::Kernel => Self::Kernel,
            MechanismFlag::Memif => Self::Memif,
            MechanismFlag::Vfio => Self::Vfio,
        }
    }
}

pub(super) async fn run(args: EndpointArgs, stop: StopSignal) -> Result<(), NsmError> {
    let identity = args.process.identity().await?;
    serve(args, identity, stop).await
}

/// Serves until `stop`, then is unregistered.
pub(super) async fn serve(args: EndpointArgs, identity: IdentitySource, stop: StopSignal) -> Result<(), NsmError> {
    let offer = args.offer.offer("nse", true)?;
    offer.listen_on.parent().map_or(Ok(()), make_directory)?;
    // Those of all names: they are of the endpoint's own pod.
    let tokens = tokens_of_variables(std::env::vars_os()).flat_map(|(_, tokens)| tokens).collect();
    let mechanisms: Vec<_> = args.mechanisms.iter().copied().map(EndpointMechanism::from).collect();
    let handler = Endpoint::new(open_namespace(&args.netns)?, &args.prefixes)?
        .with_mechanisms(&mechanisms)
        .with_tokens(tokens)
        .with_memifs(MemifResponders::in_namespace(&args.netns));
    let calls = ConnectionServer::new(&offer.name, args.process.token_lifetime, handler);
    args.trusted.tell(&calls)?;
    let registry = args.process.registry(&args.offer.connect_to, identity.clone())?;
    let (name, services) = (offer.name.clone(), offer.services.join(", "));
    let told = move |is_registered| {
        let word = if is_registered { "registered" } else { "not registered" };
        println!("endpoint {name} of {services}: {word}");
    };
    Ok(offer.serve(&calls, identity, registry, stop.future(), told).await?)
}
