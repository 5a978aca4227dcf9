//! The words of a script.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;

/// What happens, line by line, to two sessions on one store, in a world of its own.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// Whether the authorization server rotates refresh tokens: the sessions' rotation policy.
    pub(crate) rotates: bool,
    /// Of all that is random in the sessions.
    pub(crate) seed: u64,
    pub(crate) lines: Vec<Line>,
}

/// Which of the two sessions.
pub(crate) type Who = usize;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Line {
    /// This many requests of one kind, at once. Slow: the API's answer waits for [`Answer`](Line::ApiAnswers).
    Send {
        who: Who,
        what: What,
        times: usize,
        slow: bool,
    },
    /// The API answers all that wait for it.
    ApiAnswers,
    /// The caller who waits longest goes away.
    CallerGoes,
    /// The API refuses the access token in force from now on.
    Expire {
        who: Who,
    },
    /// The API refuses every token, or no longer.
    ApiRefusesAll(bool),
    /// What the authorization server says to a coming refresh call of this session; if nothing is said, `Tokens`.
    Next {
        who: Who,
        answer: Answer,
    },
    /// The authorization server answers the call of this session that waits longest.
    Answers {
        who: Who,
        answer: Answer,
    },
    SignIn {
        who: Who,
        with: With,
    },
    SignOut {
        who: Who,
    },
    RefreshByHand {
        who: Who,
    },
    /// This many milliseconds go by.
    Wait(u64),
    /// From now on this call to the store goes wrong for this session.
    Break {
        who: Who,
        call: Call,
        fault: Fault,
    },
    /// The store is well again.
    Heal {
        who: Who,
    },
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Get,
    Post,
    /// It can't be sent twice.
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
    /// None, until [`Answers`](Line::Answers).
    Nothing,
}

/// What a user signs in with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum With {
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
    /// It takes effect, and fails.
    FailLate,
    /// It never returns.
    Hang,
}

/// What is seen from outside.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Seen {
    pub(crate) sessions: Vec<String>,
    pub(crate) stored: Option<Pair>,
    /// The refresh calls of each session.
    pub(crate) presented: [Vec<String>; 2],
    /// What became of each request, and of each call to a session.
    pub(crate) requests: Vec<Request>,
    pub(crate) revoked: Vec<Pair>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// The token of each attempt, and how the API took it.
    pub(crate) attempts: Vec<String>,
    pub(crate) end: Option<String>,
}

/// An access token and a refresh token, by their numbers.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair {
    pub(crate) access: Option<u32>,
    pub(crate) refresh: Option<u32>,
}

/// Why there are no newer tokens: [`NotRefreshed`](tower_auth_refresh::NotRefreshed), without the errors' texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Failed(Kind),
    CoolingDown(Kind),
    Ended,
    SignedOut,
    SessionChanged,
    NoRefreshToken,
    SameToken,
    Looping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Never: then the session has ended.
    Rejected,
    Misconfigured,
    Unavailable,
    InDoubt,
}

impl With {
    /// The tokens of this number.
    pub(crate) fn pair(self, n: u32) -> Pair {
        Pair { access: (self != Self::RefreshToken).then_some(n), refresh: (self != Self::AccessToken).then_some(n) }
    }
}

/// The number of the tokens that a user signs in with, in this line.
pub(crate) fn signed_in_with(line: usize) -> u32 {
    1000 + u32::try_from(line).unwrap()
}

/// The number of the tokens that the authorization server issues to a session, the `n`th time.
pub(crate) fn issued_to(who: Who, n: u32) -> u32 {
    10 * n + u32::try_from(who).unwrap()
}

impl Seen {
    /// What the model says beside what is, where they differ.
    pub(crate) fn difference(&self, is: &Self) -> Option<String> {
        let mut differences = String::new();
        let mut compare = |what: &str, expected: &dyn fmt::Debug, is: &dyn fmt::Debug| {
            // Of requests at one moment, a store that fails at once leaves open which come in its cool-down.
            let either = |it: String| it.replace("CoolingDown(Unavailable)", "Failed(Unavailable)");
            let [expected, is] = [expected, is].map(|it| either(format!("{it:?}")));
            if expected != is {
                differences.extend(["\n", what, "\n  expected ", &expected, "\n  but is   ", &is]);
            }
        };
        compare("stored", &self.stored, &is.stored);
        compare("revoked", &self.revoked, &is.revoked);
        for who in [0, 1] {
            compare(&format!("session {who}"), &self.sessions[who], &is.sessions[who]);
            compare(&format!("presented by {who}"), &self.presented[who], &is.presented[who]);
        }
        for (id, (expected, is)) in self.requests.iter().zip(&is.requests).enumerate() {
            compare(&format!("request {id}"), expected, is);
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
    // Mostly the first, so that it finds the world as it left it.
    let who = || prop_oneof![3 => Just(0_usize), 1 => Just(1_usize)];
    let what = prop_oneof![4 => Just(What::Get), 2 => Just(What::Post), 2 => Just(What::Upload)];
    let with = prop_oneof![6 => Just(With::Both), 1 => Just(With::RefreshToken), 1 => Just(With::AccessToken)];
    let times = prop_oneof![4 => Just(1_usize), 1 => 2_usize..5];
    let wait = prop_oneof![1_u64..10, 10_u64..70, 70_u64..600, 600_u64..72_000].prop_map(|tenths| 100 * tenths);
    let on_the_way = prop_oneof![Just(Call::Claim), Just(Call::Commit)];
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
        14 => (who(), what, times, prop::bool::weighted(0.2))
            .prop_map(|(who, what, times, slow)| Line::Send { who, what, times, slow }),
        3 => Just(Line::ApiAnswers),
        1 => Just(Line::CallerGoes),
        8 => who().prop_map(|who| Line::Expire { who }),
        1 => prop::bool::weighted(0.5).prop_map(Line::ApiRefusesAll),
        6 => (who(), answer()).prop_map(|(who, answer)| Line::Next { who, answer }),
        3 => (who(), answer()).prop_map(|(who, answer)| Line::Answers { who, answer }),
        2 => (who(), with).prop_map(|(who, with)| Line::SignIn { who, with }),
        1 => who().prop_map(|who| Line::SignOut { who }),
        2 => who().prop_map(|who| Line::RefreshByHand { who }),
        5 => wait.prop_map(Line::Wait),
        2 => (who(), call, prop_oneof![Just(Fault::Fail), Just(Fault::FailLate)])
            .prop_map(|(who, call, fault)| Line::Break { who, call, fault }),
        1 => (who(), on_the_way).prop_map(|(who, call)| Line::Break { who, call, fault: Fault::Hang }),
        2 => who().prop_map(|who| Line::Heal { who }),
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
