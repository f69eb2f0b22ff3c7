//! A passthrough: every frame goes on as it came, byte for byte, in its order.

use crate::function::{Disposition, Extra, Function, Side};

/// It has nothing to remember.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passthrough;

impl Function for Passthrough {
    fn frame(&mut self, _side: Side, _frame: &mut [u8], _now_ms: u64, _out: &mut Vec<Extra>) -> Disposition {
        Disposition::Forward
    }
}
