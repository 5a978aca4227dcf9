//! `GET /demo/events`: the requests to the authorization server and the API, as server-sent events.

use std::convert::Infallible;

use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tower_auth_refresh_testkit::{Entry, TestKit};

use crate::app::App;
use crate::phase::Phase;

/// Sends an event for each request that the two servers have answered, until the gateway stops.
pub(super) fn events(kit: &TestKit, app: &App) -> Sse<impl Stream<Item = Result<Event, Infallible>> + use<>> {
    let mut phase = app.phase.clone();
    let entries = stream::unfold(kit.subscribe(), async |mut entries| Some((next(&mut entries).await?, entries)));
    let events = entries.map(|entry| Ok(Event::default().json_data(entry).unwrap_or_default()));
    let stopped = async move {
        // An error means that the gateway has stopped already.
        let _ = phase.wait_for(|phase| *phase == Phase::Stopping).await;
    };
    Sse::new(events.take_until(stopped)).keep_alive(KeepAlive::default())
}

async fn next(entries: &mut Receiver<Entry>) -> Option<Entry> {
    loop {
        match entries.recv().await {
            Ok(entry) => return Some(entry),
            // The page reads too slowly: skip the lost entries.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}
