//! What a bad vhost-user frontend can do.

mod files;
mod floods;
mod listeners;
mod memory;
mod messages;
mod migration;
mod offloads;
mod packed;
mod peer;
mod requests;
mod rounds;
mod setup;
mod split;
mod tables;
mod verdict;

use crate::testbed::Case;

pub const TABLES: &[&[Case]] = &[
    messages::CASES,
    requests::CASES,
    files::CASES,
    memory::CASES,
    split::CASES,
    packed::CASES,
    tables::CASES,
    offloads::CASES,
    migration::CASES,
    floods::CASES,
    listeners::CASES,
];
