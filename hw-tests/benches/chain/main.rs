//! A chain of five functions beside the same chain of testpmd: how many frames in a second, and how long one is under way.
//!
//! `cargo build --release --workspace --bins && cargo bench --workspace --bench chain [-- ROUNDS]`
//!
//! A firewall and four passthroughs, of which the last one stands where a chain has its gateway: that would measure the kernel. Each is joined
//! with the next by a memif of 1024 slots, and the first and the last one with our generator, which sends UDP of 64 flows one way. testpmd
//! forwards as it is (`io`, in bursts of 32, as by default), with the same rings and between the same roles.
//!
//! | Chain | Programs |
//! | --- | --- |
//! | functions | five processes |
//! | functions, forwarder between | the same, and a wire of one forwarder with one worker between any two: six wires |
//! | functions, one process | five hops, each with its thread, in this process |
//! | testpmd, five processes | each with one thread that forwards |
//! | testpmd, one process | its one thread polls all ten ports in turn |
//!
//! A testpmd polls without a pause: of several on one CPU each waits for the time slices of the others. That is what the first of its rows is on
//! two CPUs; the second one is spared it. All are placed twice: on the first CPU, with the generator on the last one; and on all CPUs, with
//! the generator among them, which is all that a machine of two has.
//!
//! In each round each chain has its turns while the others stand still: frames of 64 and 1518 bytes (without FCS) as fast as it takes
//! them, and 64 bytes at a pace, with latency. Medians of the rounds, and of the rounds' ratios. Lost is what testpmd drops where its next ring is
//! full; a function waits. Nothing passes or fails here.

mod links;
mod placement;
mod programs;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use ferrule_bench::generator::{self, Outcome};
use ferrule_bench::load::{Load, Mix, Pace};
use ferrule_bench::spread::Spread;
use ferrule_endpoints::end::End;
use ferrule_hw_tests::need::{TESTPMD, lacks};
use ferrule_hw_tests::{eventually, forwarder};

use self::links::Links;
use self::placement::Placement;
use self::programs::{Kind, Programs};

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // `cargo test --benches` only wants to know that it builds.
    if !arguments.iter().any(|argument| argument == "--bench") || lacks("chain", &[TESTPMD]) {
        return Ok(());
    }
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    let Some(forwarder) = forwarder("chain") else { return Ok(()) };
    for placement in Placement::both()? {
        let start = |kind| Chain::start(kind, &placement, &forwarder);
        let mut chains = Kind::ALL.into_iter().map(start).collect::<Result<Vec<_>>>()?;
        for _ in 0..rounds {
            for chain in &mut chains {
                chain.take_turn(&placement)?;
            }
        }
        println!("{}, medians of {rounds} rounds:\n", placement.words);
        show(&chains);
        println!();
        show_ratios(&chains);
        println!();
    }
    Ok(())
}

fn show(chains: &[Chain]) {
    println!("| Chain | 64 B | lost | 1518 B | lost | latency at {} kpps, p50 | p99 | lost |", PACE / 1e3);
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for Chain { kind, small, large, paced, .. } in chains {
        let rate = |of: &Figures| format!("{:.2} Mpps | {:.1} %", median(&of.rates) / 1e6, median(&of.lost) * 100.0);
        let time = |times| format!("{:.0} us", median(times) * 1e6);
        let (p50, p99) = (time(&paced.p50), time(&paced.p99));
        let lost = median(&paced.lost) * 100.0;
        println!("| {kind} | {} | {} | {p50} | {p99} | {lost:.1} % |", rate(small), rate(large));
    }
}

/// More than 1: ours is faster.
fn show_ratios(chains: &[Chain]) {
    println!("| Chain | beside | 64 B | 1518 B | latency p50 | p99 |\n| --- | --- | ---: | ---: | ---: | ---: |");
    for ours in chains.iter().filter(|chain| chain.kind.is_ours()) {
        for theirs in chains.iter().filter(|chain| !chain.kind.is_ours()) {
            let ratio = |more: &[f64], less: &[f64]| Spread::of_ratios(more, less).unwrap_or_default().median;
            println!(
                "| {} | {} | {:.2}x | {:.2}x | {:.2}x | {:.2}x |",
                ours.kind,
                theirs.kind,
                ratio(&ours.small.rates, &theirs.small.rates),
                ratio(&ours.large.rates, &theirs.large.rates),
                ratio(&theirs.paced.p50, &ours.paced.p50),
                ratio(&theirs.paced.p99, &ours.paced.p99),
            );
        }
    }
}

/// A chain that runs, with a generator at both ends.
struct Chain {
    kind: Kind,
    ends: [End; 2],
    programs: Programs,
    small: Figures,
    large: Figures,
    paced: Figures,
    // Last: the programs have their sockets there.
    _links: Links,
}

/// By round.
#[derive(Default)]
struct Figures {
    rates: Vec<f64>,
    /// Shares of what was sent.
    lost: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Chain {
    fn start(kind: Kind, placement: &Placement, forwarder: &Path) -> Result<Self> {
        let links = Links::new(kind == Kind::WithForwarder)?;
        let mut programs = placement.as_chain(|| Programs::start(kind, &links, placement, forwarder))??;
        let [near, far] = links.generator()?.map(|spec| End::open(&spec, TIMEOUT));
        let mut ends = [near?, far?];
        let probe = load(64, Duration::from_millis(10))?;
        eventually("a frame has crossed the chain", || {
            run(&probe, &mut ends).is_ok_and(|outcome| outcome.received.frames > 0)
        });
        programs.pause();
        let figures = Figures::default;
        Ok(Self { kind, ends, programs, small: figures(), large: figures(), paced: figures(), _links: links })
    }

    fn take_turn(&mut self, placement: &Placement) -> Result<()> {
        self.programs.resume();
        let paced = Load { pace: Pace::PerSecond(PACE), latency: true, ..load(64, TURN)? };
        for (load, figures) in
            [(load(64, TURN)?, &mut self.small), (load(1518, TURN)?, &mut self.large), (paced, &mut self.paced)]
        {
            let outcome = placement.as_generator(|| run(&load, &mut self.ends))??;
            figures.note(&outcome);
        }
        self.programs.pause();
        Ok(())
    }
}

impl Figures {
    fn note(&mut self, outcome: &Outcome) {
        self.rates.push(outcome.frames_per_second());
        self.lost.push(outcome.lost() as f64 / outcome.offered().max(1) as f64);
        if let Some(latency) = &outcome.latency {
            self.p50.push(latency.quantile(0.5).as_secs_f64());
            self.p99.push(latency.quantile(0.99).as_secs_f64());
        }
    }
}

fn load(size: usize, time: Duration) -> Result<Load> {
    Ok(Load { flows: 64, warm_up: WARM_UP, ..Load::new(Mix::new([size])?, time) })
}

fn run(load: &Load, [near, far]: &mut [End; 2]) -> Result<Outcome> {
    let result = generator::run(load, near, far, &AtomicBool::new(false));
    Ok(result.context("send through the chain")?.there)
}

fn median(figures: &[f64]) -> f64 {
    Spread::of(figures.iter().copied()).unwrap_or_default().median
}

const ROUNDS: usize = 5;
const TURN: Duration = Duration::from_millis(300);
const WARM_UP: Duration = Duration::from_millis(50);
/// What every one of the chains can carry.
const PACE: f64 = 10_000.0;
const TIMEOUT: Duration = Duration::from_secs(20);
