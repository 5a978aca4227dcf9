//! Full memory, unsafe settings, the wrong clock, and values that aren't records.

use std::time::{Duration, SystemTime};

use tokio::time::timeout;
use tower_auth_refresh::store::{ClaimOutcome, ClearOutcome, CommitOutcome, Presented, TokenStore};
use tower_auth_refresh_store::{RedisStores, StoreErrorKind};

use super::Server;
#[cfg(target_os = "linux")]
use crate::clocks::peer_with_clock;
use crate::kind;
use crate::support::{LEASE, claimed, entry};

/// The URL, as errors name it.
fn shown(server: &Server) -> String {
    format!("{}/0", server.url())
}

/// Returns the names of the keys of all records.
async fn names(server: &Server) -> Vec<String> {
    let answer = server.command("KEYS tar:*").await;
    answer.lines().filter(|line| line.starts_with("tar:")).map(str::to_owned).collect()
}

/// Writes a value under a key.
async fn set(server: &Server, name: &str, value: &[u8]) {
    let quoted = value.iter().fold(String::new(), |quoted, byte| quoted + &format!("\\x{byte:02x}"));
    assert_eq!(server.command(&format!("SET {name} \"{quoted}\"")).await, "+OK\r\n");
}

#[tokio::test]
async fn if_the_memory_is_full_a_claim_fails_and_what_ends_it_does_not() {
    let Some(server) = Server::start().await else { return };
    let redis = RedisStores::connect(&server.url()).await.unwrap();
    let (ada, bob, eve) = (redis.store("ada"), redis.store("bob"), redis.store("eve"));
    let claimed_version = ada.replace(&entry(1)).await.unwrap();
    let free_version = bob.replace(&entry(1)).await.unwrap();
    let claim = claimed(&*ada, &claimed_version).await;
    let limit = async |bytes: &str| {
        assert_eq!(server.command(&format!("CONFIG SET maxmemory {bytes}")).await, "+OK\r\n");
    };
    limit("1").await;
    let (full, url) = (StoreErrorKind::Unavailable, shown(&server));
    assert_eq!(kind(bob.claim(&free_version, LEASE).await, &url), full);
    assert_eq!(kind(bob.replace(&entry(2)).await, &url), full);
    assert_eq!(kind(eve.insert(&entry(1)).await, &url), full);

    assert!(ada.renew(&claim, LEASE).await.unwrap());
    let CommitOutcome::Stored(version) = ada.commit(&claim, &entry(2)).await.unwrap() else { panic!() };
    assert!(ada.extend(&version, SystemTime::now() + LEASE).await.unwrap());
    assert_eq!(ada.load().await.unwrap().unwrap().generation(), 2);
    limit("0").await;
    let claim = claimed(&*ada, &version).await;
    limit("1").await;
    ada.release(&claim, Presented::InDoubt).await.unwrap();
    assert!(matches!(ada.clear(&version).await.unwrap(), ClearOutcome::Cleared));
    limit("0").await;
    assert!(!claimed(&*bob, &free_version).await.is_in_doubt(), "the claim that failed has left nothing");
}

#[tokio::test]
async fn a_primary_that_may_be_cut_off_is_neither_written_nor_read() {
    let Some(server) = Server::start().await else { return };
    let store = RedisStores::connect(&server.url()).await.unwrap().store("ada");
    let version = store.replace(&entry(1)).await.unwrap();
    assert_eq!(server.command("CONFIG SET min-replicas-to-write 1").await, "+OK\r\n");
    let (unavailable, url) = (StoreErrorKind::Unavailable, shown(&server));
    assert_eq!(kind(store.claim(&version, LEASE).await, &url), unavailable);
    assert_eq!(kind(store.load().await, &url), unavailable, "another server may have a newer record");
    assert_eq!(server.command("CONFIG SET min-replicas-to-write 0").await, "+OK\r\n");
    assert!(!claimed(&*store, &version).await.is_in_doubt());
}

#[tokio::test]
async fn a_server_with_unsafe_settings_is_reported() {
    let replica = ["--replicaof", "127.0.0.1", "1"];
    let cases: [(&[&str], &str, &str); 6] = [
        (&["--appendonly", "yes"], "", ""),
        (&["--save", "3600 1"], "", ""),
        (&["--save", ""], "", "appendonly"),
        (&["--maxmemory-policy", "allkeys-lru"], "", "noeviction"),
        (&replica, "", "replica"),
        (&[], "CONFIG SET maxmemory 1", "OOM"),
    ];
    for (settings, command, reason) in cases {
        let Some(server) = Server::start_with(settings).await else { return };
        if !command.is_empty() {
            server.command(command).await;
        }
        let redis = RedisStores::connect(&server.url()).await.unwrap();
        match redis.check().await {
            Ok(()) => assert_eq!(reason, "", "{settings:?}"),
            Err(error) => {
                assert!(!reason.is_empty() && error.to_string().contains(reason), "{settings:?}: {error}");
                assert_eq!(error.resource(), shown(&server));
                assert_eq!(error.kind() == StoreErrorKind::Unavailable, reason == "OOM", "{error}");
            }
        }
        assert_eq!(names(&server).await, [""; 0], "the check leaves nothing");
    }
}

#[tokio::test]
async fn a_server_with_fewer_replicas_than_writes_wait_for_is_reported() {
    let Some(server) = Server::start_with(&["--appendonly", "yes"]).await else { return };
    let redis = RedisStores::builder(&server.url()).wait(2).connect().await.unwrap();
    let error = redis.check().await.unwrap_err();
    assert!(error.to_string().contains("has 0 replicas, but writes wait for 2"), "{error}");
}

#[tokio::test]
async fn a_user_with_the_documented_permissions_passes_the_check_and_one_with_fewer_is_refused() {
    let Some(server) = Server::start_with(&["--appendonly", "yes"]).await else { return };
    let permissions = "~tar:* &tar:* +getex +get +set +setrange +del +evalsha +eval +time +publish +subscribe \
                       +ping +info +wait +config|get";
    server.command(&format!("ACL SETUSER gateway on >s3cret {permissions}")).await;
    let url = server.url().replace("//", "//gateway:s3cret@");
    let redis = RedisStores::connect(&url).await.unwrap();
    redis.check().await.unwrap();
    // The server doesn't name a command that a script may not run.
    let unnamed = "can't run this command";
    for (missing, named) in [
        ("getex", "getex"),
        ("evalsha", "evalsha"),
        ("publish", "publish"),
        ("subscribe", "subscribe"),
        ("set", unnamed),
        ("setrange", unnamed),
        ("del", unnamed),
    ] {
        server.command(&format!("ACL SETUSER gateway -{missing}")).await;
        let error = redis.check().await.unwrap_err();
        assert!(error.to_string().contains(named), "{missing}: {error}");
        assert_eq!(error.kind(), StoreErrorKind::Misconfigured, "{error}");
        server.command(&format!("ACL SETUSER gateway +{missing}")).await;
    }
    redis.check().await.unwrap();
}

#[tokio::test]
async fn an_extension_that_is_refused_changes_neither_the_value_nor_its_lifetime() {
    let Some(server) = Server::start().await else { return };
    let store = RedisStores::connect(&server.url()).await.unwrap().store("ada");
    let version = store.replace(&entry(1)).await.unwrap();
    let name = names(&server).await.remove(0);
    let before = server.command(&format!("DUMP {name}")).await;
    server.command("ACL SETUSER default -set").await;
    let extended = store.extend(&version, SystemTime::now() + LEASE).await;
    assert_eq!(kind(extended, shown(&server)), StoreErrorKind::Misconfigured);
    assert_eq!(server.command(&format!("DUMP {name}")).await, before);
    assert_eq!(server.command(&format!("PTTL {name}")).await, ":-1\r\n");
}

#[tokio::test]
async fn the_check_runs_each_script() {
    let Some(server) = Server::start_with(&["--appendonly", "yes"]).await else { return };
    RedisStores::connect(&server.url()).await.unwrap().check().await.unwrap();
    let known = server.command("INFO memory").await;
    assert!(known.contains("number_of_cached_scripts:8"), "{known}");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn leases_and_lifetimes_are_by_the_clock_of_the_server_if_that_of_a_client_is_an_hour_off() {
    let Some(server) = Server::start().await else { return };
    let here = crate::url::open(&server.url()).await("");
    for offset in ["+1h", "-1h"] {
        let Some(there) = peer_with_clock(offset, &server.url()).await else { return };
        let version = here.replace(&entry(1)).await.unwrap();
        for (first, second) in [(&here as &dyn TokenStore, &there as &dyn TokenStore), (&there, &here)] {
            let claim = claimed(first, &version).await;
            assert!(!claim.is_in_doubt(), "{offset}");
            let busy = second.claim(&version, LEASE).await.unwrap();
            let ClaimOutcome::Busy { retry_in } = busy else { panic!("{offset}: {busy:?}") };
            assert!(retry_in <= LEASE && retry_in > LEASE / 2, "{offset}: {retry_in:?}");
            first.release(&claim, Presented::Unused).await.unwrap();
        }
        // An end in ten minutes, by the clock of the process that sets it.
        let lifetime = Duration::from_secs(600);
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let end = if offset == "+1h" { now + hour } else { now - hour } + lifetime;
        assert!(there.extend(&version, end).await.unwrap());
        let name = names(&server).await.remove(0);
        let answer = server.command(&format!("PTTL {name}")).await;
        let left: u64 = answer.trim().trim_start_matches(':').parse().unwrap();
        assert!((300_000..=600_000).contains(&left), "{offset}: {left} ms");
        let found = here.load().await.unwrap().unwrap();
        assert_eq!(found.version(), &version);
    }
}

#[tokio::test]
async fn a_value_that_is_not_the_record_of_its_session_is_an_error_and_stays_as_it_is() {
    let Some(server) = Server::start().await else { return };
    let (redis, url) = (RedisStores::connect(&server.url()).await.unwrap(), shown(&server));
    let ada = redis.store("ada");
    ada.replace(&entry(1)).await.unwrap();
    let adas = names(&server).await.remove(0);
    let bob = redis.store("bob");
    let version = bob.replace(&entry(1)).await.unwrap();
    let bobs = names(&server).await.into_iter().find(|name| *name != adas).unwrap();
    let claim = claimed(&*bob, &version).await;
    for (command, expected) in [
        (format!("SET {bobs} hello"), StoreErrorKind::Corrupt),
        (format!("SET {bobs} \"tars\\x02{}\"", "0".repeat(200)), StoreErrorKind::NewerFormat),
        (format!("COPY {adas} {bobs} REPLACE"), StoreErrorKind::Corrupt),
        (format!("RENAME {bobs} {bobs}-gone"), StoreErrorKind::Corrupt),
    ] {
        server.command(&command).await;
        if command.starts_with("RENAME") {
            server.command(&format!("RPUSH {bobs} a b")).await;
        }
        let before = server.command(&format!("DUMP {bobs}")).await;
        assert_eq!(kind(bob.load().await, &url), expected, "{command}");
        assert_eq!(kind(bob.insert(&entry(2)).await, &url), expected, "{command}");
        assert_eq!(kind(bob.claim(&version, LEASE).await, &url), expected, "{command}");
        assert_eq!(kind(bob.commit(&claim, &entry(2)).await, &url), expected, "{command}");
        assert_eq!(kind(bob.clear(&version).await, &url), expected, "{command}");
        assert_eq!(server.command(&format!("DUMP {bobs}")).await, before, "{command}");
    }
}

#[tokio::test]
async fn a_damaged_value_is_an_error_or_the_record_and_never_an_absent_user() {
    let Some(server) = Server::start().await else { return };
    let store = RedisStores::connect(&server.url()).await.unwrap().store("ada");
    let version = store.replace(&entry(1)).await.unwrap();
    let name = names(&server).await.remove(0);
    let whole = server.value(&name).await;
    let url = shown(&server);
    for length in 0..whole.len() {
        set(&server, &name, &whole[..length]).await;
        assert_eq!(kind(store.load().await, &url), StoreErrorKind::Corrupt, "{length} bytes");
        assert!(store.claim(&version, LEASE).await.is_err() || length >= 72, "{length} bytes");
    }
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x41;
        set(&server, &name, &damaged).await;
        match store.load().await {
            // Neither the claim nor the end is protected.
            Ok(Some(record)) => assert!((5..50).contains(&at) && record.tokens() == entry(1).tokens(), "byte {at}"),
            Ok(None) => panic!("byte {at}: the user is absent"),
            Err(error) => assert!(!format!("{error:?}").contains("refresh-1"), "{error:?}"),
        }
        if let Ok(ClaimOutcome::Claimed(claim)) = store.claim(&version, LEASE).await {
            assert!(at != 5 || claim.is_in_doubt(), "a claim that can't be read may have been used");
        }
    }
}

/// Waits until the server has deleted a record.
async fn deleted(store: &dyn TokenStore) {
    let deleted = async { while store.load().await.unwrap().is_some() {} };
    timeout(Duration::from_secs(20), deleted).await.expect("the record is still there");
}

#[tokio::test]
async fn the_server_deletes_a_record_at_its_end() {
    let Some(server) = Server::start().await else { return };
    let redis = RedisStores::connect(&server.url()).await.unwrap();
    let (ada, bob) = (redis.store("ada"), redis.store("bob"));
    let version = ada.replace(&entry(1).with_expires_at(SystemTime::now() + LEASE)).await.unwrap();
    bob.replace(&entry(1).with_expires_at(SystemTime::now() - LEASE)).await.unwrap();
    deleted(&*bob).await;
    assert!(ada.load().await.unwrap().is_some());
    assert!(ada.extend(&version, SystemTime::now()).await.unwrap());
    deleted(&*ada).await;
    assert_eq!(redis.delete_expired().await.unwrap(), 0);
}
