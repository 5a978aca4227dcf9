//! Poolers, several hosts, TLS, privileges, the table, and what `check` says of them.

use std::fmt::Debug;
use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tower_auth_refresh::Session;
use tower_auth_refresh::store::{ClearOutcome, Record};
use tower_auth_refresh_store::{PostgresStores, StoreError, StoreErrorKind};
use tower_auth_refresh_testkit::TestKit;
use tower_auth_refresh_testkit::conformance;

use super::new_namespace;
use super::pooler::Pooler;
use super::push::until_listening;
use super::server::{PASSWORD, Server, free_port, shared, url_at};
use crate::conformance::LEASE;
use crate::proxy::Proxy;
use crate::support::{claimed, entry};

/// Checks that an error has this kind, and that neither it nor its cause shows a password.
fn expect<T: Debug>(outcome: Result<T, StoreError>, kind: StoreErrorKind, reason: &str) {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(reason), "{error} doesn't say {reason:?}");
    let shown = format!("{error} {error:?} {}", error.resource());
    for secret in [PASSWORD, "another-secret", "gateway-secret", "@"] {
        assert!(!shown.contains(secret), "{secret} is shown: {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_and_sessions_conform_behind_a_pooler_in_transaction_mode() {
    let Some(server) = Server::start(&[]) else { return };
    let Some(pooler) = Pooler::start(&server).await else { return };
    let two_handles = async || {
        let namespace = new_namespace();
        let open = async |port| {
            let builder = PostgresStores::builder(url_at(port)).namespace(&namespace).listen_url(server.url());
            let stores = builder.connect().await.unwrap();
            stores.migrate().await.unwrap();
            stores.check().await.unwrap();
            stores.store("ada")
        };
        [open(pooler.port()).await, open(pooler.port()).await]
    };
    conformance::stores(LEASE, two_handles).await;
    conformance::sessions(LEASE, two_handles).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_takes_two_round_trips_and_a_session_in_memory_none() {
    let Some(server) = shared().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let (name, listen) = ("round trips", format!("{}?application_name=round%20trips", server.url()));
    let builder = PostgresStores::builder(url_at(proxy.port())).namespace(name).listen_url(listen);
    let stores = builder.connect().await.unwrap();
    stores.migrate().await.unwrap();
    let kit = TestKit::new();
    let sessions = tower_auth_refresh::SessionRegistry::builder(Session::builder(kit.refresh_service()))
        .store_factory(move |user: &String| stores.store(user))
        .recheck(Duration::from_secs(3600))
        .build()
        .unwrap();
    let ada = "ada".to_owned();
    sessions.sign_in(ada.clone(), kit.sign_in("ada").try_into().unwrap()).await.unwrap();
    let session = sessions.get(&ada).await.unwrap().unwrap();
    // When it listens, all sessions are looked at once.
    until_listening(server, name, 1).await;
    sessions.get(&ada).await.unwrap();
    let before = proxy.round_trips();
    for refreshes in 1..=5 {
        session.refresh().await.unwrap();
        assert_eq!(proxy.round_trips() - before, 2 * refreshes, "a claim and a commit");
    }
    let before = proxy.round_trips();
    for _ in 0..100 {
        assert!(sessions.get(&ada).await.unwrap().is_some());
    }
    assert_eq!(proxy.round_trips(), before);
    assert_eq!(kit.violations(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_is_made_by_one_of_many_processes_or_by_an_operator() {
    let Some(server) = Server::start(&[]) else { return };
    let mut starts = JoinSet::new();
    for _ in 0..10 {
        let url = server.url();
        starts.spawn(async move {
            let stores = PostgresStores::connect(url).await.unwrap();
            stores.migrate().await.unwrap();
            stores.check().await
        });
    }
    for checked in starts.join_all().await {
        checked.unwrap();
    }
    // By an operator, for a user who may make no table.
    let long = "t".repeat(63);
    for table in ["auth.tokens", &long] {
        let stores = PostgresStores::builder(server.url()).table(table).connect().await.unwrap();
        let table = table.replace("auth.", "");
        server.sql(&format!("CREATE SCHEMA IF NOT EXISTS auth; {}", stores.sql()));
        server.sql(&stores.sql());
        assert_eq!(server.sql(&format!("SELECT count(*) FROM pg_class WHERE relname = '{table}'")), "1");
    }
    server.sql("CREATE ROLE gateway LOGIN PASSWORD 'gateway-secret'; GRANT USAGE ON SCHEMA auth TO gateway");
    server.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON auth.tokens TO gateway");
    let url = format!("postgres://gateway:gateway-secret@127.0.0.1:{}/postgres", server.port());
    let stores = PostgresStores::builder(&url).table("auth.tokens").connect().await.unwrap();
    stores.migrate().await.unwrap();
    stores.check().await.unwrap();
    stores.store("ada").replace(&entry(1)).await.unwrap();
    let other = PostgresStores::builder(&url).table("auth.more").connect().await.unwrap();
    expect(other.migrate().await, StoreErrorKind::Misconfigured, "permission denied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_names_what_is_unsafe_or_missing() {
    let Some(server) = Server::start(&[]) else { return };
    let stores = PostgresStores::connect(server.url()).await.unwrap();
    let unsafe_by = async |sql: &str, reason: &str, undo: &str| {
        server.sql(sql);
        // The settings are those of a new connection.
        expect(stores.check().await, StoreErrorKind::Misconfigured, reason);
        server.sql(undo);
    };
    unsafe_by("SELECT 1", "PostgresStores::migrate", "SELECT 1").await;
    stores.check_server().await.unwrap();
    stores.migrate().await.unwrap();
    stores.check().await.unwrap();
    let off = "ALTER ROLE postgres SET synchronous_commit = off";
    unsafe_by(off, "synchronous_commit", "ALTER ROLE postgres RESET synchronous_commit").await;
    let table = "ALTER TABLE tower_auth_refresh";
    for (change, reason, undo) in [
        ("SET UNLOGGED", "unlogged", "SET LOGGED"),
        ("RENAME claim TO held", "no column \"claim\" of type bytea", "RENAME held TO claim"),
        (
            "ALTER expires_on TYPE text",
            "no column \"expires_on\" of type date",
            "ALTER expires_on TYPE date USING NULL",
        ),
        ("DROP CONSTRAINT tower_auth_refresh_pkey", "unique index", "ADD PRIMARY KEY (key)"),
    ] {
        unsafe_by(&format!("{table} {change}"), reason, &format!("{table} {undo}")).await;
    }
    stores.check().await.unwrap();

    server.sql("CREATE ROLE gateway LOGIN PASSWORD 'gateway-secret'");
    server.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON tower_auth_refresh TO gateway");
    let url = format!("postgres://gateway:gateway-secret@127.0.0.1:{}/postgres", server.port());
    let stores = PostgresStores::connect(url).await.unwrap();
    stores.check().await.unwrap();
    for privilege in ["SELECT", "INSERT", "UPDATE", "DELETE"] {
        server.sql(&format!("REVOKE {privilege} ON tower_auth_refresh FROM gateway"));
        expect(stores.check().await, StoreErrorKind::Misconfigured, &format!("may not {privilege}"));
        server.sql(&format!("GRANT {privilege} ON tower_auth_refresh TO gateway"));
    }
    server.sql(&format!("{table} ENABLE ROW LEVEL SECURITY"));
    expect(stores.check().await, StoreErrorKind::Misconfigured, "row security");
    // A connection that never listens would not be missed.
    let listening = PostgresStores::builder(server.url()).listen_url(url_at(free_port())).connect().await.unwrap();
    expect(listening.check().await, StoreErrorKind::Unavailable, "Connection refused");
    for (setting, reason) in [("fsync=off", "fsync"), ("full_page_writes=off", "full_page_writes")] {
        let Some(server) = Server::start(&[setting]) else { return };
        let stores = PostgresStores::connect(server.url()).await.unwrap();
        expect(stores.check().await, StoreErrorKind::Misconfigured, reason);
        expect(stores.check_server().await, StoreErrorKind::Misconfigured, reason);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_accepts_fsync_off_if_the_program_says_so_and_still_finds_the_rest() {
    let Some(server) = Server::start(&["fsync=off", "full_page_writes=off"]) else { return };
    let stores = PostgresStores::builder(server.url()).allow_fsync_off().connect().await.unwrap();
    stores.migrate().await.unwrap();
    stores.check().await.unwrap();
    server.sql("ALTER TABLE tower_auth_refresh SET UNLOGGED");
    expect(stores.check().await, StoreErrorKind::Misconfigured, "unlogged");
    server.sql("ALTER ROLE postgres SET synchronous_commit = off");
    expect(stores.check().await, StoreErrorKind::Misconfigured, "synchronous_commit");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_privilege_to_write_a_claim_fails_before_the_token_is_presented() {
    let Some(server) = Server::start(&[]) else { return };
    server.sql("CREATE ROLE gateway LOGIN PASSWORD 'gateway-secret'");
    PostgresStores::connect(server.url()).await.unwrap().migrate().await.unwrap();
    server.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON tower_auth_refresh TO gateway");
    let url = format!("postgres://gateway:gateway-secret@127.0.0.1:{}/postgres", server.port());
    let stores = PostgresStores::connect(url).await.unwrap();
    let kit = TestKit::new();
    let tokens = kit.sign_in("ada").try_into().unwrap();
    let session = Session::builder(kit.refresh_service()).tokens(tokens).store(stores.store("ada"));
    let session = session.build().await.unwrap();
    // The claim needs no other column than the commit, and this is the commit's.
    server.sql("REVOKE UPDATE ON tower_auth_refresh FROM gateway");
    server.sql("GRANT UPDATE (claim, claimed_until, in_doubt) ON tower_auth_refresh TO gateway");
    assert!(session.refresh().await.is_err());
    assert_eq!(kit.counters().refreshes, 0);
    server.sql("GRANT UPDATE ON tower_auth_refresh TO gateway");
    session.refresh().await.unwrap();
    assert_eq!((kit.counters().refreshes, kit.violations()), (1, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_records_are_deleted_by_one_process_at_a_time_and_no_others() {
    let Some(server) = Server::start(&[]) else { return };
    let stores = PostgresStores::connect(server.url()).await.unwrap();
    stores.migrate().await.unwrap();
    let day = Duration::from_secs(24 * 60 * 60);
    let now = SystemTime::now();
    // More than a batch.
    server.sql(
        "INSERT INTO tower_auth_refresh (key, version, record, expires_at, expires_on)
        SELECT int4send(n), '', '', now() - interval '1 day', current_date - 1 FROM generate_series(1, 1200) AS n",
    );
    for (user, end) in
        [("no end", None), ("later today", Some(now + Duration::from_secs(60))), ("later", Some(now + day))]
    {
        let entry = end.map_or(entry(1), |end| entry(1).with_expires_at(end));
        stores.store(user).replace(&entry).await.unwrap();
    }
    let extended = stores.store("extended");
    let version = extended.replace(&entry(1).with_expires_at(now - day)).await.unwrap();
    assert!(extended.extend(&version, now + day).await.unwrap());
    let over = stores.store("over");
    over.replace(&entry(1).with_expires_at(now)).await.unwrap();

    let sweeper = server.begin("SELECT pg_advisory_xact_lock(hashtext('tower_auth_refresh'), 2)");
    assert_eq!(stores.delete_expired().await.unwrap(), 0, "another process deletes");
    drop(sweeper);
    let holder = server.begin("SELECT FROM tower_auth_refresh WHERE key = int4send(1) FOR UPDATE");
    assert_eq!(stores.delete_expired().await.unwrap(), 1200, "but the one that is locked");
    drop(holder);
    assert_eq!(stores.delete_expired().await.unwrap(), 1);
    assert_eq!(over.load().await.unwrap(), None);
    assert_eq!(server.sql("SELECT count(*) FROM tower_auth_refresh"), "4");
    let record = extended.load().await.unwrap();
    assert!(record.as_ref().and_then(|record: &Record| record.entry().expires_at()).is_some_and(|end| end > now));
    let claim = claimed(&*extended, &version).await;
    extended.commit(&claim, &entry(2)).await.unwrap();
    let version = extended.load().await.unwrap().unwrap().version().clone();
    assert!(matches!(extended.clear(&version).await.unwrap(), ClearOutcome::Cleared));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_hosts_the_one_that_can_be_written_to_is_used() {
    let Some(server) = shared().await else { return };
    let proxy = Proxy::start(server.port()).await;
    // One that refuses, one that never answers, and the primary.
    let (refusing, silent) = (free_port(), Proxy::start(server.port()).await);
    silent.partition(true);
    let hosts = format!("127.0.0.1:{refusing},127.0.0.1:{},127.0.0.1:{}", silent.port(), proxy.port());
    let url = format!("postgres://postgres:{PASSWORD}@{hosts}/postgres?target_session_attrs=read-write");
    let stores = PostgresStores::builder(url).namespace(new_namespace()).connect().await.unwrap();
    stores.migrate().await.unwrap();
    let store = stores.store("ada");
    store.replace(&entry(1)).await.unwrap();
    proxy.cut();
    assert_eq!(store.load().await.unwrap().unwrap().generation(), 1);
    let shown = format!("PostgresStores {{ database: \"postgres://{hosts}/postgres\", watched: 0, .. }}");
    assert_eq!(format!("{stores:?}"), shown);
    assert!(store.is_durable());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_asks_the_next_host_if_the_first_one_is_silent() {
    let Some(server) = Server::start(&[]) else { return };
    let proxies = [Proxy::start(server.port()).await, Proxy::start(server.port()).await];
    let hosts = proxies.each_ref().map(|proxy| format!("127.0.0.1:{}", proxy.port())).join(",");
    let stores = PostgresStores::connect(format!("postgres://postgres:{PASSWORD}@{hosts}/postgres")).await.unwrap();
    stores.migrate().await.unwrap();
    proxies[0].partition(true);
    // The second host has half of the time, which may be too little on a slow machine.
    let mut outcome = stores.check().await;
    for _ in 0..3 {
        if outcome.is_ok() {
            return;
        }
        outcome = stores.check().await;
    }
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_read_only_is_no_server() {
    let Some(server) = Server::start(&[]) else { return };
    let stores = PostgresStores::connect(server.url()).await.unwrap();
    stores.migrate().await.unwrap();
    let store = stores.store("ada");
    store.replace(&entry(1)).await.unwrap();
    server.sql("ALTER ROLE postgres SET default_transaction_read_only = on");
    let error = PostgresStores::connect(server.url()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.to_string().contains("standby"), "{error}");
    server.sql("BEGIN READ WRITE; ALTER ROLE postgres RESET default_transaction_read_only; COMMIT");
    PostgresStores::connect(server.url()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_error_shows_a_password() {
    let Some(server) = Server::start(&[]) else { return };
    server.sql("CREATE ROLE scram LOGIN PASSWORD 'another-secret'");
    let port = server.port();
    let connect = async |url: String| PostgresStores::connect(url).await;
    connect(format!("postgres://scram:another-secret@127.0.0.1:{port}/postgres")).await.unwrap();
    let misconfigured = StoreErrorKind::Misconfigured;
    for (url, kind, reason) in [
        (
            format!("postgres://postgres:another-secret@127.0.0.1:{port}/postgres"),
            misconfigured,
            "authentication failed",
        ),
        (format!("postgres://scram:{PASSWORD}@127.0.0.1:{port}/postgres"), misconfigured, "authentication failed"),
        (format!("postgres://postgres@127.0.0.1:{port}/postgres"), misconfigured, "other credentials"),
        (format!("postgres://postgres:{PASSWORD}@127.0.0.1:{port}/other"), misconfigured, "does not exist"),
        (format!("postgres://postgres:{PASSWORD}@127.0.0.1:{port}/postgres?sslmode=require"), misconfigured, "no TLS"),
        (format!("postgres://postgres:{PASSWORD}@@127.0.0.1:{port}/postgres"), misconfigured, "can't be read"),
        (
            format!("postgres://postgres:{PASSWORD}@127.0.0.1:{}/postgres", free_port()),
            StoreErrorKind::Unavailable,
            "Connection refused",
        ),
    ] {
        expect(connect(url).await, kind, reason);
    }
    let stores = PostgresStores::builder(server.url());
    let shown = format!("{stores:?}");
    assert!(shown.contains("table: \"tower_auth_refresh\"") && !shown.contains(PASSWORD), "{shown}");
    expect(stores.table("a b").connect().await, misconfigured, "small letters");
    let listening = PostgresStores::builder(server.url()).listen_url(format!("postgres://postgres:{PASSWORD}@@db/x"));
    expect(listening.connect().await, misconfigured, "can't be read");
    // The server's own words about a row hold the row: they aren't repeated.
    let stores = PostgresStores::connect(server.url()).await.unwrap();
    let shown = format!("{stores:?}");
    assert!(shown.contains(&server.url_without_credentials()) && !shown.contains(PASSWORD), "{shown}");
    stores.migrate().await.unwrap();
    server.sql("ALTER TABLE tower_auth_refresh ADD CHECK (length(record) < 10)");
    let error = stores.store("ada").replace(&entry(1)).await.unwrap_err().downcast::<StoreError>().unwrap();
    assert!(error.to_string().contains("check constraint"), "{error}");
    for shown in ["access-1", "5c78", "Failing row"] {
        assert!(!format!("{error} {error:?}").contains(shown), "{error:?}");
    }
}

/// Runs `openssl` in the directory of the server, as its user.
fn openssl(server: &Server, arguments: &str) {
    let mut command: Command = super::server::as_server("openssl");
    let done = command.current_dir(server.path()).args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "{arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_made_with_a_server_whose_certificate_is_valid_and_with_no_other() {
    let Some(server) = Server::start(&[]) else { return };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&server, &format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=ca -days 2"));
    openssl(&server, &format!("req {key} -keyout data/server.key -out server.csr -subj /CN=db"));
    fs::write(server.path().join("names"), "subjectAltName=DNS:localhost").unwrap();
    openssl(
        &server,
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out data/server.crt -days 2 -extfile names",
    );
    server.sql("ALTER SYSTEM SET ssl = on");
    server.stop("fast");
    assert!(server.launch(), "{}", server.log());
    let root = server.path().join("ca.crt").display().to_string();
    let connect = async |host: &str, parameters: &str| {
        let port = server.port();
        PostgresStores::connect(format!("postgres://postgres:{PASSWORD}@{host}:{port}/postgres?{parameters}")).await
    };
    let rooted = |mode: &str| format!("sslmode={mode}&sslrootcert={root}");
    for (host, mode) in
        [("localhost", "verify-full"), ("localhost", "require"), ("localhost", "verify-ca"), ("127.0.0.1", "verify-ca")]
    {
        let stores = connect(host, &rooted(mode)).await.unwrap();
        stores.migrate().await.unwrap();
        stores.store("ada").replace(&entry(1)).await.unwrap();
    }
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE ssl AND application_name = 'tower-auth-refresh'";
    let stores = connect("localhost", &rooted("verify-full")).await.unwrap();
    assert_ne!(server.sql(encrypted), "0");
    drop(stores);
    let misconfigured = StoreErrorKind::Misconfigured;
    for mode in ["verify-full", "require"] {
        expect(connect("127.0.0.1", &rooted(mode)).await, misconfigured, "not valid for name");
    }
    for mode in ["verify-full", "require", "verify-ca"] {
        expect(connect("localhost", &format!("sslmode={mode}")).await, misconfigured, "UnknownIssuer");
    }
    expect(connect("localhost", "sslmode=verify-full&sslrootcert=/nowhere").await, misconfigured, "sslrootcert");
}
