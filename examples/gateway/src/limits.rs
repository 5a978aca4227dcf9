//! Limits of what is in flight. Over a limit, a request is refused at once: to wait would take memory too.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cookie::SessionId;
use crate::problem::{DEFAULT_RETRY_AFTER, Kind, Problem};
use crate::server::limited_address;

/// The number of counters in a row of a [`Sketch`].
const COUNTERS: usize = 1 << 14;

/// Limits the requests that are being proxied, or that look a session up in the store: in all, of each session, and of
/// each address.
#[derive(Debug)]
pub(crate) struct Requests {
    max: usize,
    all: AtomicUsize,
    of_session: Sketch,
    /// Absent if addresses have no limit.
    of_address: Option<Sketch>,
    /// Keyed, so that no client can choose an address or a session that shares the counters of another.
    hasher: RandomState,
}

/// Counts what is in flight by a keyed hash (a count-min sketch).
///
/// A hash has a counter in each of two rows: constant memory, and no lock on a request's way. It is over the limit if
/// both counters are. Another hash shares both with a probability of 1 in 2^28.
#[derive(Debug)]
struct Sketch {
    max: u32,
    rows: [Box<[AtomicU32]>; 2],
}

/// The places of a hash's counters.
type Places = [usize; 2];

/// The limit that a request exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exceeded {
    All,
    Session,
    Address,
}

/// Keeps a request counted until it is dropped.
#[derive(Debug)]
pub(crate) struct RequestPermit {
    requests: Arc<Requests>,
    session: Places,
    address: Option<Places>,
}

impl Requests {
    pub(crate) fn new(max: usize, max_per_session: u32, max_per_address: Option<u32>) -> Self {
        Self {
            max,
            all: AtomicUsize::new(0),
            of_session: Sketch::new(max_per_session),
            of_address: max_per_address.map(Sketch::new),
            hasher: RandomState::new(),
        }
    }

    /// Counts a request.
    ///
    /// # Errors
    ///
    /// Returns the limit that it exceeds. It is not counted then.
    pub(crate) fn admit(self: &Arc<Self>, id: SessionId, address: IpAddr) -> Result<RequestPermit, Exceeded> {
        // The client chooses it: nothing is known of the session yet.
        let session = Sketch::places(self.hasher.hash_one(id.as_bytes()));
        let address = self
            .of_address
            .as_ref()
            .map(|sketch| (sketch, Sketch::places(self.hasher.hash_one(limited_address(address)))));
        let all = self.all.fetch_add(1, Ordering::Relaxed);
        let session_fits = self.of_session.add(session);
        let address_fits = address.is_none_or(|(sketch, places)| sketch.add(places));
        // From here on, a drop undoes the counting.
        let permit = RequestPermit { requests: self.clone(), session, address: address.map(|(_, places)| places) };
        if all >= self.max {
            Err(Exceeded::All)
        } else if !session_fits {
            Err(Exceeded::Session)
        } else if !address_fits {
            Err(Exceeded::Address)
        } else {
            Ok(permit)
        }
    }
}

impl From<Exceeded> for Problem {
    fn from(exceeded: Exceeded) -> Self {
        let kind = match exceeded {
            Exceeded::All => Kind::Overloaded,
            Exceeded::Session => Kind::TooManyRequests,
            Exceeded::Address => Kind::TooManyRequestsOfAddress,
        };
        Self::from(kind).retry_after(DEFAULT_RETRY_AFTER)
    }
}

impl Sketch {
    fn new(max: u32) -> Self {
        let row = || (0..COUNTERS).map(|_| AtomicU32::new(0)).collect();
        Self { max, rows: [row(), row()] }
    }

    #[expect(clippy::cast_possible_truncation, reason = "some of the bits are enough")]
    fn places(hash: u64) -> Places {
        [(hash >> 32) as usize % COUNTERS, hash as usize % COUNTERS]
    }

    /// Counts one more. Returns `false` if it is over the limit.
    fn add(&self, places: Places) -> bool {
        let counts = self.counters(places).map(|counter| counter.fetch_add(1, Ordering::Relaxed));
        counts.iter().any(|count| *count < self.max)
    }

    fn remove(&self, places: Places) {
        for counter in self.counters(places) {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn counters(&self, places: Places) -> [&AtomicU32; 2] {
        let [first, second] = &self.rows;
        [&first[places[0]], &second[places[1]]]
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.requests.of_session.remove(self.session);
        if let (Some(sketch), Some(places)) = (&self.requests.of_address, self.address) {
            sketch.remove(places);
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

    /// Counts a login.
    ///
    /// # Errors
    ///
    /// Returns the problem that names the limit that it exceeds. It is not counted then.
    pub(crate) fn admit(self: &Arc<Self>, address: Option<IpAddr>) -> Result<LoginPermit, Problem> {
        let address = address.map(limited_address);
        let mut in_flight = self.in_flight();
        let of_address = address.and_then(|address| in_flight.per_address.get(&address)).copied().unwrap_or_default();
        for (is_over, kind) in [
            (in_flight.all >= self.max, Kind::TooManyLogins),
            (of_address >= self.max_per_address, Kind::TooManyLoginsOfAddress),
        ] {
            if is_over {
                return Err(Problem::from(kind).retry_after(DEFAULT_RETRY_AFTER));
            }
        }
        in_flight.all += 1;
        if let Some(address) = address {
            in_flight.per_address.insert(address, of_address + 1);
        }
        Ok(LoginPermit { logins: self.clone(), address })
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
        let requests = Arc::new(Requests::new(4, 2, Some(2)));
        let [first, second, third] = [(); 3].map(|()| SessionId::random().unwrap());
        let [one, two, other] =
            ["192.0.2.1", "2001:db8::1", "192.0.2.3"].map(|address| address.parse::<IpAddr>().unwrap());
        let mut permits = vec![requests.admit(first, one).unwrap(), requests.admit(first, two).unwrap()];
        assert_eq!(requests.admit(first, other).unwrap_err(), Exceeded::Session);
        permits.push(requests.admit(second, one).unwrap());
        assert_eq!(requests.admit(third, one).unwrap_err(), Exceeded::Address);
        // The same network.
        permits.push(requests.admit(second, "2001:db8::ffff".parse().unwrap()).unwrap());
        assert_eq!(requests.admit(third, other).unwrap_err(), Exceeded::All);
        permits.pop();
        assert_eq!(requests.admit(third, one).unwrap_err(), Exceeded::Address);
        drop(permits);
        assert_eq!(requests.all.load(Ordering::Relaxed), 0);
        let rows = [&requests.of_session.rows, &requests.of_address.as_ref().unwrap().rows];
        let mut counters = rows.into_iter().flatten().flatten();
        assert!(counters.all(|counter| counter.load(Ordering::Relaxed) == 0));
        let permit = requests.admit(first, one).unwrap();
        drop((requests.admit(first, one).unwrap(), permit));
    }

    #[test]
    fn logins_are_limited_in_all_and_per_address() {
        let logins = Arc::new(Logins::new(3, 2));
        let [one, two] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse::<IpAddr>().unwrap());
        let of_one = [logins.admit(Some(one)).unwrap(), logins.admit(Some(one)).unwrap()];
        assert!(logins.admit(Some(one)).is_err());
        // The same address in the notation of IPv6.
        assert!(logins.admit(Some("::ffff:192.0.2.1".parse().unwrap())).is_err());
        let of_two = logins.admit(Some(two)).unwrap();
        assert!(logins.admit(Some(two)).is_err(), "the maximum of all");
        drop((of_one, of_two));
        assert_eq!(logins.in_flight().all, 0);
        assert!(logins.in_flight().per_address.is_empty());
        assert!(logins.admit(None).is_ok());
    }
}
