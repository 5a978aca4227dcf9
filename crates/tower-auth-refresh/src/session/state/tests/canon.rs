//! The canonical key of an environment, relative to the current time, epoch and generation. Environments with equal
//! keys behave alike.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

use super::super::{State, Stored};
use super::environment::Environment;
use crate::session::loop_guard::{self, LoopGuard, Starter};
use crate::store::Epoch;

/// Beyond these counts, one more doesn't change any pause.
const MANY_FAILURES: u32 = 7;
const MANY_WASTED: u32 = loop_guard::LOOPING + 6;

impl Environment {
    /// Returns a key that is equal for environments that behave alike.
    pub(super) fn canon(&self) -> u128 {
        let mut digest = Digest(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        self.hash_state(&mut digest);
        self.flight.hash(&mut digest);
        (self.config, self.doubted, self.challenged, self.failures.min(MANY_FAILURES)).hash(&mut digest);
        (self.first < self.state.generation).hash(&mut digest);
        let mut epochs = Epochs(vec![self.state.epoch]);
        self.hash_epochs(&mut epochs, &mut digest);
        self.hash_order(&mut digest);
        digest.0
    }

    fn hash_state(&self, digest: &mut Digest) {
        let State { phase, tokens, due, rejected, in_doubt, failures, guard, cooling, .. } = &self.state;
        (phase, tokens.access_token().is_some(), tokens.refresh_token().is_some()).hash(digest);
        let failures = failures.as_ref().map_or(0, |failures| failures.count.min(MANY_FAILURES));
        (rejected, in_doubt, failures).hash(digest);
        let age = guard.issued.map(|issued| self.now.duration_since(issued).min(loop_guard::PROBATION));
        age.hash(digest);
        cooling.as_ref().map(|it| self.left(it.until)).filter(|left| !left.is_zero()).hash(digest);
        due.as_deref().map(|due| (self.left(due.early), self.left(due.expired))).hash(digest);
        self.hash_guard(digest);
    }

    fn hash_guard(&self, digest: &mut Digest) {
        let LoopGuard { starter, row, .. } = &self.state.guard;
        // Requests carry the last two generations.
        let starter = starter.map(|Starter { target, base }| {
            let [accepted, refused] = [self.results.accepted, self.results.refused].map(|result| result > base);
            (target, (self.state.generation.0 - base.0).min(2), accepted, refused)
        });
        (starter, self.trials.map(|trial| (trial.flights.min(2), trial.refused_again))).hash(digest);
        let Some(row) = row else { return };
        row.wasted.min(MANY_WASTED).hash(digest);
        row.until.map(|until| self.left(until)).filter(|left| !left.is_zero()).hash(digest);
        for account in &row.accounts {
            // The age itself is left out: an account is forgotten by a wait of that length alone.
            let is_forgotten = self.now.duration_since(account.at) >= loop_guard::MEMORY;
            (account.target, account.weight.min(2), is_forgotten).hash(digest);
        }
    }

    fn left(&self, until: Instant) -> Duration {
        until.saturating_duration_since(self.now)
    }

    fn hash_epochs(&self, epochs: &mut Epochs, digest: &mut Digest) {
        epochs.hash_stored(&self.state.stored, digest);
        self.state.ended.as_ref().map(|ended| epochs.name(ended.0)).hash(digest);
        epochs.names(&self.late).hash(digest);
        epochs.names(&self.may_hold).hash(digest);
        if let Some(sync) = &self.sync {
            (epochs.name(sync.epoch), sync.tokens == self.state.tokens).hash(digest);
            // Places are only compared within an epoch. What the write finds has the place that it has read or the
            // next one, so a gap of two is equivalent to a wider one.
            let gap = (sync.epoch == self.state.epoch).then(|| (self.state.place - sync.place).min(2));
            gap.hash(digest);
            epochs.hash_stored(&sync.stored, digest);
        }
        if let Some(look) = &self.look {
            let same_epoch = look.epoch == self.state.epoch;
            // Newer and older records are told from the tokens by their places, if these are still those of the look.
            (same_epoch, same_epoch && look.place == self.state.place, look.is_over()).hash(digest);
        }
    }

    /// Hashes the order of the generations. They are only compared with one another and with the last two, so a gap of
    /// two is equivalent to a wider one.
    fn hash_order(&self, digest: &mut Digest) {
        let mut marks = vec![self.state.generation.0];
        let open = self.trials.iter().filter(|trial| trial.flights > 0 || trial.refused_again);
        marks.extend(open.map(|trial| trial.refused));
        if let Some(row) = &self.state.guard.row {
            marks.push(row.accepted.0);
            marks.extend(row.accounts.iter().map(|account| account.refused.0));
        }
        let mut sorted = marks.clone();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        sorted.dedup();
        let gap = |window: &[u64]| (window[0] - window[1]).min(2);
        let place = |mark: u64| sorted.windows(2).take_while(|window| window[0] > mark).map(gap).sum::<u64>();
        marks.into_iter().map(place).for_each(|place| place.hash(digest));
    }
}

/// Numbers epochs in the order of their appearance. Epochs are only compared for equality.
struct Epochs(Vec<Epoch>);

impl Epochs {
    fn name(&mut self, epoch: Epoch) -> usize {
        self.0.iter().position(|known| *known == epoch).unwrap_or_else(|| {
            self.0.push(epoch);
            self.0.len() - 1
        })
    }

    fn names(&mut self, epochs: &[Epoch]) -> Vec<usize> {
        epochs.iter().map(|epoch| self.name(*epoch)).collect()
    }

    fn hash_stored(&mut self, stored: &Stored, digest: &mut Digest) {
        match stored {
            Stored::Clean(version) => (0, version).hash(digest),
            // A claim's content decides nothing.
            Stored::CommitPending(_) => 1.hash(digest),
            Stored::OverwritePending(version) => (2, version).hash(digest),
            Stored::SignInPending(over) => (3, self.names(over)).hash(digest),
            Stored::DeletePending(of) => (4, self.names(of)).hash(digest),
        }
    }
}

/// FNV-1a with 128 bits: a collision among many millions of environments is practically impossible.
struct Digest(u128);

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }

    fn finish(&self) -> u64 {
        unreachable!("the digest is read as 128 bits")
    }
}
