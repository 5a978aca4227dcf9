//! [`Journal`]: the log, the counters and the violations.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::broadcast;

use crate::faults::Route;
use crate::log::{Counters, Entry, UserCounters, Violation};

/// The number of entries that a subscriber may fall behind.
const LIVE_BACKLOG: usize = 4096;

/// The number of violations kept with their details. All are counted.
const VIOLATIONS_KEPT: usize = 1000;

pub(crate) struct Journal {
    entries: VecDeque<Entry>,
    live: broadcast::Sender<Entry>,
    pub(crate) counters: Counters,
    pub(crate) violations: Vec<Violation>,
    users: HashMap<Arc<str>, UserRecord>,
}

#[derive(Default)]
struct UserRecord {
    counters: UserCounters,
    refreshes_under_way: u64,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            live: broadcast::Sender::new(LIVE_BACKLOG),
            counters: Counters::default(),
            violations: Vec::new(),
            users: HashMap::new(),
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Entry> {
        self.live.subscribe()
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.entries.iter().cloned().collect()
    }

    pub(crate) fn user(&self, user: &str) -> UserCounters {
        self.users.get(user).map(|record| record.counters.clone()).unwrap_or_default()
    }

    /// Clears everything but the number of refreshes under way.
    pub(crate) fn reset(&mut self) {
        self.entries.clear();
        self.counters = Counters::default();
        self.violations.clear();
        self.users.retain(|_, record| record.refreshes_under_way > 0);
        for record in self.users.values_mut() {
            record.counters = UserCounters::default();
        }
    }

    /// Counts a request, and returns its number.
    pub(crate) fn arrived(&mut self, route: Route) -> u64 {
        let counters = &mut self.counters;
        counters.requests += 1;
        match route {
            Route::Login => counters.logins += 1,
            Route::Refresh => counters.refreshes += 1,
            Route::Logout => counters.logouts += 1,
            Route::Api => counters.api += 1,
            Route::SignIn | Route::Other => {}
        }
        counters.requests
    }

    pub(crate) fn refresh_began(&mut self, user: &Arc<str>) {
        let record = self.record(user);
        record.refreshes_under_way += 1;
        record.counters.refreshes += 1;
        let now = record.refreshes_under_way;
        let most = &mut record.counters.max_concurrent_refreshes;
        *most = now.max(*most);
        let overall = &mut self.counters.max_concurrent_refreshes;
        *overall = now.max(*overall);
    }

    pub(crate) fn refresh_ended(&mut self, user: &Arc<str>) {
        let under_way = &mut self.record(user).refreshes_under_way;
        *under_way = under_way.saturating_sub(1);
    }

    pub(crate) fn granted(&mut self, user: &Arc<str>) {
        self.counters.granted += 1;
        self.record(user).counters.granted += 1;
    }

    pub(crate) fn reuse_allowed(&mut self, user: &Arc<str>) {
        self.counters.allowed_reuses += 1;
        self.record(user).counters.allowed_reuses += 1;
    }

    pub(crate) fn violated(&mut self, violation: Violation) {
        tracing::warn!(
            user = %violation.user,
            generation = violation.generation,
            current = violation.current,
            "a superseded refresh token was presented"
        );
        self.counters.violations += 1;
        self.record(&violation.user).counters.violations += 1;
        if self.violations.len() < VIOLATIONS_KEPT {
            self.violations.push(violation);
        }
    }

    pub(crate) fn answered(&mut self, route: Route, user: Option<&Arc<str>>, status: Option<u16>) {
        let Some(status) = status else {
            self.counters.unanswered += 1;
            return;
        };
        if route == Route::Api {
            *self.counters.api_by_status.entry(status).or_default() += 1;
            if let Some(user) = user {
                *self.record(user).counters.api_by_status.entry(status).or_default() += 1;
            }
        }
    }

    /// Logs the entry, if the log keeps entries or has subscribers.
    pub(crate) fn log(&mut self, capacity: usize, entry: impl FnOnce() -> Entry) {
        let has_subscribers = self.live.receiver_count() > 0;
        if capacity == 0 && !has_subscribers {
            return;
        }
        let entry = entry();
        if has_subscribers {
            // Fails only if the last subscriber has just been dropped.
            let _ = self.live.send(entry.clone());
        }
        self.entries.push_back(entry);
        while self.entries.len() > capacity {
            self.entries.pop_front();
        }
    }

    fn record(&mut self, user: &Arc<str>) -> &mut UserRecord {
        self.users.entry(user.clone()).or_default()
    }
}
