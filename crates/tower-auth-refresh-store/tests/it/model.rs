//! A file store behaves as a `MemoryStore`, under any sequence of calls by two handles.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use tower_auth_refresh::store::{
    Claim, ClaimId, ClaimOutcome, ClearOutcome, CommitOutcome, InsertOutcome, MemoryStore, Presented, Record,
    TokenStore, Version,
};
use tower_auth_refresh_store::FileStore;

use crate::support::{TestDirectory, entry};

/// A call. Versions and claims are by their number, the latest being 0.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Load,
    Insert,
    Replace,
    Claim { version: usize, expires: bool },
    Renew { claim: usize, expires: bool },
    Release { claim: usize, presented: Presented },
    Commit { claim: usize },
    Clear { version: usize },
    Extend { version: usize, end: u8 },
}

fn call() -> impl Strategy<Value = Call> {
    let latest = || prop_oneof![4 => Just(0_usize), 1 => 0..4_usize];
    let presented = prop_oneof![Just(Presented::Unused), Just(Presented::InDoubt)];
    prop_oneof![
        1 => Just(Call::Load),
        1 => Just(Call::Insert),
        1 => Just(Call::Replace),
        6 => (latest(), any::<bool>()).prop_map(|(version, expires)| Call::Claim { version, expires }),
        2 => (latest(), any::<bool>()).prop_map(|(claim, expires)| Call::Renew { claim, expires }),
        3 => (latest(), presented).prop_map(|(claim, presented)| Call::Release { claim, presented }),
        3 => latest().prop_map(|claim| Call::Commit { claim }),
        1 => latest().prop_map(|version| Call::Clear { version }),
        2 => (latest(), any::<u8>()).prop_map(|(version, end)| Call::Extend { version, end }),
    ]
}

/// A store, and the versions and claims that it has made.
struct Subject {
    handles: [Arc<dyn TokenStore>; 2],
    versions: Vec<Version>,
    claims: Vec<Claim>,
}

/// An outcome, with versions and claims by their number.
#[derive(Debug, PartialEq)]
enum Seen {
    /// The version, the generation, and the end in milliseconds.
    Record(Option<(usize, u64, Option<u128>)>),
    Written(usize),
    Claimed(usize, bool),
    Busy,
    Held(bool),
    Done,
}

impl Subject {
    fn new(handles: [Arc<dyn TokenStore>; 2]) -> Self {
        Self { handles, versions: vec![Version::from(0_u128)], claims: Vec::new() }
    }

    fn record(&self, record: Option<&Record>) -> Seen {
        let number = |record: &Record| self.versions.iter().position(|version| version == record.version()).unwrap();
        let end = |record: &Record| Some(record.entry().expires_at()?.duration_since(UNIX_EPOCH).unwrap().as_millis());
        Seen::Record(record.map(|record| (number(record), record.generation(), end(record))))
    }

    fn written(&mut self, version: Version) -> Seen {
        assert!(!self.versions.contains(&version), "a version was used again");
        self.versions.push(version);
        Seen::Written(self.versions.len() - 1)
    }

    fn version(&self, back: usize) -> Version {
        self.versions[self.versions.len().saturating_sub(back + 1)].clone()
    }

    fn claim(&self, back: usize) -> Claim {
        let none = Claim::new(Version::from(0_u128), ClaimId::from(0_u128), false);
        self.claims.get(self.claims.len().saturating_sub(back + 1)).cloned().unwrap_or(none)
    }

    async fn make(&mut self, call: &Call, handle: usize, generation: u64) -> Seen {
        let lease = |expires: bool| if expires { Duration::ZERO } else { Duration::from_secs(3600) };
        let store = Arc::clone(&self.handles[handle]);
        match *call {
            Call::Load => self.record(store.load().await.unwrap().as_ref()),
            Call::Insert => match store.insert(&entry(generation)).await.unwrap() {
                InsertOutcome::Inserted(version) => self.written(version),
                InsertOutcome::Exists(record) => self.record(Some(&record)),
                other => panic!("{other:?}"),
            },
            Call::Replace => {
                let version = store.replace(&entry(generation)).await.unwrap();
                self.written(version)
            }
            Call::Claim { version, expires } => {
                match store.claim(&self.version(version), lease(expires)).await.unwrap() {
                    ClaimOutcome::Claimed(claim) => {
                        self.claims.push(claim.clone());
                        Seen::Claimed(self.claims.len(), claim.is_in_doubt())
                    }
                    ClaimOutcome::Busy { .. } => Seen::Busy,
                    ClaimOutcome::Changed(record) => self.record(record.as_ref()),
                    other => panic!("{other:?}"),
                }
            }
            Call::Renew { claim, expires } => {
                Seen::Held(store.renew(&self.claim(claim), lease(expires)).await.unwrap())
            }
            Call::Release { claim, presented } => {
                store.release(&self.claim(claim), presented).await.unwrap();
                Seen::Done
            }
            Call::Commit { claim } => match store.commit(&self.claim(claim), &entry(generation)).await.unwrap() {
                CommitOutcome::Stored(version) => self.written(version),
                CommitOutcome::Conflict(record) => self.record(record.as_ref()),
                other => panic!("{other:?}"),
            },
            Call::Clear { version } => match store.clear(&self.version(version)).await.unwrap() {
                ClearOutcome::Cleared => Seen::Done,
                ClearOutcome::Conflict(record) => self.record(Some(&record)),
                other => panic!("{other:?}"),
            },
            Call::Extend { version, end } => {
                // In the year 2100.
                let end = UNIX_EPOCH + Duration::from_millis(4_102_444_800_000 + u64::from(end));
                Seen::Held(store.extend(&self.version(version), end).await.unwrap())
            }
        }
    }
}

/// Makes calls of two handles on an empty store, and the same of a memory store.
pub(crate) async fn agree(handles: [Arc<dyn TokenStore>; 2], calls: &[(Call, usize)]) {
    let memory: Arc<dyn TokenStore> = Arc::new(MemoryStore::new());
    let (mut subject, mut model) = (Subject::new(handles), Subject::new([memory.clone(), memory]));
    for (at, (call, handle)) in calls.iter().enumerate() {
        let generation = at as u64;
        let (seen, expected) =
            (subject.make(call, *handle, generation).await, model.make(call, *handle, generation).await);
        assert_eq!(seen, expected, "call {at}: {call:?}");
        assert_eq!(subject.make(&Call::Load, 0, 0).await, model.make(&Call::Load, 0, 0).await, "after call {at}");
    }
}

pub(crate) fn calls() -> impl Strategy<Value = Vec<(Call, usize)>> {
    prop::collection::vec((call(), 0..2_usize), 1..40)
}

/// 200, of some 20 calls each.
pub(crate) fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").map_or(200, |cases| cases.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_file_store_and_a_memory_store_agree_on_any_sequence_of_calls(
        calls in calls(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = TestDirectory::new();
            let open = || FileStore::open_single(directory.path()).unwrap();
            agree([open(), open()], &calls).await;
        });
    }
}
