//! `POST /demo/calls`: makes many calls at once for a user. A browser opens at most six connections to a server.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::COOKIE;
use http::{HeaderMap, Request, Uri};
use serde::Deserialize;

use crate::app::App;
use crate::problem::Kind;
use crate::proxy::proxy;

/// The maximum number of calls: the page can't draw more of them legibly.
const MAX_CALLS: u32 = 200;

#[derive(Deserialize)]
pub(super) struct Burst {
    number: u32,
    size: u32,
}

/// Makes the calls with the browser's cookie, counts them, and returns the statuses that the browser would have seen.
pub(super) async fn calls(
    State(app): State<App>,
    headers: HeaderMap,
    Json(Burst { number, size }): Json<Burst>,
) -> Result<Json<Vec<u16>>, Kind> {
    let call = |note: u32| {
        let uri = Uri::try_from(format!("/api/notes/{note}?burst={number}")).map_err(|_| Kind::MalformedRequest)?;
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = uri;
        for cookie in headers.get_all(COOKIE) {
            request.headers_mut().append(COOKIE, cookie.clone());
        }
        let (app, path) = (app.clone(), request.uri().path().to_owned());
        Ok(async move {
            let status = proxy(&app, request).await.status();
            app.metrics.count_response(&path, status);
            status.as_u16()
        })
    };
    let calls: FuturesUnordered<_> = (1..=size.min(MAX_CALLS)).map(call).collect::<Result<_, Kind>>()?;
    Ok(Json(calls.collect().await))
}
