//! Cycles a frame: what the benches of functions share.

use std::hint::black_box;

use ferrule_dataplane::port::BURST;
use ferrule_ffi::ticks;
use ferrule_functions::burst::Burst;
use ferrule_functions::{Disposition, Function, Side};

/// The shortest that has the headers of TCP.
pub type ShortFrame = [u8; 54];

/// A frame's share of a burst, of which the fastest tenth begins below. The function is given bursts as by a hop, of frames that lie in the cache, as
/// a peer has just written them, and says the same of all.
pub fn cycles<'a>(
    function: &mut impl Function,
    side: Side,
    bursts: usize,
    frame: impl Fn(usize) -> &'a ShortFrame,
    expected: Disposition,
) -> f64 {
    let (mut burst, mut out) = (Burst::new(), Vec::new());
    let mut of_burst = |number| {
        burst.clear();
        for place in 0..BURST {
            burst.push(frame(number * BURST + place)[..].into());
        }
        let start = ticks::now();
        function.burst(side, black_box(&mut burst), 1, &mut out);
        let took = ticks::now() - start;
        assert!((0..BURST).all(|place| burst.disposition(place) == expected));
        took
    };
    let mut times: Vec<_> = (0..bursts).map(&mut of_burst).collect();
    times.sort_unstable();
    times[bursts / 10] as f64 / BURST as f64
}
