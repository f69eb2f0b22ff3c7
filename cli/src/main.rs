//! ferrule
fn main() {}
