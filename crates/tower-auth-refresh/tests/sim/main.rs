//! Sessions on a simulated network: an authorization server that rotates refresh tokens and treats every reuse as
//! theft, APIs whose tokens live for seconds, and a fleet of processes that share a store. Faults are latency,
//! partitions, held and lost messages, crashes of any host at any moment, in particular around the rotation, and failovers
//! of the store to a replica that lacks its last writes.
//!
//! Each seed is one simulation and is reproducible, except where tokens are refreshed early: between issue and coming
//! into force, expiry is read from the wall clock, which advances by microseconds meanwhile. Afterwards it follows the
//! simulated time.
//!
//! ```console
//! cargo test -p tower-auth-refresh --test sim                          # seeds 0 to 999
//! SEED=7 cargo test -p tower-auth-refresh --test sim                   # one seed, with its trace
//! SEEDS=5000 cargo test -p tower-auth-refresh --test sim               # seeds 0 to 4,999
//! SOAK_SECONDS=600 cargo test -p tower-auth-refresh --test sim -- --soak   # new seeds; without a limit, for ever
//! ```

#![expect(unreachable_pub, clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]

mod net;
mod oracle;
mod plan;
mod process;
mod servers;
mod simulation;
mod store;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::simulation::{PANICS, Verdict};

/// The name by which test filters select the run.
const NAME: &str = "simulated_network";

/// The events that a full run has to contain, or it would prove nothing.
const EXPECTED: [&str; 34] = [
    "access tokens refused",
    "answered 2xx",
    "answered 401",
    "calls on a record that can't be read",
    "crashes",
    "crashes after the store took the tokens",
    "crashes before the rotation",
    "crashes between answer and store",
    "crashes between claim and refresh call",
    "crashes between rotation and answer",
    "crashes during a refresh call",
    "failovers of the store",
    "failures of the store",
    "looks at the store",
    "messages held",
    "one-way partitions",
    "older records written over",
    "older tokens presented by a process that knows none newer",
    "partitions",
    "periods with an unreadable record",
    "refresh calls left in doubt",
    "refresh calls that were not sent",
    "refreshed",
    "refreshed early",
    "repeated within the grace period",
    "replays",
    "requests that were dropped",
    "sessions that ended",
    "sign-ins lost with a response",
    "sign-outs",
    "sign-outs elsewhere that a look has found",
    "silent crashes",
    "simulations over HTTP/2",
    "simulations with OAuth",
];

/// One seed in this many is run twice and compared.
const COMPARED: u64 = 25;

/// The number of failed seeds that are printed.
const PRINTED: usize = 5;

#[derive(Default)]
struct Tally {
    simulations: u64,
    compared: u64,
    counts: BTreeMap<&'static str, u64>,
    /// Failed seeds, by rule.
    failed: BTreeMap<&'static str, Vec<u64>>,
    failures: u64,
    slowest: Duration,
    longest_recovery: (Duration, u64),
}

fn main() -> ExitCode {
    let Some(arguments) = Arguments::read() else { return ExitCode::SUCCESS };
    let (seed, seeds, seconds) = (number("SEED"), number("SEEDS"), number("SOAK_SECONDS"));
    std::panic::set_hook(Box::new(|panic| PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()))));
    if let Some(seed) = seed {
        return print_seed(seed);
    }
    let started_at = Instant::now();
    let tally = if arguments.soak {
        let first = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() << 20);
        let end = seconds.map(|seconds| started_at + Duration::from_secs(seconds));
        println!("soak run from seed {first} on");
        run(|n| end.is_none_or(|end| Instant::now() < end).then_some(first + n))
    } else {
        let seeds = seeds.unwrap_or(1_000);
        run(|n| (n < seeds).then_some(n))
    };
    report(&tally, started_at.elapsed())
}

struct Arguments {
    soak: bool,
}

impl Arguments {
    /// Reads a test binary's arguments and `--soak`. `None`: the arguments select no test.
    fn read() -> Option<Self> {
        let (mut soak, mut lists, mut filters, mut skipped, mut ignored) = (false, false, Vec::new(), false, false);
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--soak" => soak = true,
                "--list" => lists = true,
                "--ignored" => ignored = true,
                "--skip" => skipped |= arguments.next().is_some_and(|name| NAME.contains(&name)),
                "--test-threads" | "--color" | "--format" | "--logfile" | "-Z" => drop(arguments.next()),
                option if option.starts_with('-') => {}
                filter => filters.push(filter.to_owned()),
            }
        }
        let chosen = filters.is_empty() || filters.iter().any(|filter| NAME.contains(filter));
        if ignored || skipped || !chosen {
            return None;
        }
        if lists {
            println!("{NAME}: test");
            return None;
        }
        Some(Self { soak })
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}

/// Runs one seed and prints its plan and trace.
fn print_seed(seed: u64) -> ExitCode {
    let verdict = simulation::run(seed);
    println!("{:#?}", simulation::plan(seed));
    for line in &verdict.trace {
        println!("{line}");
    }
    if verdict.violations.is_empty() {
        println!("SEED={seed}: ok");
        return ExitCode::SUCCESS;
    }
    println!("SEED={seed}: {} violations", verdict.violations.len());
    ExitCode::FAILURE
}

/// Runs simulations, one at a time.
fn run(seed_of: impl Fn(u64) -> Option<u64>) -> Tally {
    let mut tally = Tally::default();
    while let Some(seed) = seed_of(tally.simulations) {
        let started_at = Instant::now();
        let mut verdict = simulation::run(seed);
        let took = started_at.elapsed();
        // A seed that isn't reproducible is of no use.
        if tally.simulations % COMPARED == 0 && simulation::plan(seed).early.is_none() {
            verdict.compare(&simulation::run(seed));
            tally.compared += 1;
        }
        tally.add(seed, took, &verdict);
        if tally.simulations % 1_000 == 0 {
            println!("{} simulations, {} with a violation", tally.simulations, tally.failures);
        }
    }
    tally
}

impl Tally {
    fn add(&mut self, seed: u64, took: Duration, verdict: &Verdict) {
        self.simulations += 1;
        self.slowest = self.slowest.max(took);
        self.longest_recovery = self.longest_recovery.max((verdict.recovery, seed));
        for (what, count) in &verdict.counts {
            *self.counts.entry(what).or_default() += count;
        }
        if verdict.violations.is_empty() {
            return;
        }
        self.failures += 1;
        for violation in &verdict.violations {
            let seeds = self.failed.entry(violation.rule).or_default();
            if seeds.last() != Some(&seed) {
                seeds.push(seed);
            }
        }
        if self.failures <= PRINTED as u64 {
            println!("\nSEED={seed} cargo test -p tower-auth-refresh --test sim");
            for violation in &verdict.violations {
                println!("  {}: {}", violation.rule, violation.detail);
            }
        }
    }
}

fn report(tally: &Tally, took: Duration) -> ExitCode {
    println!(
        "\n{} simulations in {:.1} s, the slowest in {:.2} s",
        tally.simulations,
        took.as_secs_f64(),
        tally.slowest.as_secs_f64()
    );
    println!("{} of them were run twice and compared", tally.compared);
    let (longest, seed) = tally.longest_recovery;
    println!("the slowest recovery took {:.1} s of simulated time (seed {seed})", longest.as_secs_f64());
    for (what, count) in &tally.counts {
        println!("  {count:>8} {what}");
    }
    for (rule, seeds) in &tally.failed {
        println!("violated in {} seeds: {rule}; first: {:?}", seeds.len(), &seeds[..seeds.len().min(8)]);
    }
    let missing = EXPECTED.iter().filter(|what| !tally.counts.contains_key(*what)).collect::<Vec<_>>();
    if tally.simulations >= 1_000 && !missing.is_empty() {
        println!("events that never happened: {missing:?}");
        return ExitCode::FAILURE;
    }
    println!("{} of {} simulations with a violation", tally.failures, tally.simulations);
    if tally.failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
