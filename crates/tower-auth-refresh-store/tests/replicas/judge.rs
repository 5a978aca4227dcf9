//! The judge: compares what the processes did with what stores and sessions promise.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Write};

use crate::chaos::{Evidence, Process};
use crate::log::{Call, Claim, Entry, Event, Found, Nanos, Outcome};
use crate::witness::Action;

/// The precision of a store's clock.
const TOLERANCE: Nanos = 5_000_000;

/// The place of an entry in the life of its user: the sign-in, and the generation.
type Place = (usize, u64);

/// A call, from its beginning to its end; no end if the process died before.
struct Observed<'a> {
    process: &'a Process,
    user: &'a str,
    begun: Nanos,
    call: &'a Call,
    end: Option<(Nanos, &'a Outcome)>,
}

/// What was seen.
pub(crate) struct Verdict {
    pub(crate) broken: Vec<String>,
    summary: String,
}

pub(crate) fn judge(evidence: &Evidence) -> Verdict {
    let mut court = Court::new(evidence);
    court.versions_are_unique();
    court.claims_exclude_each_other();
    court.what_is_read_is_the_last_write();
    court.tokens_are_presented_once_unmarked();
    court.nothing_is_lost();
    Verdict { summary: court.summary(), broken: court.broken }
}

struct Court<'a> {
    evidence: &'a Evidence,
    /// In the order in which they began.
    calls: Vec<Observed<'a>>,
    /// The entries by the hash of their refresh token.
    entries: HashMap<u64, (&'a str, &'a Entry)>,
    /// The numbers of the sign-ins by their epochs, in their order.
    sign_ins: HashMap<u64, usize>,
    /// The last moments until which claims were renewed.
    renewed: HashMap<&'a str, Nanos>,
    /// The releases of claims: when they began, and whether they left the token in doubt.
    released: HashMap<&'a str, Vec<(Nanos, bool)>>,
    broken: Vec<String>,
}

impl<'a> Court<'a> {
    fn new(evidence: &'a Evidence) -> Self {
        let mut calls: Vec<_> = evidence.processes.iter().flat_map(calls_of).collect();
        calls.sort_by_key(|call| call.begun);
        let entries = calls.iter().flat_map(|call| call.entries().map(|entry| (entry.token, (call.user, entry))));
        let sign_ins = evidence.sign_ins.iter().enumerate().map(|(number, it)| (it.epoch, number));
        let (mut renewed, mut released) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        for call in &calls {
            match (call.call, call.outcome()) {
                (Call::Renew { claim, lease }, Some(Outcome::Held(true))) => {
                    _ = renewed.insert(&*claim.id, call.begun + lease);
                }
                (Call::Release { claim, in_doubt }, _) => {
                    released.entry(&*claim.id).or_default().push((call.begun, *in_doubt));
                }
                _ => {}
            }
        }
        let (entries, sign_ins) = (entries.collect(), sign_ins.collect());
        Self { evidence, calls, entries, sign_ins, renewed, released, broken: Vec::new() }
    }

    fn versions_are_unique(&mut self) {
        let mut by_version: HashMap<&str, &Entry> = HashMap::new();
        let mut successors = HashSet::new();
        let (mut written, mut claimed) = (HashSet::new(), HashSet::new());
        for call in &self.calls {
            let (write, entry) = match (call.call, call.outcome()) {
                (
                    Call::Insert(entry) | Call::Replace(entry) | Call::Commit { entry, .. },
                    Some(Outcome::Written(it)),
                ) => (Some(it), entry),
                (_, Some(Outcome::Found(Some(found)))) => (None, &found.entry),
                (_, Some(Outcome::Claimed(claim))) => {
                    if !claimed.insert(&claim.id) {
                        self.broken.push(format!("two claims have the identifier {}", claim.id));
                    }
                    continue;
                }
                _ => continue,
            };
            if write.is_some_and(|version| !written.insert(version)) {
                self.broken.push(format!("two writes have the version {write:?}"));
            }
            let found = call.found().map(|found| &found.version);
            let Some(version) = write.or(found) else { continue };
            if *by_version.entry(version).or_insert(entry) != entry {
                self.broken.push(format!("version {version} of {} stands for two entries", call.user));
            }
            if let (Call::Commit { claim, .. }, Some(_)) = (call.call, write)
                && !successors.insert(&claim.version)
            {
                self.broken.push(format!("version {} of {} has two successors", claim.version, call.user));
            }
        }
    }

    /// A claim holds until its lease ends, it is released, or its process dies. A later one is in doubt, unless all
    /// before it were given back unused.
    fn claims_exclude_each_other(&mut self) {
        let mut by_version: HashMap<&str, Vec<(&Claim, Nanos, Nanos)>> = HashMap::new();
        for call in &self.calls {
            let (Call::Claim { lease }, Some((answered, Outcome::Claimed(claim)))) = (call.call, call.end) else {
                continue;
            };
            let until = self.held_until(claim, call, *lease);
            by_version.entry(&claim.version).or_default().push((claim, answered, until));
        }
        for claims in by_version.values() {
            for (number, (claim, answered, _)) in claims.iter().enumerate() {
                for (earlier, _, until) in claims[..number].iter().filter(|(_, before, _)| before < answered) {
                    if *until > answered + TOLERANCE {
                        self.broken.push(format!("two claims hold at once: {earlier:?} and {claim:?}"));
                    }
                    if !claim.in_doubt && !self.was_given_back(earlier, *answered) {
                        self.broken.push(format!("{claim:?} isn't in doubt, although {earlier:?} came before"));
                    }
                }
            }
        }
    }

    /// Returns the earliest moment at which a claim may have ended.
    fn held_until(&self, claim: &Claim, made: &Observed<'_>, lease: Nanos) -> Nanos {
        let renewed = self.renewed.get(&*claim.id).copied().unwrap_or_default();
        let released = self.released.get(&*claim.id).map_or(Nanos::MAX, |releases| releases[0].0);
        // What a process logs last is before its death.
        let died = made.process.lines.last().map_or(0, |line| line.at);
        (made.begun + lease).max(renewed).min(released).min(died)
    }

    fn was_given_back(&self, claim: &Claim, before: Nanos) -> bool {
        let releases = self.released.get(&*claim.id);
        releases.is_some_and(|releases| releases.iter().any(|(begun, in_doubt)| !in_doubt && *begun < before))
    }

    /// A record that is read was written, and isn't older than a write that was acknowledged before.
    fn what_is_read_is_the_last_write(&mut self) {
        let mut broken = Vec::new();
        let mut written: HashMap<&str, Vec<&Entry>> = HashMap::new();
        let mut acknowledged: HashMap<&str, Vec<(Nanos, Place)>> = HashMap::new();
        let mut cleared: HashMap<&str, Nanos> = HashMap::new();
        for call in &self.calls {
            match call.call {
                Call::Insert(entry) | Call::Replace(entry) | Call::Commit { entry, .. } => {
                    written.entry(call.user).or_default().push(entry);
                    if let Some((at, Outcome::Written(_))) = call.end {
                        acknowledged.entry(call.user).or_default().push((at, self.place(entry)));
                    }
                }
                Call::Clear => _ = cleared.entry(call.user).or_insert(call.begun),
                _ => {}
            }
        }
        for call in &self.calls {
            let Some((at, Outcome::Found(found))) = call.end else { continue };
            let Some(found) = found else {
                if cleared.get(call.user).is_none_or(|cleared| *cleared > at) {
                    broken.push(format!("the record of {} is gone, although nothing has deleted it", call.user));
                }
                continue;
            };
            if !written.get(call.user).is_some_and(|written| written.contains(&&found.entry)) {
                broken.push(format!("{found:?} of {} was never written", call.user));
            }
            let before = acknowledged[call.user].iter().filter(|(at, _)| *at < call.begun).map(|(_, place)| *place);
            if before.max().is_some_and(|newest| newest > self.place(&found.entry)) {
                broken.push(format!("{:?} of {} finds {found:?}, after a newer write", call.call, call.user));
            }
        }
        self.broken.append(&mut broken);
    }

    fn place(&self, entry: &Entry) -> Place {
        (self.sign_ins[&entry.epoch], entry.generation)
    }

    /// Of all presentations of a token that may have used it up, at most one isn't marked as in doubt.
    fn tokens_are_presented_once_unmarked(&mut self) {
        let mut broken = Vec::new();
        let mut unmarked: HashMap<u64, usize> = HashMap::new();
        let mut marked: HashMap<u64, usize> = HashMap::new();
        for (token, in_doubt, _) in self.presentations() {
            *if in_doubt { &mut marked } else { &mut unmarked }.entry(token).or_default() += 1;
        }
        for (token, times) in unmarked.iter().filter(|(_, times)| **times > 1) {
            broken.push(format!("{:?} was presented {times} times unmarked", self.entries.get(token)));
        }
        // By the oracle.
        for reuse in &self.evidence.reuses {
            let epoch = self.evidence.sign_ins.iter().find(|it| *it.account == *reuse.user).map(|it| it.epoch);
            let is_it = |entry: &Entry| Some(entry.epoch) == epoch && entry.generation == reuse.generation;
            let token = self.entries.iter().find(|(_, (_, entry))| is_it(entry)).map(|(token, _)| token);
            if token.is_none_or(|token| !marked.contains_key(token)) {
                broken.push(format!("{reuse:?}, although no process has presented the token as in doubt"));
            }
        }
        self.broken.append(&mut broken);
    }

    /// Returns the presentations that may have used their token up: the token, its mark, and the call.
    fn presentations(&self) -> impl Iterator<Item = (u64, bool, &Observed<'a>)> {
        self.calls.iter().filter_map(|call| match (call.call, call.outcome()) {
            (Call::Present { .. }, Some(Outcome::Unused)) => None,
            (Call::Present { token, in_doubt }, _) => Some((*token, *in_doubt, call)),
            _ => None,
        })
    }

    /// The server accepts the last token of each user.
    fn nothing_is_lost(&mut self) {
        let mut broken = Vec::new();
        for account in &self.evidence.signed_out {
            if !self.was_presented_late(account) {
                broken.push(format!("{account} was signed out"));
            }
        }
        for (user, error) in &self.evidence.last {
            let sign_in = self.evidence.sign_ins.iter().rfind(|it| it.user == *user).unwrap();
            if let Some(error) = error.as_ref().filter(|_| !self.evidence.signed_out.contains(&sign_in.account)) {
                broken.push(format!("the last token of {user} isn't accepted: {error}"));
            }
        }
        self.broken.append(&mut broken);
    }

    /// Returns `true` if a process was stopped for longer than its lease between its claim and the end of its call.
    fn was_presented_late(&self, account: &str) -> bool {
        let epoch = self.evidence.sign_ins.iter().find(|it| it.account == account).unwrap().epoch;
        self.presentations().any(|(token, _, call)| {
            let Some((user, _)) = self.entries.get(&token).filter(|(_, entry)| entry.epoch == epoch) else {
                return false;
            };
            let is_claim = |it: &&Observed<'_>| {
                it.user == *user && std::ptr::eq(it.process, call.process) && matches!(it.call, Call::Claim { .. })
            };
            let before = self.calls.partition_point(|it| it.begun < call.begun);
            let claimed = self.calls[..before].iter().rfind(is_claim).map(|claim| claim.begun);
            let ended = call.end.map_or(Nanos::MAX, |(at, _)| at);
            call.process.stops.iter().any(|(stopped, resumed)| Some(*resumed) >= claimed && *stopped <= ended)
        })
    }

    fn summary(&self) -> String {
        let mut done: BTreeMap<_, usize> = BTreeMap::new();
        for (action, point) in &self.evidence.done {
            *done.entry((action, point)).or_default() += 1;
        }
        let kills = self.evidence.done.iter().filter(|(action, _)| *action == Action::Kill).count();
        let commits = self.calls.iter().filter(|call| matches!(call.call, Call::Commit { .. }) && call.is_written());
        let failed = self.calls.iter().filter(|call| matches!(call.outcome(), Some(Outcome::Failed(_)))).count();
        let unfinished = self.calls.iter().filter(|call| call.end.is_none()).count();
        let marked = self.presentations().filter(|(_, in_doubt, _)| *in_doubt).count();
        let mut text = format!(
            "{kills} kills and {} stops of {} processes: {} calls, of which {failed} failed and {unfinished} did not \
             end\n{} refresh tokens presented, {marked} of them in doubt; {} granted; {} commits; {} requests served\n\
             {} tokens presented again in doubt; {} users signed out by a process that was stopped between claim and call\n",
            self.evidence.done.len() - kills,
            self.evidence.processes.len() - 1,
            self.calls.len(),
            self.presentations().count(),
            self.evidence.granted,
            commits.count(),
            self.evidence.served,
            self.evidence.reuses.len(),
            self.evidence.signed_out.len(),
        );
        for ((action, point), times) in done {
            let _ = writeln!(text, "  {action:?} {point}: {times}");
        }
        text
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} promises broken", self.summary, self.broken.len())?;
        self.broken.iter().take(20).try_for_each(|broken| write!(f, "\n  {broken}"))
    }
}

impl<'a> Observed<'a> {
    fn outcome(&self) -> Option<&'a Outcome> {
        self.end.map(|(_, outcome)| outcome)
    }

    fn is_written(&self) -> bool {
        matches!(self.outcome(), Some(Outcome::Written(_)))
    }

    fn found(&self) -> Option<&'a Found> {
        match self.outcome() {
            Some(Outcome::Found(found)) => found.as_ref(),
            _ => None,
        }
    }

    /// Returns the entries that the call has written or found.
    fn entries(&self) -> impl Iterator<Item = &'a Entry> {
        let written = match self.call {
            Call::Insert(entry) | Call::Replace(entry) | Call::Commit { entry, .. } => Some(entry),
            _ => None,
        };
        written.into_iter().chain(self.found().map(|found| &found.entry))
    }
}

fn calls_of(process: &Process) -> Vec<Observed<'_>> {
    let mut ends: HashMap<_, _> = HashMap::new();
    for line in &process.lines {
        if let Event::Ends(outcome) = &line.event {
            ends.insert(line.number, (line.at, outcome));
        }
    }
    let begun = process.lines.iter().filter_map(|line| match &line.event {
        Event::Begins(call) => Some((line, call)),
        Event::Ends(_) => None,
    });
    begun
        .map(|(line, call)| Observed {
            process,
            user: &line.user,
            begun: line.at,
            call,
            end: ends.get(&line.number).copied(),
        })
        .collect()
}
