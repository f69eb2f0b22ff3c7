//! Interfaces of pods for the device plugin's software endpoints: the forwarder makes one in the pod, and joins it with the socket that it
//! has for the endpoint.
//!
//! - [`EndpointConfig`]: the keys of a network;
//! - [`add()`], [`del()`], [`check()`], [`gc_of_chain()`]: the commands;
//! - `record`: what has to be known later, and the wire.

mod add;
mod config;
mod del;
mod record;

pub use add::add;
pub use config::{EndpointConfig, is_of_endpoint};
pub use del::{check, del, gc_of_chain};
