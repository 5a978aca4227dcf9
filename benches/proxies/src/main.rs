//! Prints the CPU time of a request through each proxy, and the throughput; all in one run, in turns.
//!
//! Needs the Debian packages `nginx-light`, `haproxy` and `wrk`, and `cmake` to build Pingora. Arguments are the names of
//! the proxies to measure, by default all. `ROUNDS` and `SECONDS` set the number of rounds, 10, and the duration of each,
//! 1.

mod load;
#[path = "../../src/rounds.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with the other benchmarks, which measure times")]
mod rounds;
mod servers;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, iter};

use self::load::{Load, Sample};
use self::rounds::Median;
use self::servers::{Place, Server, call, sign_in};

/// The proxy whose CPU time is the unit.
const BARE: &str = "bare hyper";

/// The names of the proxies, in the order of the table.
const PROXIES: [&str; 7] = ["nginx", "HAProxy", BARE, "bare hyper, mimalloc", "Pingora", "gateway", "gateway, logging"];

/// The number of users whose requests take turns.
const USERS: usize = 64;

struct Proxy {
    name: &'static str,
    server: Server,
    samples: Vec<Sample>,
}

fn main() {
    let chosen: Vec<String> = env::args().skip(1).collect();
    let chosen = |name: &&str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    let names: Vec<&str> = PROXIES.into_iter().filter(chosen).collect();
    let (rounds, seconds) = (number("ROUNDS").unwrap_or(10), number("SECONDS").unwrap_or(1));

    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut place = Place::new(here.join("target/servers"));
    let _upstream = place.upstream();
    let mut proxies: Vec<Proxy> =
        names.iter().map(|&name| Proxy { name, server: start(name, &place, here), samples: Vec::new() }).collect();
    let loads: Vec<Load> = proxies.iter().map(|proxy| load(proxy, &place)).collect();

    // The first round opens the connections.
    for round in 0..=rounds {
        for (proxy, load) in iter::zip(&mut proxies, &loads) {
            let sample = load.run(&proxy.server, seconds);
            if round > 0 {
                proxy.samples.push(sample);
            }
        }
    }
    print(&proxies);
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

fn start(name: &str, place: &Place, here: &Path) -> Server {
    let own = |program: &str| env::current_exe().expect("the path is known").with_file_name(program);
    match name {
        "nginx" => place.nginx_proxy(),
        "HAProxy" => place.haproxy(),
        BARE => place.program(&own("bare")),
        "Pingora" => place.program(&build(&here.join("pingora"), &["--release"], "release/pingora-proxy")),
        "gateway" => place.gateway(&build_gateway(here), "warn"),
        "gateway, logging" => place.gateway(&build_gateway(here), "info"),
        _ => place.program(&own("bare-mimalloc")),
    }
}

/// Builds the gateway as its README recommends. `GATEWAY` names another program, such as an earlier version.
fn build_gateway(here: &Path) -> PathBuf {
    let build = || build(&here.join("../.."), &["--package", "gateway", "--profile", "dist"], "dist/gateway");
    env::var_os("GATEWAY").map_or_else(build, PathBuf::from)
}

/// Builds a program of another workspace and returns its path.
fn build(workspace: &Path, arguments: &[&str], program: &str) -> PathBuf {
    let target = workspace.join("target");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--locked", "--manifest-path"]).arg(workspace.join("Cargo.toml"));
    let status = cargo.args(arguments).env("CARGO_TARGET_DIR", &target).status().expect("cargo runs");
    assert!(status.success(), "{program} could not be built");
    target.join(program)
}

/// Prepares the load of one proxy, and checks that the proxy answers. A gateway also checks its users.
fn load(proxy: &Proxy, place: &Place) -> Load {
    let address = proxy.server.address;
    let is_gateway = proxy.name.starts_with("gateway");
    let cookies: Vec<String> =
        if is_gateway { (0..USERS).map(|_| sign_in(address)).collect() } else { vec!["session=x".to_owned(); USERS] };
    let refused = if is_gateway { "HTTP/1.1 401 Unauthorized" } else { "HTTP/1.1 200 OK" };
    assert_eq!(call(address, "session=x"), refused, "{}", proxy.name);
    assert_eq!(call(address, &cookies[0]), "HTTP/1.1 200 OK", "{}", proxy.name);
    let file = place.path(&format!("{}.cookies", proxy.name));
    fs::write(&file, cookies.join("\n")).expect("the cookies can be written");
    Load::new(address, file)
}

/// Prints the table. The ratios are those of the rounds, in which the proxies took turns.
fn print(proxies: &[Proxy]) {
    let find = |name: &str| proxies.iter().find(|proxy| proxy.name == name);
    let cell = |median: Median, decimals: usize| {
        let Median { value, low, high } = median;
        format!("{value:.decimals$} ({low:.decimals$} – {high:.decimals$})")
    };
    println!("| proxy | µs of CPU a request | × {BARE} | requests/s | × nginx |\n| --- | --- | --- | --- | --- |");
    for proxy in proxies {
        let median = |figure: fn(&Sample) -> f64| Median::of(proxy.samples.iter().map(figure));
        let ratio = |other: &str, figure: fn(&Sample) -> f64| {
            let pairs = iter::zip(&proxy.samples, &find(other)?.samples);
            Some(cell(Median::of(pairs.map(|(ours, theirs)| figure(ours) / figure(theirs))), 2))
        };
        println!(
            "| {} | {} | {} | {} | {} |",
            proxy.name,
            cell(median(Sample::cpu_microseconds), 1),
            ratio(BARE, Sample::cpu_microseconds).unwrap_or_default(),
            cell(median(Sample::rate), 0),
            ratio("nginx", Sample::rate).unwrap_or_default(),
        );
    }
}
