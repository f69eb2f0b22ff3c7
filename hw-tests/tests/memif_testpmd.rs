//! memif against Debian's testpmd, in both roles: every size, several queues, every ring.
//!
//! ```text
//! our end 0 -- wire 0 -- testpmd port 0 <-> port 1 -- wire 1 -- our end 1
//! ```

mod bed;

use bed::{Bed, Link, alone};
use ferrule_dataplane::spec::Role;
use ferrule_hw_tests::need::{TESTPMD, lacks};
use ferrule_hw_tests::stream::{both_ways, carry};
use ferrule_hw_tests::testpmd::Testpmd;

/// 64 to 9000 bytes, and 60: a minimal frame without its FCS.
const SIZES: [usize; 9] = [60, 64, 65, 128, 1514, 1518, 2048, 4000, 9000];

#[test]
fn every_size_crosses_testpmd_as_client_unharmed_both_ways() {
    every_size(&Link { ours: Role::Server, ..Link::default() });
}

#[test]
fn every_size_crosses_testpmd_as_server_unharmed_both_ways() {
    every_size(&Link { ours: Role::Client, ..Link::default() });
}

fn every_size(link: &Link) {
    if lacks("every_size", &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    let bed = Bed::new(link);
    let testpmd = Testpmd::start(&bed.options());
    bed.wait_for_testpmd();
    let mut ends = bed.ends();
    carry(&mut ends, &mut both_ways(1, &SIZES, 32), 9000);
    testpmd.stop();
}
