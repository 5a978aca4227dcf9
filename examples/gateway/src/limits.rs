//! Limits of what is in flight. Over a limit, a request is refused at once: to wait would take memory too.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cookie::SessionId;
use crate::server::limited_address;

/// The number of counters in a row of [`Requests`].
const COUNTERS: usize = 1 << 14;

/// Limits the requests that are being proxied: in all, and of each session.
///
/// A session has a counter in each of two rows, by its random number (a count-min sketch): constant memory, and no lock
/// on a request's way. A session is refused if both are over the limit. Another one shares both with a probability of
/// 1 in 2^28.
#[derive(Debug)]
pub(crate) struct Requests {
    max: usize,
    max_per_session: u32,
    all: AtomicUsize,
    rows: [Box<[AtomicU32]>; 2],
}

/// The limit that a request exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exceeded {
    OfAll,
    OfSession,
}

/// Keeps a request counted until it is dropped.
#[derive(Debug)]
pub(crate) struct RequestPermit {
    requests: Arc<Requests>,
    counters: [usize; 2],
}

impl Requests {
    pub(crate) fn new(max: usize, max_per_session: u32) -> Self {
        let row = || (0..COUNTERS).map(|_| AtomicU32::new(0)).collect();
        Self { max, max_per_session, all: AtomicUsize::new(0), rows: [row(), row()] }
    }

    /// Counts a request.
    ///
    /// # Errors
    ///
    /// Returns the limit that it exceeds. It is not counted then.
    pub(crate) fn admit(self: &Arc<Self>, id: SessionId) -> Result<RequestPermit, Exceeded> {
        let [a, b, c, d, ..] = *id.as_bytes();
        let counters = [[a, b], [c, d]].map(|bytes| usize::from(u16::from_be_bytes(bytes)) % COUNTERS);
        let all = self.all.fetch_add(1, Ordering::Relaxed);
        let of_session = self.counters(counters).map(|counter| counter.fetch_add(1, Ordering::Relaxed));
        // From here on, a drop undoes the counting.
        let permit = RequestPermit { requests: self.clone(), counters };
        if all >= self.max {
            Err(Exceeded::OfAll)
        } else if of_session.iter().all(|count| *count >= self.max_per_session) {
            Err(Exceeded::OfSession)
        } else {
            Ok(permit)
        }
    }

    fn counters(&self, counters: [usize; 2]) -> [&AtomicU32; 2] {
        let [first, second] = &self.rows;
        [&first[counters[0]], &second[counters[1]]]
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        for counter in self.requests.counters(self.counters) {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
        self.requests.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Limits the logins that are in flight at the authorization server: in all, and of each address.
#[derive(Debug)]
pub(crate) struct Logins {
    max: usize,
    max_per_address: usize,
    in_flight: Mutex<LoginsInFlight>,
}

#[derive(Debug, Default)]
struct LoginsInFlight {
    all: usize,
    per_address: HashMap<IpAddr, usize>,
}

/// Keeps a login counted until it is dropped.
#[derive(Debug)]
pub(crate) struct LoginPermit {
    logins: Arc<Logins>,
    address: Option<IpAddr>,
}

impl Logins {
    pub(crate) fn new(max: usize, max_per_address: usize) -> Self {
        Self { max, max_per_address, in_flight: Mutex::default() }
    }

    /// Counts a login, or returns `None` if it is over a limit.
    pub(crate) fn admit(self: &Arc<Self>, address: Option<IpAddr>) -> Option<LoginPermit> {
        let address = address.map(limited_address);
        let mut in_flight = self.in_flight();
        let of_address = address.and_then(|address| in_flight.per_address.get(&address)).copied().unwrap_or_default();
        if in_flight.all >= self.max || of_address >= self.max_per_address {
            return None;
        }
        in_flight.all += 1;
        if let Some(address) = address {
            in_flight.per_address.insert(address, of_address + 1);
        }
        Some(LoginPermit { logins: self.clone(), address })
    }

    fn in_flight(&self) -> MutexGuard<'_, LoginsInFlight> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LoginPermit {
    fn drop(&mut self) {
        let mut in_flight = self.logins.in_flight();
        in_flight.all -= 1;
        if let Some(address) = self.address
            && let Some(count) = in_flight.per_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                in_flight.per_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_over_a_limit_is_not_counted() {
        let requests = Arc::new(Requests::new(3, 2));
        let [first, second] = [SessionId::random().unwrap(), SessionId::random().unwrap()];
        let mut permits = vec![requests.admit(first).unwrap(), requests.admit(first).unwrap()];
        assert_eq!(requests.admit(first).unwrap_err(), Exceeded::OfSession);
        permits.push(requests.admit(second).unwrap());
        assert_eq!(requests.admit(second).unwrap_err(), Exceeded::OfAll);
        drop(permits);
        assert_eq!(requests.all.load(Ordering::Relaxed), 0);
        assert!(requests.rows.iter().flatten().all(|counter| counter.load(Ordering::Relaxed) == 0));
        let permit = requests.admit(first).unwrap();
        drop((requests.admit(first).unwrap(), permit));
    }

    #[test]
    fn logins_are_limited_in_all_and_per_address() {
        let logins = Arc::new(Logins::new(3, 2));
        let [one, two] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse::<IpAddr>().unwrap());
        let of_one = [logins.admit(Some(one)).unwrap(), logins.admit(Some(one)).unwrap()];
        assert!(logins.admit(Some(one)).is_none());
        // The same address in the notation of IPv6.
        assert!(logins.admit(Some("::ffff:192.0.2.1".parse().unwrap())).is_none());
        let of_two = logins.admit(Some(two)).unwrap();
        assert!(logins.admit(Some(two)).is_none(), "the maximum of all");
        drop((of_one, of_two));
        assert_eq!(logins.in_flight().all, 0);
        assert!(logins.in_flight().per_address.is_empty());
        assert!(logins.admit(None).is_some());
    }
}
