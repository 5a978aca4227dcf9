//! Server-sent events that outlive their token, over hyper-util's client.

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use sse_stream::{Sse, SseStream};
use tower::{BoxError, Service, ServiceExt};

/// Follows the events after the one with this identifier. Returns the response that refuses to go on.
pub async fn follow(
    client: impl Service<Request<Full<Bytes>>, Response = Response<Incoming>, Error: Into<BoxError>> + Clone,
    url: &str,
    mut last_id: String,
    mut on_event: impl FnMut(Sse),
) -> Result<Response<Incoming>, BoxError> {
    // [recipe: server-sent events]
    loop {
        let request = Request::get(url).header("last-event-id", &last_id).body(Full::default())?;
        let response = client.clone().oneshot(request).await.map_err(Into::into)?;
        let StatusCode::OK = response.status() else { return Ok(response) };
        let mut events = SseStream::new(response.into_body());
        while let Some(Ok(event)) = events.next().await {
            last_id = event.id.clone().unwrap_or(last_id);
            on_event(event);
        }
    }
    // [end]
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use futures_util::stream;
    use http::header::CONTENT_TYPE;
    use http_body_util::{BodyExt, StreamBody};
    use hyper::body::Frame;
    use tokio::sync::mpsc::{self, UnboundedReceiver};
    use tower_auth_refresh::AuthRefreshLayer;

    use super::*;
    use crate::hyper_util::client;
    use crate::support::{Answer, Body, Protocol, Stack, World, cases};

    struct Events {
        layer: AuthRefreshLayer,
        url: String,
    }

    impl Events {
        /// Follows the events, and sends the data of each.
        fn follow(&self) -> (impl Future<Output = Result<Response<Incoming>, BoxError>>, UnboundedReceiver<String>) {
            let (seen, events) = mpsc::unbounded_channel();
            let on_event = move |event: Sse| seen.send(event.data.unwrap()).unwrap();
            (follow(client(self.layer.clone()), &self.url, "0".into(), on_event), events)
        }
    }

    impl Stack for Events {
        type Protocol = Feeds;

        async fn build(world: &World) -> Self {
            Self { layer: world.layer(), url: world.api.origin() + "/events" }
        }

        async fn call(&self, _: usize) -> Answer {
            let (following, mut events) = self.follow();
            tokio::select! {
                biased;
                Some(event) = events.recv() => {
                    assert_eq!(event, "first");
                    Answer::Accepted
                }
                refusal = following => Answer::of(refusal.unwrap().status().as_u16()),
            }
        }
    }

    cases!(
        Events: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host
    );

    #[tokio::test]
    async fn events_outlive_their_token_and_go_on_with_the_next() {
        let (first, first_feed) = mpsc::unbounded_channel();
        let (second, second_feed) = mpsc::unbounded_channel();
        let world = World::new(Feeds(Mutex::new([first_feed, second_feed].into()))).await;
        let stack = Events::build(&world).await;
        let (following, mut events) = stack.follow();
        let test = async {
            first.send("id: 1\ndata: one\n\n").unwrap();
            assert_eq!(events.recv().await.unwrap(), "one");
            world.auth.expire_access_tokens();
            first.send("id: 2\ndata: two\n\n").unwrap();
            assert_eq!(events.recv().await.unwrap(), "two");
            assert_eq!(world.auth.counters().refreshes, 0);

            // The stream ends, and is opened again with a newer token.
            drop(first);
            second.send("id: 3\ndata: three\n\n").unwrap();
            assert_eq!(events.recv().await.unwrap(), "three");
        };
        tokio::select! {
            () = test => {}
            end = following => panic!("{end:?}"),
        }
        assert_eq!(world.auth.counters().refreshes, 1);
        let seen = world.api.attempts();
        let seen: Vec<_> = seen.iter().map(|attempt| (&attempt.headers["last-event-id"], attempt.status)).collect();
        assert_eq!(seen.len(), 3);
        assert_eq!(seen[2], (&"2".parse().unwrap(), StatusCode::OK));
    }

    /// The content of each stream; without any, each sends one event and stays open.
    #[derive(Default)]
    pub(crate) struct Feeds(Mutex<VecDeque<UnboundedReceiver<&'static str>>>);

    impl Protocol for Feeds {
        async fn accept(&self, _: Request<Bytes>) -> Response<Body> {
            let feed = self.0.lock().unwrap().pop_front();
            let texts = match feed {
                Some(feed) => stream::unfold(feed, async |mut feed| Some((feed.recv().await?, feed))).boxed(),
                None => stream::iter(["id: 1\ndata: first\n\n"]).chain(stream::pending()).boxed(),
            };
            let body = StreamBody::new(texts.map(|text| Ok(Frame::data(Bytes::from(text)))));
            Response::builder().header(CONTENT_TYPE, "text/event-stream").body(body.boxed_unsync()).unwrap()
        }
    }
}
