//! A model of the state machine's environment: the sources of its events, and their preconditions and contents.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use http::Method;
use tokio::time::Instant;

use super::super::{At, Decision, Event, Phase, RefreshSchedule, Results, State, Stored};
use super::action::{
    Action, Commit, Endpoint, Failure, Held, Initial, LateEnd, Looked, Received, RecordEpoch, Wait, Written,
};
use crate::refresh::{Generation, RefreshError, Trigger};
use crate::session::loop_guard;
use crate::store::{Claim, Entry, Epoch, Record, Version};
use crate::target::Target;
use crate::token::{AccessToken, RefreshToken, Tokens};

/// Returns the target of an endpoint.
pub(super) fn target(endpoint: Endpoint) -> Target {
    TARGETS[endpoint]
}

static TARGETS: LazyLock<[Target; 3]> =
    LazyLock::new(|| ["/a", "/b", "/c"].map(|path| Target::new(&Method::GET, b"api.example.com", path.as_bytes())));

/// Bounds of the model: the number of flights that outlive their epoch (a third would behave like the second), and of
/// sign-ins while the store takes no write.
const LATE: usize = 2;
const UNWRITTEN: usize = 2;

/// An epoch that only a peer knows.
pub(super) fn foreign() -> Epoch {
    Epoch::from(u64::MAX)
}

#[derive(Clone)]
pub(super) struct Environment {
    pub(super) initial_state: Initial,
    pub(super) config: Config,
    pub(super) state: State,
    pub(super) now: Instant,
    /// The wall clock at the start, and the monotonic one.
    started: (SystemTime, Instant),
    /// The flight of this epoch.
    pub(super) flight: Option<Flight>,
    /// The epochs of flights that outlive their epoch.
    pub(super) late: Vec<Epoch>,
    /// The write in progress: the part of the state that it has read.
    pub(super) sync: Option<Sync>,
    /// The results of the target that started the last flight.
    pub(super) results: Results,
    /// The look in progress: the state when it began.
    pub(super) look: Option<Rc<State>>,
    /// The number of tokens and epochs created so far.
    created: u64,

    // Facts that the rules track independently of the state:
    /// The first generation of this epoch with an access token.
    pub(super) first: Generation,
    /// The epochs of which the store may hold a record.
    pub(super) may_hold: Vec<Epoch>,
    /// A request was challenged with the generation in force.
    pub(super) challenged: bool,
    /// The answer to a call with the tokens in force was lost.
    pub(super) doubted: bool,
    /// The number of failed flights since the last tokens.
    pub(super) failures: u32,
    /// When the first of them failed.
    pub(super) failing_since: Option<SystemTime>,
    /// The number of the newest tokens of this epoch that the session has known.
    pub(super) newest: u64,
    /// When the tokens in force were obtained by a flight, here or in a peer.
    pub(super) obtained_at: Option<Instant>,
    /// The record of each endpoint.
    pub(super) trials: [Trial; 3],
    /// The epoch that the server's rejection ended, until the next one begins.
    pub(super) ended: Option<Epoch>,
}

/// What is known of an endpoint since it last accepted a token that is newer than those that it has refused.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trial {
    /// The flights that it started.
    pub(super) flights: u8,
    /// It refused a token in a replay, or got the refused token again.
    pub(super) refused_again: bool,
    /// The newest generation that it refused.
    pub(super) refused: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Config {
    pub(super) needs_refresh_token: bool,
    early: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flight {
    stage: Stage,
    /// Other tokens came into force since the flight was started.
    superseded: bool,
    /// The flight's task is dead, which no caller has noticed yet.
    dead: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Started,
    /// The flight holds the claim and may present the refresh token. Pending writes were done before.
    Claimed,
    /// The call has failed and issued a refresh token; the failure follows.
    Salvaged,
}

#[derive(Clone)]
pub(super) struct Sync {
    pub(super) epoch: Epoch,
    pub(super) place: u64,
    pub(super) tokens: Tokens,
    pub(super) stored: Stored,
}

impl Environment {
    /// The initial environments: sessions with different tokens and settings.
    pub(super) fn initial() -> Vec<Self> {
        let refreshed = Config { needs_refresh_token: true, early: false };
        let early = Config { early: true, ..refreshed };
        let credentials = Config { needs_refresh_token: false, ..refreshed };
        let stored = Initial::Stored;
        vec![
            Self::new(Initial::Nothing, refreshed),
            Self::new(stored(Held::Both), refreshed),
            Self::new(stored(Held::OnlyRefresh), refreshed),
            Self::new(stored(Held::Both), early),
            Self::new(stored(Held::Neither), credentials),
            Self::ordinary().refused_often(),
            Self::ordinary().failed_often(),
        ]
    }

    /// One wasted flight below the threshold of the loop guard.
    pub(super) fn refused_often(self) -> Self {
        let refusal = [
            Action::Challenge(0, 0),
            Action::Claims,
            Action::Refreshed(Received::New, Commit::Saved),
            Action::Replayed(0, false, 0),
        ];
        (1..loop_guard::LOOPING).fold(self.after_all(&refusal), |environment, _| environment.after_all(&refusal))
    }

    /// One failure below the longest pause.
    pub(super) fn failed_often(self) -> Self {
        let failure = [Action::Request(Trigger::Manual, 0), Action::Fails(Failure::Unavailable)];
        (0..6).fold(self, |environment, _| environment.after_all(&failure))
    }

    fn after_all(&self, actions: &[Action]) -> Self {
        let after = |environment: Self, action: &Action| environment.after(*action).expect("the action is possible");
        actions.iter().fold(self.clone(), after)
    }

    pub(super) fn new(initial_state: Initial, config: Config) -> Self {
        let now = Instant::now();
        let mut environment = Self {
            initial_state,
            config,
            state: State::signed_out(Epoch::from(1)),
            now,
            started: (SystemTime::now(), now),
            flight: None,
            late: Vec::new(),
            sync: None,
            look: None,
            results: Results { accepted: Generation(0), refused: Generation(0) },
            created: 2,
            first: Generation(1),
            may_hold: Vec::new(),
            challenged: false,
            doubted: false,
            failures: 0,
            failing_since: None,
            newest: 0,
            obtained_at: None,
            trials: [Trial::default(); 3],
            ended: None,
        };
        if let Initial::Stored(held) = initial_state {
            let entry = Entry::new(Epoch::from(1), 3, environment.tokens(held));
            let record = Record::new(version(1), entry);
            environment.may_hold = vec![record.epoch()];
            environment.newest = 3;
            environment.state = State::restored(record, environment.due());
            environment.note_first();
        }
        environment
    }

    /// A session with both tokens that refreshes when it is challenged.
    pub(super) fn ordinary() -> Self {
        Self::new(Initial::Stored(Held::Both), Config { needs_refresh_token: true, early: false })
    }

    /// Returns the environment after this action, if the action is possible.
    pub(super) fn after(&self, action: Action) -> Option<Self> {
        let mut environment = self.clone();
        environment.act(action)?;
        Some(environment)
    }

    fn act(&mut self, action: Action) -> Option<()> {
        match action {
            Action::Request(trigger, age) => self.request(trigger, None, age),
            Action::Challenge(endpoint, age) => self.request(Trigger::Challenge, Some(endpoint), age),
            Action::Claims => self.claims(),
            Action::Refreshed(received, commit) => self.refreshed(received, commit),
            Action::Salvages(commit) => self.salvages(commit),
            Action::Fails(failure) => self.fails(failure),
            Action::IsRejected => {
                self.end_flight_if(self.flight?.has_claim())?;
                let error = Arc::new(RefreshError::rejected("no"));
                let event = Event::Rejected { epoch: self.state.epoch, error, next: self.new_epoch() };
                self.step(event)
            }
            Action::Finds(record_epoch) => {
                self.end_flight_if(self.flight?.stage != Stage::Salvaged)?;
                self.adopts(self.state.epoch, self.state.place, record_epoch, true)
            }
            Action::FindsOlder => {
                self.flight.filter(|flight| !flight.dead && flight.stage == Stage::Started)?;
                matches!(self.state.stored, Stored::Clean(_)).then(|| self.went_back(self.state.epoch))?
            }
            Action::FindsNothing => {
                self.end_flight_if(self.flight?.stage != Stage::Salvaged)?;
                self.vanishes(self.state.epoch)
            }
            Action::IsSuperseded => {
                self.end_flight_if(self.flight?.superseded)?;
                self.step(Event::Finished { epoch: self.state.epoch })
            }
            Action::Dies => {
                let flight = self.flight.as_mut().filter(|flight| !flight.dead)?;
                flight.dead = true;
                Some(())
            }
            Action::Late(late_end) => self.late_end(late_end),
            Action::Reads => {
                let State { epoch, place, tokens, stored, .. } = self.state.clone();
                let outstanding = !matches!(stored, Stored::Clean(_)) && self.sync.is_none();
                outstanding.then(|| self.sync = Some(Sync { epoch, place, tokens, stored }))
            }
            Action::Writes(written) => self.writes(written),
            Action::Looks => {
                let begins = matches!(self.state.stored, Stored::Clean(_)) && self.look.is_none();
                begins.then(|| self.look = Some(Rc::new(self.state.clone())))
            }
            Action::Looked(looked) => self.looked(looked),
            Action::SignsIn(held) => {
                let tokens = self.tokens(held);
                self.signs_in(tokens)
            }
            Action::SignsInAgain => {
                let tokens = self.state.tokens.clone();
                (tokens != Tokens::default()).then(|| self.signs_in(tokens))?
            }
            Action::SignsOut => {
                let event = Event::SignedOut { next: self.new_epoch() };
                self.step(event)
            }
            Action::Renews(received, age) => {
                let (generation, tokens) = (self.carried(age)?, self.receive(received));
                self.step(Event::Renewed { epoch: self.state.epoch, generation, tokens, due: self.due() })
            }
            Action::Replayed(endpoint, accepted, age) => {
                let generation = self.carried(age)?;
                if accepted {
                    return self.accepted(endpoint, generation);
                }
                self.refused_again(endpoint, generation);
                Some(())
            }
            Action::Accepted(endpoint) => {
                let generation = self.carried(0)?;
                self.state.is_watching().then(|| self.accepted(endpoint, generation))?
            }
            Action::Advance(wait) => self.advance(wait),
        }
    }

    fn signs_in(&mut self, tokens: Tokens) -> Option<()> {
        let more = match &self.state.stored {
            Stored::SignInPending(over) | Stored::DeletePending(over) => over.len() < UNWRITTEN,
            Stored::Clean(_) | Stored::CommitPending(_) | Stored::OverwritePending(_) => true,
        };
        let event = more.then(|| Event::SignedIn { next: self.new_epoch(), tokens, due: self.due(), ends_at: None })?;
        self.step(event)
    }

    /// Does what the cell does when an endpoint has accepted a request.
    fn accepted(&mut self, endpoint: Endpoint, generation: Generation) -> Option<()> {
        let target = target(endpoint);
        if self.state.guard.is_starter(target) {
            self.results.accepted = generation.max(self.results.accepted);
        }
        if generation.0 > self.trials[endpoint].refused {
            // Its last flight may still turn out to be wasted.
            let is_open = self.state.guard.starter.is_some_and(|starter| starter.target == target);
            let trial = &mut self.trials[endpoint];
            *trial = Trial { flights: u8::from(is_open), refused_again: false, refused: trial.refused };
        }
        let results = self.results;
        if self.state.guard.is_changed_by_acceptance(target, generation, results) {
            self.step(Event::Accepted { target, generation, results })?;
        }
        Some(())
    }

    /// Does what the cell does when an endpoint has refused a replay.
    fn refused_again(&mut self, endpoint: Endpoint, generation: Generation) {
        if self.state.guard.is_starter(target(endpoint)) {
            self.results.refused = generation.max(self.results.refused);
        }
        let trial = &mut self.trials[endpoint];
        (trial.refused_again, trial.refused) = (true, trial.refused.max(generation.0));
    }

    /// Does what the cell does, under its lock, for a caller that asks for newer tokens.
    fn request(&mut self, trigger: Trigger, endpoint: Option<Endpoint>, age: u64) -> Option<()> {
        let early = self.state.due.as_deref().is_some_and(|due| self.now >= due.early);
        let generation = match trigger {
            Trigger::Challenge => self.carried(age)?,
            Trigger::Early if !early => return None,
            _ => Generation(self.state.generation.0.checked_sub(age)?),
        };
        let epoch = self.state.epoch;
        if self.flight.is_some_and(|flight| flight.dead) {
            self.flight = None;
            let error = Arc::new(RefreshError::in_doubt("the flight died"));
            self.step(Event::Failed { epoch, error, in_doubt: true })?;
        }
        let results = self.results;
        if let Some(endpoint) = endpoint {
            self.step(Event::Challenged { target: target(endpoint), generation, results })?;
        }
        let decision = self.decide(trigger, endpoint, generation);
        self.check_decision(endpoint, &decision);
        if let Decision::Start = decision {
            self.flight = Some(Flight { stage: Stage::Started, superseded: false, dead: false });
            self.step(Event::Started { trigger, target: endpoint.map(target), results })?;
            if let Some(endpoint) = endpoint {
                let trial = &mut self.trials[endpoint];
                trial.flights = trial.flights.saturating_add(1);
                trial.refused = trial.refused.max(generation.0);
            }
        }
        Some(())
    }

    pub(super) fn decide(&self, trigger: Trigger, endpoint: Option<Endpoint>, generation: Generation) -> Decision {
        let (epoch, target) = (self.state.epoch, endpoint.map(target));
        self.state.decide(epoch, generation, trigger, target, self.config.needs_refresh_token, self.now)
    }

    /// The generation of `age` ago, if a request of this epoch can have been sent with it.
    fn carried(&self, age: u64) -> Option<Generation> {
        let generation = Generation(self.state.generation.0.checked_sub(age)?);
        let is_signed_in = matches!(self.state.phase, Phase::Active | Phase::Refreshing);
        (is_signed_in && generation >= self.first).then_some(generation)
    }

    fn claims(&mut self) -> Option<()> {
        let flight = self.flight.as_mut().filter(|flight| !flight.dead && flight.stage == Stage::Started)?;
        // Otherwise the flight first does the pending write.
        matches!(self.state.stored, Stored::Clean(Some(_))).then(|| flight.stage = Stage::Claimed)
    }

    /// Ends the flight if `can` holds and its task is alive.
    fn end_flight_if(&mut self, can: bool) -> Option<()> {
        let flight = self.flight.filter(|flight| can && !flight.dead);
        flight.is_some().then(|| self.flight = None)
    }

    fn refreshed(&mut self, received: Received, commit: Commit) -> Option<()> {
        self.end_flight_if(self.flight?.has_claim())?;
        let (tokens, due, stored) = (self.receive(received), self.due(), stored(commit));
        self.step(Event::Refreshed { epoch: self.state.epoch, place: self.state.place + 1, tokens, stored, due })
    }

    fn salvages(&mut self, commit: Commit) -> Option<()> {
        let flight = self.flight.as_mut().filter(|flight| !flight.dead && flight.has_claim())?;
        flight.stage = Stage::Salvaged;
        let refresh = self.tokens(Held::Both).refresh_token().expect("both tokens").clone();
        let tokens = self.state.tokens.clone().with_refresh_token(refresh);
        let (epoch, place) = (self.state.epoch, self.state.place + 1);
        self.step(Event::Salvaged { epoch, place, tokens, stored: stored(commit) })
    }

    fn fails(&mut self, failure: Failure) -> Option<()> {
        let flight = self.flight?;
        // Once a refresh token was salvaged, nothing is in doubt.
        self.end_flight_if(match flight.stage {
            Stage::Started => failure == Failure::Unavailable,
            Stage::Claimed => true,
            Stage::Salvaged => failure != Failure::InDoubt,
        })?;
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

    /// Adopts a record that isn't older than the tokens at `place`, to which the store was compared.
    fn adopts(&mut self, epoch: Epoch, place: u64, record_epoch: RecordEpoch, ends_flight: bool) -> Option<()> {
        let entry = match record_epoch {
            RecordEpoch::ThisEpoch(received) => {
                let more = u64::from(received == Received::New);
                Entry::new(epoch, place + more, self.receive(received))
            }
            RecordEpoch::AnotherEpoch(held) => Entry::new(self.new_epoch(), 2, self.tokens(held)),
        };
        let record = Record::new(version(3), entry);
        let due = self.due();
        self.step(Event::Adopted { epoch, record, due, ends_flight })
    }

    fn went_back(&mut self, epoch: Epoch) -> Option<()> {
        self.step(Event::StoreWentBack { epoch, version: version(6) })
    }

    fn vanishes(&mut self, epoch: Epoch) -> Option<()> {
        let next = self.new_epoch();
        self.step(Event::RecordGone { epoch, next })
    }

    /// Ends a flight of an earlier epoch.
    fn late_end(&mut self, late_end: LateEnd) -> Option<()> {
        let epoch = self.late.pop()?;
        let (tokens, due) = (self.tokens(Held::Both), self.due());
        let error = Arc::new(RefreshError::rejected("no"));
        let found = |of| {
            let record = Record::new(version(4), Entry::new(of, 9, tokens.clone()));
            Event::Adopted { epoch, record, due, ends_flight: true }
        };
        let event = match late_end {
            LateEnd::Refreshed => Event::Refreshed { epoch, place: 9, tokens, stored: stored(Commit::Saved), due },
            LateEnd::RefreshedUnsaved => {
                Event::Refreshed { epoch, place: 9, tokens, stored: stored(Commit::Failed), due }
            }
            LateEnd::Failed => Event::Failed { epoch, error, in_doubt: true },
            LateEnd::Rejected => Event::Rejected { epoch, error, next: foreign() },
            LateEnd::FoundItsOwnEpoch => found(epoch),
            LateEnd::FoundThisEpoch => found(self.state.epoch),
            LateEnd::FoundAnotherEpoch => found(foreign()),
            LateEnd::FoundOlder => Event::StoreWentBack { epoch, version: version(6) },
            LateEnd::Salvaged => Event::Salvaged { epoch, place: 9, tokens, stored: stored(Commit::Failed) },
            LateEnd::Landed => Event::Finished { epoch },
            LateEnd::Vanished => Event::RecordGone { epoch, next: foreign() },
        };
        self.step(event)
    }

    /// Ends the write in progress.
    fn writes(&mut self, written: Written) -> Option<()> {
        let Sync { epoch, place, tokens, stored } = self.sync.take()?;
        match (written, stored) {
            (Written::Failed, _) => Some(()),
            (Written::Saved, Stored::DeletePending(epochs)) => self.step(Event::Deleted { epochs }),
            (Written::Claimed, Stored::OverwritePending(older)) => {
                let claim = Arc::new(Claim::new(older, 7_u64.into(), false));
                self.step(Event::OverwriteClaimed { epoch, claim })
            }
            (_, Stored::DeletePending(_) | Stored::Clean(_))
            | (Written::Claimed, _)
            | (Written::Saved, Stored::OverwritePending(_)) => None,
            (Written::Saved, _) => self.step(Event::Saved { epoch, tokens, version: version(5) }),
            (Written::Found(record_epoch), _) => self.adopts(epoch, place, record_epoch, false),
            (Written::FoundOlder, _) => self.went_back(epoch),
            (Written::FoundNothing, Stored::CommitPending(_) | Stored::OverwritePending(_)) => self.vanishes(epoch),
            _ => None,
        }
    }

    /// Ends the look in progress.
    fn looked(&mut self, looked: Looked) -> Option<()> {
        let before = self.look.take()?;
        let (epoch, place, is_over) = (before.epoch, before.place, before.is_over());
        let of_epoch = |place, tokens| (!is_over).then(|| Entry::new(epoch, place, tokens));
        let entry = match looked {
            Looked::Newer(received) => Some(of_epoch(place + 1, self.receive(received))?),
            Looked::Same => Some(of_epoch(place, before.tokens.clone())?),
            Looked::Older => Some(of_epoch(place.checked_sub(1)?, self.tokens(Held::Both))?),
            Looked::AnotherEpoch(held) => Some(Entry::new(self.new_epoch(), 2, self.tokens(held))),
            Looked::Nothing => None,
        };
        let found = entry.map(|entry| Record::new(version(3), entry));
        let Some(mut event) = self.state.event_of_look(&before, found, self.due()) else { return Some(()) };
        assert_eq!(self.state.epoch, epoch, "10: a look changes nothing once its epoch is over");
        if let Event::RecordGone { next, .. } = &mut event {
            *next = self.new_epoch();
        }
        self.step(event)
    }

    fn advance(&mut self, wait: Wait) -> Option<()> {
        self.now = match wait {
            Wait::Cooled => self.state.cooling.as_ref().filter(|cooling| cooling.until > self.now)?.until,
            Wait::Released => self.state.guard.row.as_ref()?.until.filter(|until| *until > self.now)?,
            Wait::Due => self.state.due.as_deref().filter(|due| due.early > self.now)?.early,
            Wait::AlmostProbation => self.now + loop_guard::PROBATION - Duration::from_secs(1),
            Wait::Probation => self.now + loop_guard::PROBATION,
            Wait::Memory => self.now + loop_guard::MEMORY,
        };
        Some(())
    }

    /// The only place where the state changes.
    #[expect(clippy::needless_pass_by_value, clippy::unnecessary_wraps, reason = "the last expression of an action")]
    pub(super) fn step(&mut self, event: Event) -> Option<()> {
        let before = self.clone();
        let (state, effect) = self.state.step(event.clone(), At { now: self.now, wall: self.wall(), jitter: 0.0 });
        self.state = state;
        self.remember(&before.state, &event);
        self.check_step(&before, &event, &effect);
        if self.state.epoch != before.state.epoch {
            // As in the cell: no caller waits in another epoch.
            if self.flight.is_some_and(|flight| !flight.dead) {
                self.late.insert(0, before.state.epoch);
                self.late.truncate(LATE);
            }
            self.flight = None;
        } else if self.state.generation != before.state.generation
            && let Some(flight) = &mut self.flight
        {
            flight.superseded = true;
        }
        Some(())
    }

    pub(super) fn wall(&self) -> SystemTime {
        let (wall, now) = self.started;
        wall + self.now.duration_since(now)
    }

    fn new_epoch(&mut self) -> Epoch {
        self.created += 1;
        Epoch::from(self.created)
    }

    /// Creates unique tokens.
    fn tokens(&mut self, held: Held) -> Tokens {
        self.created += 1;
        let (both, access, refresh) = &TOKENS[usize::try_from(self.created).expect("a small number") % TOKENS.len()];
        match held {
            Held::Both => both,
            Held::OnlyAccess => access,
            Held::OnlyRefresh => refresh,
            Held::Neither => return Tokens::default(),
        }
        .clone()
    }

    /// The tokens of an answer, or of a peer's record, of this epoch. Missing parts are taken from the tokens in force.
    fn receive(&mut self, received: Received) -> Tokens {
        let old = self.state.tokens.clone();
        let new = self.tokens(Held::Both);
        let access = match received {
            Received::New => new.access_token(),
            Received::SameAccessToken | Received::Unchanged => old.access_token().or(new.access_token()),
        };
        let access = access.expect("a new access token").clone();
        let refresh = match received {
            Received::Unchanged => old.refresh_token(),
            Received::New | Received::SameAccessToken => new.refresh_token(),
        };
        match refresh {
            Some(refresh) => Tokens::new(access, refresh.clone()),
            None => Tokens::from_access_token(access),
        }
    }

    fn due(&self) -> Option<RefreshSchedule> {
        let (early, expired) = (self.now + Duration::from_secs(30), self.now + Duration::from_secs(60));
        let expired_wall = self.wall() + Duration::from_secs(60);
        self.config.early.then_some(RefreshSchedule { early, expired, expired_wall })
    }
}

/// Created once: allocating secrets would dominate the run time.
static TOKENS: LazyLock<Vec<(Tokens, Tokens, Tokens)>> = LazyLock::new(|| {
    let tokens = |n| {
        let access = AccessToken::new(format!("a{n}")).unwrap();
        let refresh = RefreshToken::new(format!("r{n}")).unwrap();
        let both = Tokens::new(access.clone(), refresh.clone());
        (both, Tokens::from_access_token(access), Tokens::from_refresh_token(refresh))
    };
    (0..1024).map(tokens).collect()
});

impl Flight {
    /// Returns `true` if the flight holds the claim, and the outcome of its call is open.
    fn has_claim(self) -> bool {
        self.stage == Stage::Claimed
    }
}

fn version(number: u64) -> Version {
    Version::from(number)
}

/// The store's content after the write of a flight's tokens.
fn stored(commit: Commit) -> Stored {
    match commit {
        Commit::Saved => Stored::Clean(Some(version(2))),
        Commit::Failed => Stored::CommitPending(Arc::new(Claim::new(version(2), 2_u64.into(), false))),
        Commit::FoundOlder => Stored::OverwritePending(version(6)),
    }
}
