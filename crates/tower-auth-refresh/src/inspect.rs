//! [`InspectBodyLayer`]: looks into a bounded part of some responses' bodies, for a
//! [`ChallengePolicy`](crate::ChallengePolicy).

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response, response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::challenge::{ResponseHead, TokenExpired};
use crate::replay::without;
use crate::timer::RuntimeSleep;

const LIMIT: usize = 8 * 1024;

const TIMEOUT: Duration = Duration::from_secs(1);

/// A layer that reads JSON bodies of responses, to find out whether the access token has expired.
///
/// For servers that say so only in the body. It belongs inside of an [`AuthRefreshLayer`](crate::AuthRefreshLayer) with
/// the policy [`ChallengePolicy::inspected`](crate::ChallengePolicy::inspected). GraphQL servers answer with 200 and an
/// error:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
/// use serde_json::Value;
/// use tower::{Service, ServiceBuilder, ServiceExt};
/// use tower_auth_refresh::challenge::ResponseHead;
/// use tower_auth_refresh::inspect::InspectBodyLayer;
/// use tower_auth_refresh::{AuthRefreshLayer, ChallengePolicy, Origin};
/// # use http::{Request, Response};
/// # use http_body_util::{BodyExt, Full};
/// # use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, ReplayBody, Session, Tokens};
/// # let tokens = |n: u8| Tokens::new(AccessToken::new(format!("a{n}")).unwrap(), RefreshToken::new("r").unwrap());
/// # let refresh = tower::service_fn(move |_: RefreshRequest| async move { Ok::<_, RefreshError>(tokens(2)) });
/// # let session = Session::builder(refresh).tokens(tokens(1)).build().await?;
/// # let http_client = tower::service_fn(|request: Request<ReplayBody<String>>| async move {
/// #     let expired = request.headers()["authorization"] == "Bearer a1";
/// #     let error = r#"{"data":null,"errors":[{"message":"expired","extensions":{"code":"UNAUTHENTICATED"}}]}"#;
/// #     let body = if expired { error } else { r#"{"data":{"me":"alice"}}"# };
/// #     let response = Response::builder().header("content-type", "application/json");
/// #     Ok::<_, tower::BoxError>(response.body(Full::<bytes::Bytes>::from(body))?)
/// # });
///
/// fn is_unauthenticated(_: &ResponseHead<'_>, body: &Value) -> bool {
///     let errors = body["errors"].as_array();
///     errors.is_some_and(|errors| errors.iter().any(|error| error["extensions"]["code"] == "UNAUTHENTICATED"))
/// }
///
/// let mut client = ServiceBuilder::new()
///     .layer(
///         AuthRefreshLayer::new(session, Origin::parse("https://api.example.com")?)
///             .challenge(ChallengePolicy::inspected()),
///     )
///     .layer(InspectBodyLayer::json(is_unauthenticated))
///     .service(http_client);
///
/// let request = Request::post("https://api.example.com/graphql").body(r#"{"query":"{ me }"}"#.to_owned())?;
/// let response = client.ready().await?.call(request).await?;
/// # let body = response.into_body().collect().await?.to_bytes();
/// # assert_eq!(body, r#"{"data":{"me":"alice"}}"#);
/// # Ok(()) }
/// ```
///
/// A response is read if its content type is JSON, and if its size is not known to exceed the limit. In any case the
/// caller gets the body as it came: the same bytes in the same frames, with its trailers or its error. If the body
/// exceeds the limit, isn't complete in time, or isn't JSON, the response passes.
///
/// A compressed body has to be decompressed inside of this layer. The layer also reads responses to requests without a
/// token; their challenges are only reported.
#[derive(Clone)]
pub struct InspectBodyLayer {
    rules: Arc<Rules>,
}

/// A service that looks into a bounded part of some responses' bodies.
///
/// It is made by an [`InspectBodyLayer`].
#[derive(Clone)]
pub struct InspectBody<Svc> {
    inner: Svc,
    rules: Arc<Rules>,
}

#[derive(Clone)]
struct Rules {
    is_challenge: Arc<IsChallenge>,
    select: Option<Arc<Select>>,
    limit: usize,
    timeout: Duration,
}

type IsChallenge = dyn Fn(&ResponseHead<'_>, &Value) -> bool + Send + Sync;
type Select = dyn Fn(&ResponseHead<'_>) -> bool + Send + Sync;

pin_project! {
    /// The response future of [`InspectBody`].
    pub struct InspectBodyFuture<F, B>
    where
        B: Body,
    {
        rules: Arc<Rules>,
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, B>
    where
        B: Body,
    {
        // Waits for the head of the response.
        Calling { #[pin] future: F },
        // Reads the body.
        Reading { reading: Option<Box<Reading<B>>> },
    }
}

/// A response whose body is being read.
struct Reading<B: Body> {
    head: response::Parts,
    read: Peeked<B>,
    bytes: usize,
    deadline: Instant,
    /// Created at the first pending poll.
    sleep: Option<RuntimeSleep>,
}

pin_project! {
    /// The body of a response that an [`InspectBody`] returns: the inner service's body, with its data as [`Bytes`].
    pub struct InspectedBody<B>
    where
        B: Body,
    {
        #[pin]
        state: BodyState<B>,
    }
}

pin_project! {
    #[project = BodyStateProj]
    enum BodyState<B>
    where
        B: Body,
    {
        Untouched { #[pin] body: B },
        Peeked { peeked: Box<Peeked<B>> },
    }
}

/// A body of which some frames have been read.
struct Peeked<B: Body> {
    frames: VecDeque<Frame<Bytes>>,
    /// Follows the frames.
    error: Option<B::Error>,
    body: Pin<Box<B>>,
    has_ended: bool,
    /// The size hint of the body as if the frames had not been read.
    remaining: SizeHint,
}

impl InspectBodyLayer {
    /// Creates a layer that takes a response for a challenge if `is_challenge` returns `true` for its JSON body.
    #[must_use]
    pub fn json(is_challenge: impl Fn(&ResponseHead<'_>, &Value) -> bool + Send + Sync + 'static) -> Self {
        let rules = Rules { is_challenge: Arc::new(is_challenge), select: None, limit: LIMIT, timeout: TIMEOUT };
        Self { rules: Arc::new(rules) }
    }

    /// Selects the responses whose bodies are read.
    ///
    /// The head has no token: the layer is inside of the middleware. Default: content types of JSON
    /// (`application/json`, or a suffix `+json`).
    #[must_use]
    pub fn select(mut self, select: impl Fn(&ResponseHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.rules).select = Some(Arc::new(select));
        self
    }

    /// Sets the length up to which a body is read. Default: 8 KiB.
    #[must_use]
    pub fn limit(mut self, bytes: usize) -> Self {
        Arc::make_mut(&mut self.rules).limit = bytes;
        self
    }

    /// Sets the time that a response may be held back while its body is read. Default: 1 s.
    ///
    /// The timer needs a `tokio` runtime. Without one, only bodies that are available at once are read.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        Arc::make_mut(&mut self.rules).timeout = timeout;
        self
    }
}

impl<Svc> Layer<Svc> for InspectBodyLayer {
    type Service = InspectBody<Svc>;

    fn layer(&self, inner: Svc) -> Self::Service {
        InspectBody { inner, rules: Arc::clone(&self.rules) }
    }
}

impl<Svc> InspectBody<Svc> {
    /// Gets a reference to the inner service.
    pub fn get_ref(&self) -> &Svc {
        &self.inner
    }

    /// Consumes `self`, returning the inner service.
    pub fn into_inner(self) -> Svc {
        self.inner
    }
}

impl<Svc, ReqB, ResB> Service<Request<ReqB>> for InspectBody<Svc>
where
    Svc: Service<Request<ReqB>, Response = Response<ResB>>,
    ResB: Body,
{
    type Response = Response<InspectedBody<ResB>>;
    type Error = Svc::Error;
    type Future = InspectBodyFuture<Svc::Future, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        let state = State::Calling { future: self.inner.call(request) };
        InspectBodyFuture { rules: Arc::clone(&self.rules), state }
    }
}

impl<F, ResB, E> Future for InspectBodyFuture<F, ResB>
where
    F: Future<Output = Result<Response<ResB>, E>>,
    ResB: Body,
{
    type Output = Result<Response<InspectedBody<ResB>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Calling { future } => {
                    let response = ready!(future.poll(cx))?;
                    if !this.rules.selects(&response) {
                        return Poll::Ready(Ok(response.map(InspectedBody::untouched)));
                    }
                    let reading = Some(Box::new(Reading::new(response, this.rules.timeout)));
                    this.state.set(State::Reading { reading });
                }
                StateProj::Reading { reading } => {
                    let it = reading.as_mut().expect("a future is not polled after it has completed");
                    let json = ready!(it.poll_json(this.rules.limit, cx));
                    let Reading { mut head, read, .. } = *reading.take().expect("taken once, when the state is left");
                    if json.is_some_and(|json| this.rules.is_challenge(&head, &json)) {
                        head.extensions.insert(TokenExpired);
                    }
                    return Poll::Ready(Ok(Response::from_parts(head, InspectedBody::peeked(read))));
                }
            }
        }
    }
}

impl Rules {
    fn selects<B: Body>(&self, response: &Response<B>) -> bool {
        let body = response.body();
        let fits = !body.is_end_stream() && body.size_hint().lower() <= self.limit as u64;
        fits && match &self.select {
            Some(select) => select(&ResponseHead::of(response, "Bearer")),
            None => is_json(response.headers()),
        }
    }

    fn is_challenge(&self, head: &response::Parts, json: &Value) -> bool {
        (self.is_challenge)(&ResponseHead::new(head.status, &head.headers), json)
    }
}

/// Returns `true` if the content type is JSON (RFC 8259 §11, RFC 6839 §3.1).
fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media_type == "application/json" || media_type.ends_with("+json")
}

impl<B: Body> Reading<B> {
    fn new(response: Response<B>, timeout: Duration) -> Self {
        let (head, body) = response.into_parts();
        let remaining = body.size_hint();
        let read = Peeked { frames: VecDeque::new(), error: None, body: Box::pin(body), has_ended: false, remaining };
        Self { head, read, bytes: 0, deadline: Instant::now() + timeout, sleep: None }
    }

    /// Reads the body to its end and parses it. `None` if it is longer than `limit`, failed, late, or no JSON.
    fn poll_json(&mut self, limit: usize, cx: &mut Context<'_>) -> Poll<Option<Value>> {
        loop {
            if self.read.body.is_end_stream() {
                break;
            }
            match self.read.body.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let frame = into_bytes(frame);
                    // An empty frame counts as one byte, so that an endless series of them ends too.
                    self.bytes += frame.data_ref().map_or(0, Bytes::len).max(1);
                    self.read.frames.push_back(frame);
                    if self.bytes > limit {
                        return Poll::Ready(None);
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.read.error = Some(error);
                    return Poll::Ready(None);
                }
                Poll::Ready(None) => {
                    self.read.has_ended = true;
                    break;
                }
                Poll::Pending => return self.poll_late(cx).map(|()| None),
            }
        }
        Poll::Ready(self.read.json())
    }

    /// Resolves at the deadline, or at once if there is no timer.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sleep.is_none() {
            let Ok(runtime) = Handle::try_current() else { return Poll::Ready(()) };
            self.sleep = Some(RuntimeSleep::until(&runtime, self.deadline));
        }
        let sleep = self.sleep.as_mut().expect("created above");
        Pin::new(sleep).poll(cx).map(drop)
    }
}

impl<B: Body> Peeked<B> {
    fn json(&self) -> Option<Value> {
        let mut pieces = self.frames.iter().filter_map(Frame::data_ref);
        let (first, more) = (pieces.next()?, pieces.next());
        let Some(second) = more else { return serde_json::from_slice(first).ok() };
        let mut text = [&**first, second].concat();
        pieces.for_each(|piece| text.extend_from_slice(piece));
        serde_json::from_slice(&text).ok()
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(frame) = self.frames.pop_front() {
            self.remaining = without(self.remaining, &frame);
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if self.has_ended {
            return Poll::Ready(None);
        }
        self.body.as_mut().poll_frame(cx).map(|frame| frame.map(|frame| frame.map(into_bytes)))
    }

    fn has_read_all_given(&self) -> bool {
        self.frames.is_empty() && self.error.is_none()
    }
}

fn into_bytes<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
}

impl<B: Body> InspectedBody<B> {
    fn untouched(body: B) -> Self {
        Self { state: BodyState::Untouched { body } }
    }

    fn peeked(read: Peeked<B>) -> Self {
        Self { state: BodyState::Peeked { peeked: Box::new(read) } }
    }
}

impl<B: Body> Body for InspectedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().state.project() {
            BodyStateProj::Untouched { body } => {
                body.poll_frame(cx).map(|frame| frame.map(|frame| frame.map(into_bytes)))
            }
            BodyStateProj::Peeked { peeked } => peeked.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            BodyState::Untouched { body } => body.is_end_stream(),
            BodyState::Peeked { peeked } => {
                peeked.has_read_all_given() && (peeked.has_ended || peeked.body.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            BodyState::Untouched { body } => body.size_hint(),
            BodyState::Peeked { peeked } if peeked.has_read_all_given() => peeked.body.size_hint(),
            BodyState::Peeked { peeked } => peeked.remaining,
        }
    }
}

impl fmt::Debug for InspectBodyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rules { limit, timeout, .. } = &*self.rules;
        f.debug_struct("InspectBodyLayer").field("limit", limit).field("timeout", timeout).finish_non_exhaustive()
    }
}

impl<Svc: fmt::Debug> fmt::Debug for InspectBody<Svc> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InspectBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<F, B: Body> fmt::Debug for InspectBodyFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InspectBodyFuture").finish_non_exhaustive()
    }
}

impl<B: Body> fmt::Debug for InspectedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InspectedBody").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{FutureExt, StreamExt, stream};
    use http::{HeaderValue, StatusCode};
    use http_body_util::{BodyExt, Full, StreamBody};
    use tower::{ServiceExt, service_fn};

    use super::*;

    type Read = Result<Frame<Bytes>, &'static str>;

    const EXPIRED: &str = r#"{"expired":true}"#;

    fn data(text: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(text.as_bytes()))
    }

    fn trailers() -> Frame<Bytes> {
        Frame::trailers(HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("x"))]))
    }

    fn layer() -> InspectBodyLayer {
        InspectBodyLayer::json(|head, body| head.status() == StatusCode::OK && body["expired"] == true)
    }

    /// Sends a response with this body through the layer. Returns it, and whether it is marked.
    async fn inspect<B: Body>(
        layer: InspectBodyLayer,
        content_type: &'static str,
        body: B,
    ) -> (InspectedBody<B>, bool) {
        let mut response = Response::builder().header(CONTENT_TYPE, content_type).body(body).ok();
        let inner = service_fn(move |_: Request<()>| {
            let response = response.take().expect("one request");
            async { Ok::<_, Infallible>(response) }
        });
        let response = layer.layer(inner).oneshot(Request::new(())).await.unwrap();
        let is_marked = response.extensions().get::<TokenExpired>().is_some();
        (response.into_body(), is_marked)
    }

    async fn inspect_frames(frames: impl IntoIterator<Item = Read>) -> (Vec<String>, bool) {
        let body = StreamBody::new(stream::iter(frames.into_iter().collect::<Vec<_>>()));
        let (body, is_marked) = inspect(layer(), "application/json", body).await;
        (seen(body).await, is_marked)
    }

    /// Reads a body to its end or error, as text.
    async fn seen<B: Body<Data = Bytes, Error = &'static str>>(body: B) -> Vec<String> {
        let mut body = std::pin::pin!(body);
        let mut seen = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => seen.push(String::from_utf8(data.into()).unwrap()),
                Ok(Err(_)) => seen.push("trailers".to_owned()),
                Err(error) => {
                    seen.push(format!("error: {error}"));
                    break;
                }
            }
        }
        seen
    }

    #[tokio::test]
    async fn a_body_that_says_so_is_marked_and_given_back_in_the_same_frames() {
        let (seen, is_marked) = inspect_frames([Ok(data(EXPIRED))]).await;
        assert!(is_marked);
        assert_eq!(seen, [EXPIRED]);
        let (seen, is_marked) =
            inspect_frames([data("{\"expired\""), data(""), data(":true"), data("}"), trailers()].map(Ok)).await;
        assert!(is_marked);
        assert_eq!(seen, ["{\"expired\"", "", ":true", "}", "trailers"]);
    }

    #[tokio::test]
    async fn a_body_that_does_not_say_so_passes_as_it_came() {
        for frames in [&["{\"expired\":false}"][..], &["[]"], &["not JSON"], &["{\"expired\":true"], &[]] {
            let (seen, is_marked) = inspect_frames(frames.iter().map(|text| Ok(data(text)))).await;
            assert!(!is_marked, "{frames:?}");
            assert_eq!(seen, frames);
        }
        let (seen, is_marked) = inspect_frames([Ok(data("{")), Err("reset")]).await;
        assert_eq!((seen, is_marked), (vec!["{".into(), "error: reset".into()], false));
    }

    #[tokio::test]
    async fn a_body_of_exactly_the_limit_is_read_and_a_longer_one_passes() {
        let limit = |bytes| layer().limit(bytes);
        let chunks = || StreamBody::new(stream::iter([data("{\"expired\""), data(":true}")].map(Read::Ok)));
        let (body, is_marked) = inspect(limit(EXPIRED.len()), "application/json", chunks()).await;
        assert!(is_marked);
        assert_eq!(seen(body).await.concat(), EXPIRED);
        let (body, is_marked) = inspect(limit(EXPIRED.len() - 1), "application/json", chunks()).await;
        assert!(!is_marked);
        assert_eq!(seen(body).await.concat(), EXPIRED);
        // A size that is known to exceed the limit: nothing is read.
        let (body, is_marked) =
            inspect(limit(EXPIRED.len() - 1), "application/json", Full::new(EXPIRED.as_bytes())).await;
        assert!(!is_marked && matches!(body.state, BodyState::Untouched { .. }));
        assert_eq!(body.collect().await.unwrap().to_bytes(), EXPIRED);
        // Endless empty frames.
        let endless = StreamBody::new(stream::repeat_with(|| Read::Ok(data(""))));
        assert!(!inspect(layer(), "application/json", endless).await.1);
    }

    #[tokio::test]
    async fn without_a_limit_of_its_own_a_layer_reads_8_kib() {
        let padded = |len: usize| Full::new(Bytes::from(EXPIRED.to_owned() + &" ".repeat(len - EXPIRED.len())));
        assert!(inspect(layer(), "application/json", padded(8192)).await.1);
        assert!(!inspect(layer(), "application/json", padded(8193)).await.1);
    }

    #[tokio::test]
    async fn the_layer_is_ready_when_the_inner_service_is() {
        let (inner, mut handle) = tower_test::mock::pair::<Request<()>, Response<Full<Bytes>>>();
        let mut service = tokio_test::task::spawn(layer().layer(inner));
        handle.allow(0);
        assert!(service.enter(|cx, mut service| service.poll_ready(cx)).is_pending());
        handle.allow(1);
        assert!(service.enter(|cx, mut service| service.poll_ready(cx)).is_ready());
    }

    #[tokio::test]
    async fn only_json_is_read_unless_the_app_selects() {
        let body = || Full::new(Bytes::from_static(EXPIRED.as_bytes()));
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/graphql-response+json"] {
            assert!(inspect(layer(), json, body()).await.1, "{json}");
        }
        for other in ["text/html", "application/x-ndjson", "application/json-seq", ""] {
            assert!(!inspect(layer(), other, body()).await.1, "{other}");
        }
        let all = layer().select(|head| head.status() == StatusCode::OK);
        assert!(inspect(all, "text/html", body()).await.1);
        let none = layer().select(|_| false);
        assert!(!inspect(none, "application/json", body()).await.1);
    }

    #[tokio::test]
    async fn the_size_hint_and_the_end_are_those_of_the_body() {
        let (mut body, is_marked) = inspect(layer(), "application/json", Full::new(EXPIRED.as_bytes())).await;
        assert!(is_marked && !body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(EXPIRED.len() as u64));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), EXPIRED);
        assert!(body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));
        assert!(body.frame().await.is_none());

        let unknown = StreamBody::new(stream::iter([Read::Ok(data(EXPIRED))]));
        let (mut body, _) = inspect(layer(), "application/json", unknown).await;
        assert_eq!((body.size_hint().lower(), body.size_hint().upper()), (0, None));
        body.frame().await.unwrap().unwrap();
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }

    /// A body that knows its length once its first frame was read.
    struct Learning(Vec<Bytes>);

    impl Body for Learning {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Read>> {
            Poll::Ready(self.0.pop().map(|data| Ok(Frame::data(data))))
        }

        fn size_hint(&self) -> SizeHint {
            if self.0.len() > 2 {
                return SizeHint::default();
            }
            SizeHint::with_exact(self.0.iter().map(|data| data.len() as u64).sum())
        }
    }

    #[tokio::test]
    async fn the_size_hint_of_the_unread_rest_is_that_of_the_body() {
        let pieces = ["123", "12345678", "{"].map(Bytes::from).to_vec();
        let (mut body, _) = inspect(layer().limit(8), "application/json", Learning(pieces)).await;
        assert_eq!(body.size_hint().exact(), None);
        for piece in ["{", "12345678"] {
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
        }
        assert_eq!(body.size_hint().exact(), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_body_is_held_back_for_the_time_out_and_then_given_back() {
        let late = stream::once(async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Read::Ok(data(":true}"))
        });
        let body = StreamBody::new(Box::pin(stream::iter([Ok(data("{\"expired\""))]).chain(late)));
        let started = Instant::now();
        let (body, is_marked) = inspect(layer().timeout(Duration::from_secs(2)), "application/json", body).await;
        assert!(!is_marked);
        assert_eq!(started.elapsed().as_secs(), 2);
        assert_eq!(seen(body).await, ["{\"expired\"", ":true}"]);
    }

    #[test]
    fn without_a_runtime_only_a_body_that_is_available_is_read() {
        let inspected = inspect(layer(), "application/json", Full::new(EXPIRED.as_bytes())).now_or_never();
        assert!(inspected.unwrap().1);
        let pending = StreamBody::new(stream::iter([Read::Ok(data(EXPIRED))]).chain(stream::pending()));
        assert!(!inspect(layer(), "application/json", pending).now_or_never().unwrap().1);
    }
}
