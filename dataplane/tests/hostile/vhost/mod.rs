//! What a bad vhost-user frontend can do.

mod files;
mod hands;
mod lair;
mod memory;
mod messages;
mod peer;
mod requests;
mod split;
mod verdict;

use crate::arena::Case;

pub const TABLES: &[&[Case]] = &[messages::CASES, requests::CASES, files::CASES, memory::CASES, split::CASES];
