//! What is measured: kinds of ends, and kinds of work on them.

use std::fmt;

use clap::ValueEnum;

use crate::load::{Mix, MixError};

/// A kind of end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EndKind {
    /// A memif interface.
    Memif,
    /// A vhost-user frontend, as a guest or a virtio-user program has.
    Vhost,
    /// A port that DPDK drives: named by --port.
    #[value(skip)]
    Port,
}

impl fmt::Display for EndKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memif => "memif",
            Self::Vhost => "vhost",
            Self::Port => "port",
        })
    }
}

/// One kind of work.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// What it is called in all reports.
    pub name: String,
    /// What it has in common with cases that differ in the size of their frames only.
    pub series: String,
    /// The frames.
    pub mix: Mix,
    /// Both directions at once.
    pub both_ways: bool,
    /// From the second end to the first.
    pub reverse: bool,
    /// Bytes that sizes are shown with beside those of the mix: those of the FCS, on ports.
    pub fcs: usize,
}

impl Case {
    /// Work on ends of these kinds, named as frames go.
    pub fn new(ends: [EndKind; 2], trusted: bool, mix: Mix, way: TrafficDirection) -> Self {
        let [from, to] = if way == TrafficDirection::Reverse { [ends[1], ends[0]] } else { ends };
        let trust = if trusted { "trusted " } else { "" };
        let ways = if way == TrafficDirection::Both { "both ways" } else { "one way" };
        Self {
            name: format!("{trust}{from}-{to} {mix} {ways}"),
            series: format!("{trust}{from}-{to} {ways}"),
            mix,
            both_ways: way == TrafficDirection::Both,
            reverse: way == TrafficDirection::Reverse,
            fcs: 0,
        }
    }

    /// Work on two ports. Sizes are those of RFC 2544 there: with the FCS.
    pub fn on_ports(mix: &Mix, way: TrafficDirection) -> Result<Self, MixError> {
        let frames = mix.sizes().iter().map(|size| size.saturating_sub(FCS)).collect::<Vec<_>>();
        // What is wrong is said of the size that was asked for.
        let frames = Mix::new(frames).map_err(|error| match error {
            MixError::Size(size) => MixError::PortSize(size + FCS),
            other => other,
        })?;
        let case = Self::new([EndKind::Port; 2], false, mix.clone(), way);
        Ok(Self { mix: frames, fcs: FCS, ..case })
    }

    /// Bytes of a frame in the middle of many, as they are shown.
    pub fn shown_size(&self) -> f64 {
        self.mix.average() + self.fcs as f64
    }

    /// How many directions frames go in.
    pub fn directions(&self) -> f64 {
        if self.both_ways { 2.0 } else { 1.0 }
    }
}

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDirection {
    /// From the first end to the second.
    Forward,
    /// From the second end to the first.
    Reverse,
    /// Both at once.
    Both,
}

/// Frames in a second that a line of so many bits in a second carries, of a size without FCS: each takes 4 bytes of FCS and
/// 20 of preamble and gap besides.
pub fn line_rate(bits_per_second: f64, size: f64) -> f64 {
    bits_per_second / ((size + 24.0) * 8.0)
}

/// Bytes of the checksum at the end of a frame, which only the line sees.
const FCS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_on_ports_are_with_fcs() {
        let case = |size| Case::on_ports(&Mix::new([size]).unwrap(), TrafficDirection::Both);
        let smallest = case(64).unwrap();
        assert_eq!((&*smallest.name, smallest.mix.largest()), ("port-port 64 B both ways", 60));
        assert!((smallest.shown_size() - 64.0).abs() < 1e-9 && smallest.directions() > 1.5);
        assert_eq!(case(63).unwrap_err(), MixError::PortSize(63));
        assert_eq!(Case::on_ports(&Mix::imix(), TrafficDirection::Forward).unwrap().name, "port-port IMIX one way");
    }

    #[test]
    fn a_case_is_named_as_its_frames_go() {
        let mixed = [EndKind::Memif, EndKind::Vhost];
        let name = |ends, trusted, way| Case::new(ends, trusted, Mix::new([64]).unwrap(), way).name;
        assert_eq!(name(mixed, false, TrafficDirection::Forward), "memif-vhost 64 B one way");
        assert_eq!(name(mixed, false, TrafficDirection::Reverse), "vhost-memif 64 B one way");
        assert_eq!(name(mixed, false, TrafficDirection::Both), "memif-vhost 64 B both ways");
        assert_eq!(name([EndKind::Memif; 2], true, TrafficDirection::Forward), "trusted memif-memif 64 B one way");
    }

    #[test]
    fn ten_gigabits_are_14_88_million_of_the_smallest_frames() {
        // 64 bytes with FCS.
        assert!((line_rate(10e9, 60.0) / 14_880_952.0 - 1.0).abs() < 1e-6);
    }
}
