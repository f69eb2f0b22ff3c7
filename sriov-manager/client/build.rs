//! Compiles the API in Rust alone: no `protoc` is needed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    const PROTOS: [&str; 2] = ["proto/ferrule/vf/v1/vf.proto", "proto/google/rpc/status.proto"];
    for proto in PROTOS {
        println!("cargo:rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("vf_descriptor.bin"), descriptors.encode_to_vec())?;
    let mut builder = tonic_prost_build::configure();
    // Others keep what they asked for in files of their own.
    for message in ["Attributes", "Vlan", "Rate"] {
        let derive = "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]";
        builder = builder.type_attribute(format!(".ferrule.vf.v1.{message}"), derive);
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
