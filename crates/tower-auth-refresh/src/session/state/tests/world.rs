//! What surrounds the state machine: who sends it events, in which situations, and with what in them.

use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

use super::super::{At, Decision, Event, Phase, RefreshSchedule, Results, State, Stored};
use super::action::{Action, Beginning, Brought, Failure, Held, Lately, Wait, Whose, Written};
use crate::refresh::{Generation, RefreshError, Trigger};
use crate::session::loop_guard;
use crate::store::{Claim, Epoch, Record, Version};
use crate::token::{AccessToken, RefreshToken, Tokens};

/// Bounds of the model: a flight more that goes on after its epoch behaves like the two; and while the store takes
/// nothing, the app signs in so many times.
const LATE: usize = 2;
const UNWRITTEN: usize = 2;

/// An epoch that nobody knows but who wrote it.
pub(super) const FOREIGN: Epoch = Epoch(u64::MAX);

#[derive(Clone)]
pub(super) struct World {
    pub(super) beginning: Beginning,
    pub(super) config: Config,
    pub(super) state: State,
    pub(super) now: Instant,
    /// The flight of this epoch.
    pub(super) flight: Option<Flight>,
    /// The epochs of flights that go on, though those are over.
    pub(super) late: Vec<Epoch>,
    /// The write that is under way: what it read of the state.
    pub(super) sync: Option<Sync>,
    /// The newest generations with which a replay was accepted, and refused.
    pub(super) accepted: Generation,
    pub(super) refused: Generation,
    /// How many tokens and epochs there have been.
    minted: u64,

    // What the rules remember, each in its own words:
    /// The first generation of this epoch with an access token.
    pub(super) first: Generation,
    /// The epochs of which the store may hold a record.
    pub(super) may_hold: Vec<Epoch>,
    /// A request was challenged with the generation in force.
    pub(super) challenged: bool,
    /// The answer to a call with the tokens in force was lost.
    pub(super) doubted: bool,
    /// Flights that failed since the last tokens.
    pub(super) failures: u32,
    /// When the tokens in force came out of a flight, or from a peer's.
    pub(super) bought: Option<Instant>,
    /// The generation of the last strike.
    pub(super) last_refusal: Generation,
    /// The epoch that was ended by the server's own word, until the next one.
    pub(super) ended: Option<Epoch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Config {
    pub(super) needs_refresh_token: bool,
    early: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flight {
    /// It has the right to present the refresh token: everything was saved before.
    pub(super) claimed: bool,
    /// There have been other tokens since it was started.
    overtaken: bool,
    /// Its task is gone, and nobody has noticed yet.
    dead: bool,
}

#[derive(Clone)]
pub(super) struct Sync {
    pub(super) epoch: Epoch,
    pub(super) tokens: Tokens,
    pub(super) stored: Stored,
}

impl World {
    /// The sessions that there are, with their different settings.
    pub(super) fn beginnings() -> Vec<Self> {
        let refreshed = Config { needs_refresh_token: true, early: false };
        let early = Config { early: true, ..refreshed };
        let credentials = Config { needs_refresh_token: false, ..refreshed };
        let stored = Beginning::Stored;
        vec![
            Self::new(Beginning::Nothing, refreshed),
            Self::new(stored(Held::Both), refreshed),
            Self::new(stored(Held::OnlyRefresh), refreshed),
            Self::new(stored(Held::Both), early),
            Self::new(stored(Held::Neither), credentials),
            Self::ordinary().refused_often(),
            Self::ordinary().failed_often(),
        ]
    }

    /// One strike before it counts as a loop.
    pub(super) fn refused_often(self) -> Self {
        let refusal = [Action::Board(Trigger::Challenge, 0), Action::Claims, Action::Refreshed(Brought::New, true)];
        (1..loop_guard::LOOPING).fold(self.after_all(&refusal), |world, _| world.after_all(&refusal))
    }

    /// One failure before the pauses grow no longer.
    pub(super) fn failed_often(self) -> Self {
        let failure = [Action::Board(Trigger::Manual, 0), Action::Fails(Failure::Unavailable)];
        (0..6).fold(self, |world, _| world.after_all(&failure))
    }

    fn after_all(&self, actions: &[Action]) -> Self {
        let after = |world: Self, action: &Action| world.after(*action).expect("it can happen");
        actions.iter().fold(self.clone(), after)
    }

    pub(super) fn new(beginning: Beginning, config: Config) -> Self {
        let now = Instant::now();
        let mut world = Self {
            beginning,
            config,
            state: State::signed_out(Epoch(1)),
            now,
            flight: None,
            late: Vec::new(),
            sync: None,
            accepted: Generation(0),
            refused: Generation(0),
            minted: 2,
            first: Generation(1),
            may_hold: Vec::new(),
            challenged: false,
            doubted: false,
            failures: 0,
            bought: None,
            last_refusal: Generation(0),
            ended: None,
        };
        if let Beginning::Stored(held) = beginning {
            let record = Record { version: Version(1), epoch: Epoch(1), tokens: world.tokens(held) };
            world.may_hold = vec![record.epoch];
            world.state = State::restored(record, world.due());
            world.note_first();
        }
        world
    }

    /// One session that refreshes when it is challenged, with both tokens.
    pub(super) fn ordinary() -> Self {
        Self::new(Beginning::Stored(Held::Both), Config { needs_refresh_token: true, early: false })
    }

    /// The world after this, if it can happen.
    pub(super) fn after(&self, action: Action) -> Option<Self> {
        let mut world = self.clone();
        world.act(action)?;
        Some(world)
    }

    fn act(&mut self, action: Action) -> Option<()> {
        match action {
            Action::Board(trigger, age) => self.board(trigger, age),
            Action::Claims => self.claims(),
            Action::Refreshed(brought, saved) => self.refreshed(brought, saved),
            Action::Fails(failure) => self.fails(failure),
            Action::IsRejected => {
                self.land_if(self.flight?.claimed)?;
                let error = Arc::new(RefreshError::rejected("no"));
                let event = Event::Rejected { epoch: self.state.epoch, error, next: self.mint() };
                self.step(event)
            }
            Action::Finds(whose) => {
                self.land_if(true)?;
                self.adopts(self.state.epoch, whose, true)
            }
            Action::FindsNothing => {
                self.land_if(true)?;
                self.vanishes(self.state.epoch)
            }
            Action::IsOvertaken => {
                self.land_if(self.flight?.overtaken)?;
                self.step(Event::Finished { epoch: self.state.epoch })
            }
            Action::Dies => {
                let flight = self.flight.as_mut().filter(|flight| !flight.dead)?;
                flight.dead = true;
                Some(())
            }
            Action::Late(lately) => self.lately(lately),
            Action::Reads => {
                let State { epoch, tokens, stored, .. } = self.state.clone();
                let outstanding = !matches!(stored, Stored::Clean(_)) && self.sync.is_none();
                outstanding.then(|| self.sync = Some(Sync { epoch, tokens, stored }))
            }
            Action::Writes(written) => self.writes(written),
            Action::SignsIn(held) => {
                let tokens = self.tokens(held);
                self.signs_in(tokens)
            }
            Action::SignsInAgain => {
                let tokens = self.state.tokens.clone();
                (tokens != Tokens::default()).then(|| self.signs_in(tokens))?
            }
            Action::SignsOut => {
                let event = Event::SignedOut { next: self.mint() };
                self.step(event)
            }
            Action::Replayed(accepted, age) => {
                let generation = self.carried(age)?;
                let newest = if accepted { &mut self.accepted } else { &mut self.refused };
                *newest = generation.max(*newest);
                Some(())
            }
            Action::Passes(wait) => self.passes(wait),
        }
    }

    fn signs_in(&mut self, tokens: Tokens) -> Option<()> {
        let more = match &self.state.stored {
            Stored::SignInPending(over) | Stored::DeletePending(over) => over.len() < UNWRITTEN,
            Stored::Clean(_) | Stored::CommitPending(_) => true,
        };
        let event = more.then(|| Event::SignedIn { next: self.mint(), tokens, due: self.due() })?;
        self.step(event)
    }

    /// What the cell does for somebody who wants newer tokens, under its lock.
    fn board(&mut self, trigger: Trigger, age: u64) -> Option<()> {
        let early = self.state.due.as_deref().is_some_and(|due| self.now >= due.early);
        let generation = match trigger {
            Trigger::Challenge => self.carried(age)?,
            Trigger::Early if !early => return None,
            _ => Generation(self.state.generation.0.checked_sub(age)?),
        };
        let epoch = self.state.epoch;
        if self.flight.is_some_and(|flight| flight.dead) {
            self.flight = None;
            let error = Arc::new(RefreshError::in_doubt("it died"));
            self.step(Event::Failed { epoch, error, in_doubt: true })?;
        }
        if trigger == Trigger::Challenge {
            self.step(Event::Challenged {
                generation,
                results: Results { accepted: self.accepted, refused: self.refused },
            })?;
        } else if trigger == Trigger::Early && self.state.has_recovered(self.accepted) {
            self.step(Event::Recovered)?;
        }
        if let Decision::Start = self.decide(trigger, generation) {
            self.flight = Some(Flight { claimed: false, overtaken: false, dead: false });
            self.step(Event::Started)?;
        }
        Some(())
    }

    pub(super) fn decide(&self, trigger: Trigger, generation: Generation) -> Decision {
        self.state.decide(self.state.epoch, generation, trigger, self.config.needs_refresh_token, self.now)
    }

    /// The generation of so many ago, if a request of this epoch can have been sent with it.
    fn carried(&self, age: u64) -> Option<Generation> {
        let generation = Generation(self.state.generation.0.checked_sub(age)?);
        let is_signed_in = matches!(self.state.phase, Phase::Active | Phase::Refreshing);
        (is_signed_in && generation >= self.first).then_some(generation)
    }

    fn claims(&mut self) -> Option<()> {
        let flight = self.flight.as_mut().filter(|flight| !flight.dead && !flight.claimed)?;
        // Otherwise it saves first, by the one write at a time that there is.
        matches!(self.state.stored, Stored::Clean(Some(_))).then(|| flight.claimed = true)
    }

    /// The flight is over, if it lives and `can`.
    fn land_if(&mut self, can: bool) -> Option<()> {
        let flight = self.flight.filter(|flight| can && !flight.dead);
        flight.is_some().then(|| self.flight = None)
    }

    fn refreshed(&mut self, brought: Brought, saved: bool) -> Option<()> {
        self.land_if(self.flight?.claimed)?;
        let (tokens, due) = (self.bring(brought), self.due());
        let stored = if saved { Stored::Clean(Some(Version(2))) } else { unsaved() };
        self.step(Event::Refreshed { epoch: self.state.epoch, tokens, stored, due })
    }

    fn fails(&mut self, failure: Failure) -> Option<()> {
        let claimed = self.flight?.claimed;
        self.land_if(claimed || failure == Failure::Unavailable)?;
        let error = match failure {
            Failure::Unavailable => RefreshError::unavailable("no"),
            Failure::Later(seconds) => RefreshError::unavailable("no").with_retry_after(Duration::from_secs(seconds)),
            Failure::Misconfigured => RefreshError::misconfigured("no"),
            Failure::InDoubt => RefreshError::in_doubt("no"),
        };
        let event =
            Event::Failed { epoch: self.state.epoch, error: Arc::new(error), in_doubt: failure == Failure::InDoubt };
        self.step(event)
    }

    fn adopts(&mut self, epoch: Epoch, whose: Whose, ends_flight: bool) -> Option<()> {
        let (of, tokens) = match whose {
            Whose::ThisEpoch(brought) => (epoch, self.bring(brought)),
            Whose::Anothers(held) => (self.mint(), self.tokens(held)),
        };
        let record = Record { version: Version(3), epoch: of, tokens };
        let due = self.due();
        self.step(Event::Adopted { epoch, record, due, ends_flight })
    }

    fn vanishes(&mut self, epoch: Epoch) -> Option<()> {
        let next = self.mint();
        self.step(Event::RecordGone { epoch, next })
    }

    /// A flight whose epoch is over ends.
    fn lately(&mut self, lately: Lately) -> Option<()> {
        let epoch = self.late.pop()?;
        let (tokens, due) = (self.tokens(Held::Both), self.due());
        let error = Arc::new(RefreshError::rejected("no"));
        let found = |of| {
            let record = Record { version: Version(4), epoch: of, tokens: tokens.clone() };
            Event::Adopted { epoch, record, due, ends_flight: true }
        };
        let event = match lately {
            Lately::Refreshed => Event::Refreshed { epoch, tokens, stored: Stored::Clean(Some(Version(4))), due },
            Lately::RefreshedUnsaved => Event::Refreshed { epoch, tokens, stored: unsaved(), due },
            Lately::Failed => Event::Failed { epoch, error, in_doubt: true },
            Lately::Rejected => Event::Rejected { epoch, error, next: FOREIGN },
            Lately::FoundItsOwnEpoch => found(epoch),
            Lately::FoundThisEpoch => found(self.state.epoch),
            Lately::FoundAnothers => found(FOREIGN),
            Lately::Landed => Event::Finished { epoch },
            Lately::Vanished => Event::RecordGone { epoch, next: FOREIGN },
        };
        self.step(event)
    }

    /// The write that is under way comes to an end.
    fn writes(&mut self, written: Written) -> Option<()> {
        let Sync { epoch, tokens, stored } = self.sync.take()?;
        match (written, stored) {
            (Written::Failed, _) => Some(()),
            (Written::Saved, Stored::DeletePending(epochs)) => self.step(Event::Deleted { epochs }),
            (Written::Saved, Stored::SignInPending(_) | Stored::CommitPending(_)) => {
                self.step(Event::Saved { epoch, tokens, version: Version(5) })
            }
            (Written::Found(whose), Stored::SignInPending(_) | Stored::CommitPending(_)) => {
                self.adopts(epoch, whose, false)
            }
            (Written::FoundNothing, Stored::CommitPending(_)) => self.vanishes(epoch),
            _ => None,
        }
    }

    fn passes(&mut self, wait: Wait) -> Option<()> {
        self.now = match wait {
            Wait::Cooled => self.state.cooling.as_ref().filter(|cooling| cooling.until > self.now)?.until,
            Wait::Due => self.state.due.as_deref().filter(|due| due.early > self.now)?.early,
            Wait::AlmostProbation => self.now + loop_guard::PROBATION - Duration::from_secs(1),
            Wait::Probation => self.now + loop_guard::PROBATION,
        };
        Some(())
    }

    /// The only place where the state changes.
    #[expect(clippy::needless_pass_by_value, clippy::unnecessary_wraps, reason = "it is what an action ends with")]
    pub(super) fn step(&mut self, event: Event) -> Option<()> {
        let before = self.clone();
        let (state, effect) = self.state.step(event.clone(), At { now: self.now, jitter: 0.0 });
        self.state = state;
        self.remember(&before.state, &event);
        self.check_step(&before, &event, &effect);
        if self.state.epoch != before.state.epoch {
            // As the cell does: nobody waits in another epoch.
            if self.flight.is_some_and(|flight| !flight.dead) {
                self.late.insert(0, before.state.epoch);
                self.late.truncate(LATE);
            }
            self.flight = None;
        } else if self.state.generation != before.state.generation
            && let Some(flight) = &mut self.flight
        {
            flight.overtaken = true;
        }
        Some(())
    }

    fn mint(&mut self) -> Epoch {
        self.minted += 1;
        Epoch(self.minted)
    }

    /// Tokens like no others.
    fn tokens(&mut self, held: Held) -> Tokens {
        self.minted += 1;
        let (both, access, refresh) = &MINT[usize::try_from(self.minted).expect("a few") % MINT.len()];
        match held {
            Held::Both => both,
            Held::OnlyAccess => access,
            Held::OnlyRefresh => refresh,
            Held::Neither => return Tokens::default(),
        }
        .clone()
    }

    /// What an answer, or a peer's record, of this epoch holds. It is completed from what there was.
    fn bring(&mut self, brought: Brought) -> Tokens {
        let old = self.state.tokens.clone();
        let new = self.tokens(Held::Both);
        let access = match brought {
            Brought::New => new.access_token(),
            Brought::TheSameAccessToken | Brought::TheSame => old.access_token().or(new.access_token()),
        };
        let access = access.expect("a new one at least").clone();
        let refresh = match brought {
            Brought::TheSame => old.refresh_token(),
            Brought::New | Brought::TheSameAccessToken => new.refresh_token(),
        };
        match refresh {
            Some(refresh) => Tokens::new(access, refresh.clone()),
            None => Tokens::from_access_token(access),
        }
    }

    fn due(&self) -> Option<RefreshSchedule> {
        let (early, expired) = (self.now + Duration::from_secs(30), self.now + Duration::from_secs(60));
        self.config.early.then_some(RefreshSchedule { early, expired })
    }
}

/// Made once: to allocate secrets takes longer than all the rest.
static MINT: LazyLock<Vec<(Tokens, Tokens, Tokens)>> = LazyLock::new(|| {
    let tokens = |n| {
        let access = AccessToken::new(format!("a{n}")).unwrap();
        let refresh = RefreshToken::new(format!("r{n}")).unwrap();
        let both = Tokens::new(access.clone(), refresh.clone());
        (both, Tokens::from_access_token(access), Tokens::from_refresh_token(refresh))
    };
    (0..1024).map(tokens).collect()
});

fn unsaved() -> Stored {
    Stored::CommitPending(Arc::new(Claim { version: Version(2), id: 2, in_doubt: false }))
}
