//! [`Table`]: the open connections, limited in all and per address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::activity::{Activity, State};
use crate::metrics::{Limit, Metrics};

/// The longest time between two looks for a connection that can be closed.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The time without a request after which a connection makes room for any other. The first request of a new one, or the
/// next of one in use, may be on its way before.
const REQUEST_TIME: Duration = Duration::from_millis(500);

/// The open connections.
#[derive(Debug)]
pub(super) struct Table {
    max: usize,
    max_per_address: usize,
    open: Mutex<Open>,
    released: Notify,
    closing: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    connections: HashMap<u64, (Option<IpAddr>, Arc<Activity>)>,
    per_address: HashMap<IpAddr, usize>,
}

/// A connection's place in the table, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    table: Arc<Table>,
    key: u64,
    /// Absent if the connection isn't limited by its address.
    address: Option<IpAddr>,
    pub(super) activity: Arc<Activity>,
}

impl Table {
    pub(super) fn new(max: usize, max_per_address: usize, metrics: Arc<Metrics>) -> Self {
        let (open, released, closing) = (Mutex::default(), Notify::new(), Arc::default());
        Self { max, max_per_address, open, released, closing, metrics }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place. If there is none, the connection that has been without a request for the longest time is
    /// closed. Returns `None` if the address has its maximum, all with requests. Without an address, only the number of
    /// all connections is limited.
    pub(super) async fn admit(self: &Arc<Self>, address: Option<IpAddr>) -> Option<Slot> {
        let address = address.map(limited_address);
        let mut makes_room = false;
        let mut exceeded = Exceeded::default();
        loop {
            let released = self.released.notified();
            {
                let mut open = self.open();
                if address.is_some_and(|address| open.count_of(address) >= self.max_per_address) {
                    exceeded.count(&self.metrics, Limit::ConnectionsPerAddress);
                    makes_room = makes_room || open.evict(Duration::ZERO, |other| other == address);
                    if !makes_room {
                        return None;
                    }
                } else if open.connections.len() >= self.max {
                    exceeded.count(&self.metrics, Limit::Connections);
                    makes_room = makes_room || open.evict(REQUEST_TIME, |_| true);
                } else {
                    return Some(self.insert(&mut open, address));
                }
            }
            // An active connection becomes idle without a signal.
            let _ = timeout(LOOK_INTERVAL, released).await;
        }
    }

    /// Makes each further response the last of its connection.
    pub(super) fn close_soon(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Closes the connection that has been without a request for the longest time.
    pub(super) fn evict(&self) {
        self.open().evict(Duration::ZERO, |_| true);
    }

    fn insert(self: &Arc<Self>, open: &mut Open, address: Option<IpAddr>) -> Slot {
        open.last += 1;
        let (key, activity) = (open.last, Arc::new(Activity::new(self.closing.clone())));
        open.connections.insert(key, (address, activity.clone()));
        if let Some(address) = address {
            *open.per_address.entry(address).or_default() += 1;
        }
        Slot { table: self.clone(), key, address, activity }
    }
}

/// A connection is over a limit, which is counted once.
#[derive(Debug, Default)]
struct Exceeded(bool);

impl Exceeded {
    fn count(&mut self, metrics: &Metrics, limit: Limit) {
        if !std::mem::replace(&mut self.0, true) {
            metrics.count_limit(limit);
        }
    }
}

impl Open {
    fn count_of(&self, address: IpAddr) -> usize {
        self.per_address.get(&address).copied().unwrap_or_default()
    }

    /// Closes the connection of these addresses that has been without a request for the longest time, and at least for
    /// `time`. Returns `false` if there is none but those that make room already: each makes it for one.
    fn evict(&self, time: Duration, of: impl Fn(Option<IpAddr>) -> bool) -> bool {
        let idle = self.connections.values().filter(|(address, _)| of(*address)).filter_map(|(_, activity)| {
            match activity.state() {
                _ if activity.is_evicted() => None,
                State::Busy => None,
                State::Head(since) | State::Idle(since) => Some((since, activity)),
            }
        });
        let longest = idle.min_by_key(|(since, _)| *since).filter(|(since, _)| since.elapsed() >= time);
        longest.is_some_and(|(_, activity)| {
            activity.evict();
            true
        })
    }
}

impl Slot {
    /// Counts the connection for the address of the client for which a proxy has made it. Returns `false` if the
    /// address has its maximum, all with requests.
    pub(super) async fn count_for(&mut self, address: IpAddr) -> bool {
        let address = limited_address(address);
        let mut makes_room = false;
        let mut exceeded = Exceeded::default();
        loop {
            let released = self.table.released.notified();
            {
                let mut open = self.table.open();
                if open.count_of(address) < self.table.max_per_address {
                    *open.per_address.entry(address).or_default() += 1;
                    if let Some((counted, _)) = open.connections.get_mut(&self.key) {
                        *counted = Some(address);
                    }
                    self.address = Some(address);
                    return true;
                }
                exceeded.count(&self.table.metrics, Limit::ConnectionsPerAddress);
                makes_room = makes_room || open.evict(Duration::ZERO, |other| other == Some(address));
                if !makes_room {
                    return false;
                }
            }
            let _ = timeout(LOOK_INTERVAL, released).await;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.table.open();
        open.connections.remove(&self.key);
        if let Some(address) = self.address
            && let Some(count) = open.per_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                open.per_address.remove(&address);
            }
        }
        drop(open);
        self.table.released.notify_waiters();
    }
}

/// Returns what a limit per address counts: the address, or of IPv6 the network of 64 bits that a host may choose from.
pub(crate) fn limited_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            [a, b, c, d, 0, 0, 0, 0].into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than any of these waits takes: a test fails after it, instead of hanging.
    const LONG: Duration = Duration::from_secs(60);

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_makes_room() {
        let table = Arc::new(Table::new(3, 3, Arc::default()));
        let mut slots = Vec::new();
        for last in 0..3 {
            slots.push(table.admit(Some(address(last))).await.unwrap());
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        // The first has a request.
        let _answering = slots[0].activity.request_started();
        let admitted = tokio::spawn({
            let table = table.clone();
            async move { table.admit(Some(address(9))).await.is_some() }
        });
        timeout(LONG, slots[1].activity.eviction()).await.unwrap();
        slots.remove(1);
        assert!(timeout(LONG, admitted).await.unwrap().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_of_active_connections_makes_room_when_one_ends() {
        let table = Arc::new(Table::new(1, 1, Arc::default()));
        let slot = table.admit(Some(address(1))).await.unwrap();
        let answering = slot.activity.request_started();
        let admitted = tokio::spawn({
            let table = table.clone();
            async move { table.admit(Some(address(2))).await.is_some() }
        });
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!admitted.is_finished());
        drop(answering);
        timeout(LONG, slot.activity.eviction()).await.unwrap();
        drop(slot);
        assert!(timeout(LONG, admitted).await.unwrap().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_has_the_time_to_send_its_first_or_next_request() {
        for answered in [false, true] {
            let table = Arc::new(Table::new(1, 1, Arc::default()));
            let slot = table.admit(Some(address(1))).await.unwrap();
            if answered {
                tokio::time::sleep(Duration::from_secs(10)).await;
                drop(slot.activity.request_started());
            }
            let admitted = tokio::spawn({
                let table = table.clone();
                async move { table.admit(Some(address(2))).await.is_some() }
            });
            tokio::time::sleep(REQUEST_TIME.saturating_sub(LOOK_INTERVAL)).await;
            assert!(!slot.activity.is_evicted());
            // One that sends none makes room.
            timeout(LONG, slot.activity.eviction()).await.unwrap();
            drop(slot);
            assert!(timeout(LONG, admitted).await.unwrap().unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_with_its_maximum_of_active_connections_is_refused() {
        let table = Arc::new(Table::new(10, 2, Arc::default()));
        let slots = [table.admit(Some(address(1))).await.unwrap(), table.admit(Some(address(1))).await.unwrap()];
        let _answering = [slots[0].activity.request_started(), slots[1].activity.request_started()];
        assert!(table.admit(Some(address(1))).await.is_none());
        // An IPv4 address in the notation of IPv6 is the same.
        assert!(table.admit(Some("::ffff:192.0.2.1".parse().unwrap())).await.is_none());
        assert!(table.admit(Some(address(2))).await.is_some());
        // A proxy has the connections of many.
        assert!(table.admit(None).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_connections_of_a_proxy_are_limited_by_the_addresses_of_its_clients() {
        let table = Arc::new(Table::new(10, 1, Arc::default()));
        let mut first = table.admit(None).await.unwrap();
        assert!(first.count_for(address(1)).await);
        let answering = first.activity.request_started();
        let mut second = table.admit(None).await.unwrap();
        assert!(!second.count_for(address(1)).await);
        assert!(table.admit(Some(address(1))).await.is_none());
        assert!(second.count_for(address(2)).await);
        // An idle one makes room.
        drop(answering);
        let third = tokio::spawn({
            let table = table.clone();
            async move { table.admit(None).await.unwrap().count_for(address(1)).await }
        });
        timeout(LONG, first.activity.eviction()).await.unwrap();
        drop(first);
        assert!(timeout(LONG, third).await.unwrap().unwrap());
        drop(second);
        assert!(table.open().per_address.is_empty() && table.open().connections.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_connections_wait_for_room_than_can_make_it() {
        let table = Arc::new(Table::new(100, 1, Arc::default()));
        let mut first = table.admit(None).await.unwrap();
        assert!(first.count_for(address(1)).await);
        let count = async |table: Arc<Table>| table.admit(None).await.unwrap().count_for(address(1)).await;
        let waits = tokio::spawn(count(table.clone()));
        timeout(LONG, first.activity.eviction()).await.unwrap();
        // The only one that can make room makes it for another.
        assert!(!timeout(LONG, count(table.clone())).await.unwrap() && !waits.is_finished());
        drop(first);
        assert!(timeout(LONG, waits).await.unwrap().unwrap());
    }

    #[test]
    fn a_network_of_64_bits_counts_as_one_address() {
        let limited = |text: &str| limited_address(text.parse().unwrap());
        assert_eq!(limited("2001:db8:1:2:3::4"), limited("2001:db8:1:2:ffff::"));
        assert_ne!(limited("2001:db8:1:2:3::4"), limited("2001:db8:1:3:3::4"));
    }
}
