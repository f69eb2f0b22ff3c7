//! What a node with many VFs costs: 8 PFs of 255 VFs each, made of files.
//!
//! `cargo bench -p sriov-manager --bench node` prints the median of each.

use std::hint::black_box;
use std::time::{Duration, Instant};

use sriov_manager::api::response;
use sriov_manager::attributes::Attributes;
use sriov_manager::fake::FakeNode;
use sriov_manager::inventory::Inventory;
use sriov_manager::policy::PeerCredentials;
use sriov_manager::vfs::{Choice, HostVfs, Place, Request};
use sriov_manager::{Driver, PciAddress, Vfs};

fn main() {
    let node = FakeNode::new(PFS, VFS);
    let vfs = node.open();
    let counts: Vec<_> = (0..PFS).map(|pf| (node.pf(pf), VFS)).collect();
    for (pf, made) in vfs.create_all(&counts, HostVfs::Kept) {
        made.unwrap_or_else(|error| panic!("{pf}: {error}"));
    }
    let shown = vfs.view().vfs.len();
    println!("{shown} VFs of {PFS} PFs");
    let sysfs = node.sysfs();
    tell("first look at every device", || drop(black_box(Inventory::read(&sysfs))));
    let before = Inventory::read(&sysfs).expect("a made-up node can be read");
    tell("look at every device", || drop(black_box(Inventory::read_after(&sysfs, &before))));
    tell("list, of which nothing changed", || drop(black_box(vfs.view())));
    tell("list, as an answer of the API", || drop(black_box(response(&vfs.view(), None))));
    let lend = |index: u32| lend(&vfs, &node, index);
    let first = Instant::now();
    (0..LEASES).for_each(lend);
    println!(
        "{:>10.2} ms  acquire with a rebind to vfio-pci, mean of {LEASES}",
        milliseconds(first.elapsed()) / f64::from(LEASES)
    );
    acquire_without_rebind(&vfs, &node);
    tell("list with leases, of which nothing changed", || drop(black_box(vfs.view())));
    drop(vfs);
    let began = Instant::now();
    let vfs = node.open();
    println!("{:>10.2} ms  start with {} leases", milliseconds(began.elapsed()), 2 * LEASES);
    assert_eq!(vfs.facts().leases.len(), 2 * LEASES as usize);
}

/// VFs that have the driver that is asked for: one record, one look at the PF, one at whether the VFIO group is open. After each the
/// list is made anew.
fn acquire_without_rebind(vfs: &Vfs, node: &FakeNode) {
    let (mut acquires, mut lists) = (Vec::new(), Vec::new());
    for index in LEASES..2 * LEASES {
        let vf = node.vf((index % u32::from(PFS)) as u8, index / u32::from(PFS));
        let request = Request { driver: Some(Driver::None), ..request(vf, index) };
        let began = Instant::now();
        vfs.acquire(&request).unwrap_or_else(|error| panic!("{vf}: {error}"));
        acquires.push(began.elapsed());
        let began = Instant::now();
        drop(black_box(vfs.view()));
        lists.push(began.elapsed());
    }
    for (what, times) in [("acquire without a rebind", &mut acquires), ("list after a change", &mut lists)] {
        times.sort_unstable();
        println!("{:>10.2} ms  {what}, median of {LEASES}", milliseconds(times[times.len() / 2]));
    }
}

fn lend(vfs: &Vfs, node: &FakeNode, index: u32) {
    let vf = node.vf((index % u32::from(PFS)) as u8, index / u32::from(PFS));
    let request = request(vf, index);
    vfs.acquire(&request).unwrap_or_else(|error| panic!("{vf}: {error}"));
}

fn request(vf: PciAddress, index: u32) -> Request {
    Request {
        id: format!("lease {index}"),
        tenant: "a bench".to_owned(),
        choice: Choice::Vf(vf),
        place: Place::default(),
        owner: None,
        until: None,
        driver: Some(Driver::VfioPci),
        attributes: Attributes::default(),
        peer: PeerCredentials::myself(),
        force: false,
        again: None,
    }
}

/// Prints the median of some runs.
fn tell(what: &str, work: impl Fn()) {
    let timed = |_| {
        let began = Instant::now();
        work();
        began.elapsed()
    };
    let mut times: Vec<_> = (0..RUNS).map(timed).collect();
    times.sort_unstable();
    println!("{:>10.2} ms  {what}", milliseconds(times[RUNS / 2]));
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

const PFS: u8 = 8;
const VFS: u32 = 255;
const LEASES: u32 = 100;
const RUNS: usize = 21;
