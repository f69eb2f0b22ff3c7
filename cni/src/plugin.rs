//! A call from beginning to end: what was asked is read, done by the kind of its network, and answered.

use serde_json::Value;

use crate::call::Call;
use crate::network::Network;
use crate::protocol::{AddResult, Attachment, CniError, Code, Command, Environment, Version};
use crate::store::AttachmentLock;
use crate::{pod, sriov, userspace};

/// What a call is answered with: what goes to standard output, and whether it was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// None: nothing is said.
    pub document: Option<Value>,
    /// Whether what was asked was done.
    pub is_done: bool,
}

/// Serves a call.
pub fn serve(variable: impl Fn(&str) -> Option<String>, input: &[u8]) -> Answer {
    serve_observed(variable, input, &|_| ())
}

/// The same, and `observer` is told of each step that can be seen from outside.
pub fn serve_observed(variable: impl Fn(&str) -> Option<String>, input: &[u8], observer: &dyn Fn(&str)) -> Answer {
    match answer(variable, input, observer) {
        Ok(document) => Answer { document, is_done: true },
        Err(error) => Answer { document: Some(error.document(asked_version(input).word())), is_done: false },
    }
}

fn answer(
    variable: impl Fn(&str) -> Option<String>,
    input: &[u8],
    observer: &dyn Fn(&str),
) -> Result<Option<Value>, CniError> {
    let environment = Environment::read(variable)?;
    if environment.command == Command::Version {
        return Ok(Some(Version::answer(Some(asked_version(input)))));
    }
    let network = Network::read(input)?;
    let about = |error: CniError| error.about(&format!("network `{}`", network.name));
    network.version.must_have(environment.command).map_err(about)?;
    let call = Call::new(&environment, &network, observer);
    carry_out(&call).map_err(about)
}

fn carry_out(call: &Call<'_>) -> Result<Option<Value>, CniError> {
    let verbs = verbs(call.network)?;
    let changed = call.environment.attachment.as_ref();
    let changed = changed.filter(|_| matches!(call.environment.command, Command::Add | Command::Del));
    let _turn = changed.map(|attachment| AttachmentLock::wait(&call.network.places.state, attachment)).transpose()?;
    match (call.environment.command, &call.environment.attachment) {
        (Command::Add, Some(attachment)) => Ok(Some((verbs.add)(call, attachment)?.document(call.network.version))),
        (Command::Del, Some(attachment)) => (verbs.del)(call, attachment).map(|()| None),
        (Command::Check, Some(_)) if call.network.previous.is_none() => {
            let problem = "CHECK without prevResult: the runtime must tell what ADD answered";
            Err(CniError::new(Code::Config, problem))
        }
        (Command::Check, Some(attachment)) => (verbs.check)(call, attachment).map(|()| None),
        (Command::Gc, _) => (verbs.gc)(call).map(|()| None),
        (Command::Status, _) => (verbs.status)(call).map(|()| None),
        (Command::Add | Command::Del | Command::Check | Command::Version, _) => Ok(None),
    }
}

/// What the commands do with a kind of network.
struct Verbs {
    add: fn(&Call<'_>, &Attachment) -> Result<AddResult, CniError>,
    del: fn(&Call<'_>, &Attachment) -> Result<(), CniError>,
    check: fn(&Call<'_>, &Attachment) -> Result<(), CniError>,
    gc: fn(&Call<'_>) -> Result<(), CniError>,
    status: fn(&Call<'_>) -> Result<(), CniError>,
}

fn verbs(network: &Network) -> Result<Verbs, CniError> {
    if pod::is_of_pods(network)? {
        // Pods without devices need nothing of it, so it is never the reason why no pod can be had.
        return Ok(Verbs { add: pod::add, del: pod::del, check: pod::check, gc: pod::gc, status: |_| Ok(()) });
    }
    if userspace::is_of_sockets(network) {
        let (check, gc) = (userspace::check, userspace::gc);
        return Ok(Verbs { add: userspace::add, del: userspace::del, check, gc, status: userspace::status });
    }
    Ok(Verbs { add: sriov::add, del: sriov::del, check: sriov::check, gc: sriov::gc, status: sriov::status })
}

/// The release that a configuration names, for answers that are wanted whatever else it says.
fn asked_version(input: &[u8]) -> Version {
    let document: Option<Value> = serde_json::from_slice(input).ok();
    let named = document.as_ref().and_then(|document| document["cniVersion"].as_str());
    named.and_then(|version| version.parse().ok()).unwrap_or(Version::NEWEST)
}
