//! VFs of a made-up node: made, lent, kept through whatever happens, and taken back.
//!
//! One program for all of them, since each is linked on its own. Those of the daemon are others: a signal to one is a signal to all of its process.

mod cards;
mod choice;
mod handover;
mod interfaces;
mod kills;
mod leases;
mod lending;
mod names;
mod numbers;
mod owned;
mod owners;
mod policies;
mod pools;
mod recovery;
mod refusals;
mod together;
