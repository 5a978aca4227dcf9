//! Sessions on a simulated network: an authorization server that rotates refresh tokens and takes every reuse for a
//! theft, APIs whose tokens live for seconds, and a fleet of processes that share a store; with latency, partitions,
//! held and lost messages, and crashes of anybody at any moment, those around the rotation above all.
//!
//! Each seed is a world of its own, and always the same one; but for those in which tokens are refreshed early. When
//! these expire is counted in the world's own time from when they come into force, and by the wall clock before, which
//! goes on by microseconds meanwhile.
//!
//! ```console
//! cargo test -p tower-auth-refresh --test sim                          # seeds 0 to 999
//! SEED=7 cargo test -p tower-auth-refresh --test sim                   # one seed, told in full
//! SEEDS=5000 cargo test -p tower-auth-refresh --test sim               # more of them
//! SOAK_SECONDS=600 cargo test -p tower-auth-refresh --test sim -- --soak   # new ones, until then or for ever
//! ```

#![expect(unreachable_pub, clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]

mod judge;
mod net;
mod plan;
mod process;
mod servers;
mod store;
mod world;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::world::{PANICS, Verdict};

/// As a test, it has a name to be chosen by.
const NAME: &str = "simulated_network";

/// What has to have happened in a full run: or it would show nothing.
const EXPECTED: [&str; 27] = [
    "access tokens refused",
    "answered 2xx",
    "answered 401",
    "crashes",
    "crashes after the store took the tokens",
    "crashes before the rotation",
    "crashes between answer and store",
    "crashes between claim and refresh call",
    "crashes between rotation and answer",
    "crashes during a refresh call",
    "failures of the store",
    "messages held",
    "one-way partitions",
    "partitions",
    "refresh calls left in doubt",
    "refresh calls that were not sent",
    "refreshed",
    "refreshed early",
    "replays",
    "repeated within the grace",
    "requests that were dropped",
    "sessions that ended",
    "sign-ins lost with an answer",
    "sign-outs",
    "silent crashes",
    "worlds of OAuth",
    "worlds over HTTP/2",
];

/// One seed in so many is lived through twice.
const COMPARED: u64 = 25;

/// How many failed seeds are told.
const TOLD: usize = 5;

#[derive(Default)]
struct Tally {
    worlds: u64,
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
        return tell(seed);
    }
    let begun = Instant::now();
    let tally = if arguments.soak {
        let first = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() << 20);
        let end = seconds.map(|seconds| begun + Duration::from_secs(seconds));
        println!("soaking from seed {first} on");
        run(|n| end.is_none_or(|end| Instant::now() < end).then_some(first + n))
    } else {
        let seeds = seeds.unwrap_or(1_000);
        run(|n| (n < seeds).then_some(n))
    };
    report(&tally, begun.elapsed())
}

struct Arguments {
    soak: bool,
}

impl Arguments {
    /// Those of a test binary, and one more. `None`: there is nothing to run.
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

/// One seed, in full.
fn tell(seed: u64) -> ExitCode {
    let verdict = world::run(seed);
    println!("{:#?}", world::plan(seed));
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

/// Lives through worlds, one at a time.
fn run(seed_of: impl Fn(u64) -> Option<u64>) -> Tally {
    let mut tally = Tally::default();
    while let Some(seed) = seed_of(tally.worlds) {
        let begun = Instant::now();
        let mut verdict = world::run(seed);
        let took = begun.elapsed();
        // A seed that isn't always the same world is of no use.
        if tally.worlds % COMPARED == 0 && world::plan(seed).early.is_none() {
            verdict.compare(&world::run(seed));
            tally.compared += 1;
        }
        tally.add(seed, took, &verdict);
        if tally.worlds % 1_000 == 0 {
            println!("{} worlds, {} with a violation", tally.worlds, tally.failures);
        }
    }
    tally
}

impl Tally {
    fn add(&mut self, seed: u64, took: Duration, verdict: &Verdict) {
        self.worlds += 1;
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
        if self.failures <= TOLD as u64 {
            println!("\nSEED={seed} cargo test -p tower-auth-refresh --test sim");
            for violation in &verdict.violations {
                println!("  {}: {}", violation.rule, violation.detail);
            }
        }
    }
}

fn report(tally: &Tally, took: Duration) -> ExitCode {
    println!(
        "\n{} worlds in {:.1} s, the slowest in {:.2} s",
        tally.worlds,
        took.as_secs_f64(),
        tally.slowest.as_secs_f64()
    );
    println!("{} of them were lived through twice and compared", tally.compared);
    let (longest, seed) = tally.longest_recovery;
    println!("the slowest recovery took {:.1} s of its world (seed {seed})", longest.as_secs_f64());
    for (what, count) in &tally.counts {
        println!("  {count:>8} {what}");
    }
    for (rule, seeds) in &tally.failed {
        println!("violated in {} seeds: {rule}; first: {:?}", seeds.len(), &seeds[..seeds.len().min(8)]);
    }
    let missing = EXPECTED.iter().filter(|what| !tally.counts.contains_key(*what)).collect::<Vec<_>>();
    if tally.worlds >= 1_000 && !missing.is_empty() {
        println!("never happened: {missing:?}");
        return ExitCode::FAILURE;
    }
    println!("{} of {} worlds with a violation", tally.failures, tally.worlds);
    if tally.failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
