//! Calls that take several rounds: the clock of the server is set while a store is connected, or never stands still, or a
//! statement changes no row although it should.

use std::sync::Arc;

use tower_auth_refresh::store::{ClaimOutcome, ClearOutcome, CommitOutcome, InsertOutcome, TokenStore};
use tower_auth_refresh_store::PostgresStores;

use super::server::Server;
use crate::operation::is_unavailable;
use crate::support::{LEASE, claimed, entry};

/// Connects to a server whose clock, as statements read it, is ahead by this expression.
async fn store_by_clock(server: &Server, ahead: &str) -> Arc<dyn TokenStore> {
    server.sql(&format!(
        "CREATE SCHEMA fake; CREATE SEQUENCE fake.readings; CREATE TABLE fake.clock (ahead interval);
        INSERT INTO fake.clock VALUES ('0');
        CREATE FUNCTION fake.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
            $$ SELECT pg_catalog.clock_timestamp() + {ahead} $$"
    ));
    let url = format!("{}?options=-csearch_path%3Dfake%2Cpublic%2Cpg_catalog", server.url());
    let stores = PostgresStores::connect(url).await.unwrap();
    stores.migrate().await.unwrap();
    stores.store("ada")
}

#[tokio::test]
async fn what_begins_something_succeeds_although_the_clock_of_the_server_was_set_forward() {
    let Some(server) = Server::start(&[]) else { return };
    let store = store_by_clock(&server, "(SELECT ahead FROM fake.clock)").await;
    let set = |ahead: &str| drop(server.sql(&format!("UPDATE fake.clock SET ahead = '{ahead}'")));
    set("1 hour");
    assert!(matches!(store.insert(&entry(1)).await.unwrap(), InsertOutcome::Inserted(_)));
    set("2 hours");
    let version = store.replace(&entry(2)).await.unwrap();
    set("3 hours");
    assert!(!claimed(&*store, &version).await.is_in_doubt());
    assert_eq!(store.load().await.unwrap().unwrap().generation(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_begins_something_fails_in_time_if_it_is_late_whenever_it_is_sent() {
    let Some(server) = Server::start(&[]) else { return };
    let store = store_by_clock(&server, "nextval('fake.readings') * interval '1 hour'").await;
    let first = entry(1);
    let (inserted, replaced) = tokio::join!(store.insert(&first), store.replace(&first));
    for outcome in [inserted.map(drop), replaced.map(drop)] {
        assert!(is_unavailable(&outcome), "{outcome:?}");
        assert!(format!("{outcome:?}").contains("faster than it can be read"), "{outcome:?}");
    }
    // Of a record that another process has written.
    let other = store_by_true_clock(&server).await;
    let version = other.replace(&first).await.unwrap();
    let outcome = store.claim(&version, LEASE).await;
    assert!(matches!(&outcome, Err(error) if error.to_string().contains("faster")), "{outcome:?}");
    assert!(
        matches!(other.claim(&version, LEASE).await.unwrap(), ClaimOutcome::Claimed(claim) if !claim.is_in_doubt())
    );
}

/// Connects to the same table, by the server's own clock.
async fn store_by_true_clock(server: &Server) -> Arc<dyn TokenStore> {
    let url = format!("{}?options=-csearch_path%3Dpg_catalog%2Cfake", server.url());
    PostgresStores::connect(url).await.unwrap().store("ada")
}

/// Has the server skip this number of changes of rows.
fn skip(server: &Server, changes: usize) {
    server.sql(&format!(
        "CREATE SEQUENCE IF NOT EXISTS changes; SELECT setval('changes', 1, false);
        CREATE OR REPLACE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('public.changes') <= {changes} THEN RETURN NULL; END IF;
            RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END $$;
        CREATE OR REPLACE TRIGGER skip BEFORE UPDATE OR DELETE ON tower_auth_refresh
            FOR EACH ROW EXECUTE FUNCTION skip()"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_finds_the_row_and_leaves_it_is_made_again_while_there_is_time() {
    let Some(server) = Server::start(&[]) else { return };
    let stores = PostgresStores::connect(server.url()).await.unwrap();
    stores.migrate().await.unwrap();
    let store = stores.store("ada");
    let version = store.replace(&entry(1)).await.unwrap();
    skip(&server, 1);
    let claim = claimed(&*store, &version).await;
    skip(&server, 1);
    let CommitOutcome::Stored(version) = store.commit(&claim, &entry(2)).await.unwrap() else {
        panic!("no other writes")
    };
    let claim = claimed(&*store, &version).await;
    skip(&server, 1_000_000);
    let next = entry(3);
    let (committed, cleared) = tokio::join!(store.commit(&claim, &next), store.clear(&version));
    for outcome in [committed.map(drop), cleared.map(drop)] {
        assert!(matches!(&outcome, Err(error) if error.to_string().contains("faster")), "{outcome:?}");
    }
    skip(&server, 1);
    assert!(matches!(store.clear(&version).await.unwrap(), ClearOutcome::Cleared));
    assert_eq!(store.load().await.unwrap(), None);
}
