//! Cycles a frame: what the benches of functions share.

use std::hint::black_box;

use ferrule_ffi::ticks;

/// The shortest that has the headers of TCP.
pub type ShortFrame = [u8; 54];

/// A frame's share of a burst, of which the fastest tenth begins below. Frames lie in the cache, as a peer has just written them.
pub fn cycles<'a>(
    bursts: usize,
    frame: impl Fn(usize) -> &'a ShortFrame,
    mut judge: impl FnMut(&mut ShortFrame),
) -> f64 {
    let mut frames = [[0; size_of::<ShortFrame>()]; BURST];
    let mut burst = |number| {
        for (place, copy) in frames.iter_mut().enumerate() {
            *copy = *frame(number * BURST + place);
        }
        let start = ticks::now();
        for frame in &mut frames {
            judge(black_box(frame));
        }
        ticks::now() - start
    };
    let mut times: Vec<_> = (0..bursts).map(&mut burst).collect();
    times.sort_unstable();
    times[bursts / 10] as f64 / BURST as f64
}

/// As many as a hop takes at a time.
pub const BURST: usize = 64;
