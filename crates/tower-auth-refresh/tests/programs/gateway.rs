//! A gateway that holds its users' tokens: the browser has a cookie, and each request is sent with the tokens of its
//! user's session.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{COOKIE, HOST, SET_COOKIE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tower::{BoxError, Layer, ServiceExt};
use tower_auth_refresh::layer::PerRequest;
use tower_auth_refresh::{AuthRefresh, AuthRefreshLayer, Origin, ReplayBody, Session, SessionRegistry};
use tower_auth_refresh_http::{AuthClient, JsonLogin, JsonLogout, JsonRefresh};
use uuid::Uuid;

type Body = Either<Incoming, Full<Bytes>>;

/// A gateway in front of one API.
#[derive(Clone)]
pub struct Gateway {
    upstream: String,
    login: JsonLogin,
    /// The key is the browser's cookie.
    sessions: SessionRegistry<Uuid>,
    client: AuthRefresh<Client<HttpConnector, ReplayBody<Incoming>>, PerRequest>,
}

impl Gateway {
    /// Creates a gateway in front of the API at `upstream`. Must be called within a `tokio` runtime.
    pub fn new(upstream: &str) -> Result<Self, BoxError> {
        let auth = AuthClient::new(Client::builder(TokioExecutor::new()).build_http());
        let refresh = JsonRefresh::new(auth.clone(), &format!("{upstream}/auth/refresh"))?;
        let revoke = JsonLogout::new(auth.clone(), &format!("{upstream}/auth/logout"))?;
        let login = JsonLogin::new(auth, &format!("{upstream}/auth/login"))?;
        let sessions = SessionRegistry::builder(Session::builder(refresh).revoke(revoke)).build()?;

        let client = Client::builder(TokioExecutor::new()).build_http();
        let client = AuthRefreshLayer::per_request(Origin::parse(upstream)?).layer(client);
        Ok(Self { upstream: upstream.to_owned(), login, sessions, client })
    }

    /// Serves connections until the task is aborted.
    pub async fn serve(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let gateway = self.clone();
            let service = service_fn(move |request| gateway.clone().handle(request));
            tokio::spawn(async move {
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }

    async fn handle(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let answer = match (request.method(), request.uri().path()) {
            (&Method::POST, "/login") => self.sign_in(request).await,
            (&Method::POST, "/logout") => self.sign_out(&request).await,
            _ => self.forward(request).await,
        };
        Ok(answer.unwrap_or_else(|error| {
            eprintln!("gateway: {error}");
            status(StatusCode::BAD_GATEWAY)
        }))
    }

    async fn sign_in(&self, request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
        let body = Limited::new(request.into_body(), 4096).collect().await?.to_bytes();
        let credentials: serde_json::Value = serde_json::from_slice(&body)?;
        let tokens = match self.login.request_tokens(&credentials).await {
            Ok(tokens) => tokens,
            Err(error) if error.is_rejected() => return Ok(status(StatusCode::UNAUTHORIZED)),
            Err(error) => return Err(error.into()),
        };
        let id = Uuid::new_v4();
        self.sessions.sign_in(id, tokens).await?;
        let mut response = status(StatusCode::NO_CONTENT);
        let cookie = HeaderValue::try_from(format!("id={id}; HttpOnly; Secure; SameSite=Strict"))?;
        response.headers_mut().insert(SET_COOKIE, cookie);
        Ok(response)
    }

    async fn sign_out(&self, request: &Request<Incoming>) -> Result<Response<Body>, BoxError> {
        if let Some(id) = session_id(request)
            && let Err(error) = self.sessions.sign_out(&id).await
        {
            // The user is signed out here all the same, unless the store can't be read; this gateway has none.
            eprintln!("gateway: {error}");
        }
        Ok(status(StatusCode::NO_CONTENT))
    }

    async fn forward(self, mut request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
        let session = match session_id(&request) {
            Some(id) => self.sessions.get(&id).await?,
            None => None,
        };
        let Some(session) = session else { return Ok(status(StatusCode::UNAUTHORIZED)) };
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = Uri::try_from(format!("{}{path}", self.upstream))?;
        request.headers_mut().remove(COOKIE);
        request.headers_mut().remove(HOST);
        request.extensions_mut().insert(session);
        Ok(self.client.oneshot(request).await?.map(Either::Left))
    }
}

fn session_id(request: &Request<Incoming>) -> Option<Uuid> {
    let cookies = request.headers().get(COOKIE)?.to_str().ok()?;
    cookies.split("; ").find_map(|cookie| cookie.strip_prefix("id=")?.parse().ok())
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::default()));
    *response.status_mut() = status;
    response
}

/// Serves a gateway on a free port, and returns its address.
async fn start(upstream: &str) -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(Gateway::new(upstream)?.serve(listener));
    Ok(address)
}

mod tests {
    use futures_util::future::join_all;
    use serde_json::{Value, json};
    use tower_auth_refresh_testkit::TestServer;

    use super::*;

    /// A browser: an HTTP client with one cookie.
    struct Browser {
        http: Client<HttpConnector, Full<Bytes>>,
        gateway: SocketAddr,
        cookie: HeaderValue,
    }

    impl Browser {
        async fn sign_in(gateway: SocketAddr, user: &str) -> Self {
            let http = Client::builder(TokioExecutor::new()).build_http();
            let mut browser = Self { http, gateway, cookie: HeaderValue::from_static("") };
            let body = json!({"username": user, "password": "any"}).to_string();
            let response = browser.send(Method::POST, "/login", body).await;
            assert_eq!(response.status(), 204);
            let cookie = response.headers()[SET_COOKIE].to_str().unwrap();
            browser.cookie = cookie.split(';').next().unwrap().parse().unwrap();
            browser
        }

        async fn send(&self, method: Method, path: &str, body: String) -> Response<Incoming> {
            let request = Request::builder().method(method).uri(format!("http://{}{path}", self.gateway));
            let request = request.header(COOKIE, &self.cookie).body(Full::from(body)).unwrap();
            self.http.request(request).await.unwrap()
        }

        /// Returns the name of the user for whom the API answers.
        async fn user(&self) -> Result<String, StatusCode> {
            let response = self.send(Method::GET, "/api/me", String::new()).await;
            if response.status() != 200 {
                return Err(response.status());
            }
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let answer: Value = serde_json::from_slice(&body).unwrap();
            Ok(answer["user"].as_str().unwrap().to_owned())
        }
    }

    #[tokio::test]
    async fn each_user_is_served_with_that_users_tokens_and_refreshed_once() {
        let server = TestServer::start().await.unwrap();
        let gateway = start(&server.origin()).await.unwrap();
        let (ada, ben) = (Browser::sign_in(gateway, "ada").await, Browser::sign_in(gateway, "ben").await);
        server.expire_access_tokens();
        server.hold_unauthorized_until(20);
        let users = join_all((0..10).flat_map(|_| [ada.user(), ben.user()])).await;
        for users in users.chunks(2) {
            assert_eq!(users, [Ok("ada".to_owned()), Ok("ben".to_owned())]);
        }
        assert_eq!((server.user("ada").refreshes, server.user("ben").refreshes), (1, 1));
        assert_eq!(server.violations(), []);
    }

    #[tokio::test]
    async fn after_a_sign_out_the_cookie_is_worthless_and_the_other_user_stays() {
        let server = TestServer::start().await.unwrap();
        let gateway = start(&server.origin()).await.unwrap();
        let (ada, ben) = (Browser::sign_in(gateway, "ada").await, Browser::sign_in(gateway, "ben").await);
        assert_eq!(ada.send(Method::POST, "/logout", String::new()).await.status(), 204);
        assert_eq!(server.counters().logouts, 1);
        assert_eq!(ada.user().await, Err(StatusCode::UNAUTHORIZED));
        assert_eq!(ben.user().await, Ok("ben".to_owned()));
        assert_eq!(server.counters().unauthorized(), 0, "the gateway sends no request without a session");
    }

    #[tokio::test]
    async fn an_upload_through_the_gateway_is_replayed_whole() {
        let server = TestServer::start().await.unwrap();
        let gateway = start(&server.origin()).await.unwrap();
        let ada = Browser::sign_in(gateway, "ada").await;
        server.expire_access_tokens();
        let response = ada.send(Method::POST, "/api/echo", "note".repeat(1000)).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "note".repeat(1000));
    }
}
