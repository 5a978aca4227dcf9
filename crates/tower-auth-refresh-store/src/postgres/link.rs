//! Connections to the server, which are opened when they are needed, and again after they have failed.
//!
//! A [`Link`] is the place of one connection. Calls share the connection: each sends its statement at once, and the server
//! answers them in order. A connection that answers none of them is retired: the next calls get a new one. The old one is
//! kept until it ends by itself, for a minute at most, and counts. Its statements are cancelled then, so that
//! a server whose statements hang doesn't have ever more connections.

use std::ops::Deref;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_postgres::types::Type;
use tokio_postgres::{CancelToken, Client, Row};

use super::fault::{Fault, fault_of};
use super::prepared::Prepared;
use super::schema::Parameters;
use super::server::{Connected, Driver, Server};
use super::stream::Endpoint;
use crate::error::{Problem, StoreErrorKind};
use crate::random;

/// The time for one host, from the first packet until the server is ready, doubles from the first to the last attempt that
/// fails: a dead host leaves time for the next one, and a slow one is waited for.
const PATIENCE: [Duration; 2] = [Duration::from_millis(1500), Duration::from_secs(12)];
/// The time after which a connection that answers no statement is retired.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The time for a retired connection to end by itself, and that for cancelling its statements then: together less than
/// a minute. On Linux, one to a dead server ends earlier, by `tcp_user_timeout`, unless a proxy acknowledges its data.
const RETIREMENT: Duration = Duration::from_secs(50);
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// The pauses between failed attempts to connect double from the first to the last. Each is shortened by up to a half.
const PAUSES: [Duration; 2] = [Duration::from_millis(40), Duration::from_secs(1)];

/// A statement, and the fate of one whose answer is lost.
#[derive(Clone, Copy)]
pub(super) struct Statement<'a> {
    pub(super) sql: &'a str,
    pub(super) parameters: Parameters<'a>,
    pub(super) effect: Effect,
    /// It is prepared where that is safe. There is one such statement.
    pub(super) is_prepared: bool,
}

/// The effect that a statement may have when it is late, or repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It changes nothing that another process has changed since: it is repeated if its answer is lost.
    Repeatable,
    /// It is repeated as well, but has no effect once the call has ended. Its last parameter is the time until when it has.
    InTime,
    /// It could undo what other processes have done since: it isn't repeated either.
    OnceInTime,
}

/// The place of a connection.
pub(super) struct Link {
    server: Arc<Server>,
    state: watch::Sender<State>,
    demand: Arc<Notify>,
    task: AbortHandle,
    /// The number of gathered reads under way.
    reads: AtomicUsize,
}

/// A gathered read on a link, until it is dropped.
pub(super) struct Reading<'a>(&'a Link);

/// A connection that is lent to calls.
pub(super) struct Open {
    client: Client,
    /// The number of its answers so far, by which one that is slow is told from one that is dead.
    answers: AtomicUsize,
    prepared: Prepared,
    /// Of the task that drives it.
    runtime: Handle,
}

enum State {
    Open(Arc<Open>),
    /// With the last failure to open it, if that was the last thing that happened.
    Closed(Option<Problem>),
}

impl Link {
    pub(super) fn new(server: Arc<Server>, runtime: &Handle) -> Self {
        let (state, demand) = (watch::Sender::new(State::Closed(None)), Arc::new(Notify::new()));
        let task = runtime.spawn(keep_open(Arc::clone(&server), state.clone(), Arc::clone(&demand))).abort_handle();
        Self { server, state, demand, task, reads: AtomicUsize::new(0) }
    }

    /// Returns the number of gathered reads under way, or the greatest number if the connection could not be opened.
    pub(super) fn reads(&self) -> usize {
        match *self.state.borrow() {
            State::Closed(Some(_)) => usize::MAX,
            State::Open(_) | State::Closed(None) => self.reads.load(Ordering::Relaxed),
        }
    }

    /// Executes a statement, and returns its rows.
    pub(super) async fn execute(&self, statement: Statement<'_>, deadline: Instant) -> Result<Vec<Row>, Fault> {
        let Statement { parameters, effect, .. } = statement;
        // An attempt may have had an effect, whatever becomes of the later ones.
        let mut is_lost = false;
        loop {
            let open = match self.open(deadline).await {
                Ok(open) => open,
                Err(problem) if is_lost => return Err(Fault::Lost(problem)),
                Err(problem) => return Err(Fault::Refused(problem)),
            };
            // There has to be time to look for the effect of one that is lost.
            let ends =
                if effect == Effect::OnceInTime { Instant::now() + ANSWER_TIMEOUT } else { deadline }.min(deadline);
            let in_time = self.server.time_in(ends.saturating_duration_since(Instant::now()));
            let mut parameters = parameters.to_vec();
            if effect != Effect::Repeatable {
                parameters.push((&in_time, Type::TIMESTAMPTZ));
            }
            let attempt = Statement { parameters: &parameters, ..statement };
            let fault = match open.query(attempt, ends).await {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) => fault_of(&error),
                Err(Elapsed { is_dead }) => {
                    if is_dead {
                        self.retire(&open);
                    }
                    Fault::lost("the server doesn't answer")
                }
            };
            if matches!(fault, Fault::Standby) {
                self.retire(&open);
            }
            let may_repeat = match fault {
                Fault::Refused(_) => false,
                Fault::Lost(_) => effect != Effect::OnceInTime,
                Fault::Standby | Fault::RolledBack(_) => true,
            };
            let pause = random::jittered(PAUSES[0]);
            let gives_up = !may_repeat || Instant::now() + pause >= deadline;
            is_lost |= matches!(fault, Fault::Lost(_));
            if gives_up {
                return Err(if is_lost { Fault::Lost(fault.into_problem()) } else { fault });
            }
            sleep(pause).await;
        }
    }

    /// Returns the connection. Opens it if it isn't, again and again until the deadline.
    pub(super) async fn open(&self, deadline: Instant) -> Result<Arc<Open>, Problem> {
        let mut state = self.state.subscribe();
        // A failure from before this call says nothing of now.
        let (mut is_new, mut last) = (false, None);
        loop {
            match &*state.borrow_and_update() {
                State::Open(open) if !open.client.is_closed() => return Ok(Arc::clone(open)),
                State::Closed(Some(failure)) if is_new && failure.kind() == StoreErrorKind::Misconfigured => {
                    return Err(failure.clone());
                }
                State::Closed(Some(failure)) if is_new => last = Some(failure.clone()),
                State::Open(_) | State::Closed(_) => {}
            }
            self.demand.notify_one();
            if timeout_at(deadline, state.changed()).await.is_err() {
                return Err(last.unwrap_or_else(|| unavailable("failed to connect: the server doesn't answer")));
            }
            is_new = true;
        }
    }

    /// Gives the connection up, since it leads to a standby.
    pub(super) fn leave_standby(&self) {
        let open = match &*self.state.borrow() {
            State::Open(open) => Arc::clone(open),
            State::Closed(_) => return,
        };
        self.retire(&open);
    }

    /// Gives a connection up. Statements that wait for its answer may still get it.
    fn retire(&self, retired: &Arc<Open>) {
        self.state.send_if_modified(|state| {
            let is_open = matches!(state, State::Open(open) if Arc::ptr_eq(open, retired));
            if is_open {
                *state = State::Closed(None);
            }
            is_open
        });
    }
}

/// The end of the time for an answer.
struct Elapsed {
    /// No other statement was answered either.
    is_dead: bool,
}

impl Open {
    /// Executes a statement, and waits until then, or until the connection seems dead.
    async fn query(
        self: &Arc<Self>,
        statement: Statement<'_>,
        ends: Instant,
    ) -> Result<Result<Vec<Row>, tokio_postgres::Error>, Elapsed> {
        let mut rows = pin!(self.rows(statement));
        loop {
            let before = self.answers.load(Ordering::Relaxed);
            let answer_by = ends.min(Instant::now() + ANSWER_TIMEOUT);
            if let Ok(rows) = timeout_at(answer_by, &mut rows).await {
                self.answers.fetch_add(1, Ordering::Relaxed);
                return Ok(rows);
            }
            let is_dead = self.answers.load(Ordering::Relaxed) == before;
            if is_dead || answer_by == ends {
                return Err(Elapsed { is_dead });
            }
        }
    }

    async fn rows(self: &Arc<Self>, statement: Statement<'_>) -> Result<Vec<Row>, tokio_postgres::Error> {
        let Statement { sql, parameters, is_prepared, .. } = statement;
        if is_prepared {
            if let Some(rows) = self.prepared.query(&self.client, parameters).await {
                return rows;
            }
            if self.prepared.begins() {
                // In a task: a read that isn't polled any more holds it up no more than it does other reads.
                let (open, sql) = (Arc::clone(self), sql.to_owned());
                let types: Vec<_> = parameters.iter().map(|(_, of_type)| of_type.clone()).collect();
                self.runtime.spawn(async move { open.prepared.prepare(&open.client, &sql, &types).await });
            }
        }
        self.client.query_typed(sql, parameters).await
    }
}

impl<'a> Reading<'a> {
    pub(super) fn on(link: &'a Link) -> Self {
        link.reads.fetch_add(1, Ordering::Relaxed);
        Self(link)
    }
}

impl Deref for Reading<'_> {
    type Target = Link;

    fn deref(&self) -> &Link {
        self.0
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.reads.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens the connection whenever it is needed and not open.
async fn keep_open(server: Arc<Server>, state: watch::Sender<State>, demand: Arc<Notify>) {
    let mut attempts = Attempts::default();
    loop {
        demand.notified().await;
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&server.permits).acquire_owned().await else { return };
        match server.connect(attempts.patience).await {
            Ok(Connected { client, driver, endpoint, is_direct }) => {
                attempts = Attempts::default();
                let (answers, prepared) = (AtomicUsize::new(0), Prepared::new(is_direct));
                let open = Open { client, answers, prepared, runtime: Handle::current() };
                drive(&server, (driver, endpoint), Arc::new(open), permit, &state).await;
            }
            Err(problem) => {
                drop(permit);
                state.send_replace(State::Closed(Some(problem)));
                sleep(attempts.next_pause()).await;
            }
        }
    }
}

/// Lends a connection to calls until it fails, or is retired.
async fn drive(
    server: &Arc<Server>,
    (driver, endpoint): (Driver, Endpoint),
    open: Arc<Open>,
    permit: OwnedSemaphorePermit,
    state: &watch::Sender<State>,
) {
    let mut states = state.subscribe();
    let cancel = open.client.cancel_token();
    state.send_replace(State::Open(open));
    // No other connection is opened meanwhile.
    let is_retired = |state: &State| matches!(state, State::Closed(_));
    let mut driver = Box::pin(driver);
    tokio::select! {
        _ = &mut driver => drop(state.send_replace(State::Closed(None))),
        // The sender is here.
        _ = states.wait_for(is_retired) => {
            let server = Arc::clone(server);
            tokio::spawn(async move {
                end(driver, &server, &cancel, &endpoint).await;
                drop(permit);
            });
        }
    }
}

/// Waits until a retired connection ends: when its last statement is answered, or when it is known to be dead. If it
/// doesn't, its statements are cancelled, and it is closed.
async fn end(mut driver: Pin<Box<Driver>>, server: &Server, connection: &CancelToken, endpoint: &Endpoint) {
    if timeout(RETIREMENT, &mut driver).await.is_ok() {
        return;
    }
    let cancelling = async {
        loop {
            // Each request cancels one statement; the next one may hang as well.
            server.cancel(connection, endpoint).await;
            sleep(PAUSES[0]).await;
        }
    };
    let ending = async {
        tokio::select! {
            _ = driver => {}
            () = cancelling => {}
        }
    };
    let _ = timeout(CANCEL_TIMEOUT, ending).await;
}

/// Attempts to connect that fail: the time for the next one, and the pause before it.
pub(super) struct Attempts {
    pub(super) patience: Duration,
    pause: Duration,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { patience: PATIENCE[0], pause: PAUSES[0] }
    }
}

impl Attempts {
    /// Counts an attempt that has failed.
    pub(super) fn next_pause(&mut self) -> Duration {
        let pause = random::jittered(self.pause);
        self.pause = (2 * self.pause).min(PAUSES[1]);
        self.patience = (2 * self.patience).min(PATIENCE[1]);
        pause
    }
}

fn unavailable(reason: &str) -> Problem {
    Problem::new(StoreErrorKind::Unavailable, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_that_fail_are_made_with_longer_pauses_and_more_patience() {
        let mut attempts = Attempts::default();
        for (pause, patience) in
            [(40, 1500), (80, 3000), (160, 6000), (320, 12_000), (640, 12_000), (1000, 12_000), (1000, 12_000)]
        {
            assert_eq!(attempts.patience, Duration::from_millis(patience));
            let next = attempts.next_pause().as_millis();
            assert!((pause / 2..=pause).contains(&next), "{next} of {pause} ms");
        }
    }
}
