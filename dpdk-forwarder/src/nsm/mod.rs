//! The forwarder as a process of Network Service Mesh: a manager asks it for connections, it asks the next hop, and joins both ends by a
//! wire.
//!
//! Modules in reading order:
//! - `settings`: the section `nsm:` of the wires file; `environment`: the variables of the forwarders that it takes the place of
//! - `server`: identity, socket, registration, and their end
//! - `handler`: one connection, from the request to its close; `wish`: what the client asks for; `next_hop`: who comes next
//! - `end`: what a mechanism asks for; `context`: what the context means for an interface (both pure but for opening namespaces)
//! - `vxlan`: what forwarders of two nodes agree on; `tunnel`: its device
//! - `wireguard`: the same for payload IP; `secure_tunnel`: who encrypts; `secure_interface`, `secure_port`: whose packets, those of an interface or
//!   of a wire; `wireguard_ends`: the key, the port and what runs
//! - `bridge`: a tunnel for an end that is no interface of the kernel
//! - `device_selector`, `breakout`: connections that leave the mesh into a VLAN of a device
//! - `making`: what a call has made that nobody waits for any more is undone, and what is removed comes before what is made anew;
//!   `reservation`: how long a connection keeps the number and the port of its tunnel
//! - `joint`: the wire and its interfaces, planned, then applied; `interface`, `rules`, `nat`: what the kernel is told
//! - `vf`: ends that are VFs of the pods
//! - `leftovers`: what a forwarder that was killed has left; `namespaces`: where that is looked for

#[cfg(feature = "nsm")]
mod breakout;
#[cfg(feature = "nsm")]
mod bridge;
#[cfg(feature = "nsm")]
mod context;
#[cfg(feature = "nsm")]
mod device_selector;
#[cfg(feature = "nsm")]
mod end;
mod environment;
#[cfg(feature = "nsm")]
mod handler;
#[cfg(feature = "nsm")]
mod interface;
#[cfg(feature = "nsm")]
mod joint;
#[cfg(feature = "nsm")]
mod leftovers;
#[cfg(feature = "nsm")]
mod making;
#[cfg(feature = "nsm")]
mod namespaces;
#[cfg(feature = "nsm")]
mod nat;
#[cfg(feature = "nsm")]
mod next_hop;
#[cfg(feature = "nsm")]
mod reservation;
#[cfg(feature = "nsm")]
mod rules;
#[cfg(feature = "nsm")]
mod secure_interface;
#[cfg(feature = "nsm")]
mod secure_port;
#[cfg(feature = "nsm")]
mod secure_tunnel;
#[cfg(feature = "nsm")]
mod server;
mod settings;
#[cfg(feature = "nsm")]
mod tunnel;
#[cfg(feature = "nsm")]
mod vf;
#[cfg(feature = "nsm")]
mod vxlan;
#[cfg(feature = "nsm")]
mod wireguard;
#[cfg(feature = "nsm")]
mod wireguard_ends;
#[cfg(feature = "nsm")]
mod wish;
#[cfg(not(feature = "nsm"))]
mod without;

pub use environment::Environment;
#[cfg(feature = "nsm")]
pub(crate) use server::serve;
pub use settings::NsmSettings;
#[cfg(not(feature = "nsm"))]
pub(crate) use without::serve;
