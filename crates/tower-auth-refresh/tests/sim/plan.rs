//! The plan of a simulation: its hosts and users, the behaviour of its servers, and a schedule of faults.

use std::time::Duration;

use fastrand::Rng;
use tower_auth_refresh::Rotation;

/// Everything that a seed decides beforehand. Latencies and the choices of users are drawn during the simulation.
#[derive(Clone, Debug)]
pub struct Plan {
    pub processes: usize,
    pub users: usize,
    pub apis: usize,
    pub rotation: Rotation,
    /// The time in which the authorization server answers a superseded token with its successor.
    pub grace: Duration,
    pub access_lifetime: Duration,
    pub latency: (Duration, Duration),
    pub refresh_timeout: Duration,
    pub call_timeout: Duration,
    /// The rate at which store calls fail, before or after their effect.
    pub store_faults: f64,
    /// The rate at which the authorization server answers 500, before or after the rotation.
    pub auth_faults: f64,
    /// The rate at which a user signs out between two requests.
    pub sign_outs: f64,
    /// The window of the early refresh, if tokens are refreshed early.
    pub early: Option<Duration>,
    /// The time between two looks at the store for the writes of other processes, if there are any.
    pub recheck: Option<Duration>,
    /// Uses HTTP/2 instead of HTTP/1.
    pub http2: bool,
    /// Uses `OAuthRefresh` instead of `JsonRefresh`.
    pub oauth: bool,
    pub chaos: Duration,
    pub events: Vec<(Duration, Event)>,
}

/// A fault, or the start of one.
#[derive(Clone, Debug)]
pub enum Event {
    /// Messages between these two hosts are lost, those in flight too.
    Partition(Link, Duration),
    /// Messages from the first host to the second are lost.
    OneWay(Link, Duration),
    /// Messages are held, and delivered at the end.
    Hold(Link, Duration),
    /// Messages are lost at this rate, and break their connections.
    Loss(f64, Duration),
    /// A host crashes and restarts later. `silent`: its peers see no reset.
    Crash { host: String, silent: bool, down: Duration },
    /// The next host that reaches this point crashes there.
    CrashPoint(CrashPoint),
    /// The authorization server revokes a user's newest sign-in.
    Revoke(usize),
    /// The store fails over to a replica that lacks a user's last writes, this many, and claims.
    FailOver { user: usize, lost: usize },
    /// A user's record can't be read for a while.
    Unreadable { user: usize, lasting: Duration },
}

pub type Link = (String, String);

/// A point in the protocol at which a host can crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPoint {
    /// The authorization server has received a refresh call and not processed it.
    AuthBeforeRotation,
    /// The authorization server has rotated the token and not answered.
    AuthAfterRotation,
    /// A process has claimed the refresh token and not presented it.
    BeforePresenting,
    /// A process's refresh call is in flight.
    WhilePresenting,
    /// A process has received new tokens and not stored them.
    AfterAnswer,
    /// A process's store has committed the new tokens, and the process has no answer yet.
    AfterCommit,
}

pub const CRASH_POINTS: [CrashPoint; 6] = [
    CrashPoint::AuthBeforeRotation,
    CrashPoint::AuthAfterRotation,
    CrashPoint::BeforePresenting,
    CrashPoint::WhilePresenting,
    CrashPoint::AfterAnswer,
    CrashPoint::AfterCommit,
];

impl Plan {
    pub fn draw(rng: &mut Rng) -> Self {
        let (processes, users, apis) = (rng.usize(1..=3), rng.usize(1..=2), rng.usize(1..=2));
        let rotation = match rng.u32(0..10) {
            0 => Rotation::Reusable,
            1..4 => Rotation::Grace(Duration::from_secs(3)),
            _ => Rotation::Strict,
        };
        let fastest = millis(rng, 0..20);
        let mut plan = Self {
            processes,
            users,
            apis,
            rotation,
            grace: Duration::from_secs(8),
            access_lifetime: millis(rng, 2_500..7_000),
            latency: (fastest, fastest + millis(rng, 20..200)),
            refresh_timeout: millis(rng, 2_500..5_000),
            call_timeout: millis(rng, 1_000..2_000),
            store_faults: if rng.bool() { 0.0 } else { rng.f64() * 0.08 },
            auth_faults: if rng.bool() { 0.0 } else { rng.f64() * 0.2 },
            sign_outs: if rng.u8(..) < 192 { 0.0 } else { 0.03 },
            early: None,
            recheck: None,
            http2: false,
            oauth: false,
            chaos: millis(rng, 5_000..12_000),
            events: Vec::new(),
        };
        plan.events = (0..rng.usize(2..=7)).map(|_| (millis(rng, 0..to_millis(plan.chaos)), plan.event(rng))).collect();
        plan.early = (rng.u8(..3) == 0).then(|| millis(rng, 500..3_000));
        (plan.http2, plan.oauth) = (rng.u8(..3) == 0, rng.u8(..3) == 0);
        if rng.u8(..3) == 0 {
            for _ in 0..rng.usize(1..=4) {
                let event = Event::FailOver { user: rng.usize(..users), lost: rng.usize(0..=3) };
                plan.events.push((millis(rng, 0..to_millis(plan.chaos)), event));
            }
        }
        plan.recheck = (rng.u8(..3) == 0).then(|| millis(rng, 200..2_000));
        if rng.u8(..4) == 0 {
            let event = Event::Unreadable { user: rng.usize(..users), lasting: millis(rng, 200..4_000) };
            plan.events.push((millis(rng, 0..to_millis(plan.chaos)), event));
        }
        plan.events.sort_by_key(|(at, _)| *at);
        plan
    }

    pub fn process_names(&self) -> impl Iterator<Item = String> + use<> {
        (0..self.processes).map(|n| format!("process-{n}"))
    }

    pub fn server_names(&self) -> impl Iterator<Item = String> + use<> {
        ["auth".to_owned()].into_iter().chain((0..self.apis).map(|n| format!("api-{n}")))
    }

    fn event(&self, rng: &mut Rng) -> Event {
        let lasting = millis(rng, 200..4_000);
        match rng.u32(0..20) {
            0..3 => Event::Partition(self.link(rng), lasting),
            3..5 => {
                let (process, server) = self.link(rng);
                Event::OneWay(if rng.bool() { (process, server) } else { (server, process) }, lasting)
            }
            5..8 => Event::Hold(self.link(rng), lasting),
            8 => Event::Loss(rng.f64() * 0.1, lasting),
            9..13 => {
                let (process, server) = self.link(rng);
                let host = if rng.bool() { process } else { server };
                Event::Crash { host, silent: rng.bool(), down: millis(rng, 100..3_000) }
            }
            13..19 => Event::CrashPoint(rng.choice(CRASH_POINTS).expect("not empty")),
            _ => Event::Revoke(rng.usize(..self.users)),
        }
    }

    /// Draws a process and a server. The authorization server is drawn as often as all APIs together.
    fn link(&self, rng: &mut Rng) -> Link {
        let process = format!("process-{}", rng.usize(..self.processes));
        let server = if rng.bool() { "auth".to_owned() } else { format!("api-{}", rng.usize(..self.apis)) };
        (process, server)
    }
}

pub fn millis(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

fn to_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("a plan is short")
}
