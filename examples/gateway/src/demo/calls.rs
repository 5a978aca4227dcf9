//! `POST /demo/calls`: a user's calls, all at once. A browser opens no more than six connections to a server.

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

/// More would be no clearer.
const MOST: u32 = 200;

#[derive(Deserialize)]
pub(super) struct Burst {
    number: u32,
    size: u32,
}

/// Makes them as if the browser had, with its cookie, counts them, and answers the statuses that it would have seen.
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
            let status = proxy(State(app.clone()), request).await.status();
            app.metrics.answered(&path, status);
            status.as_u16()
        })
    };
    let calls: FuturesUnordered<_> = (1..=size.min(MOST)).map(call).collect::<Result<_, Kind>>()?;
    Ok(Json(calls.collect().await))
}
