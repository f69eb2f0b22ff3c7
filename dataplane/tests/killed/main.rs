//! Backends that are killed, and their successors: no frame is lost, and the rings go on.
//!
//! What is killed is a process of its own: this program, started once more with the name of a role. So `main` is ours,
//! and not the test harness's.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]
#![allow(missing_docs, reason = "tests say it by their names")]

use std::time::Instant;

mod child;
mod restarts;
mod steps;

/// One that fails ends the program.
const TESTS: [(&str, fn()); 2] = [
    ("a_backend_killed_after_any_store_is_succeeded", steps::a_backend_killed_after_any_store_is_succeeded),
    ("a_backend_killed_under_traffic_is_succeeded", restarts::a_backend_killed_under_traffic_is_succeeded),
];

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(restarts::ROLE) => restarts::serve(&arguments[1..]),
        Some(steps::ROLE) => steps::serve(&arguments[1..]),
        // Whoever lists tests finds none; whoever names one runs them all.
        Some("--list") => {}
        _ => {
            let begun = Instant::now();
            for (name, test) in TESTS {
                test();
                println!("test {name} ... ok");
            }
            let (passed, time) = (TESTS.len(), begun.elapsed().as_secs_f32());
            println!(
                "test result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in {time:.2}s"
            );
        }
    }
}
