//! What can happen to a session, in abstract: each action is one event, or a few under one lock.

use crate::refresh::Trigger;

/// What a session starts from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Beginning {
    Nothing,
    Stored(Held),
}

/// Which tokens somebody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Both,
    OnlyAccess,
    OnlyRefresh,
    Neither,
}

/// Which tokens somebody comes with, compared with those in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brought {
    New,
    TheSameAccessToken,
    TheSame,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    ThisEpoch(Brought),
    /// Somebody who has signed in elsewhere.
    Anothers(Held),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Unavailable,
    /// The server asks for this many seconds.
    Later(u64),
    Misconfigured,
    InDoubt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Saved,
    Found(Whose),
    FoundNothing,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lately {
    Refreshed,
    RefreshedUnsaved,
    Failed,
    Rejected,
    FoundItsOwnEpoch,
    FoundThisEpoch,
    FoundAnothers,
    Landed,
    Vanished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// For the end of a cool-down.
    Cooled,
    /// Until tokens are to be refreshed early.
    Due,
    AlmostProbation,
    Probation,
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Somebody wants newer tokens than those of so many generations ago.
    Board(Trigger, u64),
    // The flight:
    Claims,
    Refreshed(Brought, bool),
    Fails(Failure),
    IsRejected,
    Finds(Whose),
    FindsNothing,
    IsOvertaken,
    Dies,
    /// A flight of an epoch that is over.
    Late(Lately),
    // The write outside of flights:
    Reads,
    Writes(Written),
    // The app:
    SignsIn(Held),
    /// With the tokens that are in force already.
    SignsInAgain,
    SignsOut,
    /// A replay with the generation of so many ago was accepted, or not.
    Replayed(bool, u64),
    Passes(Wait),
}

impl Action {
    pub(super) fn all() -> Vec<Self> {
        use Brought::{New, TheSame, TheSameAccessToken};
        use Held::{Both, OnlyAccess, OnlyRefresh};
        use Lately::{FoundAnothers, FoundItsOwnEpoch, FoundThisEpoch, RefreshedUnsaved};
        use Whose::{Anothers, ThisEpoch};
        let mut all = vec![Self::Claims, Self::IsRejected, Self::FindsNothing, Self::IsOvertaken, Self::Dies];
        all.extend([Self::Reads, Self::SignsInAgain, Self::SignsOut]);
        for trigger in [Trigger::Challenge, Trigger::Early, Trigger::Acquire, Trigger::Manual] {
            all.extend([Self::Board(trigger, 0), Self::Board(trigger, 1)]);
        }
        for brought in [New, TheSameAccessToken, TheSame] {
            all.extend([Self::Refreshed(brought, true), Self::Refreshed(brought, false)]);
        }
        let failures = [Failure::Unavailable, Failure::Later(5), Failure::Later(9999), Failure::Misconfigured];
        all.extend(failures.map(Self::Fails));
        all.push(Self::Fails(Failure::InDoubt));
        let found = [ThisEpoch(New), ThisEpoch(TheSameAccessToken), Anothers(Both), Anothers(OnlyRefresh)];
        all.extend(found.map(Self::Finds));
        all.extend(found.map(|whose| Self::Writes(Written::Found(whose))));
        all.extend([Written::Saved, Written::FoundNothing, Written::Failed].map(Self::Writes));
        let late = [Lately::Refreshed, RefreshedUnsaved, Lately::Failed, Lately::Rejected, FoundItsOwnEpoch];
        all.extend(late.map(Self::Late));
        all.extend([FoundThisEpoch, FoundAnothers, Lately::Landed, Lately::Vanished].map(Self::Late));
        all.extend([Both, OnlyAccess, OnlyRefresh].map(Self::SignsIn));
        for age in [0, 1] {
            all.extend([Self::Replayed(true, age), Self::Replayed(false, age)]);
        }
        all.extend([Wait::Cooled, Wait::Due, Wait::AlmostProbation, Wait::Probation].map(Self::Passes));
        all
    }

    /// Those of one user whose store works: refusals, failures, time.
    pub(super) fn of_pace() -> Vec<Self> {
        let of_pace = |action: &Self| match action {
            Self::Board(trigger, age) => *trigger == Trigger::Challenge && *age == 0,
            Self::Refreshed(brought, saved) => *brought != Brought::TheSameAccessToken && *saved,
            Self::Fails(failure) => *failure == Failure::Unavailable,
            Self::Replayed(_, age) => *age == 0,
            Self::Passes(wait) => matches!(wait, Wait::Cooled | Wait::Probation),
            _ => *action == Self::Claims,
        };
        Self::all().into_iter().filter(of_pace).collect()
    }

    /// Those of users who come and go at one moment: sign-ins, peers, writes, late flights.
    pub(super) fn of_epochs() -> Vec<Self> {
        let of_epochs = |action: &Self| match action {
            Self::Board(trigger, age) => *trigger == Trigger::Manual && *age == 0,
            Self::Fails(failure) => *failure == Failure::InDoubt,
            _ => !matches!(action, Self::Replayed(..) | Self::Passes(_)),
        };
        Self::all().into_iter().filter(of_epochs).collect()
    }
}
