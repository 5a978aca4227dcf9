//! A WebSocket client on the token API: reconnects with a newer token when the server refuses the handshake.

use std::fmt;

use http::header::{AUTHORIZATION, HeaderValue};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tower_auth_refresh::challenge::ResponseHead;
use tower_auth_refresh::{ChallengePolicy, Credential, NotRefreshed, Session};

pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A feed of events over a WebSocket.
#[derive(Clone, Debug)]
pub struct Feed {
    url: String,
    session: Session,
}

/// A feed could not be opened.
#[derive(Debug)]
pub enum FeedError {
    /// There is no access token that the server accepts.
    Token(NotRefreshed),
    /// The connection failed, for another reason than the token.
    Socket(tungstenite::Error),
}

impl Feed {
    /// Creates a feed that connects to `url` with the tokens of this session.
    pub fn new(url: impl Into<String>, session: Session) -> Self {
        Self { url: url.into(), session }
    }

    /// Opens the feed. If the server refuses the token, tries once more with a newer one.
    pub async fn open(&self) -> Result<Socket, FeedError> {
        let first = self.session.credential().await?;
        match self.connect(&first).await {
            Err(FeedError::Socket(error)) if is_challenge(&error) => {
                let newer = self.session.renewed(&first).await?;
                self.connect(&newer).await
            }
            opened => opened,
        }
    }

    async fn connect(&self, credential: &Credential) -> Result<Socket, FeedError> {
        let mut request = self.url.as_str().into_client_request()?;
        let token = credential.access_token().expose_secret();
        let mut bearer = HeaderValue::try_from(format!("Bearer {token}")).expect("a token is visible ASCII");
        bearer.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, bearer);
        let (socket, _) = connect_async(request).await?;
        self.session.accepted(credential);
        Ok(socket)
    }
}

fn is_challenge(error: &tungstenite::Error) -> bool {
    let tungstenite::Error::Http(response) = error else { return false };
    ChallengePolicy::bearer().matches(&ResponseHead::new(response.status(), response.headers()))
}

impl From<NotRefreshed> for FeedError {
    fn from(why: NotRefreshed) -> Self {
        Self::Token(why)
    }
}

impl From<tungstenite::Error> for FeedError {
    fn from(error: tungstenite::Error) -> Self {
        Self::Socket(error)
    }
}

impl fmt::Display for FeedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(_) => f.write_str("there is no access token for the feed"),
            Self::Socket(_) => f.write_str("the feed could not connect"),
        }
    }
}

impl std::error::Error for FeedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Token(why) => Some(why),
            Self::Socket(error) => Some(error),
        }
    }
}

mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures_util::future::join_all;
    use futures_util::{SinkExt, StreamExt};
    use http::{Request, Response};
    use http_body_util::{Either, Full};
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::net::TcpListener;
    use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
    use tokio_tungstenite::tungstenite::protocol::Role;
    use tower::ServiceExt;
    use tower_auth_refresh_testkit::{Fault, ResponseBody, Route, TestKit};

    use super::*;

    /// Serves a WebSocket that greets its user, and answers 401 at the handshake to a token that the kit refuses.
    async fn serve(kit: TestKit) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("ws://{}/feed", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let kit = kit.clone();
                let service = service_fn(move |request| upgrade(kit.clone(), request));
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection.with_upgrades());
            }
        });
        url
    }

    async fn upgrade(
        kit: TestKit,
        mut request: Request<Incoming>,
    ) -> Result<Response<Either<ResponseBody, Full<Bytes>>>, Infallible> {
        let mut check = Request::get("/api/feed").body(Full::<Bytes>::default()).unwrap();
        check.headers_mut().extend(request.headers().get(AUTHORIZATION).map(|token| (AUTHORIZATION, token.clone())));
        let checked = kit.oneshot(check).await.unwrap();
        if checked.status() != 200 {
            return Ok(checked.map(Either::Left));
        }
        let key = derive_accept_key(request.headers()["sec-websocket-key"].as_bytes());
        tokio::spawn(async move {
            let upgraded = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
            let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, None).await;
            socket.send(Message::text("hello")).await.unwrap();
        });
        let response = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
        Ok(response.header("sec-websocket-accept", key).body(Either::Right(Full::default())).unwrap())
    }

    async fn feed(kit: &TestKit) -> Feed {
        let tokens = kit.sign_in("ada").try_into().unwrap();
        let session = Session::builder(kit.refresh_service()).tokens(tokens).build().await.unwrap();
        Feed::new(serve(kit.clone()).await, session)
    }

    async fn greeting(feed: &Feed) -> String {
        let mut socket = feed.open().await.unwrap();
        socket.next().await.unwrap().unwrap().into_text().unwrap().to_string()
    }

    #[tokio::test]
    async fn twenty_feeds_that_are_refused_at_once_share_one_refresh() {
        let kit = TestKit::new();
        let feed = feed(&kit).await;
        assert_eq!(greeting(&feed).await, "hello");
        kit.expire_access_tokens();
        kit.hold_unauthorized_until(20);
        for greeting in join_all((0..20).map(|_| greeting(&feed))).await {
            assert_eq!(greeting, "hello");
        }
        assert_eq!((kit.counters().refreshes, kit.counters().unauthorized()), (1, 20));
        assert_eq!(kit.violations(), []);
    }

    #[tokio::test]
    async fn another_failure_than_a_refused_token_causes_no_refresh() {
        let kit = TestKit::new();
        let feed = feed(&kit).await;
        kit.inject(Route::Api, Fault::status(503).times(1));
        assert!(matches!(feed.open().await, Err(FeedError::Socket(tungstenite::Error::Http(_)))));
        assert_eq!(kit.counters().refreshes, 0);
    }

    #[tokio::test]
    async fn a_feed_of_a_session_that_has_ended_says_why() {
        let kit = TestKit::new();
        let feed = feed(&kit).await;
        kit.revoke("ada");
        assert!(matches!(feed.open().await, Err(FeedError::Token(NotRefreshed::Ended(_)))));
    }
}
