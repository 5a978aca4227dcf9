//! The line to the server: one connection, made anew when it breaks or its server is no longer the primary.
//!
//! A write that waits for replicas (`WAIT`) would hold up all calls behind it on its connection. Such writes have a few
//! connections of their own, each for one write at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{self, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{Cmd, Pipeline, RedisError, ServerError, ServerErrorKind, Value, cmd};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::connect::{Connection, Connector};
use super::failure::Failure;
use super::script;
use crate::error::{Problem, StoreErrorKind};
use crate::random;

/// The time after which a call fails, less than the 5 s that a session waits for it.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// The time for one attempt at a call. After it, the connection is given up.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1500);
/// The time for which a write waits for its replicas.
const REPLICAS_TIMEOUT: Duration = Duration::from_secs(1);
/// The writes that wait for replicas at the same time, each on a connection of its own.
const WAITING: usize = 8;
/// The pause after the first failure in a row, which doubles with each.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(20);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A line to the server, which all stores of one [`RedisStores`](super::RedisStores) share.
pub(super) struct Line {
    connector: Connector,
    /// The number of replicas that a write waits for.
    replicas: usize,
    state: Mutex<State>,
    /// The connections of writes that wait for replicas, while no write has them.
    free: sync::Mutex<Vec<Connection>>,
    waiting: Semaphore,
    /// Set while `state` has an outage.
    is_failing: AtomicBool,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    outage: Option<Outage>,
}

/// The failures since the last answer.
struct Outage {
    since: Instant,
    pause: Duration,
    /// The end of the pause after the last failure.
    until: Instant,
    last: Problem,
}

/// A call of the server.
pub(super) struct Call<F> {
    /// Makes the commands of the call for a connection. Several are repeated together.
    pub(super) commands: F,
    pub(super) deadline: Instant,
    /// The call may be made again if its answer is lost.
    pub(super) repeats: bool,
    /// The call waits for replicas.
    pub(super) waits: bool,
}

/// The name of a script in a command.
#[derive(Clone, Copy, Debug)]
pub(super) enum Named {
    ByHash,
    /// If the server doesn't know the script.
    BySource,
}

/// The answer to a call.
#[derive(Debug)]
pub(super) struct Answer {
    /// One for each command. Of several commands, each may have been refused.
    pub(super) values: Vec<Value>,
    /// Enough replicas have the write, of those that the call waits for.
    pub(super) is_replicated: bool,
}

impl Line {
    pub(super) fn new(connector: Connector, replicas: usize) -> Self {
        let (state, free, waiting) = (Mutex::default(), sync::Mutex::default(), Semaphore::new(WAITING));
        Self { connector, replicas, state, free, waiting, is_failing: AtomicBool::new(false) }
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    pub(super) fn replicas(&self) -> usize {
        self.replicas
    }

    /// Makes a call, again if need be, until its deadline.
    pub(super) async fn call<F>(&self, call: Call<F>) -> Result<Answer, Failure>
    where
        F: Fn(&Connection, Named) -> Pipeline,
    {
        let waits = call.waits && self.replicas > 0;
        let _turn = if waits { Some(self.turn(call.deadline).await?) } else { None };
        // Set while the server may have acted on an attempt.
        let mut is_sent = false;
        let attempts = async {
            loop {
                let was_sent = is_sent;
                let refused = |problem| if was_sent { Failure::Lost(problem) } else { Failure::Refused(problem) };
                let connection = if waits { self.free_connection().await } else { self.connection().await };
                let connection = connection.map_err(refused)?;
                is_sent = true;
                let answer = self.attempt(&connection, &call, waits).await;
                if let (true, Ok(_) | Err(Failure::Refused(_))) = (waits, &answer) {
                    self.free().push(connection.clone());
                }
                match answer {
                    Ok(answer) => {
                        self.end_outage().await;
                        return Ok(answer);
                    }
                    Err(Failure::Refused(problem)) => return Err(refused(problem)),
                    Err(Failure::Unready(problem)) => {
                        is_sent = was_sent;
                        self.give_up(&connection, problem, waits).await;
                    }
                    Err(Failure::Lost(problem)) => {
                        self.give_up(&connection, problem.clone(), waits).await;
                        if !call.repeats {
                            return Err(Failure::Lost(problem));
                        }
                    }
                }
            }
        };
        let outcome = timeout_at(call.deadline, attempts).await;
        outcome.unwrap_or_else(|_| {
            let problem = self.last_problem();
            Err(if is_sent { Failure::Lost(problem) } else { Failure::Unready(problem) })
        })
    }

    /// Returns the connection, or makes one: one attempt at a time, with pauses.
    pub(super) async fn connection(&self) -> Result<Connection, Problem> {
        loop {
            let mut state = self.state.lock().await;
            // A server closes connections that are idle. That is no failure of a call.
            if state.connection.as_ref().is_some_and(Connection::is_closed) {
                state.connection = None;
            }
            if let Some(connection) = &state.connection {
                return Ok(connection.clone());
            }
            if let Some(until) = state.pause()? {
                drop(state);
                sleep_until(until).await;
                continue;
            }
            match self.connector.connect().await {
                Ok(connection) => state.connection = Some(connection),
                Err(problem) => {
                    self.note(&mut state, problem.clone());
                    if problem.kind() != StoreErrorKind::Unavailable {
                        return Err(problem);
                    }
                }
            }
        }
    }

    /// Waits until another write may wait for replicas. A turn that comes at the deadline or later is none: the write would
    /// pass it on at once, and fail for a reason that isn't its own.
    async fn turn(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, Failure> {
        let turn = timeout_at(deadline, self.waiting.acquire()).await.ok().and_then(Result::ok);
        let turn = turn.filter(|_| Instant::now() < deadline);
        turn.ok_or_else(|| Failure::Unready(unavailable("too many writes wait for replicas")))
    }

    /// Returns a connection that no other write has, or makes one, with pauses.
    async fn free_connection(&self) -> Result<Connection, Problem> {
        loop {
            while let Some(connection) = self.take_free() {
                if !connection.is_closed() {
                    return Ok(connection);
                }
            }
            let pause = self.state.lock().await.pause()?;
            if let Some(until) = pause {
                sleep_until(until).await;
                continue;
            }
            match self.connector.connect().await {
                Ok(connection) => return Ok(connection),
                Err(problem) => {
                    self.note_unless_known(problem.clone()).await;
                    if problem.kind() != StoreErrorKind::Unavailable {
                        return Err(problem);
                    }
                }
            }
        }
    }

    /// Returns the reason of the last failure, if it is known at once.
    pub(super) fn last_problem(&self) -> Problem {
        let last = self.state.try_lock().ok().and_then(|state| Some(state.outage.as_ref()?.last.clone()));
        last.unwrap_or_else(|| unavailable("the server doesn't answer"))
    }

    async fn attempt<F>(&self, connection: &Connection, call: &Call<F>, waits: bool) -> Result<Answer, Failure>
    where
        F: Fn(&Connection, Named) -> Pipeline,
    {
        if !waits {
            let answer = self.send(connection, (call.commands)(connection, Named::ByHash), waits).await?;
            let is_unknown = |error: &ServerError| error.kind() == Some(ServerErrorKind::NoScript);
            if !matches!(&*answer.values, [Value::ServerError(error)] if is_unknown(error)) {
                return answer.unless_refused();
            }
        }
        // At once, if it waits: were the script unknown, the question for the replicas behind it would wait for nothing.
        self.send(connection, (call.commands)(connection, Named::BySource), waits).await?.unless_refused()
    }

    /// Sends commands and, in the same packet, the question for the replicas.
    async fn send(&self, connection: &Connection, mut commands: Pipeline, waits: bool) -> Result<Answer, Failure> {
        let mut redis = connection.redis.clone();
        if waits {
            commands.add_command(cmd("WAIT")).arg(self.replicas).arg(millis(REPLICAS_TIMEOUT));
        }
        let count = commands.len();
        let sent = timeout(ATTEMPT_TIMEOUT, redis.send_packed_commands(&commands, 0, count)).await;
        let no_answer = |_| Err(RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut)));
        let mut values = sent.unwrap_or_else(no_answer).map_err(|error| Failure::of(&error))?;
        let is_replicated = match values.pop_if(|_| waits) {
            Some(Value::Int(count)) => usize::try_from(count).is_ok_and(|count| count >= self.replicas),
            Some(_) => false,
            None => true,
        };
        Ok(Answer { values, is_replicated })
    }

    /// Closes a connection that is of no more use, unless that was done, and with it those that are free: they are of the
    /// same server.
    async fn give_up(&self, connection: &Connection, problem: Problem, waits: bool) {
        drop(std::mem::take(&mut *self.free()));
        if waits {
            return self.note_unless_known(problem).await;
        }
        let mut state = self.state.lock().await;
        if state.connection.take_if(|current| current.is(connection)).is_some() {
            self.note(&mut state, problem);
        }
    }

    /// Notes a failure of a connection of its own, unless others have failed at the same time.
    async fn note_unless_known(&self, problem: Problem) {
        let mut state = self.state.lock().await;
        if state.outage.as_ref().is_none_or(|outage| outage.until <= Instant::now()) {
            self.note(&mut state, problem);
        }
    }

    /// Notes a failure, and begins the pause before the next connection.
    fn note(&self, state: &mut State, problem: Problem) {
        let now = Instant::now();
        let (since, pause) =
            state.outage.as_ref().map_or((now, FIRST_PAUSE), |outage| (outage.since, outage.pause * 2));
        let pause = pause.min(LONGEST_PAUSE);
        let until = now + random::jittered(pause);
        state.outage = Some(Outage { since, pause, until, last: problem });
        self.is_failing.store(true, Ordering::Relaxed);
    }

    async fn end_outage(&self) {
        if self.is_failing.swap(false, Ordering::Relaxed) {
            self.state.lock().await.outage = None;
        }
    }

    fn take_free(&self) -> Option<Connection> {
        self.free().pop()
    }

    fn free(&self) -> MutexGuard<'_, Vec<Connection>> {
        // Poisoning is ignored: nothing panics under this lock.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the end of the pause after the last failure, if it is still to come.
    fn pause(&self) -> Result<Option<Instant>, Problem> {
        let now = Instant::now();
        match self.outage.as_ref().filter(|outage| now < outage.until) {
            // Of the calls in a long outage, only that which ends a pause waits for an attempt.
            Some(outage) if now > outage.since + CALL_TIMEOUT => Err(outage.last.clone()),
            outage => Ok(outage.map(|outage| outage.until)),
        }
    }
}

impl Answer {
    /// Fails if the server isn't ready for such calls, a script has refused to run, or the only command was refused.
    fn unless_refused(self) -> Result<Self, Failure> {
        let is_alone = self.values.len() == 1;
        for value in &self.values {
            match refusal(value) {
                Some(failure) if is_alone || matches!(failure, Failure::Unready(_)) => return Err(failure),
                _ => {}
            }
        }
        Ok(self)
    }

    /// Returns the value of the only command.
    pub(super) fn value(mut self) -> Value {
        self.values.pop().unwrap_or_default()
    }
}

/// Returns the reason if a command was refused, or its script has refused to run.
pub(super) fn refusal(value: &Value) -> Option<Failure> {
    match value {
        Value::ServerError(error) => Some(Failure::of(&error.clone().into())),
        // The next connection learns the server's time.
        value if script::is_late(value) => {
            Some(Failure::Unready(unavailable("the call came too late, or the server's clock was set")))
        }
        _ => None,
    }
}

/// Returns one command, with room for the question for the replicas.
pub(super) fn alone(command: Cmd) -> Pipeline {
    let mut commands = Pipeline::with_capacity(2);
    commands.add_command(command);
    commands
}

pub(super) fn unavailable(reason: &str) -> Problem {
    Problem::new(StoreErrorKind::Unavailable, reason)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
