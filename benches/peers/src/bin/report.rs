//! Measures all figures, those of the peers included, and checks them against the goals.
//!
//! Prints tables, and writes `report.json` (a flat object of figures) and `report.svg` into `target`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tower_auth_refresh::Session;
use tower_auth_refresh_benches::contention::{Contention, Shared, growth};
use tower_auth_refresh_benches::loopback::{Http, Server};
use tower_auth_refresh_benches::registry::{SIZES, fill, lookup_ns};
use tower_auth_refresh_benches::rounds::{MAX_INTERVAL, Median, ratio};
use tower_auth_refresh_benches::shape::Shape;
use tower_auth_refresh_benches::stack;
use tower_auth_refresh_benches::stampede;
use tower_auth_refresh_benches::upload::{Upload, Uploads, copied_bytes};
use tower_auth_refresh_peers::plot::{Plot, svg};
use tower_auth_refresh_peers::revocations::{self, Round};

/// The time limit of a comparison in which a percent matters.
const TIME_LIMIT: Duration = Duration::from_secs(20);

fn main() {
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("runtime starts");
    let _entered = runtime.enter();
    let session = runtime.block_on(stack::session());
    let mut report = Report::default();

    report.section("overhead", Report::overhead);
    report.section("allocations", Report::allocations);
    report.section("contention", |report| report.contention(&session));
    report.section("stampede", |report| runtime.block_on(report.stampede()));
    report.section("loopback", |report| runtime.block_on(report.loopback(&session)));
    report.section("upload", |report| runtime.block_on(report.upload()));
    report.section("sessions", |report| report.sessions(&runtime));
    report.section("revocations", |report| runtime.block_on(report.revocations()));
    report.set("response_future.bytes", stack::future_size(&session));

    report.print();
    report.write();
    eprintln!("total: {:.0} s", start.elapsed().as_secs_f64());
}

#[derive(Default)]
struct Report {
    figures: Map<String, Value>,
    plots: Vec<Plot>,
}

/// The goal of a figure.
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// Builds and runs another binary of this package and returns its output.
fn output(bin: &str) -> String {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let run = ["run", "--quiet", "--release", "--locked", "--manifest-path", manifest, "--bin", bin];
    let output = Command::new(cargo).args(run).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Returns the stack and the figure of each line that begins with `shape`.
fn rows<'a>(output: &'a str, shape: &'a str) -> impl Iterator<Item = [&'a str; 2]> {
    output.lines().filter_map(move |line| {
        let (stack, figure) = line.strip_prefix(shape)?.strip_prefix(' ')?.split_once(' ')?;
        Some([stack, figure])
    })
}

/// All goals. A figure with an interval, `<name>_low` to `<name>_high`, is compared by that interval.
const GOALS: [(&str, Goal); 26] = [
    ("overhead.get0.ours_over_tower_retry", Goal::AtMost(0.6)),
    ("overhead.get6.ours_over_tower_retry", Goal::AtMost(0.35)),
    ("overhead.post6.ours_over_tower_retry", Goal::AtMost(0.45)),
    ("overhead.post15.ours_over_tower_retry", Goal::AtMost(0.15)),
    ("overhead.get0.allocs", Goal::AtMost(2.)),
    ("overhead.get6.allocs", Goal::AtMost(2.)),
    ("overhead.per_request.allocs", Goal::AtMost(2.)),
    ("overhead.post6.allocs", Goal::AtMost(4.)),
    ("overhead.post15.allocs", Goal::AtMost(4.)),
    ("overhead.get0.ours_over_cf_gears", Goal::AtMost(0.3)),
    ("overhead.get6.ours_over_cf_gears", Goal::AtMost(0.3)),
    ("overhead.post6.ours_over_cf_gears", Goal::AtMost(0.3)),
    ("overhead.post15.ours_over_cf_gears", Goal::AtMost(0.3)),
    ("overhead.post15_parsed.ours_over_cf_gears", Goal::AtMost(0.3)),
    ("overhead.per_request.ours_over_cf_gears", Goal::AtMost(0.3)),
    ("contention.ours_2_over_1", Goal::AtMost(1.3)),
    ("loopback.h1.ours_over_bare", Goal::AtLeast(0.98)),
    ("loopback.h2.ours_over_bare", Goal::AtLeast(0.98)),
    ("stampede.10000.refreshes", Goal::AtMost(1.)),
    ("stampede.10000.wall_over_bare", Goal::AtMost(1.25)),
    ("stampede.release_100000_over_1000", Goal::AtMost(1.5)),
    ("upload.over_limit.ours_over_bare", Goal::AtLeast(0.97)),
    ("upload.replayed.bytes_copied", Goal::AtMost(0.)),
    ("response_future.bytes", Goal::AtMost(512.)),
    ("sessions.1000000.bytes", Goal::AtMost(1024.)),
    ("sessions.1000000.lookup_ns", Goal::AtMost(250.)),
];

impl Report {
    fn section(&mut self, name: &str, measure: impl FnOnce(&mut Self)) {
        let start = Instant::now();
        measure(self);
        eprintln!("{name}: {:.0} s", start.elapsed().as_secs_f64());
    }

    /// Runs the `overhead` binary many times; each figure is the median over the processes.
    fn overhead(&mut self) {
        const PROCESSES: usize = 31;
        let outputs: Vec<_> = (0..PROCESSES).map(|_| output("overhead")).collect();
        let mut by_headers: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
        for shape in Shape::ALL {
            let shape_name = shape.name();
            let stacks: Vec<_> = rows(&outputs[0], shape_name).map(|[stack, _]| stack).collect();
            let cost = |name: &str| {
                let figures = outputs.iter().map(|output| {
                    let mut rows = rows(output, shape_name);
                    let [_, cost] = rows.find(|[stack, _]| *stack == name).expect("the same rows in each process");
                    cost.parse::<f64>().expect("number")
                });
                Median::of(figures).value
            };
            let ours = cost("ours");
            for stack in &stacks {
                self.set(&format!("overhead.{shape_name}.{stack}_ns"), round(cost(stack)));
            }
            for stack in stacks.iter().skip(1).filter(|stack| **stack != "ours") {
                self.set(&format!("overhead.{shape_name}.ours_over_{stack}"), round(ours / cost(stack)));
            }
            let headers = match shape {
                Shape::Get0 => 0.,
                Shape::Get6 => 6.,
                Shape::Post15 => 15.,
                _ => continue,
            };
            for stack in stacks.into_iter().skip(1) {
                match by_headers.iter_mut().find(|(name, _)| name == stack) {
                    Some((_, points)) => points.push((headers, cost(stack))),
                    None => by_headers.push((stack.into(), vec![(headers, cost(stack))])),
                }
            }
        }
        self.plots.push(Plot {
            title: "Overhead of a call".into(),
            x: "request headers".into(),
            y: "ns".into(),
            logarithmic: false,
            lines: by_headers,
        });
    }

    /// Runs the `allocations` binary. A stack's figures are relative to `add_authorization`.
    fn allocations(&mut self) {
        let output = output("allocations");
        let count = |shape: &str, stack: &str| {
            let mut lines = output.lines().filter_map(|line| line.strip_prefix(&format!("{shape} {stack} ")));
            let (allocations, bytes) =
                lines.next().and_then(|line| line.split_once(' ')).expect("a line for each stack");
            [allocations, bytes].map(|number| number.parse::<i64>().expect("number"))
        };
        for shape in Shape::ALL {
            let shape = shape.name();
            let add_authorization = count(shape, "add_authorization");
            for stack in ["tower_retry", "kube", "cf_gears", "ours"] {
                let counted = count(shape, stack);
                let [allocations, bytes] = [0, 1].map(|i| counted[i] - add_authorization[i]);
                let prefix = if stack == "ours" { String::new() } else { format!("{stack}_") };
                self.set(&format!("overhead.{shape}.{prefix}allocs"), allocations);
                self.set(&format!("overhead.{shape}.{prefix}alloc_bytes"), bytes);
            }
        }
        for sessions in SIZES {
            let [_, bytes] = count("sessions", &sessions.to_string());
            self.set(&format!("sessions.{sessions}.bytes"), bytes);
        }
    }

    fn contention(&mut self, session: &Session) {
        const ROUNDS: usize = 100;
        let contention = Contention::new(session.clone());
        let measured = [1, 2, 4].map(|threads| {
            let stacks = [Shared::Bare, Shared::Ours, Shared::RwLock];
            (threads, contention.measure(stacks, threads, ROUNDS))
        });
        let mut lines = vec![("ours".to_owned(), Vec::new()), ("rwlock".to_owned(), Vec::new())];
        for (threads, [bare, ours, lock]) in &measured {
            for (line, stack) in lines.iter_mut().zip([ours, lock]) {
                let over_bare = Median::of(stack.iter().zip(bare).map(|(stack, bare)| stack - bare)).value;
                self.set(&format!("contention.{threads}.{}_ns", line.0), round(over_bare));
                #[expect(clippy::cast_precision_loss, reason = "a few threads")]
                line.1.push((*threads as f64, over_bare));
            }
        }
        let [(_, one), (_, two), _] = &measured;
        self.set("contention.ours_2_over_1", round(growth([&one[1], &one[0]], [&two[1], &two[0]])));
        self.set("contention.rwlock_2_over_1", round(growth([&one[2], &one[0]], [&two[2], &two[0]])));
        self.plots.push(Plot {
            title: "Overhead of a call".into(),
            x: "threads".into(),
            y: "ns".into(),
            logarithmic: false,
            lines,
        });
    }

    async fn stampede(&mut self) {
        let mut lines = vec![("ours".to_owned(), Vec::new()), ("bare, twice".to_owned(), Vec::new())];
        for (callers, rounds) in [(10_usize, 20), (100, 20), (1_000, 20), (10_000, 15), (100_000, 5)] {
            let (mut ours, mut beyond, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let (mut refreshes, mut failures) = (0, 0);
            for round in 0..=rounds {
                let twice = stampede::bare_twice(callers).await.as_secs_f64();
                let refresh = stampede::refresh_alone().await.as_secs_f64();
                let outcome = stampede::ours(callers).await;
                let wall = outcome.wall.as_secs_f64();
                refreshes = refreshes.max(outcome.refreshes);
                failures = failures.max(outcome.failures);
                // The first round warms up.
                if round > 0 {
                    ratios.push(wall / (twice + refresh));
                    beyond.push(wall - refresh);
                    ours.push(wall);
                    bare.push(twice);
                }
            }
            let [ours, beyond, bare, ratio] = [ours, beyond, bare, ratios].map(Median::of);
            self.set(&format!("stampede.{callers}.refreshes"), refreshes);
            self.set(&format!("stampede.{callers}.failures"), failures);
            self.set(&format!("stampede.{callers}.wall_ms"), round(ours.value * 1e3));
            self.set(&format!("stampede.{callers}.bare_twice_ms"), round(bare.value * 1e3));
            self.set(&format!("stampede.{callers}.wall_over_bare"), round(ratio.value));
            #[expect(clippy::cast_precision_loss, reason = "100,000 callers")]
            for (line, seconds) in lines.iter_mut().zip([beyond.value, bare.value]) {
                line.1.push((callers as f64, seconds * 1e6 / callers as f64));
            }
        }
        self.plots.push(Plot {
            title: "Stampede, without the refresh itself".into(),
            x: "callers".into(),
            y: "µs per caller".into(),
            logarithmic: true,
            lines,
        });
        let (mut few, mut many, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..5 {
            // The same number of waiters on both sides of a ratio.
            let mut one = 0.;
            for _ in 0..20 {
                one += stampede::release(1_000).await.as_secs_f64() / 20_000.;
            }
            let other = stampede::release(100_000).await.as_secs_f64() / 100_000.;
            few.push(one * 1e9);
            many.push(other * 1e9);
            ratios.push(other / one);
        }
        self.set("stampede.release_1000_ns_per_waiter", round(Median::of(few).value));
        self.set("stampede.release_100000_ns_per_waiter", round(Median::of(many).value));
        self.set("stampede.release_100000_over_1000", round(Median::of(ratios).value));
    }

    fn sessions(&mut self, runtime: &tokio::runtime::Runtime) {
        const ROUNDS: usize = 500;
        for count in SIZES {
            let sessions = runtime.block_on(fill(count));
            self.set(&format!("sessions.{count}.lookup_ns"), round(lookup_ns(&sessions, count, ROUNDS).value));
        }
    }

    async fn loopback(&mut self, session: &Session) {
        const REQUESTS: usize = 6400;
        const WARM_UP: usize = 640;
        let server = Server::start().await;
        for (name, http) in [("h1", Http::H1), ("h2", Http::H2)] {
            // New clients for each round: the placement of connections on threads and in memory is worth some percent.
            let ours = async || {
                let (_, ours) = server.clients(http, session);
                server.get(&ours, WARM_UP).await;
                server.get(&ours, REQUESTS).await
            };
            let bare = async || {
                let (bare, _) = server.clients(http, session);
                server.get(&bare, WARM_UP).await;
                server.get(&bare, REQUESTS).await
            };
            // The ratio of throughputs (ours to bare) is the ratio of times (bare to ours).
            self.set_ratio(&format!("loopback.{name}.ours_over_bare"), ratio(ours, bare, TIME_LIMIT).await);
        }
    }

    async fn upload(&mut self) {
        let uploads = Uploads::new().await;
        for (name, upload, time_limit) in [
            ("over_limit", Upload::OverLimit, TIME_LIMIT),
            ("under_limit", Upload::UnderLimit, TIME_LIMIT / 4),
            ("replayed", Upload::Replayed, TIME_LIMIT / 4),
        ] {
            let ratio =
                ratio(async || uploads.upload(upload).await, async || uploads.upload(Upload::Bare).await, time_limit);
            self.set_ratio(&format!("upload.{name}.ours_over_bare"), ratio.await);
        }
        self.set("upload.replayed.bytes_copied", copied_bytes().await);
    }

    async fn revocations(&mut self) {
        let peers: [(&str, Vec<Round>); 4] = [
            ("ours", revocations::ours().await),
            ("cf_gears", revocations::cf_gears().await),
            ("azure", revocations::azure().await),
            ("smithy", revocations::smithy().await),
        ];
        for (peer, rounds) in peers {
            for (i, Round { refreshes, failures }) in rounds.into_iter().enumerate() {
                self.set(&format!("revocations.{}.{peer}_refreshes", i + 1), refreshes);
                self.set(&format!("revocations.{}.{peer}_failures", i + 1), failures);
            }
        }
        let [ours, smithy] = revocations::failing().await;
        self.set("failing_refresh.ours_calls", ours);
        self.set("failing_refresh.smithy_calls", smithy);
    }

    fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.into(), value.into());
    }

    fn set_ratio(&mut self, name: &str, ratio: Median) {
        self.set(name, round(ratio.value));
        self.set(&format!("{name}_low"), round(ratio.low));
        self.set(&format!("{name}_high"), round(ratio.high));
    }

    fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name)?.as_f64()
    }

    /// Compares a figure with its goal.
    ///
    /// With an interval, the goal is met if the interval reaches it and is at most `MAX_INTERVAL` wide.
    fn verdict(&self, name: &str, goal: &Goal) -> &'static str {
        let Some(value) = self.figure(name) else { return "not measured" };
        let interval = self.figure(&format!("{name}_low")).zip(self.figure(&format!("{name}_high")));
        let (low, high) = interval.unwrap_or((value, value));
        if high - low > MAX_INTERVAL {
            return "too noisy";
        }
        let met = match goal {
            Goal::AtMost(most) => low <= *most,
            Goal::AtLeast(least) => high >= *least,
        };
        if met { "met" } else { "MISSED" }
    }

    fn print(&self) {
        println!("| figure | value | interval | goal | |\n| --- | --- | --- | --- | --- |");
        for (name, goal) in &GOALS {
            let value = self.figure(name).map_or_else(String::new, |value| value.to_string());
            let interval = match (self.figure(&format!("{name}_low")), self.figure(&format!("{name}_high"))) {
                (Some(low), Some(high)) => format!("{low} – {high}"),
                _ => String::new(),
            };
            let text = match goal {
                Goal::AtMost(most) => format!("≤ {most}"),
                Goal::AtLeast(least) => format!("≥ {least}"),
            };
            println!("| `{name}` | {value} | {interval} | {text} | {} |", self.verdict(name, goal));
        }
        println!("\n| ns over the bare call | {} |", Shape::ALL.map(Shape::name).join(" | "));
        println!("| --- |{}", " --- |".repeat(Shape::ALL.len()));
        for stack in ["bare", "add_authorization", "tower_retry", "kube", "cf_gears", "ours"] {
            let cell = |shape: Shape| self.figure(&format!("overhead.{}.{stack}_ns", shape.name()));
            let cells = Shape::ALL.map(|shape| cell(shape).map_or_else(String::new, |ns| format!("{ns:.0}")));
            println!("| {stack} | {} |", cells.join(" | "));
        }
        println!(
            "\n| sessions | {} |\n| --- |{}",
            SIZES.map(|n| n.to_string()).join(" | "),
            " --- |".repeat(SIZES.len())
        );
        for (label, figure) in [("bytes each", "bytes"), ("look-up, ns", "lookup_ns")] {
            let cell = |sessions: u64| self.figure(&format!("sessions.{sessions}.{figure}")).unwrap_or(f64::NAN);
            println!("| {label} | {} |", SIZES.map(|sessions| format!("{:.0}", cell(sessions))).join(" | "));
        }
        println!("\n| 200 callers, refreshes / failures | 1st revocation | 2nd | 3rd |\n| --- | --- | --- | --- |");
        for peer in ["ours", "cf_gears", "azure", "smithy"] {
            let cell =
                |i: i32, suffix: &str| self.figure(&format!("revocations.{i}.{peer}_{suffix}")).unwrap_or(f64::NAN);
            let cells = [1, 2, 3].map(|i| format!("{} / {}", cell(i, "refreshes"), cell(i, "failures")));
            println!("| {peer} | {} |", cells.join(" | "));
        }
    }

    fn write(&self) {
        let target = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/target"));
        fs::create_dir_all(target).expect("writable target directory");
        let json = serde_json::to_string_pretty(&json!(self.figures)).expect("serializable figures");
        fs::write(target.join("report.json"), json).expect("writable target directory");
        fs::write(target.join("report.svg"), svg(&self.plots)).expect("writable target directory");
        eprintln!("wrote report.json and report.svg to {}", target.display());
    }
}

fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
