//! What a program under test is to join, and where it is to run.

use clap::ValueEnum;

use crate::case::EndKind;
use crate::ports::PortSetup;

/// What a program is to join, and where it is to run.
#[derive(Clone, Debug)]
pub struct DutSetup {
    /// Kinds of the two ends.
    pub ends: [EndKind; 2],
    /// Queues of each end.
    pub queues: u16,
    /// Bytes of each buffer of ours.
    pub buffer: u32,
    /// The CPUs for workers.
    pub workers: Vec<usize>,
    /// The CPU for everything else: the generator's.
    pub other: usize,
    /// What our forwarder's workers do without work.
    pub idle: Idle,
    /// The ports, if that is what the ends are.
    pub ports: Option<PortSetup>,
    /// The devices that our forwarder joins then.
    pub devices: Option<[String; 2]>,
}

/// What a worker does without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Idle {
    /// It sleeps until frames come: the default of the forwarder
    Adaptive,
    /// It polls without a pause, as testpmd and OVS do
    Poll,
}

/// Slots of every ring of ours.
pub const RING: u32 = 1024;
