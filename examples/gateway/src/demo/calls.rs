//! `POST /demo/calls`: makes many calls at once for a user. A browser opens at most six connections to a server.

use axum::body::Body;
use axum::extract::State;
use axum::{Extension, Json};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::COOKIE;
use http::{HeaderMap, Request, Uri};
use serde::Deserialize;

use crate::app::App;
use crate::client_address::ClientAddress;
use crate::observation::Observation;
use crate::problem::Kind;
use crate::proxy::proxy;

/// The maximum number of calls: the page can't draw more of them legibly.
const MAX_CALLS: u32 = 200;

#[derive(Deserialize)]
pub(super) struct Burst {
    number: u32,
    size: u32,
}

/// Makes the calls with the browser's cookie, counts and logs them, and returns the statuses that the browser would have seen.
pub(super) async fn calls(
    State(app): State<App>,
    Extension(client): Extension<ClientAddress>,
    headers: HeaderMap,
    Json(Burst { number, size }): Json<Burst>,
) -> Result<Json<Vec<u16>>, Kind> {
    let client = &client;
    let call = |note: u32| {
        let uri = Uri::try_from(format!("/api/notes/{note}?burst={number}")).map_err(|_| Kind::MalformedRequest)?;
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = uri;
        for cookie in headers.get_all(COOKIE) {
            request.headers_mut().append(COOKIE, cookie.clone());
        }
        let (app, mut observed) = (app.clone(), Observation::start(&app, &request, client, false));
        Ok(async move {
            let mut response = proxy(&app, Box::new(request), client, observed.observation()).await;
            observed.observation().respond(&mut response);
            observed.complete();
            response.status().as_u16()
        })
    };
    let calls: FuturesUnordered<_> = (1..=size.min(MAX_CALLS)).map(call).collect::<Result<_, Kind>>()?;
    Ok(Json(calls.collect().await))
}
