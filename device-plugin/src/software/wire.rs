//! A pair as the forwarder knows it: the specification of its wire, and what is read from one that is there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use dpdk_forwarder_client::v1;

use super::pairs::{Holder, Pair, PairState, SoftwareEndpoint};
use super::place::Place;
use crate::config::SoftwareKind;
use crate::lease_name::{LeaseName, OWNER};
use crate::pod_resources::POD;

/// What the wire of a pair should be. Its labels say which pods have it, and are all that a plugin that starts has to know.
pub(super) fn spec(state: &PairState, place: &Place) -> v1::WireSpec {
    let mut labels = HashMap::new();
    for (number, (end, holder)) in state.pair.ends.iter().zip(&state.holders).enumerate() {
        labels.insert(format!("{RESOURCE}{number}"), end.name.resource.clone());
        if let Holder::Pod(pod) = holder {
            let pod = pod.as_deref().map_or(NOT_LISTED, |pod| pod.trim_start_matches(POD));
            labels.insert(format!("{HELD_BY}{number}"), pod.chars().take(LABEL_CHARS_MAX).collect());
        }
    }
    v1::WireSpec {
        name: state.pair.name().to_owned(),
        ends: state.pair.ends.iter().map(|end| end_spec(end, place)).collect(),
        full: v1::Full::Hold.into(),
        owner: OWNER.to_owned(),
        labels,
        ..Default::default()
    }
}

/// The pair of a wire that is there; none: it is no wire of ours.
pub(super) fn read(wire: &v1::WireSpec, place: &Place) -> Option<PairState> {
    let [a, b] = wire.ends.as_slice() else { return None };
    let end = |number: usize, spec| {
        let (socket, kind) = socket(spec)?;
        let resource = wire.labels.get(&format!("{RESOURCE}{number}"))?;
        Some(SoftwareEndpoint { name: LeaseName::new(resource, &place.id_of(Path::new(socket))?), kind })
    };
    let holder = |number: usize| match wire.labels.get(&format!("{HELD_BY}{number}")).map(String::as_str) {
        None => Holder::Nobody,
        Some(NOT_LISTED) => Holder::Pod(None),
        Some(pod) => Holder::Pod(Some(format!("{POD}{pod}"))),
    };
    let pair = Pair { ends: [end(0, a)?, end(1, b)?] };
    let is_ours = wire.owner == OWNER && wire.name == pair.name();
    is_ours.then(|| PairState { pair: Arc::new(pair), holders: [holder(0), holder(1)] })
}

/// Whether a wire is as it should be, as far as its peers and those who look at it can tell. The forwarder tries a wire again by itself only
/// if it has a journal.
pub(super) fn is_as(wire: &v1::Wire, wanted: &v1::WireSpec) -> bool {
    let Some(spec) = &wire.spec else { return false };
    let is_sound = wire.problem.is_empty() && wire.ends.iter().all(|end| end.state != "failed");
    let has_sockets = spec.ends.iter().map(socket).eq(wanted.ends.iter().map(socket));
    is_sound && spec.labels == wanted.labels && spec.owner == wanted.owner && has_sockets
}

fn end_spec(end: &SoftwareEndpoint, place: &Place) -> v1::EndSpec {
    let id = &end.name.device;
    let socket = place.socket(id, end.kind).display().to_string();
    // Whoever comes to its directory may connect: the one pod that has it.
    let access = Some(v1::SocketAccess { mode: Some(SOCKET_MODE), ..Default::default() });
    let kind = match end.kind {
        SoftwareKind::Memif => v1::end_spec::Kind::Memif(v1::MemifEnd {
            socket,
            role: v1::Role::Server.into(),
            queues: Some(QUEUES_MAX),
            access,
            ..Default::default()
        }),
        SoftwareKind::VhostUser => v1::end_spec::Kind::VhostUser(v1::VhostUserEnd {
            socket,
            role: v1::Role::Server.into(),
            queues: Some(QUEUES_MAX),
            access,
            ..Default::default()
        }),
    };
    v1::EndSpec { kind: Some(kind) }
}

fn socket(end: &v1::EndSpec) -> Option<(&str, SoftwareKind)> {
    match end.kind.as_ref()? {
        v1::end_spec::Kind::Memif(end) => Some((&end.socket, SoftwareKind::Memif)),
        v1::end_spec::Kind::VhostUser(end) => Some((&end.socket, SoftwareKind::VhostUser)),
        _ => None,
    }
}

/// The key of a label, before the number of the end.
const RESOURCE: &str = "resource-";
const HELD_BY: &str = "pod-";
/// Of an end whose pod the kubelet has not listed yet.
const NOT_LISTED: &str = "not listed yet";
const LABEL_CHARS_MAX: usize = 256;
const SOCKET_MODE: u32 = 0o666;
/// As many as a VF often has.
const QUEUES_MAX: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn state(holders: [Holder; 2]) -> PairState {
        let end = |resource: &str, id: &str, kind| SoftwareEndpoint { name: LeaseName::new(resource, id), kind };
        let ends = [
            end("intel.com/a", "soft-a-0", SoftwareKind::Memif),
            end("intel.com/b", "soft-b-0", SoftwareKind::VhostUser),
        ];
        PairState { pair: Arc::new(Pair { ends }), holders }
    }

    #[test]
    fn what_pods_have_is_read_back_from_the_wire() {
        let place = Place::at("/run/ferrule/software");
        for state in [
            state([Holder::Pod(Some("pod default/one".into())), Holder::Nobody]),
            state([Holder::Pod(None), Holder::Pod(Some("pod x/two".into()))]),
        ] {
            let spec = spec(&state, &place);
            assert_eq!(read(&spec, &place), Some(state));
            assert_eq!(read(&spec, &Place::at("/elsewhere")), None);
            let others = v1::WireSpec { owner: "me".into(), ..spec };
            assert_eq!(read(&others, &place), None);
        }
    }

    #[test]
    fn a_wire_that_failed_or_names_other_pods_is_put_again() {
        let place = Place::at("/run/ferrule/software");
        let wanted = spec(&state([Holder::Pod(None), Holder::Nobody]), &place);
        let wire = v1::Wire { spec: Some(wanted.clone()), ends: vec![v1::End::default(); 2], ..Default::default() };
        assert!(is_as(&wire, &wanted));
        let mut failed = wire.clone();
        failed.ends[1].state = "failed".into();
        assert!(!is_as(&failed, &wanted));
        let other = spec(&state([Holder::Nobody, Holder::Pod(None)]), &place);
        assert!(!is_as(&wire, &other));
    }
}
