//! The kinds of ends, joined: the one file of the admin API that names them all. What their messages say is in the file
//! of each.

use ferrule_dataplane::spec::{EndSpec, ExternalSpec};
use ferrule_ethdev::{EthdevSpec, VfSpec};

use super::reader::Reader;
use super::secrets::Secrets;
use super::{ethdev, kernel, memif, vf, vhost_user};
use dpdk_forwarder_client::v1;
use v1::end_spec::Kind;

/// Reads an end; `None`: the reader knows why not.
pub(super) fn from_proto(reader: &mut Reader, end: &v1::EndSpec) -> Option<EndSpec> {
    match &end.kind {
        Some(Kind::Memif(memif)) => memif::from_proto(reader, memif).map(EndSpec::Memif),
        Some(Kind::VhostUser(vhost)) => vhost_user::from_proto(reader, vhost).map(EndSpec::VhostUser),
        Some(Kind::Kernel(kernel)) => kernel::from_proto(reader, kernel).map(EndSpec::Kernel),
        Some(Kind::Ethdev(ethdev)) => ethdev::from_proto(reader, ethdev).map(|ethdev| EndSpec::External(ethdev.into())),
        Some(Kind::Vf(vf)) => Some(EndSpec::External(vf::from_proto(reader, vf).into())),
        Some(Kind::External(external)) => {
            let problem = format!(
                "an end of kind `{}` cannot be asked for in this forwarder; `memif`, `vhost_user`, `kernel`, \
                 `ethdev` and `vf` are possible",
                external.kind.escape_debug()
            );
            reader.wrong("kind", problem);
            None
        }
        None => {
            reader.wrong("kind", "an end is one of `memif`, `vhost_user`, `kernel`, `ethdev` or `vf`");
            None
        }
    }
}

/// Writes an end, with its secrets if asked for.
pub(super) fn to_proto(end: &EndSpec, secrets: Secrets) -> v1::EndSpec {
    let kind = match end {
        EndSpec::Memif(memif) => Kind::Memif(memif::to_proto(memif, secrets)),
        EndSpec::VhostUser(vhost) => Kind::VhostUser(vhost_user::to_proto(vhost)),
        EndSpec::Kernel(kernel) => Kind::Kernel(kernel::to_proto(kernel)),
        EndSpec::External(external) => match (external.downcast_ref::<EthdevSpec>(), external.downcast_ref::<VfSpec>())
        {
            (Some(ethdev), _) => Kind::Ethdev(ethdev::to_proto(ethdev)),
            (None, Some(vf)) => Kind::Vf(vf::to_proto(vf)),
            (None, None) => Kind::External(external_to_proto(external)),
        },
    };
    v1::EndSpec { kind: Some(kind) }
}

fn external_to_proto(external: &ExternalSpec) -> v1::ExternalEnd {
    v1::ExternalEnd { kind: external.kind().to_owned(), description: external.to_string() }
}
