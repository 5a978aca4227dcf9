//! Acquiring newer tokens: whether a request waits before it is sent, and joining or starting a flight.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::cell::{TokenCell, WriteGuard};
use super::flight::{Flight, FlightEnd, WaitTimeout};
use super::refresh_task;
use super::state::{Decision, Event, Phase, RefreshSchedule, State};
use crate::refresh::{Generation, NotRefreshed, RefreshError, Trigger};
use crate::store::Epoch;
use crate::target::Target;

impl TokenCell {
    /// Returns the deadline of a caller that begins to wait now.
    pub(crate) fn deadline(&self) -> Instant {
        self.config.deadline()
    }

    /// Returns the trigger of the refresh that a new request has to wait for, or `None` if it can be sent at once.
    /// Starts an early refresh where one is due.
    #[inline]
    pub(crate) fn wait_before_send(self: &Arc<Self>, state: &State) -> Option<Trigger> {
        match (state.phase, state.tokens.access_token(), state.due.as_deref()) {
            (Phase::Active, Some(_), Some(due)) => self.refresh_if_due(due),
            (Phase::Refreshing, _, _) if state.is_pointless_to_send() => Some(Trigger::Acquire),
            (Phase::Refreshing, _, Some(due)) if due.has_expired(Instant::now(), SystemTime::now()) => {
                Some(Trigger::Early)
            }
            _ => None,
        }
    }

    fn refresh_if_due(self: &Arc<Self>, due: &RefreshSchedule) -> Option<Trigger> {
        let (now, wall) = (Instant::now(), SystemTime::now());
        if due.has_expired(now, wall) {
            return Some(Trigger::Early);
        }
        if due.is_due(now, wall) {
            self.start_early_refresh();
        }
        None
    }

    /// Starts a refresh in the background if the lock is free. If it isn't, the next request tries again.
    fn start_early_refresh(self: &Arc<Self>) {
        if let Ok(mut writer) = self.lock.try_write() {
            let (epoch, generation) = {
                let state = self.snapshot();
                (state.epoch, state.generation)
            };
            // A flight needs no waiter.
            let _ = self.join_or_start_locked(&mut writer, epoch, generation, Trigger::Early, None);
        }
    }

    /// Returns the reason why a request that was made in `epoch` went out without a token.
    pub(crate) fn refusal(&self, epoch: Epoch) -> Option<NotRefreshed> {
        let state = self.snapshot();
        match self.decide(&state, epoch, state.generation, Trigger::Acquire, None) {
            Decision::Refuse(why) => Some(why),
            _ => None,
        }
    }

    /// Waits until newer tokens than `generation` are in force: returns at once if they are, else joins the flight under
    /// way or starts one. `target`: that of a challenged request. `deadline`: that of a caller that has waited before.
    ///
    /// Dropping the future at any point changes nothing for other waiters.
    pub(crate) async fn wait_for_newer_tokens(
        self: Arc<Self>,
        epoch: Epoch,
        generation: Generation,
        trigger: Trigger,
        target: Option<Target>,
        mut deadline: Option<Instant>,
    ) -> Result<(), NotRefreshed> {
        loop {
            let Some(flight) = self.join_or_start(epoch, generation, trigger, target).await? else { return Ok(()) };
            // Computed after joining, so that it is no earlier than the first tick of the flight's clock.
            let deadline = *deadline.get_or_insert_with(|| self.deadline());
            let _clock = flight.start_earlier_clock(deadline, &self.config.runtime);
            let outcome = match flight.wait(deadline).await {
                Ok(FlightEnd::Finished(outcome)) => outcome,
                Ok(FlightEnd::Abandoned) => Ok(()),
                Ok(FlightEnd::Died) => self.reap_dead_flight().await,
                Err(WaitTimeout { was_queued }) => {
                    let error = if was_queued {
                        RefreshError::unavailable("too many other sessions are refreshing")
                    } else {
                        RefreshError::in_doubt("no answer by the deadline")
                    };
                    return Err(NotRefreshed::Failed(Arc::new(error)));
                }
            };
            let state = self.snapshot();
            if state.epoch != epoch {
                return match self.decide(&state, epoch, generation, trigger, target) {
                    Decision::Refuse(why) => Err(why),
                    _ => Err(NotRefreshed::SessionChanged),
                };
            }
            outcome?;
            if state.has_newer_than(generation, trigger) {
                return Ok(());
            }
            if state.generation <= flight.generation {
                return Err(NotRefreshed::SameToken);
            }
            // The new tokens have been refused already: joins the next flight.
        }
    }

    fn decide(
        &self,
        state: &State,
        epoch: Epoch,
        generation: Generation,
        trigger: Trigger,
        target: Option<Target>,
    ) -> Decision {
        state.decide(epoch, generation, trigger, target, self.needs_refresh_token(), Instant::now())
    }

    /// Returns the flight to wait for; `None` if newer tokens are in force.
    async fn join_or_start(
        self: &Arc<Self>,
        epoch: Epoch,
        generation: Generation,
        trigger: Trigger,
        target: Option<Target>,
    ) -> Result<Option<Arc<Flight>>, NotRefreshed> {
        if let Some(answer) = self.join_unlocked(epoch, generation, trigger, target) {
            return answer;
        }
        let answer = self
            .with_write_lock(move |cell, writer| cell.join_or_start_locked(writer, epoch, generation, trigger, target));
        // The runtime has shut down.
        answer.await.unwrap_or_else(|gone| Err(NotRefreshed::Failed(Arc::new(RefreshError::unavailable(gone)))))
    }

    /// Answers without the write lock where possible: for many callers at the same time, and for late ones.
    fn join_unlocked(
        &self,
        epoch: Epoch,
        generation: Generation,
        trigger: Trigger,
        target: Option<Target>,
    ) -> Option<Result<Option<Arc<Flight>>, NotRefreshed>> {
        let state = self.snapshot();
        match self.decide(&state, epoch, generation, trigger, target) {
            Decision::UseNewer => Some(Ok(None)),
            Decision::Refuse(why @ (NotRefreshed::SessionChanged | NotRefreshed::Ended(_))) => Some(Err(why)),
            // The first challenge to a generation has to be recorded under the lock.
            Decision::Join if state.is_rejected() || target.is_none() => {
                let writer = self.lock.try_read().ok()?;
                let flight = writer.flight.as_ref().filter(|flight| flight.is_running())?;
                Some(Ok(Some(flight.join())))
            }
            _ => None,
        }
    }

    fn join_or_start_locked(
        self: &Arc<Self>,
        writer: &mut WriteGuard<'_>,
        epoch: Epoch,
        generation: Generation,
        trigger: Trigger,
        target: Option<Target>,
    ) -> Result<Option<Arc<Flight>>, NotRefreshed> {
        self.reap_dead_flight_locked(writer);
        if let Some(target) = target
            && self.snapshot().epoch == epoch
        {
            self.step(writer, Event::Challenged { target, generation, results: self.results.load() });
        }
        let decision = self.decide(&self.snapshot(), epoch, generation, trigger, target);
        match decision {
            Decision::UseNewer => Ok(None),
            Decision::Refuse(why) => Err(why),
            Decision::Join => {
                let flight = writer.flight.as_ref().expect("the step to `Refreshing` was made with a flight");
                Ok(Some(flight.join()))
            }
            Decision::Start => {
                let base = self.step(writer, Event::Started { trigger, target, results: self.results.load() });
                let flight = refresh_task::start(self, base, trigger);
                let joined = flight.join();
                writer.flight = Some(flight);
                Ok(Some(joined))
            }
        }
    }

    /// Settles a flight whose task is gone without an end: it panicked, or its runtime shut down.
    async fn reap_dead_flight(self: &Arc<Self>) -> Result<(), NotRefreshed> {
        // If the runtime is gone, the next caller settles it.
        let _ = self.with_write_lock(Self::reap_dead_flight_locked).await;
        Err(NotRefreshed::Failed(Arc::new(RefreshError::in_doubt("the refresh task died"))))
    }

    fn reap_dead_flight_locked(self: &Arc<Self>, writer: &mut WriteGuard<'_>) {
        let state = Arc::clone(&self.snapshot());
        // Without a flight it was never begun: a span subscriber is foreign code, and may have panicked.
        if state.phase == Phase::Refreshing && !writer.flight.as_ref().is_some_and(|flight| flight.is_running()) {
            let error = Arc::new(RefreshError::in_doubt("the refresh task died"));
            self.step(writer, Event::Failed { epoch: state.epoch, error, in_doubt: true });
        }
    }
}
