//! The ends between which a program is.

use std::sync::atomic::AtomicBool;

use ferrule_dataplane::spec::MacAddress;
use ferrule_endpoints::end::End;

use crate::generator::{self, RunError, RunResult};
use crate::load::Load;
use crate::ports::{PortInfo, PortPair};
use crate::traffic::Addresses;

/// What the generator sends by and receives at.
pub enum Ends {
    /// Rings in memory that the program shares.
    Rings(Box<[End; 2]>),
    /// Ports.
    Ports(Box<PortPair>),
}

impl Ends {
    /// Sends from the first to the second, or the other way.
    pub fn run(
        &mut self,
        load: &Load,
        reverse: bool,
        cpus: &[usize],
        cancel: &AtomicBool,
    ) -> Result<RunResult, RunError> {
        match self {
            Self::Rings(ends) => {
                let [near, far] = &mut **ends;
                let (from, to) = if reverse { (far, near) } else { (near, far) };
                generator::run(load, from, to, cancel)
            }
            Self::Ports(ports) => ports.run(load, reverse, cpus, cancel),
        }
    }

    /// Where frames go, there and back: on ports to the other port, or where they were told to.
    pub fn addresses(&self, reverse: bool, told: Option<[MacAddress; 2]>) -> [Addresses; 2] {
        let Self::Ports(ports) = self else { return Addresses::default().both_ways() };
        let own = ports.info().each_ref().map(|port| port.mac);
        let [far, near] = told.unwrap_or([own[1], own[0]]);
        let [mut there, mut back] = Addresses::default().both_ways();
        (there.source_mac, there.destination_mac) = (own[0], far);
        (back.source_mac, back.destination_mac) = (own[1], near);
        if reverse { [back, there] } else { [there, back] }
    }

    /// What was agreed on, by end.
    pub fn agreements(&self) -> Vec<String> {
        match self {
            Self::Rings(ends) => ends.iter().map(End::agreement).collect(),
            Self::Ports(ports) => ports.info().iter().map(PortInfo::words).collect(),
        }
    }

    /// The ports, if they are some.
    pub fn ports(&self) -> Option<&PortPair> {
        match self {
            Self::Rings(_) => None,
            Self::Ports(ports) => Some(ports),
        }
    }
}
