//! What crossed a wire in one direction, and what did not.

/// What crossed in one direction since the wire was made, over all queues and reconnects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames delivered.
    pub frames: u64,
    /// Bytes delivered, without FCS.
    pub bytes: u64,
    /// Visits that ended early since the target was full and the wire says `hold`.
    pub stalls: u64,
    /// Frames not delivered, by reason, in the order of [`DropReason::ALL`].
    pub drops: [u64; DropReason::ALL.len()],
}

impl Traffic {
    /// Frames dropped for any reason.
    pub fn dropped(&self) -> u64 {
        self.drops.iter().sum()
    }
}

impl std::ops::Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            frames: self.frames + other.frames,
            bytes: self.bytes + other.bytes,
            stalls: self.stalls + other.stalls,
            drops: std::array::from_fn(|reason| self.drops[reason] + other.drops[reason]),
        }
    }
}

/// Why a frame was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DropReason {
    /// The target had no room, and the wire says `drop`.
    Full,
    /// Longer than the target can ever take.
    TooLong,
    /// Too short to be a frame of the target, or empty.
    TooShort,
    /// Its offload header contradicts its contents.
    BadOffload,
    /// The kernel refused it.
    Refused,
    /// Its guest sent it by a ring that is not enabled; or it lay in a device when nobody was at the other end.
    Disabled,
}

impl DropReason {
    /// Every reason, in the order of [`Traffic::drops`].
    pub const ALL: [Self; 6] =
        [Self::Full, Self::TooLong, Self::TooShort, Self::BadOffload, Self::Refused, Self::Disabled];

    /// The reason as a label: `full`, `too_long`, `too_short`, `bad_offload`, `refused`, `disabled`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::TooLong => "too_long",
            Self::TooShort => "too_short",
            Self::BadOffload => "bad_offload",
            Self::Refused => "refused",
            Self::Disabled => "disabled",
        }
    }
}
