//! A build without the feature `nsm`.

use std::sync::Arc;

use ferrule_daemon::Phase;
use tokio::sync::watch;

use super::NsmSettings;
use crate::wires::Wires;

/// Says that this build cannot serve the mesh. A file that asks for it was refused already; the environment may ask too.
pub(crate) async fn serve(_: NsmSettings, _: Arc<Wires>, _: watch::Receiver<Phase>) -> Result<(), &'static str> {
    Err(
        "this build knows no Network Service Mesh; build the forwarder with its feature `nsm`, or unset NSM_NAME, NSM_CONNECT_TO and NSM_LISTEN_ON",
    )
}
