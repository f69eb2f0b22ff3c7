//! `images`: writes the images of the daemons and of the network functions, from programs that were built.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ferrule_deploy::product::{Product, Written};

/// Writes an OCI image of each daemon and one of the network functions, from programs that were built.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// Directory of the programs
    #[arg(long, value_name = "DIR", default_value = "target/release")]
    binaries: PathBuf,
    /// Directory that the images are written into
    #[arg(long, value_name = "DIR", default_value = "target/images")]
    out: PathBuf,
    /// What names of images begin with: a registry and a path in it
    #[arg(long, value_name = "NAME", default_value = "localhost/ferrule")]
    prefix: String,
    /// Tag of the images
    #[arg(long, value_name = "TAG", default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    match (Product { binaries: flags.binaries, prefix: flags.prefix, tag: flags.tag }).write(&flags.out) {
        Ok(images) => {
            for Written { path, reference, digest, compressed, unpacked, drivers } in images {
                let (compressed, unpacked) = (compressed as f64 / 1e6, unpacked as f64 / 1e6);
                let with = if drivers > 0 { format!(", with {drivers} drivers of DPDK") } else { String::new() };
                println!(
                    "{reference}  {compressed:.1} MB, {unpacked:.1} MB unpacked{with}  {}  {digest}",
                    path.display()
                );
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
