//! Tokens on the server, and credentials in errors.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_auth_refresh::store::{CommitOutcome, TokenStore};
use tower_auth_refresh_store::{RedisStores, StoreError, StoreErrorKind};

use super::Server;
use crate::encryption::{CANARY, canaries, has, keys};
use crate::kind;
use crate::proxy::Proxy;
use crate::support::{LEASE, TestDirectory, claimed};

const PASSWORD: &str = "pa55-w0rd";

/// Makes each call once, with tokens that are found again.
async fn use_all(store: &dyn TokenStore) {
    store.insert(&canaries()).await.unwrap();
    let version = store.replace(&canaries()).await.unwrap();
    let claim = claimed(store, &version).await;
    assert!(store.renew(&claim, LEASE).await.unwrap());
    let CommitOutcome::Stored(_) = store.commit(&claim, &canaries()).await.unwrap() else { panic!() };
    assert_eq!(store.load().await.unwrap().unwrap().tokens(), canaries().tokens());
}

/// Returns the content of all files in a directory, and of those below.
fn content(directory: &Path) -> Vec<u8> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| if path.is_dir() { content(&path) } else { fs::read(path).unwrap() };
    entries.flat_map(read).collect()
}

#[tokio::test]
async fn no_token_or_name_of_a_user_is_in_the_commands_or_files_of_the_server() {
    for (encrypts, expected) in [(true, false), (false, true)] {
        let settings = ["--appendonly", "yes", "--aof-use-rdb-preamble", "no", "--rdbcompression", "no"];
        let Some(server) = Server::start_with(&settings).await else { return };
        let mut monitor = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
        monitor.write_all(b"MONITOR\r\n").await.unwrap();
        let mut commands = vec![0; 5];
        monitor.read_exact(&mut commands).await.unwrap();
        let builder = RedisStores::builder(&server.url()).namespace("programs");
        let builder = if encrypts { builder.keys(keys("2026", 7)) } else { builder };
        let redis = builder.connect().await.unwrap();
        use_all(&*redis.store("ada@example.com")).await;
        // The last command of all.
        server.command("PING the-end").await;
        while !has(&commands, b"the-end") {
            monitor.read_buf(&mut commands).await.unwrap();
        }
        let appended = content(&server.path().join("appendonlydir"));
        assert_eq!(server.command("SAVE").await, "+OK\r\n");
        let saved = fs::read(server.path().join("dump.rdb")).unwrap();
        for (place, bytes) in [("MONITOR", commands), ("AOF", appended), ("RDB", saved)] {
            let found = [CANARY.as_bytes(), &[7; 32], b"ada@example", b"programs"].map(|text| has(&bytes, text));
            assert_eq!(found, [expected, false, false, false], "{place}, with keys: {encrypts}");
            assert!(has(&bytes, b"tar:"), "{place} has the record");
        }
    }
}

#[tokio::test]
async fn a_record_of_another_key_or_session_is_not_read() {
    let Some(server) = Server::start().await else { return };
    let open = async |keys| RedisStores::builder(&server.url()).keys(keys).connect().await.unwrap();
    let redis = open(keys("1", 7)).await;
    let url = format!("{}/0", server.url());
    redis.store("ada").replace(&canaries()).await.unwrap();
    let adas = server.command("KEYS tar:*").await.lines().nth(2).unwrap().to_owned();
    assert_eq!(adas.len(), "tar:".len() + 64, "a part of the hash could be that of another session too");
    redis.store("bob").replace(&canaries()).await.unwrap();
    let all = server.command("KEYS tar:*").await;
    let bobs = all.lines().find(|line| line.starts_with("tar:") && *line != adas).unwrap();
    server.command(&format!("COPY {adas} {bobs} REPLACE")).await;
    assert_eq!(kind(redis.store("bob").load().await, &url), StoreErrorKind::Corrupt);
    assert_eq!(kind(open(keys("2", 7)).await.store("ada").load().await, &url), StoreErrorKind::UnknownKey);
    assert_eq!(kind(open(keys("1", 8)).await.store("ada").load().await, &url), StoreErrorKind::Corrupt);
    let plain = RedisStores::connect(&server.url()).await.unwrap();
    assert_eq!(kind(plain.store("ada").load().await, &url), StoreErrorKind::UnknownKey);
    plain.store("eve").replace(&canaries()).await.unwrap();
    assert_eq!(kind(redis.store("eve").load().await, &url), StoreErrorKind::Misconfigured);
}

/// Returns everything that an error shows.
fn shown(error: &StoreError) -> String {
    let mut shown = vec![format!("{error} {error:?} {}", error.resource())];
    let mut source = error.source();
    while let Some(error) = source {
        shown.push(format!("{error} {error:?}"));
        source = error.source();
    }
    shown.join(" ")
}

#[tokio::test]
async fn credentials_are_in_no_error() {
    let Some(server) = Server::start_with(&["--requirepass", "another"]).await else { return };
    let port = server.port();
    let closing = Proxy::start(port).await;
    closing.refuse(true);
    let cases = [
        (format!("redis://:{PASSWORD}@127.0.0.1:{port}"), StoreErrorKind::Misconfigured),
        (format!("redis://ada:{PASSWORD}@127.0.0.1:{port}"), StoreErrorKind::Misconfigured),
        // Nothing listens.
        (format!("redis://ada:{PASSWORD}@127.0.0.1:1"), StoreErrorKind::Unavailable),
        (format!("redis://ada:{PASSWORD}@host.invalid"), StoreErrorKind::Unavailable),
        // A server without TLS, which waits for the end of a line.
        (format!("rediss://ada:{PASSWORD}@127.0.0.1:{port}"), StoreErrorKind::Unavailable),
        // One that closes the connection at once.
        (format!("rediss://ada:{PASSWORD}@127.0.0.1:{}", closing.port()), StoreErrorKind::Unavailable),
        (format!("redis+sentinel://ada:{PASSWORD}@127.0.0.1:{port}/main"), StoreErrorKind::Misconfigured),
        (format!("{PASSWORD}://127.0.0.1"), StoreErrorKind::Misconfigured),
        (format!("redis://ada:{PASSWORD}@127.0.0.1:port"), StoreErrorKind::Misconfigured),
    ];
    let attempts = cases.into_iter().map(async |(url, expected)| {
        let builder = RedisStores::builder(&url).namespace("auth").sentinel_credentials("eve", PASSWORD);
        let before = format!("{builder:?}");
        assert!(before.contains("namespace: \"auth\""), "{before}");
        let error = builder.connect().await.unwrap_err();
        assert_eq!(error.kind(), expected, "{error}");
        format!("{before} {}", shown(&error))
    });
    let mut all = join_all(attempts).await;
    let redis = RedisStores::connect(&format!("redis://:another@127.0.0.1:{port}")).await.unwrap();
    all.push(format!("{redis:?}"));
    assert!(format!("{redis:?}").contains(&format!("redis://127.0.0.1:{port}/0")), "{redis:?}");
    for text in [PASSWORD, "another", "eve"] {
        assert!(all.iter().all(|shown| !shown.contains(text)), "{text} is shown: {all:#?}");
    }
}

#[tokio::test]
async fn what_a_server_repeats_of_a_call_is_not_shown() {
    // It answers an unknown command with its arguments.
    let Some(server) = Server::start_with(&["--save", "", "--rename-command", "EVALSHA", ""]).await else { return };
    let store = RedisStores::connect(&server.url()).await.unwrap().store("ada");
    let error = store.replace(&canaries()).await.unwrap_err().downcast::<StoreError>().unwrap();
    assert!(error.to_string().contains("unknown command 'EVALSHA'"), "{error}");
    assert!(!shown(&error).contains(CANARY) && !shown(&error).contains("tars"), "{error:?}");
    assert_eq!(error.kind(), StoreErrorKind::Misconfigured);
}

/// Makes a certificate for 127.0.0.1 and the root that has signed it. `None` if there is no `openssl`.
fn certificates(directory: &Path) -> Option<()> {
    let run = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output();
        let Ok(output) = output else {
            assert!(std::env::var("CI").is_err(), "openssl isn't installed");
            eprintln!("skipped: openssl isn't installed");
            return None;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(())
    };
    fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    run(&format!("req -x509 {key} -keyout root.key -out root.pem -days 2 -subj /CN=root"))?;
    run(&format!("req {key} -keyout server.key -out server.csr -subj /CN=server"))?;
    run("x509 -req -in server.csr -CA root.pem -CAkey root.key -CAcreateserial -days 2 -extfile names -out server.pem")
}

#[tokio::test]
async fn a_server_is_trusted_by_tls_if_its_root_certificate_is_given() {
    let directory = TestDirectory::new();
    fs::create_dir(directory.path()).unwrap();
    let Some(()) = certificates(directory.path()) else { return };
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let Some(server) = Server::start_with(&["--save", ""]).await else { return };
    let tls = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (name, value) in [
        ("tls-cert-file", path("server.pem")),
        ("tls-key-file", path("server.key")),
        ("tls-ca-cert-file", path("root.pem")),
        ("tls-auth-clients", "no".to_owned()),
        ("tls-port", tls.to_string()),
    ] {
        assert_eq!(server.command(&format!("CONFIG SET {name} {value}")).await, "+OK\r\n", "{name}");
    }
    let url = format!("rediss://127.0.0.1:{tls}");
    let root = fs::read(path("root.pem")).unwrap();
    let redis = RedisStores::builder(&url).root_certificates(root.clone()).connect().await.unwrap();
    use_all(&*redis.store("ada")).await;
    let error = RedisStores::connect(&url).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Misconfigured);
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    let other_name = url.replace("127.0.0.1", "localhost");
    let error = RedisStores::builder(&other_name).root_certificates(root).connect().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Misconfigured, "{error}");
    for pem in ["", "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"] {
        let error = RedisStores::builder(&url).root_certificates(pem).connect().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Misconfigured, "{error}");
    }
}
