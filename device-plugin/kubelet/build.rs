//! Makes the messages of the kubelet's APIs from the `.proto` files.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    const PROTOS: [&str; 2] = ["proto/device_plugin.proto", "proto/pod_resources.proto"];
    for proto in PROTOS {
        println!("cargo:rerun-if-changed={proto}");
    }
    tonic_prost_build::configure().compile_fds(protox::compile(PROTOS, ["proto"])?)?;
    Ok(())
}
