//! Compiles the messages of Network Service Mesh and of the SPIFFE Workload API in Rust alone: no `protoc` is needed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    const PROTOS: [&str; 3] = ["proto/networkservice.proto", "proto/registry.proto", "proto/workload.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("nsm_descriptor.bin"), descriptors.encode_to_vec())?;
    // Maps in the order of their keys: the same message is always the same bytes.
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
