//! Who we are and whom we believe: SPIFFE identities and the Workload API that gives them.
//!
//! - [`SpiffeId`], [`SpiffeIds`], [`Certificate`], [`Svid`], [`Bundles`]: names, what a certificate says, our own with its key, whom we trust
//! - [`Identity`]: all that one moment's TLS needs; [`IdentitySource`]: the one of now, rotated by the Workload API
//! - [`Authority`], [`WorkloadApi`]: the server's side, for one machine

mod authority;
mod bundles;
mod certificate;
mod source;
mod spiffe_id;
mod spiffe_ids;
mod svid;
mod workload_client;
mod workload_server;

#[cfg(test)]
pub(crate) mod test_identities;
#[cfg(test)]
mod workload_tests;

pub use authority::{Authority, AuthorityError, Issued};
pub use bundles::{BundleError, Bundles};
pub use certificate::{Certificate, CertificateError};
pub use source::{Identity, IdentitySource};
pub use spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};
pub use spiffe_ids::SpiffeIds;
pub use svid::{Svid, SvidError};
pub use workload_client::{ResponseError, WorkloadError, WorkloadSocket};
pub use workload_server::{ServeError, WorkloadApi};
