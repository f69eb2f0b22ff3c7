//! What a bad vhost-user frontend can do.

mod lair;
mod messages;
mod peer;
mod verdict;

use crate::arena::Case;

pub const TABLES: &[&[Case]] = &[messages::CASES];
