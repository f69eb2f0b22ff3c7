//! Makes the bindings of the libdpdk that is installed, and the shim: a shared object of what is only in its headers.
//! Where something is missing, the crate is built without DPDK, and says what was missing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(no_dpdk)");
    println!("cargo::rerun-if-changed=c");
    for variable in ["PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR", "LIBCLANG_PATH", "FERRULE_NO_DPDK", SANITIZE] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    watch_pkg_config();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    match build(&out) {
        Ok(version) => {
            println!("cargo::metadata=found=1");
            println!("cargo::rustc-env=FERRULE_DPDK_VERSION={version}");
        }
        Err(missing) => {
            println!("cargo::rustc-cfg=no_dpdk");
            watch_packages(&out);
            println!("cargo::rustc-env=FERRULE_DPDK_MISSING={missing}");
        }
    }
}

/// The version of libdpdk; or what is missing, in one line.
fn build(out: &Path) -> Result<String, String> {
    if env::var_os("FERRULE_NO_DPDK").is_some() {
        return Err("it was asked for by the variable FERRULE_NO_DPDK".to_owned());
    }
    let version = pkg_config(&["--modversion"])?.concat();
    pkg_config(&[&format!("--atleast-version={OLDEST}")])
        .map_err(|_| format!("libdpdk {version} is older than {OLDEST}"))?;
    let flags = pkg_config(&["--cflags"])?;
    clang_sys::load().map_err(|error| one_line(&format!("libclang was not found ({error})")))?;
    compile_shim(&flags, &out.join("shim.so"))?;
    generate_bindings(&flags, &out.join("bindings.rs"))?;
    Ok(version)
}

/// What pkg-config says of libdpdk, word by word. The crate of that name leaves out `-include` and `-march`, without which
/// the headers do not compile.
fn pkg_config(arguments: &[&str]) -> Result<Vec<String>, String> {
    let program = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_owned());
    let output = Command::new(&program)
        .args(arguments)
        .arg("libdpdk")
        .output()
        .map_err(|error| format!("{program} did not start ({error})"))?;
    if !output.status.success() {
        return Err(format!("{program} found no libdpdk"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect())
}

/// When a package comes or goes, so does a file of one of these directories.
fn watch_pkg_config() {
    let path = Command::new("pkg-config").args(["--variable", "pc_path", "pkg-config"]).output();
    let path = path.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    for directory in path.split(':').filter(|directory| Path::new(directory).is_dir()) {
        println!("cargo::rerun-if-changed={directory}");
    }
}

/// What is missing may come with any package: the list of them is watched; where it is not known, each build looks again.
fn watch_packages(out: &Path) {
    let lists = [
        "/var/lib/dpkg/status",
        "/var/lib/rpm",
        "/usr/lib/sysimage/rpm",
        "/lib/apk/db/installed",
        "/var/lib/pacman/local",
    ];
    let known = lists.into_iter().map(PathBuf::from).find(|list| list.exists());
    println!("cargo::rerun-if-changed={}", known.unwrap_or_else(|| out.join("not-there")).display());
}

fn compile_shim(flags: &[String], shim: &Path) -> Result<(), String> {
    let compiler = cc::Build::new()
        .opt_level(3)
        .debug(false)
        .pic(true)
        .warnings(true)
        .extra_warnings(true)
        .try_get_compiler()
        .map_err(|error| one_line(&format!("no C compiler was found ({error})")))?;
    let object = shim.with_extension("o");
    let mut compile = compiler.to_command();
    compile.args(flags).args(["-fvisibility=default", "-c", "c/shim.c", "-o"]).arg(&object);
    if let Ok(sanitizer) = env::var(SANITIZE) {
        compile.args([&format!("-fsanitize={sanitizer}"), "-fno-omit-frame-pointer", "-g"]);
    }
    run(&mut compile)?;
    let mut link = compiler.to_command();
    // Of a sanitizer's runtime there is one: the program's.
    link.args(["-fno-sanitize=all", "-shared", "-o"]).arg(shim).arg(&object).args(pkg_config(&["--libs-only-L"])?);
    if env::var_os(SANITIZE).is_none() {
        link.arg("-s");
    }
    // Also those of which the shim itself calls nothing: Rust finds functions in whatever the shim needs.
    link.arg("-Wl,--no-as-needed").args(LIBRARIES.map(|library| format!("-l{library}")));
    run(&mut link)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("the C compiler did not start ({error})"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    for line in said.lines().take(20) {
        println!("cargo::warning={line}");
    }
    Err("the C compiler does not compile the shim with the headers of libdpdk".to_owned())
}

fn generate_bindings(flags: &[String], file: &Path) -> Result<(), String> {
    let builder = bindgen::Builder::default()
        .header("c/bindings.h")
        .clang_args(flags)
        .dynamic_library_name("Dpdk")
        .dynamic_link_require_all(true)
        .allowlist_function("ferrule_.*")
        .allowlist_type("ferrule_.*")
        .allowlist_var("FERRULE_.*")
        .allowlist_var("RTE_ETH_ALL")
        .allowlist_var("RTE_MAX_ETHPORTS")
        .allowlist_var("RTE_PKTMBUF_HEADROOM")
        .allowlist_var("RTE_LOG_(ERR|WARNING|NOTICE|INFO|DEBUG)")
        .allowlist_type("rte_eth_rx_mq_mode")
        // Its layout is the shim's business.
        .opaque_type("rte_mbuf")
        .opaque_type("rte_mempool")
        .opaque_type("rte_device")
        .prepend_enum_name(false)
        .generate_comments(false)
        .layout_tests(false);
    let builder = FUNCTIONS.iter().fold(builder, |builder, function| builder.allowlist_function(function));
    let bindings = builder.generate().map_err(|error| one_line(&format!("bindgen: {error}")))?;
    bindings.write_to_file(file).map_err(|error| format!("{}: {error}", file.display()))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What the shim is to be checked by while it runs: `address`, for `make asan`.
const SANITIZE: &str = "FERRULE_SANITIZE";
/// The oldest version with all functions that are used.
const OLDEST: &str = "22.11";
const LIBRARIES: [&str; 4] = ["rte_eal", "rte_ethdev", "rte_mbuf", "rte_mempool"];
/// What Rust calls in libdpdk itself.
const FUNCTIONS: [&str; 37] = [
    "rte_dev_event_callback_register",
    "rte_dev_event_callback_unregister",
    "rte_dev_name",
    "rte_dev_probe",
    "rte_dev_remove",
    "rte_eal_init",
    "rte_eth_allmulticast_enable",
    "rte_eth_dev_adjust_nb_rx_tx_desc",
    "rte_eth_dev_callback_register",
    "rte_eth_dev_callback_unregister",
    "rte_eth_dev_close",
    "rte_eth_dev_configure",
    "rte_eth_dev_get_mtu",
    "rte_eth_dev_info_get",
    "rte_eth_dev_is_removed",
    "rte_eth_dev_rx_intr_ctl_q_get_fd",
    "rte_eth_dev_rx_intr_disable",
    "rte_eth_dev_rx_intr_enable",
    "rte_eth_dev_set_link_down",
    "rte_eth_dev_set_link_up",
    "rte_eth_dev_set_mtu",
    "rte_eth_dev_socket_id",
    "rte_eth_dev_start",
    "rte_eth_dev_stop",
    "rte_eth_find_next",
    "rte_eth_macaddr_get",
    "rte_eth_promiscuous_enable",
    "rte_eth_read_clock",
    "rte_eth_rx_queue_setup",
    "rte_eth_stats_get",
    "rte_eth_tx_queue_setup",
    "rte_eth_xstats_get",
    "rte_eth_xstats_get_names",
    "rte_pktmbuf_pool_create",
    "rte_version",
    "rte_vfio_enable",
    "rte_vfio_is_enabled",
];
