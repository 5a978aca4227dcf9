//! [`Journal`]: the servers' memory of what happened.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::broadcast;

use crate::faults::Route;
use crate::log::{Counters, Entry, UserCounters, Violation};

/// Live entries that a slow subscriber may fall behind.
const LIVE_BACKLOG: usize = 4096;

/// Violations kept with their details; all are counted.
const VIOLATIONS_KEPT: usize = 1000;

pub(crate) struct Journal {
    entries: VecDeque<Entry>,
    live: broadcast::Sender<Entry>,
    pub(crate) counters: Counters,
    pub(crate) violations: Vec<Violation>,
    users: HashMap<Arc<str>, Account>,
}

#[derive(Default)]
struct Account {
    counters: UserCounters,
    refreshing: u64,
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
        self.users.get(user).map(|account| account.counters.clone()).unwrap_or_default()
    }

    /// Forgets what happened, not what is under way.
    pub(crate) fn reset(&mut self) {
        self.entries.clear();
        self.counters = Counters::default();
        self.violations.clear();
        self.users.retain(|_, account| account.refreshing > 0);
        for account in self.users.values_mut() {
            account.counters = UserCounters::default();
        }
    }

    /// Counts a request, and numbers it.
    pub(crate) fn arrived(&mut self, route: Route) -> u64 {
        let counters = &mut self.counters;
        counters.requests += 1;
        match route {
            Route::Login => counters.logins += 1,
            Route::Refresh => counters.refreshes += 1,
            Route::Logout => counters.logouts += 1,
            Route::Api => counters.api += 1,
            Route::Other => {}
        }
        counters.requests
    }

    pub(crate) fn refresh_began(&mut self, user: &Arc<str>) {
        let account = self.account(user);
        account.refreshing += 1;
        account.counters.refreshes += 1;
        let now = account.refreshing;
        let most = &mut account.counters.max_concurrent_refreshes;
        *most = now.max(*most);
        let overall = &mut self.counters.max_concurrent_refreshes;
        *overall = now.max(*overall);
    }

    pub(crate) fn refresh_ended(&mut self, user: &Arc<str>) {
        let refreshing = &mut self.account(user).refreshing;
        *refreshing = refreshing.saturating_sub(1);
    }

    pub(crate) fn granted(&mut self, user: &Arc<str>) {
        self.counters.granted += 1;
        self.account(user).counters.granted += 1;
    }

    pub(crate) fn excused(&mut self, user: &Arc<str>) {
        self.counters.excused += 1;
        self.account(user).counters.excused += 1;
    }

    pub(crate) fn violated(&mut self, violation: Violation) {
        tracing::warn!(
            user = %violation.user,
            generation = violation.generation,
            current = violation.current,
            "a superseded refresh token was presented"
        );
        self.counters.violations += 1;
        self.account(&violation.user).counters.violations += 1;
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
                *self.account(user).counters.api_by_status.entry(status).or_default() += 1;
            }
        }
    }

    /// Logs the entry, if anybody is to read it.
    pub(crate) fn log(&mut self, capacity: usize, entry: impl FnOnce() -> Entry) {
        let heard = self.live.receiver_count() > 0;
        if capacity == 0 && !heard {
            return;
        }
        let entry = entry();
        if heard {
            // It fails only when the last subscriber has just left.
            let _ = self.live.send(entry.clone());
        }
        self.entries.push_back(entry);
        while self.entries.len() > capacity {
            self.entries.pop_front();
        }
    }

    fn account(&mut self, user: &Arc<str>) -> &mut Account {
        self.users.entry(user.clone()).or_default()
    }
}
