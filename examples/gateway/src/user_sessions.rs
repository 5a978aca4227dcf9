//! [`UserSessions`]: limits the sessions of each user.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use crate::cookie::SessionId;

/// The sessions of each user, in the order of their logins.
#[derive(Debug)]
pub(crate) struct UserSessions {
    max: usize,
    /// The number of sessions at which those that are over are removed.
    sweep_at: usize,
    hasher: RandomState,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// By a keyed hash of the user's name: no name is longer than eight bytes.
    users: HashMap<u64, Vec<SessionId>>,
    sessions: usize,
}

impl UserSessions {
    /// Creates an empty table. At most `max_sessions` are active at a time, of which a user may have `max`.
    pub(crate) fn new(max: usize, max_sessions: usize) -> Self {
        Self { max, sweep_at: max_sessions.saturating_mul(2), hasher: RandomState::new(), table: Mutex::default() }
    }

    /// Adds the session of a login. Returns the oldest active sessions of the user that are over the limit.
    pub(crate) fn add(&self, user: &str, id: SessionId, is_active: impl Fn(&SessionId) -> bool) -> Vec<SessionId> {
        let user = self.hasher.hash_one(user);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.sessions >= self.sweep_at {
            table.users.retain(|_, sessions| {
                sessions.retain(&is_active);
                !sessions.is_empty()
            });
            table.sessions = table.users.values().map(Vec::len).sum();
        }
        let sessions = table.users.entry(user).or_default();
        let before = sessions.len();
        sessions.retain(is_active);
        sessions.push(id);
        let over = sessions.len().saturating_sub(self.max);
        let oldest = sessions.drain(..over).collect();
        let after = sessions.len();
        table.sessions = table.sessions + after - before;
        oldest
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn random() -> SessionId {
        SessionId::random().unwrap()
    }

    #[test]
    fn the_oldest_session_of_a_user_makes_room() {
        let sessions = UserSessions::new(2, 100);
        let ids = [(); 4].map(|()| random());
        assert_eq!(sessions.add("ada", ids[0], |_| true), []);
        assert_eq!(sessions.add("ada", ids[1], |_| true), []);
        assert_eq!(sessions.add("eve", random(), |_| true), []);
        assert_eq!(sessions.add("ada", ids[2], |_| true), [ids[0]]);
        // One that is over takes no place.
        assert_eq!(sessions.add("ada", ids[3], |id| *id != ids[2]), []);
        assert_eq!(sessions.add("ada", random(), |_| true), [ids[1]]);
    }

    #[test]
    fn sessions_that_are_over_take_bounded_memory() {
        const MAX_SESSIONS: usize = 50;
        let sessions = UserSessions::new(3, MAX_SESSIONS);
        let mut active = Vec::new();
        for login in 0..2000 {
            let id = random();
            let now: HashSet<_> = active.iter().copied().collect();
            assert_eq!(sessions.add(&format!("user-{login}"), id, |id| now.contains(id)), []);
            active.push(id);
            if active.len() == MAX_SESSIONS {
                active.remove(0);
            }
            let table = sessions.table.lock().unwrap();
            assert!(table.users.len() <= 2 * MAX_SESSIONS && table.users.capacity() <= 16 * MAX_SESSIONS);
            assert_eq!(table.sessions, table.users.values().map(Vec::len).sum::<usize>());
        }
    }
}
