//! The words of the API's enums, as people and JSON have them.

use std::str::FromStr;

use crate::v1;

impl v1::VfState {
    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Free => "free",
            Self::Lent => "lent",
            Self::Busy => "busy",
            Self::Blocked => "blocked",
        }
    }
}

impl v1::Stage {
    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::New => "new",
            Self::Changing => "changing",
            Self::HandingOver => "handing-over",
            Self::Lent => "lent",
            Self::Releasing => "releasing",
            Self::Dirty => "dirty",
        }
    }
}

impl v1::Driver {
    /// As people read and write it; empty: not specified.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "",
            Self::Kernel => "kernel",
            Self::VfioPci => "vfio-pci",
            Self::None => "none",
        }
    }
}

impl FromStr for v1::Driver {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let known = [Self::Kernel, Self::VfioPci, Self::None].into_iter().find(|driver| driver.word() == word);
        known.ok_or_else(|| format!("`{word}`; kernel, vfio-pci or none is wanted"))
    }
}

impl v1::EswitchMode {
    /// As people read it; empty: not known.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "",
            Self::Legacy => "legacy",
            Self::Switchdev => "switchdev",
        }
    }
}

impl v1::LinkState {
    /// As people read and write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Enable => "enable",
            Self::Disable => "disable",
        }
    }
}

impl FromStr for v1::LinkState {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let known = [Self::Auto, Self::Enable, Self::Disable].into_iter().find(|state| state.word() == word);
        known.ok_or_else(|| format!("`{word}`; auto, enable or disable is wanted"))
    }
}

impl v1::VlanProtocol {
    /// As people read and write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Dot1q => "802.1q",
            Self::Dot1ad => "802.1ad",
        }
    }
}

impl FromStr for v1::VlanProtocol {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let lower = word.to_ascii_lowercase();
        let known = [Self::Dot1q, Self::Dot1ad].into_iter().find(|protocol| protocol.word() == lower);
        known.ok_or_else(|| format!("`{word}`; 802.1q or 802.1ad is wanted"))
    }
}

impl v1::Recovery {
    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Counts => "counts",
            Self::Leases => "leases",
            Self::Done => "done",
        }
    }
}

impl v1::ReasonKind {
    /// As JSON has it: the name of the kind, in small letters.
    pub fn word(self) -> String {
        self.as_str_name().trim_start_matches("REASON_KIND_").to_ascii_lowercase().replace('_', "-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        assert_eq!("vfio-pci".parse(), Ok(v1::Driver::VfioPci));
        assert_eq!("802.1AD".parse(), Ok(v1::VlanProtocol::Dot1ad));
        assert_eq!("enable".parse(), Ok(v1::LinkState::Enable));
        assert!("".parse::<v1::Driver>().is_err() && "up".parse::<v1::LinkState>().is_err());
        assert_eq!(v1::ReasonKind::UsedByHost.word(), "used-by-host");
    }
}
