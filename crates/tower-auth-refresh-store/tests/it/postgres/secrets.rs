//! What is in the server's files, and which rows are believed.

use std::fs;
use std::path::Path;

use tower_auth_refresh_store::{Keys, PostgresStores, StoreError, StoreErrorKind};

use super::new_namespace;
use super::server::{Server, shared};
use crate::encryption::{CANARY, canaries, has, keys};
use crate::support::{claimed, entry};

/// Returns true for each text that is in any file below a directory.
fn search<const N: usize>(directory: &Path, texts: [&[u8]; N]) -> [bool; N] {
    let mut found = [false; N];
    for file in fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()) {
        let here = if file.is_dir() {
            search(&file, texts)
        } else {
            // A file may be removed meanwhile.
            let bytes = fs::read(&file).unwrap_or_default();
            texts.map(|text| has(&bytes, text))
        };
        found = std::array::from_fn(|at| found[at] || here[at]);
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_or_key_or_name_of_a_user_is_in_the_files_of_the_server_nor_in_its_log() {
    for (encrypts, expected) in [(true, false), (false, true)] {
        // With all values of all statements in the log.
        let Some(server) = Server::start(&["log_statement=all", "log_parameter_max_length=-1"]) else { return };
        let builder = PostgresStores::builder(server.url()).namespace("programs");
        let builder = if encrypts { builder.keys(keys("2026", 7)) } else { builder };
        let stores = builder.connect().await.unwrap();
        stores.migrate().await.unwrap();
        let store = stores.store("ada@example.com");
        let version = store.replace(&canaries()).await.unwrap();
        let claim = claimed(&*store, &version).await;
        store.commit(&claim, &canaries()).await.unwrap();
        server.sql("CHECKPOINT");
        let found = search(server.path(), [CANARY.as_bytes(), &[7; 32], b"ada@example", b"programs"]);
        assert_eq!(found, [expected, false, false, false], "with keys: {encrypts}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_another_user_or_key_or_format_is_an_error_and_never_a_sign_out() {
    let Some(server) = shared().await else { return };
    let namespace = new_namespace();
    let open = async |keys: Option<Keys>| {
        let builder = PostgresStores::builder(server.url()).namespace(&namespace);
        let builder = if let Some(keys) = keys { builder.keys(keys) } else { builder };
        let stores = builder.connect().await.unwrap();
        stores.migrate().await.unwrap();
        stores
    };
    let expect = async |stores: &PostgresStores, kind| {
        for user in ["ada", "bob"] {
            let error = stores.store(user).load().await.unwrap_err().downcast::<StoreError>().unwrap();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains("key ") && error.resource() == server.url_without_credentials());
        }
    };
    for keys_of_both in [Some(keys("1", 7)), None] {
        let stores = open(keys_of_both.clone()).await;
        let versions = [
            stores.store("ada").replace(&entry(1)).await.unwrap(),
            stores.store("bob").replace(&canaries()).await.unwrap(),
        ];
        let rows = versions.map(|version| format!("'\\x{:032x}'", version.to_u128().unwrap()));
        let [ada, bob] = &rows;
        let swap = |columns: &str| {
            server.sql(&format!(
                "UPDATE tower_auth_refresh AS row SET {columns} FROM tower_auth_refresh AS other
                WHERE row.version IN ({ada}, {bob}) AND other.version IN ({ada}, {bob}) AND row.key <> other.key"
            ))
        };
        swap("record = other.record, version = other.version");
        expect(&stores, StoreErrorKind::Corrupt).await;
        swap("record = other.record, version = other.version");
        assert!(stores.store("ada").load().await.unwrap().is_some());
        swap("version = other.version");
        expect(&stores, StoreErrorKind::Corrupt).await;
        swap("version = other.version");

        let other = open(if keys_of_both.is_some() { Some(keys("2", 7)) } else { Some(keys("1", 8)) }).await;
        let kind = if keys_of_both.is_some() { StoreErrorKind::UnknownKey } else { StoreErrorKind::Misconfigured };
        expect(&other, kind).await;
        if keys_of_both.is_some() {
            expect(&open(None).await, StoreErrorKind::UnknownKey).await;
            expect(&open(Some(keys("1", 8))).await, StoreErrorKind::Corrupt).await;
        }
        for (change, kind) in [
            ("set_byte(record, 50, 255)", StoreErrorKind::Corrupt),
            ("set_byte(record, 4, 9)", StoreErrorKind::NewerFormat),
            ("''", StoreErrorKind::Corrupt),
        ] {
            server.sql(&format!("UPDATE tower_auth_refresh SET record = {change} WHERE version IN ({ada}, {bob})"));
            expect(&stores, kind).await;
        }
    }
}
