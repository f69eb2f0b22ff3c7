//! Network functions: what stands between the two wires of a hop of a service chain.
//!
//! What they decide is pure: a frame and the time in, a verdict or a rewritten frame out. Each judges headers on a copy of its own, which
//! no peer can change meanwhile. A hop carries frames to it and away, and the program `network-function` is one hop with its settings.
//!
//! Modules in reading order:
//! - [`function`]: what every function is; [`burst`](mod@burst): frames that came in together, with the [`disposition`](mod@disposition) of each
//! - [`packet`]: the headers of a frame, checked; checksums
//! - [`flow`]: what packets of one conversation have in common; [`sessions`]: a bounded table of conversations; [`tcp_state`]
//! - [`fragments`]: later fragments share the fate of the first one
//! - [`firewall`]: ordered rules, and the ways back that they open; [`passthrough`]: nothing is judged
//! - [`nat44`]: a router that gives clients addresses and ports of a pool; [`nptv6`]: one that gives them another prefix
//! - [`neighbours`] of a router, and its [`error_limit`]
//! - [`any`]: whichever function the settings name
//! - [`port`]: what is at a side of a hop; [`hop`]: a function between two of them, with threads
//! - [`config`]: the settings of a hop; [`agent`]: the same by documents of modules
//! - [`running`]: one hop, or several by the same settings; [`daemon`]: they run, follow their settings, are looked at
//! - [`tap`]: copies of their frames, for traces
//! - `mesh`: hops of chains that Network Service Mesh composes
//! - [`webserver`]: real HTTP at the end of a chain
//! - [`counter`]: numbers that are read while they grow

pub mod agent;
pub mod any;
pub mod burst;
pub mod config;
pub mod counter;
pub mod daemon;
pub mod disposition;
pub mod error_limit;
pub mod firewall;
pub mod flow;
pub mod fragments;
#[cfg(test)]
mod frames;
pub mod function;
pub mod hop;
#[cfg(feature = "nsm")]
pub mod mesh;
pub mod nat44;
pub mod neighbours;
pub mod nptv6;
pub mod packet;
pub mod passthrough;
pub mod port;
pub mod running;
pub mod sessions;
pub mod tap;
pub mod tcp_state;
pub mod webserver;

pub use function::{Disposition, Function, Side};
