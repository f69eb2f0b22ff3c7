//! `ferrule nsm probe`: whether a process of the mesh serves. By the name `grpc-health-probe` it takes the flags of that program, which the
//! manifests of Network Service Mesh call in the image of each forwarder.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use ferrule_nsm::process::ProcessArgs;
use ferrule_nsm::transport::{Address, Connection};
use tokio::time::timeout;
use tonic::Request;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::NsmError;

/// Options of `ferrule nsm probe`.
#[derive(Debug, Args)]
pub(super) struct ProbeArgs {
    /// Where the process listens
    #[arg(long, value_name = "URL")]
    addr: String,
    /// Which of its services; by default all of it
    #[arg(long, value_name = "NAME", default_value = "")]
    service: String,
    /// How long all of it may take
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    process: ProcessArgs,
}

pub(super) async fn run(args: ProbeArgs) -> Result<(), NsmError> {
    let late = || NsmError::NotServing(args.addr.clone(), format!("it has not answered within {:?}", args.timeout));
    let said = timeout(args.timeout, Box::pin(ask(&args))).await.map_err(|_| late())??;
    if said == ServingStatus::Serving as i32 {
        println!("status: SERVING");
        return Ok(());
    }
    Err(NsmError::NotServing(args.addr, format!("it says {said}, and 1 is that it serves")))
}

async fn ask(args: &ProbeArgs) -> Result<i32, NsmError> {
    let identity = args.process.identity().await?;
    let url = if args.addr.contains("://") { args.addr.clone() } else { format!("tcp://{}", args.addr) };
    let address: Address = url.parse()?;
    let process = Connection::dial(&address, &identity.current(), &args.process.dial_options()).await?;
    let question = Request::new(HealthCheckRequest { service: args.service.clone() });
    let answer = HealthClient::new(process.calls()).check(question).await;
    Ok(answer.map_err(NsmError::refused(format!("ask {} how it is", args.addr)))?.into_inner().status)
}

/// The command line of this program. Called by the name of that other one, its flags are ours by other names.
pub fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let given: Vec<_> = given.into_iter().collect();
    let name = given.first().and_then(|first| Path::new(first).file_name());
    if !name.is_some_and(|name| PROBE_NAMES.iter().any(|probe| name == *probe)) {
        return given;
    }
    let ours = given.into_iter().skip(1).filter_map(|flag| {
        let text = flag.to_str()?;
        let bare = text.trim_start_matches('-');
        if bare.len() == text.len() {
            return Some(flag);
        }
        let (name, value) = bare.split_once('=').map_or((bare, None), |(name, value)| (name, Some(value)));
        let name = match name {
            // There is no other way here.
            "spiffe" | "v" => return None,
            "connect-timeout" => "dial-timeout",
            "rpc-timeout" => "timeout",
            other => other,
        };
        Some(value.map_or(format!("--{name}"), |value| format!("--{name}={value}")).into())
    });
    ["ferrule", "nsm", "probe"].into_iter().map(OsString::from).chain(ours).collect()
}

const PROBE_NAMES: [&str; 2] = ["grpc-health-probe", "grpc_health_probe"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_the_other_program_are_taken_by_its_name_only() {
        let of = |words: &[&str]| {
            let ours = arguments(words.iter().map(OsString::from));
            ours.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            of(&["/bin/grpc-health-probe", "-spiffe", "-addr=unix:///listen.on.sock", "-rpc-timeout=1s"]),
            "ferrule nsm probe --addr=unix:///listen.on.sock --timeout=1s"
        );
        assert_eq!(of(&["grpc_health_probe", "-addr", "[::]:5"]), "ferrule nsm probe --addr [::]:5");
        assert_eq!(of(&["/usr/bin/ferrule", "wires", "--json"]), "/usr/bin/ferrule wires --json");
    }
}
