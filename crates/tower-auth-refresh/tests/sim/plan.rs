//! What a seed decides before its world begins: who lives in it, how its servers behave, and what goes wrong when.

use std::time::Duration;

use fastrand::Rng;
use tower_auth_refresh::Rotation;

/// Everything that a seed decides beforehand. Latencies and the choices of users are drawn as the world goes on.
#[derive(Clone, Debug)]
pub struct Plan {
    pub processes: usize,
    pub users: usize,
    pub apis: usize,
    pub rotation: Rotation,
    /// How long the authorization server goes on answering a superseded token with its successor.
    pub grace: Duration,
    pub access_lifetime: Duration,
    pub latency: (Duration, Duration),
    pub refresh_timeout: Duration,
    pub call_timeout: Duration,
    /// How often a call to the store fails, before or after its effect.
    pub store_faults: f64,
    /// How often the authorization server answers 500, before or after the rotation.
    pub auth_faults: f64,
    /// How often a user signs out between two requests.
    pub sign_outs: f64,
    /// How long before their expiry tokens are refreshed, where they are.
    pub early: Option<Duration>,
    /// Over HTTP/2, not HTTP/1.
    pub http2: bool,
    /// By `OAuthRefresh`, not by `JsonRefresh`.
    pub oauth: bool,
    pub chaos: Duration,
    pub events: Vec<(Duration, Event)>,
}

/// Something that goes wrong, or begins to.
#[derive(Clone, Debug)]
pub enum Event {
    /// No message gets through between these two; what is under way is lost.
    Partition(Link, Duration),
    /// No message gets through from the first to the second.
    OneWay(Link, Duration),
    /// Messages are delivered when it is over.
    Hold(Link, Duration),
    /// Messages get lost, and connections with them.
    Loss(f64, Duration),
    /// A host dies, and starts again later. `silent`: its peers get no word of it.
    Crash { host: String, silent: bool, down: Duration },
    /// The next to pass this point dies there.
    Trap(Trap),
    /// The authorization server revokes a user's newest sign-in.
    Revoke(usize),
}

pub type Link = (String, String);

/// A moment at which a host can die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// The authorization server: it was asked, and has done nothing yet.
    AuthBeforeRotation,
    /// The authorization server: it has rotated, and not answered yet.
    AuthAfterRotation,
    /// A process: it has claimed the refresh token, and not presented it.
    BeforePresenting,
    /// A process: its refresh call is under way.
    WhilePresenting,
    /// A process: it has got new tokens, and not stored them.
    AfterAnswer,
    /// A process: its store has taken the new tokens, and it has not heard so.
    AfterCommit,
}

pub const TRAPS: [Trap; 6] = [
    Trap::AuthBeforeRotation,
    Trap::AuthAfterRotation,
    Trap::BeforePresenting,
    Trap::WhilePresenting,
    Trap::AfterAnswer,
    Trap::AfterCommit,
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
            http2: false,
            oauth: false,
            chaos: millis(rng, 5_000..12_000),
            events: Vec::new(),
        };
        plan.events = (0..rng.usize(2..=7)).map(|_| (millis(rng, 0..to_millis(plan.chaos)), plan.event(rng))).collect();
        plan.events.sort_by_key(|(at, _)| *at);
        plan.early = (rng.u8(..3) == 0).then(|| millis(rng, 500..3_000));
        (plan.http2, plan.oauth) = (rng.u8(..3) == 0, rng.u8(..3) == 0);
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
            13..19 => Event::Trap(rng.choice(TRAPS).expect("it isn't empty")),
            _ => Event::Revoke(rng.usize(..self.users)),
        }
    }

    /// Of a process and a server; the authorization server as often as all others.
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
