//! What every network function is: frames come in on one side, and leave on the other one, or do not.

use ferrule_dataplane::capture::Remark;

use crate::burst::Burst;
pub use crate::disposition::Disposition;

/// A function between two wires.
pub trait Function {
    /// Judges a frame that came in on `side`, and may rewrite its bytes. What else is to be sent is put into `out`.
    fn frame(&mut self, side: Side, frame: &mut [u8], now_ms: u64, out: &mut Vec<Extra>) -> Disposition;

    /// Judges frames that came in together on `side`, as [`Self::frame`] does one after the other, and says of each what becomes of it, and how
    /// many there are in `out`, which was empty before. Whoever knows all of them may do it faster.
    fn burst(&mut self, side: Side, burst: &mut Burst, now_ms: u64, out: &mut Vec<Extra>) {
        for number in 0..burst.len() {
            let disposition = self.frame(side, burst.frame_mut(number), now_ms, out);
            burst.dispose(number, disposition, out.len());
        }
    }

    /// What it says of the frame that it judged last, for whoever traces it.
    fn remark(&self) -> Remark<'_> {
        Remark::default()
    }

    /// Time has passed: what is old may be forgotten, a little at a time.
    fn tick(&mut self, _now_ms: u64) {}
}

/// A frame beside the one that came in: an answer, or one that was held until now. It leaves behind that one, and before the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// Where it leaves.
    pub to: Side,
    /// The whole frame.
    pub frame: Vec<u8>,
}

/// The two sides of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Where the client of the chain is, who asked for it.
    Client,
    /// Where the chain goes on, to its end.
    Network,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Client, Self::Network];

    /// The other one.
    #[inline]
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Network,
            Self::Network => Self::Client,
        }
    }

    /// 0 or 1.
    #[inline]
    pub fn index(self) -> usize {
        self as usize
    }

    /// As settings and metrics call it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Network => "network",
        }
    }
}
