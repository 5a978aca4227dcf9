//! The actions on a session, in abstract form: each is one event, or a few under one lock.

use crate::refresh::Trigger;

/// The number of an endpoint of the API.
pub(super) type Endpoint = usize;

/// The initial state of a session.
#[derive(Clone, Copy, Debug)]
pub(super) enum Initial {
    Nothing,
    Stored(Held),
}

/// The tokens that are present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Both,
    OnlyAccess,
    OnlyRefresh,
    Neither,
}

/// New tokens, compared with those in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    New,
    SameAccessToken,
    Unchanged,
}

/// The write of a flight's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commit {
    Saved,
    Failed,
    /// The store holds an older record of the epoch.
    FoundOlder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordEpoch {
    ThisEpoch(Received),
    /// Another epoch: a sign-in elsewhere.
    AnotherEpoch(Held),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Unavailable,
    /// Unavailable, with a `Retry-After` of this many seconds.
    Later(u64),
    Misconfigured,
    InDoubt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Saved,
    /// An older record is claimed, to be written over.
    Claimed,
    Found(RecordEpoch),
    FoundOlder,
    FoundNothing,
    Failed,
}

/// The record that a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// Of the epoch in which the look began: newer than the tokens that were in force then.
    Newer(Received),
    Same,
    Older,
    AnotherEpoch(Held),
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LateEnd {
    Refreshed,
    RefreshedUnsaved,
    Failed,
    Rejected,
    FoundItsOwnEpoch,
    FoundThisEpoch,
    FoundAnotherEpoch,
    FoundOlder,
    Salvaged,
    Landed,
    Vanished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Until the end of the cool-down.
    Cooled,
    /// Until the end of the loop guard's pause.
    Released,
    /// Until the early refresh is due.
    Due,
    AlmostProbation,
    Probation,
    /// Until the loop guard has forgotten everything.
    Memory,
}

/// One action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// A caller asks for newer tokens than those of this many generations ago.
    Request(Trigger, u64),
    /// An endpoint answers 401 to a request that was sent with the tokens of this many generations ago.
    Challenge(Endpoint, u64),
    // The current flight:
    Claims,
    Refreshed(Received, Commit),
    /// A failed call has issued a refresh token. The flight then fails.
    Salvages(Commit),
    Fails(Failure),
    IsRejected,
    Finds(RecordEpoch),
    /// The store has lost writes: the flight has them written again before it claims.
    FindsOlder,
    FindsNothing,
    IsSuperseded,
    Dies,
    /// A flight of an earlier epoch ends.
    Late(LateEnd),
    // The write outside flights:
    Reads,
    Writes(Written),
    // A look for the writes of other processes:
    Looks,
    Looked(Looked),
    // The app:
    SignsIn(Held),
    /// Signs in with the tokens that are in force already.
    SignsInAgain,
    SignsOut,
    /// Hands in tokens of the same sign-in, with the response to a request that was sent this many generations ago.
    Renews(Received, u64),
    /// An endpoint accepted, or refused, a replay with the generation of this many ago.
    Replayed(Endpoint, bool, u64),
    /// An endpoint accepted a request that has just been sent.
    Accepted(Endpoint),
    Advance(Wait),
}

impl Action {
    pub(super) fn all() -> Vec<Self> {
        use Held::{Both, OnlyAccess, OnlyRefresh};
        use LateEnd::{FoundAnotherEpoch, FoundItsOwnEpoch, FoundThisEpoch, RefreshedUnsaved};
        use Received::{New, SameAccessToken, Unchanged};
        use RecordEpoch::{AnotherEpoch, ThisEpoch};
        let mut all = vec![Self::Claims, Self::IsRejected, Self::FindsOlder, Self::FindsNothing];
        all.extend([Self::IsSuperseded, Self::Dies]);
        all.extend([Self::Reads, Self::SignsInAgain, Self::SignsOut]);
        for trigger in [Trigger::Early, Trigger::Acquire, Trigger::Manual] {
            all.extend([Self::Request(trigger, 0), Self::Request(trigger, 1)]);
        }
        all.extend([Self::Challenge(0, 0), Self::Challenge(0, 1)]);
        for received in [New, SameAccessToken, Unchanged] {
            all.extend([Commit::Saved, Commit::Failed].map(|commit| Self::Refreshed(received, commit)));
            all.push(Self::Renews(received, 0));
        }
        all.extend([Self::Refreshed(New, Commit::FoundOlder), Self::Renews(New, 1)]);
        all.extend([Commit::Saved, Commit::Failed, Commit::FoundOlder].map(Self::Salvages));
        let failures = [Failure::Unavailable, Failure::Later(5), Failure::Later(9999), Failure::Misconfigured];
        all.extend(failures.map(Self::Fails));
        all.push(Self::Fails(Failure::InDoubt));
        let found = [ThisEpoch(New), ThisEpoch(SameAccessToken), AnotherEpoch(Both), AnotherEpoch(OnlyRefresh)];
        all.extend(found.map(Self::Finds));
        all.extend(found.map(|record_epoch| Self::Writes(Written::Found(record_epoch))));
        all.extend(
            [Written::Saved, Written::Claimed, Written::FoundOlder, Written::FoundNothing, Written::Failed]
                .map(Self::Writes),
        );
        all.push(Self::Looks);
        all.extend([Looked::Newer(New), Looked::Newer(SameAccessToken), Looked::Same].map(Self::Looked));
        all.extend([Looked::Older, Looked::AnotherEpoch(Both), Looked::Nothing].map(Self::Looked));
        let late = [LateEnd::Refreshed, RefreshedUnsaved, LateEnd::Failed, LateEnd::Rejected, FoundItsOwnEpoch];
        all.extend(late.map(Self::Late));
        all.extend([FoundThisEpoch, FoundAnotherEpoch, LateEnd::FoundOlder, LateEnd::Salvaged].map(Self::Late));
        all.extend([LateEnd::Landed, LateEnd::Vanished].map(Self::Late));
        all.extend([Both, OnlyAccess, OnlyRefresh].map(Self::SignsIn));
        for age in [0, 1] {
            all.extend([Self::Replayed(0, true, age), Self::Replayed(0, false, age)]);
        }
        all.push(Self::Accepted(0));
        all.extend(
            [Wait::Cooled, Wait::Released, Wait::Due, Wait::AlmostProbation, Wait::Probation].map(Self::Advance),
        );
        all
    }

    /// The actions of one user with a working store and one endpoint: refusals, failures, time.
    pub(super) fn of_pace() -> Vec<Self> {
        let of_pace = |action: &Self| match action {
            Self::Refreshed(received, commit) => *received != Received::SameAccessToken && *commit == Commit::Saved,
            Self::Fails(failure) => *failure == Failure::Unavailable,
            Self::Challenge(endpoint, age) | Self::Replayed(endpoint, _, age) => (*endpoint, *age) == (0, 0),
            Self::Advance(wait) => matches!(wait, Wait::Cooled | Wait::Released | Wait::Probation),
            _ => *action == Self::Claims,
        };
        Self::all().into_iter().filter(of_pace).collect()
    }

    /// The actions of two endpoints, of which only the first refuses replays, with a working store.
    pub(super) fn of_endpoints() -> Vec<Self> {
        let of_endpoints = |action: &Self| match action {
            Self::Refreshed(received, commit) => *received == Received::New && *commit == Commit::Saved,
            Self::Replayed(_, _, age) => *age == 0,
            Self::Advance(wait) => *wait == Wait::Released,
            _ => matches!(action, Self::Claims | Self::Challenge(..) | Self::Accepted(_)),
        };
        let of_the_second =
            [Self::Challenge(1, 0), Self::Challenge(1, 1), Self::Replayed(1, true, 0), Self::Accepted(1)];
        let mut actions: Vec<_> = Self::all().into_iter().filter(of_endpoints).collect();
        actions.extend(of_the_second.into_iter().chain([Self::Advance(Wait::Memory)]));
        actions
    }

    /// The actions that change epochs, at one moment: sign-ins, peers, writes, late flights.
    pub(super) fn of_epochs() -> Vec<Self> {
        let of_epochs = |action: &Self| match action {
            Self::Request(trigger, age) => *trigger == Trigger::Manual && *age == 0,
            Self::Fails(failure) => *failure == Failure::InDoubt,
            Self::Challenge(..) | Self::Replayed(..) | Self::Accepted(_) | Self::Advance(_) => false,
            _ => !matches!(action, Self::Looks | Self::Looked(_)),
        };
        Self::all().into_iter().filter(of_epochs).collect()
    }

    /// The actions that can overlap with a look: a flight, writes, and the app's calls.
    pub(super) fn of_looks() -> Vec<Self> {
        let of_looks = |action: &Self| match action {
            Self::Looks | Self::Looked(_) => true,
            Self::Late(_) | Self::SignsInAgain | Self::Dies => false,
            Self::SignsIn(held) => *held == Held::Both,
            Self::Renews(received, age) => *received == Received::New && *age == 0,
            _ => Self::of_epochs().contains(action),
        };
        Self::all().into_iter().filter(of_looks).collect()
    }
}
