//! Generates the client of the forwarder's admin API, without `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = "../dpdk-forwarder/proto";
    let proto = "ferrule/admin/v1/admin.proto";
    println!("cargo::rerun-if-changed={folder}/{proto}");
    let files = protox::compile([proto], [folder])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
