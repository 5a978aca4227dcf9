//! The language of the scripts, and their generator.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;

/// A list of actions on two sessions that share one store.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// The authorization server rotates refresh tokens: the sessions' rotation policy.
    pub(crate) rotates: bool,
    /// The seed of the sessions' jitter and epochs.
    pub(crate) seed: u64,
    pub(crate) lines: Vec<Line>,
}

/// The index of one of the two sessions.
pub(crate) type SessionIndex = usize;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Line {
    /// Sends requests of one kind concurrently. If `slow`, the API's response waits for [`Line::ApiAnswers`].
    Send {
        session: SessionIndex,
        kind: RequestKind,
        times: usize,
        slow: bool,
    },
    /// The API answers all requests that wait for it.
    ApiAnswers,
    /// Cancels the oldest unfinished call.
    CancelCaller,
    /// From here on, the API refuses the access token in force.
    Expire {
        session: SessionIndex,
    },
    /// Sets whether the API refuses every token.
    ApiRefusesAll(bool),
    /// Queues the authorization server's answer to a later refresh call of this session; the default is `Tokens`.
    NextAnswer {
        session: SessionIndex,
        answer: Answer,
    },
    /// The authorization server answers the oldest waiting call of this session.
    AuthAnswers {
        session: SessionIndex,
        answer: Answer,
    },
    SignIn {
        session: SessionIndex,
        held: Held,
    },
    SignOut {
        session: SessionIndex,
    },
    Refresh {
        session: SessionIndex,
    },
    /// Advances the clock by this many milliseconds.
    Wait(u64),
    /// From here on, this store call has this fault for this session.
    Inject {
        session: SessionIndex,
        call: Call,
        fault: Fault,
    },
    /// Removes all store faults of this session.
    ClearFaults {
        session: SessionIndex,
    },
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    Get,
    Post,
    /// A POST whose body can't be replayed.
    Upload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Tokens,
    WithoutRefreshToken,
    SameAccessToken,
    Rejected,
    Misconfigured,
    Unavailable,
    UnavailableFor(u64),
    InDoubt,
    /// No answer until [`Line::AuthAnswers`].
    Nothing,
}

/// The tokens that a user signs in with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Both,
    RefreshToken,
    AccessToken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Load,
    Replace,
    Claim,
    Renew,
    Release,
    Commit,
    Clear,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Fail,
    /// Takes effect, then fails.
    FailLate,
    /// Never returns.
    Hang,
}

/// The state that is observable from outside.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Observed {
    pub(crate) sessions: Vec<String>,
    pub(crate) stored: Option<Pair>,
    /// The refresh calls of each session.
    pub(crate) presented: [Vec<String>; 2],
    /// The outcome of each request and of each call on a session.
    pub(crate) requests: Vec<Request>,
    pub(crate) revoked: Vec<Pair>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// The token and the response status of each attempt.
    pub(crate) attempts: Vec<String>,
    pub(crate) end: Option<String>,
}

/// The numbers of an access token and a refresh token.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair {
    pub(crate) access: Option<u32>,
    pub(crate) refresh: Option<u32>,
}

/// A [`NotRefreshed`](tower_auth_refresh::NotRefreshed) without the errors' messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Failed(FailureKind),
    CoolingDown(FailureKind),
    Ended,
    SignedOut,
    SessionChanged,
    NoRefreshToken,
    SameToken,
    Looping,
    RequestRefused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// Never observed: a rejection ends the session.
    Rejected,
    Misconfigured,
    Unavailable,
    InDoubt,
}

impl Held {
    /// Returns the tokens with this number.
    pub(crate) fn pair(self, n: u32) -> Pair {
        Pair { access: (self != Self::RefreshToken).then_some(n), refresh: (self != Self::AccessToken).then_some(n) }
    }
}

/// The number of the tokens that a user signs in with on this line.
pub(crate) fn signed_in_with(line: usize) -> u32 {
    1000 + u32::try_from(line).unwrap()
}

/// The number of the `n`th tokens that the authorization server issues to a session.
pub(crate) fn issued_to(session: SessionIndex, n: u32) -> u32 {
    10 * n + u32::try_from(session).unwrap()
}

impl Observed {
    /// Describes the differences between the model's state (`self`) and the `actual` one.
    pub(crate) fn difference(&self, actual: &Self) -> Option<String> {
        let mut differences = String::new();
        let mut compare = |label: &str, expected: &dyn fmt::Debug, actual: &dyn fmt::Debug| {
            // With concurrent requests, a store that fails at once leaves open which of them meet the cool-down.
            let either = |it: String| it.replace("CoolingDown(Unavailable)", "Failed(Unavailable)");
            let [expected, actual] = [expected, actual].map(|it| either(format!("{it:?}")));
            if expected != actual {
                differences.extend(["\n", label, "\n  expected ", &expected, "\n  actual   ", &actual]);
            }
        };
        compare("stored", &self.stored, &actual.stored);
        compare("revoked", &self.revoked, &actual.revoked);
        for session in [0, 1] {
            compare(&format!("session {session}"), &self.sessions[session], &actual.sessions[session]);
            compare(&format!("presented by {session}"), &self.presented[session], &actual.presented[session]);
        }
        for (id, (expected, actual)) in self.requests.iter().zip(&actual.requests).enumerate() {
            compare(&format!("request {id}"), expected, actual);
        }
        (!differences.is_empty()).then_some(differences)
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rotates: {}, seed: {}", self.rotates, self.seed)?;
        self.lines.iter().try_for_each(|line| write!(f, "\n{line:?},"))
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        write!(f, "a{} r{}", number(self.access), number(self.refresh))
    }
}

pub(crate) fn script() -> impl Strategy<Value = Script> {
    (prop::bool::weighted(0.7), any::<u64>(), vec(line(), 1..40)).prop_map(|(rotates, seed, lines)| Script {
        rotates,
        seed,
        lines,
    })
}

fn line() -> impl Strategy<Value = Line> {
    // Mostly the first session, so that consecutive lines affect the same state.
    let session = || prop_oneof![3 => Just(0_usize), 1 => Just(1_usize)];
    let kind = prop_oneof![4 => Just(RequestKind::Get), 2 => Just(RequestKind::Post), 2 => Just(RequestKind::Upload)];
    let held = prop_oneof![6 => Just(Held::Both), 1 => Just(Held::RefreshToken), 1 => Just(Held::AccessToken)];
    let times = prop_oneof![4 => Just(1_usize), 1 => 2_usize..5];
    let wait = prop_oneof![1_u64..10, 10_u64..70, 70_u64..600, 600_u64..72_000].prop_map(|tenths| 100 * tenths);
    let call_of_flight = prop_oneof![Just(Call::Claim), Just(Call::Commit)];
    let call = prop_oneof![
        Just(Call::Load),
        Just(Call::Replace),
        Just(Call::Claim),
        Just(Call::Renew),
        Just(Call::Release),
        Just(Call::Commit),
        Just(Call::Clear)
    ];
    prop_oneof![
        14 => (session(), kind, times, prop::bool::weighted(0.2))
            .prop_map(|(session, kind, times, slow)| Line::Send { session, kind, times, slow }),
        3 => Just(Line::ApiAnswers),
        1 => Just(Line::CancelCaller),
        8 => session().prop_map(|session| Line::Expire { session }),
        1 => prop::bool::weighted(0.5).prop_map(Line::ApiRefusesAll),
        6 => (session(), answer()).prop_map(|(session, answer)| Line::NextAnswer { session, answer }),
        3 => (session(), answer()).prop_map(|(session, answer)| Line::AuthAnswers { session, answer }),
        2 => (session(), held).prop_map(|(session, held)| Line::SignIn { session, held }),
        1 => session().prop_map(|session| Line::SignOut { session }),
        2 => session().prop_map(|session| Line::Refresh { session }),
        5 => wait.prop_map(Line::Wait),
        2 => (session(), call, prop_oneof![Just(Fault::Fail), Just(Fault::FailLate)])
            .prop_map(|(session, call, fault)| Line::Inject { session, call, fault }),
        1 => (session(), call_of_flight).prop_map(|(session, call)| Line::Inject { session, call, fault: Fault::Hang }),
        2 => session().prop_map(|session| Line::ClearFaults { session }),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        2 => Just(Answer::Tokens),
        1 => Just(Answer::WithoutRefreshToken),
        1 => Just(Answer::SameAccessToken),
        1 => Just(Answer::Rejected),
        1 => Just(Answer::Misconfigured),
        1 => Just(Answer::Unavailable),
        1 => prop_oneof![Just(0_u64), Just(2), Just(20), Just(100), Just(100_000)].prop_map(Answer::UnavailableFor),
        2 => Just(Answer::InDoubt),
        3 => Just(Answer::Nothing),
    ]
}
