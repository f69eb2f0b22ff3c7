//! Policies that the operator's documentation and its users have published, on nodes as these had them: which PFs get how
//! many VFs, and which pools those are in. `policies/` has their facts, retyped.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sriov_manager::config::Config;
use sriov_manager::fake::{FakeNode, FakePf};
use sriov_manager::{Driver, Options, PciAddress, Vfs};

/// A policy of others, and what it comes to.
struct Example {
    /// The name of its file.
    file: &'static str,
    /// The PFs of a node: address, name, vendor and device; and how many VFs it gets.
    pfs: &'static [(&'static str, &'static str, [u32; 2], usize)],
    /// Pools: the driver that their VFs are lent with, and which VFs they have, as `PF#NUMBERS`.
    pools: &'static [(&'static str, Driver, &'static str)],
    /// What is told about it on this node.
    told: &'static [&'static str],
}

/// What some are refused with, by the names of their files.
const REFUSED: &[(&str, &[&str])] = &[
    (
        "misspelt",
        &[
            ":7:52: spec.nicSelector.pfName: unknown key; did you mean `pfNames`?",
            ":18:52: spec.nicSelector.pfName: unknown key",
            ":29:52: spec.nicSelector.pfName: unknown key",
        ],
    ),
    ("switchdev", &["spec.eSwitchMode: `switchdev`: only `legacy`"]),
    ("cloud", &["spec.nicSelector.netFilter: networks of a cloud are not known here: name the PFs"]),
];

const X710: [u32; 2] = [0x8086, 0x1572];
const XXV710: [u32; 2] = [0x8086, 0x158b];
const E810: [u32; 2] = [0x8086, 0x159b];
const CX5: [u32; 2] = [0x15b3, 0x1017];
const CX6DX: [u32; 2] = [0x15b3, 0x101d];

const EXAMPLES: &[Example] = &[
    Example {
        file: "quickstart",
        pfs: &[("0000:18:00.0", "ens1f0", X710, 0), ("0000:18:00.1", "ens1f1", X710, 2)],
        pools: &[("intelnics", Driver::Kernel, "ens1f1#0-1")],
        told: &["the policies of ens1f1 want an MTU of 9000, and it has 1500"],
    },
    Example {
        file: "multicast",
        pfs: &[("0000:86:00.0", "ens803f0", X710, 4), ("0000:86:00.1", "ens803f1", X710, 0)],
        pools: &[("example", Driver::Kernel, "ens803f0#0-3")],
        told: &[],
    },
    Example {
        file: "dpdk",
        pfs: &[
            ("0000:d8:00.0", "ens3f0", XXV710, 6),
            ("0000:d8:00.1", "ens3f1", XXV710, 6),
            ("0000:5e:00.0", "ens2f0", XXV710, 0),
        ],
        pools: &[("intelnics", Driver::VfioPci, "ens3f0#0-5 ens3f1#0-5")],
        told: &[],
    },
    Example {
        file: "rdma",
        pfs: &[("0000:03:00.0", "enp3s0f0", CX5, 4), ("0000:18:00.0", "ens1f0", X710, 0)],
        pools: &[("rdma_exclusive_device", Driver::Kernel, "enp3s0f0#0-3")],
        told: &[],
    },
    Example {
        file: "partitions",
        pfs: &[("0000:3b:00.0", "netpf0", XXV710, 16)],
        pools: &[("net1", Driver::Kernel, "netpf0#0"), ("net1dpdk", Driver::VfioPci, "netpf0#8-15")],
        told: &[],
    },
    Example {
        file: "planes",
        pfs: &[("0000:ca:00.0", "ens801f0", E810, 4), ("0000:ca:00.1", "ens801f1", E810, 0)],
        pools: &[("c_plane", Driver::VfioPci, "ens801f0#2-3"), ("u_plane", Driver::VfioPci, "ens801f0#0-1")],
        told: &["the policies of ens801f0 want an MTU of 9216, and it has 1500"],
    },
    Example {
        file: "external",
        pfs: &[("0000:18:00.0", "ens1f0", X710, 0)],
        pools: &[("external_vfs", Driver::VfioPci, "")],
        told: &["ens1f0 has 0 VFs and its policies want 8, which are made elsewhere"],
    },
    Example {
        file: "two-ports",
        pfs: &[("0000:5c:00.0", "p1", CX6DX, 0), ("0000:5c:00.1", "p2", CX6DX, 8)],
        pools: &[("p2rdma", Driver::Kernel, "p2#0-7")],
        told: &["the policies of p2 want an MTU of 9000, and it has 1500"],
    },
    Example {
        file: "front-haul",
        pfs: &[
            ("0000:65:00.0", "ens1f0", XXV710, 8),
            ("0000:65:00.1", "ens1f1", XXV710, 0),
            ("0000:87:00.0", "ens7f0", XXV710, 8),
        ],
        pools: &[("intelnics0", Driver::Kernel, "ens1f0#0-7 ens7f0#0-7")],
        told: &["the policies of ens1f0 want an MTU of 9000", "the policies of ens7f0 want an MTU of 9000"],
    },
    Example {
        file: "profile",
        pfs: &[("0000:98:00.0", "ens2f0", E810, 8), ("0000:98:00.1", "ens2f1", E810, 8)],
        pools: &[("cplane", Driver::Kernel, "ens2f0#0-7"), ("uplane", Driver::VfioPci, "ens2f1#0-7")],
        told: &[],
    },
];

#[test]
fn policies_that_others_have_published_do_here_what_they_do_there() {
    for example in EXAMPLES {
        let name = example.file;
        let pfs: Vec<_> = example.pfs.iter().map(|&(address, name, ids, _)| made_up(address, name, ids)).collect();
        let node = FakeNode::with_pfs(&pfs);
        let policies = read(name).unwrap_or_else(|error| panic!("{name}: {error}")).policies;
        let drivers: Vec<_> = policies.pools.iter().map(|pool| (pool.name.clone(), pool.driver)).collect();
        let vfs = Vfs::open(Options { policies, ..node.options() }).expect("a made-up node can be owned");
        let view = vfs.view();
        let counts: Vec<_> = view.pfs.iter().map(|pf| (pf.pf.name(), pf.pf.vfs.len())).collect();
        let mut wanted: Vec<_> = example.pfs.to_vec();
        wanted.sort_by_key(|(address, ..)| *address);
        let wanted: Vec<_> = wanted.iter().map(|(_, name, _, count)| ((*name).to_owned(), *count)).collect();
        assert_eq!(counts, wanted, "{name}");
        let mut pools: BTreeMap<String, Vec<(String, u32)>> =
            drivers.iter().map(|(pool, _)| (pool.clone(), Vec::new())).collect();
        for vf in &view.vfs {
            for pool in &vf.pools {
                pools.entry(pool.clone()).or_default().push((vf.pf_name.clone(), vf.vf.index));
            }
        }
        let made: Vec<_> =
            pools.into_iter().zip(drivers).map(|((pool, vfs), (_, driver))| (pool, driver, vfs)).collect();
        let wanted: Vec<_> =
            example.pools.iter().map(|(pool, driver, vfs)| ((*pool).to_owned(), Some(*driver), numbers(vfs))).collect();
        assert_eq!(made, wanted, "{name}");
        assert_eq!(view.warnings.len(), example.told.len(), "{name}: {:?}", view.warnings);
        for told in example.told {
            assert!(
                view.warnings.iter().any(|warning| warning.contains(told)),
                "{name}: {told} in {:?}",
                view.warnings
            );
        }
    }
}

#[test]
fn what_cannot_be_as_a_published_policy_has_it_is_refused_at_its_line() {
    for (name, parts) in REFUSED {
        let error = read(name).expect_err(name);
        for part in *parts {
            assert!(error.contains(part), "{name}: {part} in\n{error}");
        }
    }
}

#[test]
fn every_file_is_in_a_table() {
    let known: Vec<_> =
        EXAMPLES.iter().map(|example| example.file).chain(REFUSED.iter().map(|(file, _)| *file)).collect();
    let mut files = 0;
    for entry in fs::read_dir(folder()).expect("the folder is there").map(|entry| entry.expect("it can be read")) {
        let name = entry.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        assert!(known.contains(&name.as_str()), "{name}");
        files += 1;
    }
    assert_eq!(files, known.len());
}

fn read(name: &str) -> Result<Config, String> {
    let file = folder().join(format!("{name}.yaml"));
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    Config::parse(name, &text).map_err(|errors| errors.to_string())
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies"))
}

fn made_up<'a>(address: &str, name: &'a str, [vendor, device]: [u32; 2]) -> FakePf<'a> {
    let address: PciAddress = address.parse().expect("an address of the table");
    FakePf { address, name, vendor, device, driver: "igb", total_vfs: 64 }
}

/// `ens1f0#0-1 ens1f1#3` as pairs.
fn numbers(text: &str) -> Vec<(String, u32)> {
    let number = |text: &str| text.parse::<u32>().expect("a number of the table");
    let of_pf = |part: &str| {
        let (pf, range) = part.split_once('#').expect("`PF#NUMBERS`");
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        (number(first)..=number(last)).map(|index| (pf.to_owned(), index)).collect::<Vec<_>>()
    };
    text.split_whitespace().flat_map(of_pf).collect()
}
