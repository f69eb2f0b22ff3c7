//! Traces: copies of frames, as they cross a wire or as a network function judges them, for whoever looks at them.
//!
//! It taps nothing itself: the forwarder and the network functions copy frames into a bounded [`Capture`](ferrule_dataplane::capture::Capture) and
//! wait for nobody. Here is what becomes of the copies.
//!
//! Modules in reading order:
//! - [`v1`]: what is asked and answered, as `proto/ferrule/trace/v1/trace.proto` says it
//! - [`decode`]: what a frame is
//! - [`filter`]: which frames are wanted; [`server`]: those of a capture are sent
//! - [`line`](mod@line): a frame as a line; [`pcapng`]: frames as a file that Wireshark opens

pub mod decode;
pub mod filter;
pub mod line;
pub mod pcapng;
pub mod server;

/// The messages, the client and the server of the trace API, made from its `.proto`.
#[allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("ferrule.trace.v1");

    /// Its descriptors, for reflection.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("trace_descriptor");
}
